use serde_json::{Value, json};

use super::*;

/// Two features; a root and two leaves.
fn file() -> Value {
    let tree = json!({
        "id": 0, "tree_param": {"num_nodes": "3", "num_deleted": "0", "size_leaf_vector": "1", "num_feature": "2"},
        "left_children": [1, -1, -1], "right_children": [2, -1, -1], "parents": [2_147_483_647, 0, 0],
        "split_indices": [1, 0, 0], "split_conditions": [0.5, -1.0, 1.0], "split_type": [0, 0, 0],
        "default_left": [1, 0, 0], "loss_changes": [1.0, 0.0, 0.0], "sum_hessian": [2.0, 1.0, 1.0],
        "base_weights": [0.0, -1.0, 1.0], "categories": [], "categories_nodes": [], "categories_segments": [],
        "categories_sizes": [],
    });
    json!({"version": [3, 2, 0], "learner": {
        "attributes": {}, "feature_names": [], "feature_types": [],
        "learner_model_param": {"base_score": "[2.5E0]", "num_class": "0", "num_feature": "2", "num_target": "1"},
        "objective": {"name": "reg:squarederror", "reg_loss_param": {"scale_pos_weight": "1"}},
        "gradient_booster": {"name": "gbtree", "model": {
            "gbtree_model_param": {"num_trees": "1", "num_parallel_tree": "1"}, "tree_info": [0], "trees": [tree],
        }},
    }})
}

const LEARNER: &str = "/learner";
const SIZES: &str = "/learner/learner_model_param";
const OBJECTIVE: &str = "/learner/objective";
const BOOSTER: &str = "/learner/gradient_booster";
const MODEL: &str = "/learner/gradient_booster/model";
const TREE: &str = "/learner/gradient_booster/model/trees/0";

fn read(file: &Value) -> Result<Header, String> {
    Header::read(file.to_string().as_bytes())
}

/// The file with some of its parts changed.
fn with(changes: &[(&str, &str, Value)]) -> Value {
    let mut file = file();
    for (at, key, value) in changes {
        file.pointer_mut(at).unwrap()[*key] = value.clone();
    }
    file
}

#[track_caller]
fn refused(changes: &[(&str, &str, Value)], words: &str) {
    let reason = read(&with(changes)).unwrap_err();
    assert!(reason.contains(words), "{reason}");
}

#[test]
fn a_base_score_in_a_list_is_put_as_a_number() {
    let header = read(&file()).unwrap();
    assert_eq!(header.feature_names, ["f0", "f1"]);
    assert_eq!((header.outputs, header.base_score.to_bits()), (1, 2.5_f32.to_bits()));
    let told: Value = serde_json::from_slice(&header.bytes).unwrap();
    assert_eq!(told, with(&[(SIZES, "base_score", "2.5E0".into())]));
    assert!(header.details.contains(&("base score".to_owned(), "[2.5E0]".to_owned())));
    for text in ["5E-1", "0.5", " [ 5E-1 ] "] {
        assert_eq!(base_scores(text, 1), Ok(vec![0.5]));
    }
    assert_eq!(base_scores("[5E-1,5E-1]", 2), Ok(vec![0.5]));
    assert_eq!(base_scores("[5E-1,1]", 2), Ok(vec![0.5, 1.0]));
    for text in ["", "[]", "[1", "x", "[NaN]", "inf", "1E99", "[1,2]"] {
        assert!(base_scores(text, 1).unwrap_err().contains("`base_score`"), "{text}");
    }
}

#[test]
fn an_objective_that_1_6_2_reads_otherwise_is_put_as_one_with_the_same_link() {
    let header = read(&with(&[(OBJECTIVE, "name", "rank:ndcg".into())])).unwrap();
    let told: Value = serde_json::from_slice(&header.bytes).unwrap();
    assert_eq!(told["learner"]["objective"]["name"], "reg:pseudohubererror");
    assert!(header.details.contains(&("objective".to_owned(), "rank:ndcg".to_owned())), "shown as it is");
}

#[test]
fn what_would_be_misread_is_refused_with_the_reason() {
    refused(&[("", "version", json!([3, 3, 0]))], "written by XGBoost 3.3.0");
    refused(&[("", "version", json!([4, 0, 0]))], "written by XGBoost 4.0.0");
    refused(&[("", "version", json!([3]))], "`version` is not three numbers");
    refused(&[(OBJECTIVE, "name", "reg:new".into())], "\"reg:new\" is not one that this version scores; the compiled");
    refused(&[(BOOSTER, "name", "gbnew".into())], "\"gbnew\" is not one of");
    refused(&[(SIZES, "num_target", "2".into())], "2 targets: more than one is not scored; the compiled forest");
    refused(&[(LEARNER, "feature_types", json!(["q", "c"]))], "categorical features, which XGBoost 1.6");
    refused(&[(TREE, "split_type", json!([1, 0, 0]))], "tree 0: categorical features");
    refused(&[("/learner/gradient_booster/model/trees/0/tree_param", "size_leaf_vector", "2".into())], "2 numbers");
    refused(&[(TREE, "leaf_weights", json!([1.0, 1.0]))], "`multi_output_tree`");
}

