//! `forebay topology`, on this machine and on machines that hwloc makes up, each in a process of its own.

use std::collections::BTreeMap;

use super::*;

const ALL_DEFAULTS: &str = "[kafka]\ngroup = \"g\"\n[[route]]\ninput = [\"in\"]\nreply_topic = \"out\"\n\
    [[model]]\nname = \"m\"\npath = \"m.txt\"\n";

/// On a machine of this description.
fn on(machine: &str, args: &[&str]) -> Ran {
    run(forebay(["topology"].iter().chain(args)).env("HWLOC_SYNTHETIC", machine))
}

/// Score threads by the CPU that they stand at, and shards by their node.
fn places(topology: &Value) -> (BTreeMap<u64, u64>, BTreeMap<u64, u64>) {
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let number = |value: &Value| value.as_u64().expect("a number");
    let (mut threads, mut shards) = (BTreeMap::new(), BTreeMap::new());
    for node in list(&topology["nodes"]) {
        shards.extend(list(&node["shards"]).iter().map(|shard| (number(shard), number(&node["node"]))));
        for cpu in list(&node["cores"]).iter().flat_map(|core| list(&core["cpus"])) {
            threads.extend(list(&cpu["score_threads"]).iter().map(|thread| (number(thread), number(&cpu["cpu"]))));
        }
    }
    (threads, shards)
}

#[test]
fn two_nodes_are_drawn_as_a_tree() {
    // Numbered as Linux does: the first CPU of every core, then the second.
    let machine = "numa:2(memory=32GiB) core:2 pu:2(indexes=0,4,1,5,2,6,3,7)";
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("worker.toml");
    fs::write(&file, format!("{ALL_DEFAULTS}[engine]\nnum_threads = 5\n")).unwrap();
    let ran = on(machine, &["--config", file.to_str().unwrap()]).expect(0);
    let tree = "\
machine: 2 nodes, 4 cores, 8 CPUs (as hwloc's environment variables say: not this machine); 8 granted; 5 score threads
├── node 0, 32.0 GiB: forebay-source-0, forebay-txn-0
│   ├── core 0: CPU 0 (forebay-score-0), CPU 4 (forebay-score-4)
│   └── core 1: CPU 1 (forebay-score-2), CPU 5
└── node 1, 32.0 GiB
    ├── core 2: CPU 2 (forebay-score-1), CPU 6
    └── core 3: CPU 3 (forebay-score-3), CPU 7
";
    assert_eq!(ran.stdout, tree);
    assert_eq!(ran.stderr, "");
}

#[test]
fn four_nodes_share_threads_and_shards() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("worker.toml");
    // The file's name comes from a variable that is not set here.
    let text = ALL_DEFAULTS.replace("group = \"g\"", "group = \"g\"\nshards = 6");
    fs::write(&file, format!("instance = \"${{FOREBAY_NOT_SET}}\"\n{text}[engine]\nnum_threads = 6\n")).unwrap();
    let ran = on("numa:4 core:3 pu:1", &["--json", "--config", file.to_str().unwrap()]).expect(0);
    let topology: Value = serde_json::from_str(&ran.stdout).unwrap();
    let (threads, shards) = places(&topology);
    assert_eq!(threads, [(0, 0), (1, 3), (2, 6), (3, 9), (4, 1), (5, 4)].into());
    assert_eq!(shards, [(0, 0), (1, 1), (2, 2), (3, 3), (4, 0), (5, 1)].into());
    assert_eq!(topology["is_this_system"], false);
}

#[test]
fn one_node_holds_nothing_and_more_threads_than_cpus_are_pinned_to_none() {
    let topology: Value = serde_json::from_str(&on("core:2 pu:1", &["--json"]).expect(0).stdout).unwrap();
    assert_eq!(places(&topology), ([(0, 0), (1, 1)].into(), [].into()));
    assert_eq!(topology["shards"], serde_json::json!([0]));
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("worker.toml");
    fs::write(&file, format!("{ALL_DEFAULTS}[engine]\nnum_threads = 3\n")).unwrap();
    let ran = on("numa:2 pu:1", &["--json", "--config", file.to_str().unwrap()]).expect(0);
    let topology: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(places(&topology).0, [].into());
    let held = [0, 1].map(|node: usize| topology["nodes"][node]["score_threads"].as_array().unwrap().len());
    assert_eq!((held[0] + held[1], held[0].min(held[1])), (3, 1));
}

