//! Binary files made to cost more than they are.

/// Treelite's: many trees of one leaf, one tree of many nodes that are no part of it, vectors of one leaf that the
/// model's shape widens.
pub(crate) fn checkpoints(times: usize) -> [(&'static str, Vec<u8>); 3] {
    let word = |number: usize| u32::try_from(number).expect("small").to_le_bytes().to_vec();
    let long = |number: usize| (number as u64).to_le_bytes().to_vec();
    let array = |size: usize, bytes: Vec<u8>| [long(bytes.len() / size), bytes].concat();
    let header = |trees: usize, targets: usize, ids: Vec<u8>, leaf_shape: [usize; 2]| {
        let version = [word(4), word(8), word(1), vec![2, 2], long(trees), word(1), vec![1, 0]].concat();
        let targets_of = [word(targets), array(4, word(1).repeat(targets))].concat();
        let leaf_shape = array(4, [word(leaf_shape[0]), word(leaf_shape[1])].concat());
        let ids = [array(4, ids), array(4, word(0).repeat(trees))].concat();
        let link = [array(1, b"identity".to_vec()), vec![0; 8], array(8, vec![0; 8 * targets])].concat();
        [version, targets_of, leaf_shape, ids, link, array(1, b"{}".to_vec()), word(0)].concat()
    };
    let tree = |nodes: usize, vector: usize| {
        let arrays = [(1, 0), (4, 0xff), (4, 0xff), (4, 0), (1, 0), (4, 0), (4, 0), (1, 0), (1, 0)];
        let arrays = arrays.map(|(size, fill)| array(size, vec![fill; size * nodes])).concat();
        let ends = array(8, long(vector).repeat(nodes));
        let vectors = [array(4, vec![0; 4 * vector]), array(8, vec![0; 8 * nodes]), ends].concat();
        let lists = [array(4, Vec::new()), array(8, vec![0; 8 * nodes]), array(8, vec![0; 8 * nodes])].concat();
        [word(nodes), vec![0], arrays, vectors, lists, vec![0; 6 * 8 + 8]].concat()
    };
    let small = [header(times, 1, word(0).repeat(times), [1, 1]), tree(1, 0).repeat(times)].concat();
    let islands = [header(1, 1, word(0), [1, 1]), tree(times, 0)].concat();
    let wide = [header(1, 1000, vec![0xff; 4], [1000, 1]), tree(1, 1000)].concat();
    [("small trees", small), ("islands", islands), ("wide leaf", wide)]
}

/// ONNX's: each repeated part at its smallest, and ensembles of the smallest trees.
pub(crate) fn graphs(times: usize) -> Vec<(&'static str, Vec<u8>)> {
    let varint = |mut number: usize| {
        let mut bytes = Vec::new();
        while number > 0x7f {
            bytes.push(0x80 | number.to_le_bytes()[0] & 0x7f);
            number >>= 7;
        }
        bytes.push(number.to_le_bytes()[0]);
        bytes
    };
    let field = |number: u8, content: &[u8]| [vec![number << 3 | 2], varint(content.len()), content.to_vec()].concat();
    let attribute =
        |name: &str, number: u8, list: &[u8]| field(5, &[field(1, name.as_bytes()), field(number, list)].concat());
    let texts = |name: &str, text: &str| {
        field(5, &[field(1, name.as_bytes()), field(9, text.as_bytes()).repeat(times)].concat())
    };
    let tensor = |name: &str, kind: u8, raw: &[u8]| {
        let tensor = [vec![0x10, kind], field(9, raw)].concat();
        field(5, &[field(1, name.as_bytes()), field(5, &tensor)].concat())
    };
    let outlet = |name: &str, width: u8| {
        let shape = [field(1, b""), field(1, &[0x08, width])].concat();
        [field(1, name.as_bytes()), field(2, &field(1, &[vec![0x08, 1], field(2, &shape)].concat()))].concat()
    };
    let model = |graph: &[u8]| [vec![0x08, 9], field(7, graph)].concat();
    let ensemble = |operator: &str, attributes: Vec<Vec<u8>>| {
        let head = [field(1, b"x"), field(2, b"variable"), field(4, operator.as_bytes())].concat();
        let node = field(1, &[head, attributes.concat()].concat());
        model(&[node, field(11, &outlet("x", 100)), field(12, &outlet("variable", 1))].concat())
    };
    let ids: Vec<u8> = (0..times).flat_map(varint).collect();
    let leaves = ensemble(
        "TreeEnsembleRegressor",
        vec![
            attribute("nodes_treeids", 8, &ids),
            attribute("nodes_nodeids", 8, &vec![0; times]),
            attribute("nodes_featureids", 8, &vec![0; times]),
            attribute("nodes_truenodeids", 8, &vec![0; times]),
            attribute("nodes_falsenodeids", 8, &vec![0; times]),
            attribute("nodes_values", 7, &vec![0; 4 * times]),
            texts("nodes_modes", "LEAF"),
            attribute("target_treeids", 8, &ids),
            attribute("target_nodeids", 8, &vec![0; times]),
            attribute("target_ids", 8, &vec![0; times]),
            attribute("target_weights", 7, &vec![0; 4 * times]),
            field(5, &[field(1, b"n_targets"), vec![0x18, 1]].concat()),
        ],
    );
    let even: Vec<u8> = (0..times).flat_map(|tree| varint(2 * tree)).collect();
    let odd: Vec<u8> = (0..times).flat_map(|tree| varint(2 * tree + 1)).collect();
    let stumps = ensemble(
        "TreeEnsemble",
        vec![
            attribute("tree_roots", 8, &ids),
            attribute("nodes_featureids", 8, &vec![0; times]),
            attribute("nodes_truenodeids", 8, &even),
            attribute("nodes_falsenodeids", 8, &odd),
            attribute("nodes_trueleafs", 8, &vec![1; times]),
            attribute("nodes_falseleafs", 8, &vec![1; times]),
            tensor("nodes_modes", 2, &vec![0; times]),
            tensor("nodes_splits", 1, &vec![0; 4 * times]),
            attribute("leaf_targetids", 8, &vec![0; 2 * times]),
            tensor("leaf_weights", 1, &vec![0; 8 * times]),
            field(5, &[field(1, b"n_targets"), vec![0x18, 1]].concat()),
        ],
    );
    let single = [field(1, b"nodes_treeids"), [0x40, 0].repeat(times)].concat();
    let names = format!("[{}]", vec!["\"\""; times].join(","));
    let metadata = field(14, &[field(1, b"feature_names"), field(2, names.as_bytes())].concat());
    let named = [ensemble("TreeEnsembleRegressor", Vec::new()), metadata].concat();
    vec![
        ("single leaves", leaves),
        ("stumps", stumps),
        ("unpacked", ensemble("TreeEnsembleRegressor", vec![field(5, &single)])),
        ("names", named),
        ("empty nodes", model(&field(1, b"").repeat(times))),
        ("small nodes", model(&field(1, &field(4, b"A")).repeat(times))),
        ("empty constants", model(&field(5, b"").repeat(times))),
        ("empty inputs", model(&field(11, b"").repeat(times))),
        ("inputs", model(&field(11, &outlet("a", 1)).repeat(times))),
        ("empty outputs", model(&field(12, b"").repeat(times))),
        ("opsets", [model(b""), field(8, b"").repeat(times)].concat()),
    ]
}