#[test]
fn damaged_and_hostile_files_are_refused_before_the_library_sees_them() {
    refused(&[(SIZES, "num_feature", "4294967295".into())], "4294967295 features: between 1");
    refused(&[(SIZES, "num_feature", "0".into())], "0 features");
    refused(&[(SIZES, "num_feature", "-1".into())], "`num_feature` is not a count");
    refused(&[(SIZES, "num_class", "3".into())], "`num_class` of 3 does not go");
    let softprob = (OBJECTIVE, "name", "multi:softprob".into());
    refused(&[softprob.clone(), (SIZES, "num_class", "2000000000".into())], "`num_class` of 2000000000");
    let classes = (OBJECTIVE, "softmax_multiclass_param", json!({"num_class": "9"}));
    refused(&[softprob, (SIZES, "num_class", "3".into()), (SIZES, "base_score", "0.5".into()), classes], "3 and 9");
    refused(&[(SIZES, "base_score", "[1,2]".into())], "2 numbers for 1 outputs");
    refused(&[(SIZES, "base_score", 0.5.into())], "`base_score` is not a plain text");
    refused(&[(LEARNER, "feature_names", json!(["a"]))], "2 features with 1 names");
    refused(&[(LEARNER, "feature_names", json!(["a", "a"]))], "1 of them different");
    refused(&[(LEARNER, "feature_names", json!([1, 2]))], "not a list of names");
    refused(&[(MODEL, "tree_info", json!([1]))], "belongs to no output");
    refused(&[(MODEL, "tree_info", json!([]))], "`tree_info` is not a list of 1 numbers");
    refused(&[(MODEL, "gbtree_model_param", json!({"num_trees": "2"}))], "1 trees, in rounds of 1");
    let forest = json!({"num_trees": "1", "num_parallel_tree": "2"});
    refused(&[(MODEL, "gbtree_model_param", forest)], "1 trees, in rounds of 2");
    refused(&[(TREE, "id", 7.into())], "`id` is not its place");
    refused(&[(TREE, "loss_changes", json!([]))], "`loss_changes` is not a list of 3 numbers");
    refused(&[(TREE, "parents", json!([0, 9, 0]))], "a node has no parent");
    for (key, numbers) in [
        ("left_children", json!([0, -1, -1])),
        ("left_children", json!([7, -1, -1])),
        ("left_children", json!([1.5, -1, -1])),
        ("left_children", json!([-1, -1, -1])),
        ("right_children", json!([1e300, -1, -1])),
        ("parents", json!([0, 0, 1])),
        ("split_indices", json!([2, 0, 0])),
        ("split_indices", json!([-1, 0, 0])),
    ] {
        refused(&[(TREE, key, numbers)], "tree 0: node 0 has wrong children or splits on no feature");
    }
    // A child that is its own grandparent.
    let loops = [
        (TREE, "left_children", json!([1, 2, 1])),
        (TREE, "right_children", json!([2, 2, 1])),
        (TREE, "parents", json!([0, 2, 1])),
    ];
    refused(&loops, "node 0 has wrong children");
    let linear = |weights: Value| [(BOOSTER, "name", "gblinear".into()), (MODEL, "weights", weights)];
    assert!(read(&with(&linear(json!([1.0, 2.0, 3.0])))).is_ok());
    refused(&linear(json!([1.0, 2.0])), "`weights` is not a list of 3 numbers");
    let dart = |weights: Value| {
        let model = file().pointer(MODEL).unwrap().clone();
        [
            (BOOSTER, "name", "dart".into()),
            (BOOSTER, "gbtree", json!({"name": "gbtree", "model": model})),
            (BOOSTER, "weight_drop", weights),
        ]
    };
    assert!(read(&with(&dart(json!([0.5])))).is_ok());
    refused(&dart(json!([])), "`weight_drop` is not a list of 1 numbers");
}

#[test]
fn every_missing_part_is_named() {
    let whole = file();
    let parts = [
        ("", "version"),
        ("", "learner"),
        (LEARNER, "objective"),
        (SIZES, "base_score"),
        (MODEL, "trees"),
        (TREE, "id"),
    ];
    for (at, key) in parts {
        let mut file = whole.clone();
        file.pointer_mut(at).unwrap().as_object_mut().unwrap().shift_remove(key);
        let reason = read(&file).unwrap_err();
        assert!(reason.contains(&format!("`{key}`")), "{key}: {reason}");
    }
}