#[test]
fn a_core_that_is_not_there_is_named() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("worker.toml");
    fs::write(&file, format!("{ALL_DEFAULTS}[engine]\npin = [0, 9]\n")).unwrap();
    let ran = on("core:2 pu:1", &["--config", file.to_str().unwrap()]);
    ran.expect_error(2, &["engine.pin: core 9 is not granted to this process; it has [0, 1]"]);
}

#[test]
fn on_this_machine_the_mask_bounds_the_plan() {
    let whole: Value = serde_json::from_str(&run(&mut forebay(["topology", "--json"])).expect(0).stdout).unwrap();
    let (threads, _) = places(&whole);
    assert_eq!(whole["is_this_system"], true);
    assert_eq!(whole["score_threads_total"], threads.len(), "{whole}");
    let last = *threads.values().max().expect("a thread");
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &last.to_string(), env!("CARGO_BIN_EXE_forebay"), "topology", "--json"]);
    let masked: Value = serde_json::from_str(&run(&mut command).expect(0).stdout).unwrap();
    assert_eq!((&masked["granted_cpus"], &masked["score_threads_total"]), (&1.into(), &1.into()));
    assert_eq!(places(&masked).0, [(0, last)].into());
}

/// A plan whose CPUs and node the kernel does not have: what a container without the permission to bind looks like.
#[test]
fn a_refusal_is_said_once_and_every_row_is_scored() {
    let machine = "numa:2(indexes=900,901) core:2 pu:1(indexes=1000,1001,1002,1003)";
    let model = higgs("higgs.model.txt");
    let data = higgs("higgs.test.tsv");
    let mut command = forebay(["score", "--no-header", "--skip-columns", "1", "--model"]);
    command.args([model, data]).env("HWLOC_SYNTHETIC", machine);
    let ran = run(&mut command).expect(0);
    assert_eq!(ran.stdout.lines().count(), TEST_ROWS);
    assert_eq!(ran.stderr.matches("the system does not pin them").count(), 1, "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("the system does not bind memory to a node").count(), 1, "{}", ran.stderr);
}

/// What a thread may run on, by the names that the system shows.
#[cfg(feature = "kafka")]
fn masks_of(process: u32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let masks = tasks.filter_map(|task| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let value = |key: &str| Some(status.lines().find_map(|line| line.strip_prefix(key))?.trim().to_owned());
        Some((value("Name:")?, value("Cpus_allowed_list:")?))
    });
    masks.collect()
}

/// Two CPUs of this machine as two nodes: the Kafka threads of shard 0, and librdkafka's, stay on the node of score
/// thread 0, and the memory of the node that is not there is no reason to stop.
#[cfg(feature = "kafka")]
#[test]
fn a_shards_threads_and_librdkafkas_stay_on_its_node() {
    let whole: Value = serde_json::from_str(&run(&mut forebay(["topology", "--json"])).expect(0).stdout).unwrap();
    let cpus: Vec<u64> = places(&whole).0.into_values().collect();
    let [first, second, ..] = cpus[..] else {
        return not_shown("a_shards_threads_and_librdkafkas_stay_on_its_node", "one CPU");
    };
    let mut command = forebay(["demo", "--records", "4000", "--rate", "2000"]);
    command.env("HWLOC_SYNTHETIC", format!("numa:2 core:1 pu:1(indexes={first},{second})"));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (first, second) = (first.to_string(), second.to_string());
    let mut seen = Vec::new();
    let settled = loop {
        let masks = masks_of(child.id());
        let is = |name: &str, cpu: &str| masks.iter().any(|(thread, mask)| thread == name && mask == cpu);
        let ours = ["forebay-source-0", "forebay-txn-0", "forebay-start-0", "forebay-score-0", "rdk:main"];
        // The names are cut to 15 characters.
        if ours.iter().all(|name| is(&name[..name.len().min(15)], &first)) && is("forebay-score-1", &second) {
            break true;
        }
        if child.try_wait().unwrap().is_some() {
            break false;
        }
        seen = masks;
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(settled, "{seen:?}");
}

#[cfg(feature = "kafka")]
fn not_shown(name: &str, why: &str) {
    if let Some(file) = std::env::var_os("FOREBAY_SKIPS") {
        let mut file = fs::File::options().append(true).create(true).open(file).unwrap();
        writeln!(file, "{name}: not shown: {why}").unwrap();
    }
}
