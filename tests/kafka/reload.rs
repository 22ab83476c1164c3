//! Models exchanged under a running worker: five hundred times by the admin port, by SIGHUP and by the watch; refused,
//! tried as a canary, and taken back.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::Shared;
use crate::support::stream::Feed;
use crate::support::{Record, Worker, until};

const RELOADS: u32 = 500;
/// Records that flow meanwhile.
const SENT: usize = 16_000;
/// Of these at least, between two reloads.
const SENT_A_RELOAD: usize = 16;
/// Trees of the exchanged model: enough that keeping old versions would show in the process's memory.
const TREES: usize = 400;
/// What the process may hold more after the last reload than after the first few: each version is 100 KB and more.
const GROWTH_BYTES_MAX: i64 = 16 << 20;

/// A LightGBM model of one feature that answers `score` for x > 0.
fn model(path: &Path, score: u32) {
    let tree = |number: usize| {
        let leaf = if number == 0 { score } else { 0 };
        format!(
            "Tree={number}\nnum_leaves=2\nnum_cat=0\nsplit_feature=0\nsplit_gain=1\nthreshold={}\ndecision_type=2\n\
             left_child=-1\nright_child=-2\nleaf_value=0 {leaf}\nleaf_weight=1 1\nleaf_count=1 1\ninternal_value=0\n\
             internal_weight=2\ninternal_count=2\nis_linear=0\nshrinkage=1\n\n\n",
            -(number as f64)
        )
    };
    let trees: Vec<String> = (0..TREES).map(tree).collect();
    let sizes: Vec<String> = trees.iter().map(|tree| tree.len().to_string()).collect();
    let text = format!(
        "tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\nmax_feature_idx=0\n\
         objective=regression\nfeature_names=x\nfeature_infos=[-1:1]\ntree_sizes={}\n\n{}end of trees\n",
        sizes.join(" "),
        trees.concat()
    );
    // Moved into place, as whoever exchanges a file under readers should.
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

fn toml(shared: &Shared, name: &str, path: &Path, model: &str) -> String {
    let (brokers, path) = (shared.kafka.brokers(), path.display());
    format!(
        "[kafka]\nbrokers = \"{brokers}\"\ngroup = \"{name}\"\n[[route]]\ninput = [\"{name}-in\"]\n\
         reply_topic = \"{name}-out\"\n[[model]]\nname = \"m\"\npath = \"{path}\"\n{model}\n"
    )
}

fn request(n: usize) -> Record {
    Record::new(&n.to_string(), format!("{{\"id\":\"r{n}\",\"features\":[[1.0],[-1.0],[2.0]]}}"))
}

/// The version and the score of a reply, all of whose rows must be by one version.
fn answer(reply: &Record) -> (u32, f64) {
    let json = reply.json();
    let scores: Vec<[f64; 1]> = serde_json::from_value(json["prediction"].clone()).unwrap_or_else(|_| panic!("{json}"));
    let expected = [scores[0][0], 0.0, scores[0][0]];
    assert!(scores.iter().flatten().eq(&expected), "{json}");
    let version = json["metadata"]["version"].as_str().and_then(|version| version.parse().ok());
    (version.unwrap_or_else(|| panic!("{json}")), scores[0][0])
}

fn change(worker: &Worker, path: &str) -> (u16, Value) {
    let (status, body) = worker.post(path, Worker::TOKEN).expect("an answer");
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

fn info(worker: &Worker) -> Value {
    let (_, body) = worker.get("/models").expect("an answer");
    serde_json::from_str::<Value>(&body).unwrap()[0].take()
}

fn resident_bytes(worker: &Worker) -> i64 {
    i64::try_from(worker.metric("process_resident_memory_bytes")).unwrap()
}

pub(crate) fn five_hundred_under_load(shared: &Shared) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.txt");
    let (input, output) = shared.topics("reloads", 2);
    model(&path, 1);
    let mut worker = Worker::ready(&toml(shared, "reloads", &path, ""), "reloads");
    // For as long as the reloads take, and some more.
    let feed = Feed::start(&shared.kafka, &input, 2_000.0, SENT, request);
    let mut resident = 0;
    for version in 2..=RELOADS + 1 {
        // Each version has its time, however quickly the next one is loaded.
        feed.wait_sent((version as usize - 1) * SENT_A_RELOAD);
        model(&path, version);
        let (status, change) = change(&worker, "/models/m/reload");
        assert_eq!((status, &change), (200, &json!({ "change": "version", "from": version - 1, "to": version })));
        if version == 20 {
            resident = resident_bytes(&worker);
        }
    }
    let sent = feed.sent();
    feed.end();
    let replies = shared.kafka.read(&output, SENT);
    assert_eq!(replies.len(), SENT, "one reply each");
    let mut by_version = vec![0_u32; RELOADS as usize + 2];
    for reply in &replies {
        let (version, score) = answer(reply);
        assert!((score - f64::from(version)).abs() < f64::EPSILON, "version {version} answers {score}");
        by_version[version as usize] += 1;
    }
    let answering = by_version.iter().filter(|count| **count > 0).count();
    assert!(answering > 100, "only {answering} versions answered anything: {sent} of {SENT} were sent meanwhile");
    let grown = resident_bytes(&worker) - resident;
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more than after 19 reloads, {resident} bytes");
    println!("{RELOADS} reloads while {sent} records came: {answering} versions answered, {grown} bytes grown");
    assert_eq!(worker.terminate(), Some(0));
}

/// One record through the worker: which version answered, with which score.
fn ask(shared: &Shared, name: &str, n: usize) -> (u32, f64) {
    shared.kafka.send(&format!("{name}-in"), &[request(n)]);
    answer(&shared.kafka.read(&format!("{name}-out"), n + 1)[n])
}

pub(crate) fn by_watch_and_by_hand(shared: &Shared) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    shared.topics("registry", 1);
    model(&file("m.txt"), 1);
    let text = |model: &str| toml(shared, "registry", &file("m.txt"), model);
    let mut worker = Worker::ready(&text("reload = \"watch\""), "registry");
    assert_eq!(ask(shared, "registry", 0), (1, 1.0));

    model(&file("m.txt"), 2);
    until("the watch", || info(&worker)["version"] == 2);
    assert_eq!(ask(shared, "registry", 1), (2, 2.0));

    fs::write(file("m.txt"), "tree\nbroken").unwrap();
    until("the refusal", || info(&worker)["last_error"]["message"].as_str().is_some_and(|m| m.contains("cannot read")));
    assert_eq!(ask(shared, "registry", 2), (2, 2.0), "what was in service still is");

    for (call, token, status) in [("rollback", "", 401), ("rollback", "guess", 401), ("rolback", Worker::TOKEN, 404)] {
        let (got, body) = worker.post(&format!("/models/m/{call}"), token).unwrap();
        assert!(got == status && body.contains("error"), "{call} {token}: {got} {body}");
    }
    assert_eq!(change(&worker, "/models/n/reload").0, 404);
    assert_eq!(change(&worker, "/models/m/promote").0, 409);
    assert_eq!(change(&worker, "/models/m/rollback"), (200, json!({ "change": "version", "from": 2, "to": 1 })));
    assert_eq!(ask(shared, "registry", 3), (1, 1.0));

    // SIGHUP reads the config again: another path, and a canary that gets everything.
    model(&file("second.txt"), 3);
    model(&file("canary.txt"), 4);
    let (path, canary) = (file("second.txt"), file("canary.txt"));
    let candidate =
        format!("reload = \"watch\"\n[[model.candidate]]\npath = \"{}\"\nmode = \"canary\"", canary.display());
    worker.write_config(&toml(shared, "registry", &path, &candidate));
    worker.signal("-HUP");
    until("the canary", || info(&worker)["candidate"]["mode"] == "canary");
    assert_eq!(info(&worker)["path"], path.display().to_string());
    let (version, score) = ask(shared, "registry", 4);
    assert!((score - 4.0).abs() < f64::EPSILON, "version {version} answers {score}");
    assert_eq!(change(&worker, "/models/m/promote").0, 200);
    assert_eq!(info(&worker)["candidate"], Value::Null);
    assert!((ask(shared, "registry", 5).1 - 4.0).abs() < f64::EPSILON);

    // A config with a problem changes nothing, and says which.
    worker.write_config(&text("reload = \"sometimes\""));
    let (status, refusal) = change(&worker, "/reload");
    assert!(status == 422 && refusal["error"].as_str().unwrap().contains("model[0].reload"), "{status} {refusal}");
    assert_eq!(worker.terminate(), Some(0));
}
