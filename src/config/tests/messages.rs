//! What a user reads, word for word: each case is a good text with one thing changed.

use super::*;

fn message(text: &str) -> String {
    parse(text).map(|config| dump(&config)).expect_err("a config with problems").to_string()
}

/// The message for `LEAST` with `old` replaced by `new`.
fn message_with(old: &str, new: &str) -> String {
    assert!(LEAST.contains(old), "{old}");
    message(&LEAST.replacen(old, new, 1))
}

#[test]
fn text_that_is_not_toml_is_told_by_its_line() {
    let message = message("[kafka]\ngroup = \"a\"\n[kafka\n");
    assert!(message.starts_with("worker.toml:3: not valid TOML: "), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn an_empty_file_names_all_that_is_needed() {
    assert_eq!(
        message(""),
        "worker.toml: model: is missing; add a [[model]] table\n\
         worker.toml: kafka: is missing; add a [kafka] table, or a [nats] one\n\
         worker.toml: route: is missing; add a [[route]] table, or [nats.service] to answer requests"
    );
}

#[test]
fn unknown_keys() {
    let with = |lines: &str| message(&format!("{lines}\n{LEAST}"));
    assert_eq!(with("instnace = 'a'"), "worker.toml:1: instnace: unknown key; did you mean instance?");
    assert_eq!(
        with("tuning = { ttl = '1s' }"),
        "worker.toml:1: tuning: unknown key; known here: instance, kafka, nats, route, model, engine, cache, admin, log"
    );
    assert_eq!(
        message_with("group", "comit_interval = \"1s\"\ngroup"),
        "worker.toml:3: kafka.comit_interval: unknown key; did you mean commit_interval?"
    );
    assert_eq!(
        message_with("path", "timeout = \"1s\"\npath"),
        "worker.toml:11: model[0].timeout: unknown key; timeout belongs in [model.batch] or in [[model.batch.level]]"
    );
    assert_eq!(
        message_with("group", "num_threads = 2\ngroup"),
        "worker.toml:3: kafka.num_threads: unknown key; num_threads belongs in [engine]"
    );
    assert_eq!(
        message_with("group", "model = 2\ngroup"),
        "worker.toml:3: kafka.model: unknown key; model belongs in [[route]] or at the top, as [[model]]"
    );
    assert_eq!(
        message_with("group", "instance = 'a'\ngroup"),
        "worker.toml:3: kafka.instance: unknown key; instance belongs at the top, before the first table"
    );
}

#[test]
fn wrong_kinds_and_numbers() {
    let cases = [
        (
            "commit_interval = 5",
            "kafka.commit_interval: got 5, wants a duration with its unit, such as \"5ms\", \"20s\" or \"1m30s\"",
        ),
        (
            "commit_bytes_max = 8_000",
            "kafka.commit_bytes_max: got 8000, wants a size with its unit, such as \"512B\", \"64KiB\" or \"8MiB\"",
        ),
        ("commit_records_max = 0", "kafka.commit_records_max: got 0, wants a whole number from 1 to 1000000"),
        (
            "commit_records_max = 99999999999999999999",
            "kafka.commit_records_max: got 99999999999999999999, wants a whole number from 1 to 1000000",
        ),
        ("commit_records_max = 1.5", "kafka.commit_records_max: got 1.5, wants a whole number from 1 to 1000000"),
        (
            "commit_records_max = \"${SECRET}\"",
            "kafka.commit_records_max: got \"${SECRET}\", wants a whole number from 1 to 1000000",
        ),
        ("start = \"newest\"", "kafka.start: got \"newest\", wants \"earliest\", \"latest\" or \"error\""),
        ("start = true", "kafka.start: got true, wants \"earliest\", \"latest\" or \"error\""),
        ("start = 1979-05-27", "kafka.start: got a date, wants \"earliest\", \"latest\" or \"error\""),
        ("brokers = [\"a:1\"]", "kafka.brokers: got a list, wants a text in quotes"),
        ("brokers = \"a\\u0000b\"", "kafka.brokers: holds a NUL character; remove it"),
        (
            "client.sasl.password = \"hunter2\"",
            "kafka.client.sasl: got a table, wants a text in quotes, a whole number, a number or true or false; a name \
             with dots needs quotes: \"sasl.password\"",
        ),
    ];
    for (line, want) in cases {
        assert_eq!(message_with("group", &format!("{line}\ngroup")), format!("worker.toml:3: {want}"));
    }
    let cases = [
        (
            "pin = \"on\"",
            "3: engine.pin: got \"on\", wants \"auto\", \"off\" or a list of whole numbers from 0 to 4095",
        ),
        ("pin = [0, -1]", "3: engine.pin[1]: got -1, wants a whole number from 0 to 4095"),
        (
            "pin = []",
            "3: engine.pin: got an empty list, wants a list of whole numbers from 0 to 4095 with at least one",
        ),
        ("journal = \"\"", "3: engine.journal: got \"\", wants \"auto\", \"off\" or the path of a file"),
        ("pin = [1, 1]", "3: engine.pin: names a core twice; name each core once"),
        (
            "num_threads = 2\npin = [1]",
            "4: engine.pin: lists 1 of the 2 cores that engine.num_threads asks for; name more, or ask for fewer threads",
        ),
    ];
    for (lines, want) in cases {
        assert_eq!(message_with("[kafka]", &format!("[engine]\n{lines}\n[kafka]")), format!("worker.toml:{want}"));
    }
}

#[test]
fn tables_of_the_wrong_form() {
    assert_eq!(
        message_with("[[route]]", "[route]"),
        "worker.toml:5: route: got one table; write [[route]] with double brackets"
    );
    assert_eq!(
        message_with("[kafka]", "[[kafka]]"),
        "worker.toml:2: kafka: got a list of tables; write [kafka] with single brackets"
    );
    assert_eq!(
        message(&format!("route = [1]\n{}", LEAST.replace("[[route]]", "[unused]"))),
        "worker.toml:1: route[0]: got 1, wants a table\n\
         worker.toml:6: unused: unknown key; known here: instance, kafka, nats, route, model, engine, cache, admin, log"
    );
    assert_eq!(
        message_with("input = [\"features\"]", "input = []"),
        "worker.toml:6: route[0].input: got an empty list, wants a list of texts in quotes with at least one"
    );
    assert_eq!(
        message_with("name = \"fraud\"\n", ""),
        "worker.toml:9: model[0].name: is missing; add name = \"…\" under [[model]]"
    );
}

/// Each key whose text is parsed, a value outside its bounds, and the bounds as the message has them.
#[test]
fn bounds_are_told_as_the_descriptions_have_them() {
    let duration = "with its unit, such as \"5ms\", \"20s\" or \"1m30s\"";
    let size = "with its unit, such as \"512B\", \"64KiB\" or \"8MiB\"";
    let cases = [
        ("kafka", "commit_interval", "61s", "duration", "0 to 60 s", duration),
        ("kafka", "commit_bytes_max", "1B", "size", "1 KiB to 1 GiB", size),
        ("kafka", "drain_timeout", "6m", "duration", "0 to 5 min", duration),
        ("route", "record_bytes_max", "0B", "size", "1 B to 1 GiB", size),
        ("cache", "bytes_max", "1B", "size", "1 KiB to 64 GiB", size),
        ("cache", "ttl", "0s", "duration", "1 ms to 24 h", duration),
        ("nats", "connect_timeout", "0s", "duration", "100 ms to 60 s", duration),
        ("nats", "ping_interval", "1h", "duration", "100 ms to 5 min", duration),
        ("model.batch", "queue_delay_max", "11s", "duration", "0 to 10 s", duration),
        ("model.batch", "timeout", "5", "duration", "0 to 1 h", duration),
        ("model.batch", "priority_aging", "2h", "duration", "0 to 1 h", duration),
    ];
    let root = schema().to_value();
    for (table, key, value, kind, bounds, form) in cases {
        let header = match table {
            "route" => "compacted = false\n".to_owned(),
            _ => format!("[{table}]\n"),
        };
        let (old, prefix) = match table {
            "kafka" => ("[kafka]\n", "kafka"),
            "route" => ("reply_topic", "route[0]"),
            "cache" | "nats" => ("[kafka]\n", table),
            _ => ("path = \"models/fraud.txt\"\n", "model[0].batch"),
        };
        let new = match table {
            "model.batch" => format!("{old}{header}{key} = \"{value}\"\n"),
            "kafka" => format!("{header}{key} = \"{value}\"\n"),
            "cache" | "nats" => format!("{header}{key} = \"{value}\"\n{old}"),
            _ => format!("{key} = \"{value}\"\n{old}"),
        };
        let message = message_with(old, &new);
        let want = format!(": {prefix}.{key}: got \"{value}\", wants a {kind} from {bounds} {form}");
        assert!(message.ends_with(&want) && message.lines().count() == 1, "{message}");
    }
    // All bounds, these and those in the schema, stand in the descriptions.
    let texts = cases.iter().map(|&(table, key, .., bounds, _)| (table, key, bounds.to_owned()));
    for (table, key, bounds) in texts {
        let table = table.split('.').fold(&root, |schema, name| {
            let inner = &schema["properties"][name];
            if inner["type"] == "array" { &inner["items"] } else { inner }
        });
        let description = table["properties"][key]["description"].as_str().expect("a description");
        assert!(description.contains(&bounds), "{key}: {description}");
    }
}

#[test]
fn names_that_do_not_fit_kafka() {
    let topic = "wants a topic: 1 to 249 of the characters a-z, A-Z, 0-9, \".\", \"_\" and \"-\"";
    assert_eq!(
        message_with("[\"features\"]", "[\"a\", \"^b.*\"]"),
        format!("worker.toml:6: route[0].input[1]: got \"^b.*\", {topic}")
    );
    assert_eq!(
        message_with("\"scores\"", "\"${SECRET}!\""),
        format!("worker.toml:7: route[0].reply_topic: got \"${{SECRET}}!\", {topic}")
    );
    assert_eq!(
        message_with("reply_topic", "reply_topics_allowed = [\"a b\"]\nreply_topic"),
        "worker.toml:7: route[0].reply_topics_allowed[0]: got \"a b\", wants a topic in which \"*\" may stand for any \
         characters"
    );
    assert_eq!(
        message_with("reply_topic", "retries = 11\nreply_topic"),
        "worker.toml:7: route[0].retries: got 11, wants a whole number from 0 to 10"
    );
    assert_eq!(
        message_with("\"fraud-scorers\"", "\"\""),
        "worker.toml:3: kafka.group: got \"\", wants 1 to 249 characters, no control characters among them"
    );
    for brokers in ["", "a:9092,", "a b:1", "a:99999", "a:0", "http://a:1/x"] {
        assert_eq!(
            message_with("group", &format!("brokers = \"{brokers}\"\ngroup")),
            format!("worker.toml:3: kafka.brokers: got \"{brokers}\", wants \"host:port\", several joined by commas")
        );
    }
    let env = Fake::new(&[("HOSTNAME", "a b")], &[]);
    let error = Config::from_toml(LEAST, "worker.toml", Path::new("/"), &env).expect_err("a space in the name");
    assert!(error.to_string().starts_with("worker.toml: instance: got \"${HOSTNAME}\", wants 1 to 200 of"), "{error}");
}

#[test]
fn models_and_batches() {
    assert_eq!(
        message_with("path", "type = \"abacus\"\npath"),
        "worker.toml:11: model[0].type: got \"abacus\", wants \"auto\", \"lightgbm\", \"onnx\", \"python\", \
         \"sklearn\", \"treelite\" or \"xgboost\""
    );
    assert_eq!(
        message_with("path", "sha256 = \"abc\"\npath"),
        "worker.toml:11: model[0].sha256: got \"abc\", wants 64 hex digits, as sha256sum prints them, or \"\" for any \
         file"
    );
    let missing = "calibration: is missing, and `enable_quantization = \"u8\"` takes each feature's range from it; name a file of \
                   rows (JSON lines, CSV or TSV), or take \"f16\"";
    assert_eq!(
        message_with("path", "enable_quantization = \"u8\"\npath"),
        format!("worker.toml:9: model[0].{missing}")
    );
    assert_eq!(
        message(&format!("{LEAST}[[model.candidate]]\npath = \"b\"\nenable_quantization = \"u8\"\n")),
        format!("worker.toml:12: model[0].candidate[0].{missing}")
    );
    assert_eq!(
        message_with("models/fraud.txt", ""),
        "worker.toml:11: model[0].path: got \"\", wants the path of a model file"
    );
    assert_eq!(
        message_with("\"fraud\"", "\"a/b\""),
        "worker.toml:10: model[0].name: got \"a/b\", wants 1 to 128 of the characters a-z, A-Z, 0-9, \".\", \"_\" and \
         \"-\""
    );
    assert_eq!(
        message(&format!("{LEAST}[model.batch]\npriority_levels = 3\npriority_default = 4\n")),
        "worker.toml:14: model[0].batch.priority_default: got 4, but priority_levels is 3; wants 1 to 3"
    );
    let batch = |keys: &str| message(&format!("{LEAST}[model.batch]\n{keys}"));
    assert_eq!(
        batch("batch_size_max = 8\npreferred_sizes = [4, 9]\n"),
        "worker.toml:14: model[0].batch.preferred_sizes[1]: got 9, but batch_size_max is 8; wants 1 to 8"
    );
    assert_eq!(
        batch("queue_delay = \"adaptive\"\n"),
        "worker.toml:13: model[0].batch.queue_delay: \"adaptive\" learns a delay of up to queue_delay_max, which is 0: give \
         that a bound, such as \"2ms\""
    );
    let level = |keys: &str| batch(&format!("[[model.batch.level]]\nlevel = 3\n[[model.batch.level]]\n{keys}\n"));
    assert_eq!(
        level("level = 4"),
        "worker.toml:16: model[0].batch.level[1].level: got 4, but priority_levels is 3; wants 1 to 3"
    );
    assert_eq!(
        level("level = 3"),
        "worker.toml:16: model[0].batch.level[1].level: got 3, which an earlier entry describes; name it once"
    );
    assert_eq!(
        level("level = 1\ntimeout = \"2h\""),
        "worker.toml:17: model[0].batch.level[1].timeout: got \"2h\", wants a duration from 0 to 1 h with its unit, such as \
         \"5ms\", \"20s\" or \"1m30s\""
    );
    assert!(level("queue_full = \"reject\"").contains("model[0].batch.level[1].level: is missing"));
    assert_eq!(
        message(&format!("{LEAST}[admin]\nlisten = \"localhost:1\"\n")),
        "worker.toml:13: admin.listen: got \"localhost:1\", wants an IP address and a port, such as \"127.0.0.1:9640\" \
         or \"[::1]:9640\""
    );
}

#[test]
fn routes_and_models_fit_each_other() {
    let second = "[[model]]\nname = \"second\"\npath = \"b\"\n";
    assert_eq!(
        message(&format!("{LEAST}{second}")),
        "worker.toml:5: route[0].model: is missing, and there are several models; name \"fraud\" or \"second\""
    );
    assert_eq!(
        message_with("reply_topic", "model = \"frodo\"\nreply_topic"),
        "worker.toml:7: route[0].model: got \"frodo\", but no [[model]] has that name; there is \"fraud\""
    );
    assert_eq!(
        message_with("[[model]]", "model = \"fraud\"\n[[model]]\nname = \"fraud\"\npath = \"b\"\n[[model]]"),
        "worker.toml:14: model[1].name: \"fraud\" is also the name of model[0]; give each model its own"
    );
}

#[test]
fn a_worker_loads_one_onnx_runtime() {
    let models = |libraries: [&str; 3]| {
        let table = |(at, library)| {
            format!("[[model]]\nname = \"m{at}\"\npath = \"b\"\n[model.onnx]\nlibrary = \"{library}\"\n")
        };
        let models: String = libraries.into_iter().enumerate().map(table).collect();
        message_with("[[model]]", &format!("model = \"fraud\"\n{models}[[model]]"))
    };
    assert_eq!(
        models(["", "a.so", "b.so"]),
        "worker.toml:24: model[2].onnx.library: it is not the one of model[1], and a worker loads one; name the same, or none"
    );
    let output = "[[model]]\nname = \"m\"\npath = \"b\"\n[model.onnx]\noutput = [\"a\", \"a\"]\n[[model]]";
    assert_eq!(
        message_with("[[model]]", &format!("model = \"fraud\"\n{output}")),
        "worker.toml:14: model[0].onnx.output[1]: got \"a\", wants the name of an output of the graph, each once"
    );
}

#[test]
fn replies_never_come_back() {
    let end = "so that replies would be scored again without end; choose another topic";
    assert_eq!(
        message_with("\"scores\"", "\"features\""),
        format!("worker.toml:7: route[0].reply_topic: \"features\" is also an input of this route, {end}")
    );
    assert_eq!(
        message_with("reply_topic", "reply_topics_allowed = [\"ok\", \"fea*\"]\nreply_topic"),
        "worker.toml:7: route[0].reply_topics_allowed[1]: \"fea*\" matches \"features\", an input of this route, so that \
         replies could be scored again without end; narrow the pattern"
    );
    let route = |input: &str, reply: &str| format!("[[route]]\ninput = [\"{input}\"]\nreply_topic = \"{reply}\"\n");
    let back = LEAST.to_owned() + &route("scores", "more") + &route("more", "features");
    assert_eq!(
        message(&back),
        format!(
            "worker.toml:7: route[0].reply_topic: \"scores\" leads back to an input of this route through route[1] and \
             route[2], {end}"
        )
    );
    good(&(LEAST.to_owned() + &route("scores", "more") + &route("more", "done")));
    assert_eq!(
        message(&(LEAST.to_owned() + &route("features", "more"))),
        "worker.toml:13: route[1].input[0]: \"features\" is also an input of route[0]; a topic belongs to one route"
    );
    assert_eq!(
        message_with("[\"features\"]", "[\"a\", \"a\"]"),
        "worker.toml:6: route[0].input[1]: \"a\" is in this list twice; name it once"
    );
}

#[test]
fn the_way_through_to_librdkafka_is_guarded() {
    let client = |line: &str| message_with("[[route]]", &format!("[kafka.client]\n{line}\n[[route]]"));
    assert_eq!(
        client("\"enable.auto.commit\" = true"),
        "worker.toml:6: kafka.client.\"enable.auto.commit\": may not be set here: offsets are committed in one \
         transaction with the replies; remove it"
    );
    assert_eq!(
        client("\"bootstrap.servers\" = \"hunter2\""),
        "worker.toml:6: kafka.client.\"bootstrap.servers\": may not be set here: use kafka.brokers"
    );
    assert_eq!(
        client("\"sasl.password\" = \"${file:/run/gone}\""),
        "worker.toml:6: kafka.client.\"sasl.password\": the file /run/gone cannot be read: entity not found; check the \
         path and who may read it"
    );
}

#[test]
fn routes_of_nats() {
    let nats = LEAST.replace("[kafka]", "[nats]");
    assert_eq!(good(&nats).routes[0].sink, System::Nats);
    let with = |old: &str, new: &str| message(&nats.replacen(old, new, 1));
    assert_eq!(
        with("group = \"fraud-scorers\"", ""),
        "worker.toml:2: nats.group: is missing; add group = \"…\" under [nats]"
    );
    assert!(
        with("fraud-scorers", "a.b")
            .starts_with("worker.toml:3: nats.group: got \"a.b\", wants 1 to 64 of the characters")
    );
    let subject = "wants a subject, in which \"*\" may stand for a token, \">\" for all at the end, and \"{partition}\" for \
                   the partition's number";
    assert_eq!(
        with("[\"features\"]", "[\"a..b\"]"),
        format!("worker.toml:6: route[0].input[0]: got \"a..b\", {subject}")
    );
    assert_eq!(
        with("\"scores\"", "\"scores.*\""),
        "worker.toml:7: route[0].reply_topic: got \"scores.*\", wants a subject: tokens joined by dots, without spaces, \
         \"*\" and \">\""
    );
    assert_eq!(
        with("fraud-scorers\"", "a\"\npartitions = 3"),
        "worker.toml:7: route[0].input[0]: has no place for the partition's number, and nats.partitions is 3; write \
         \"{partition}\" where it stands"
    );
    let shared = nats.replace("fraud-scorers\"", "a\"\ndelivery = \"at_least_once\"");
    good(&shared);
    assert_eq!(
        message(&shared.replace("[\"features\"]", "[\"a.{partition}\"]")),
        "worker.toml:7: route[0].input[0]: workers share one consumer of all records with `delivery = \"at_least_once\"`; write \
         \"*\" in the place of \"{partition}\""
    );
    assert_eq!(
        with("\"scores\"", "\"ckpt.scores\""),
        "worker.toml:7: route[0].reply_topic: \"ckpt.scores\" is among the subjects of checkpoints (nats.checkpoint_subject); take \
         another"
    );
    good(&nats.replace("\"scores\"", "\"ckpts\""));
    let end = "so that replies would be scored again without end; choose another topic";
    assert_eq!(
        with("[\"features\"]", "[\">\"]"),
        format!("worker.toml:7: route[0].reply_topic: \"scores\" is also an input of this route, {end}")
    );
    let allowed =
        |pattern: &str| with("[\"features\"]\n", &format!("[\"in.>\"]\nreply_topics_allowed = [\"{pattern}\"]\n"));
    assert!(allowed("in.*").contains("\"in.*\" matches \"in.>\", an input of this route"), "{}", allowed("in.*"));
    assert!(allowed("i*").contains("an input of this route"), "{}", allowed("i*"));
    let letters = |text: &str| with("[\"features\"]\n", &format!("[\"in.*\"]\ndead_letter = \"{text}\"\n"));
    assert!(letters("in.x").contains("\"in.x\" is an input of this route"), "{}", letters("in.x"));
    good(&nats.replace(
        "[\"features\"]\n",
        "[\"in.*\"]\ndead_letter = \"dead.<input>\"\nreply_topics_allowed = [\"out.*\"]\n",
    ));
    let second = "[[route]]\ninput = [\"a.*\", \"*.b\"]\nreply_topic = \"x\"\n";
    assert_eq!(
        message(&format!("{nats}{second}")),
        "worker.toml:13: route[1].input[1]: \"*.b\" has subjects that \"a.*\" of route[1] has too; a subject belongs to one \
         route"
    );
}

#[test]
fn a_worker_has_one_source_and_one_sink() {
    let both = format!("{LEAST}[nats]\ngroup = \"g\"\n");
    let with = |keys: &str| both.replace("[[route]]\n", &format!("[[route]]\n{keys}\n"));
    let flow = |text: &str| (good(text).routes[0].source, good(text).routes[0].sink);
    assert_eq!(flow(&both), (System::Kafka, System::Kafka));
    assert_eq!(flow(&with("sink = \"nats\"")), (System::Kafka, System::Nats));
    assert_eq!(
        message(&with("source = \"nats\"\nsink = \"kafka\"")),
        "worker.toml:14: nats.delivery: got \"exactly_once\", but replies of these routes go to Kafka, which cannot keep NATS' \
         positions with them; write \"at_least_once\""
    );
    assert_eq!(
        message_with("[[route]]", "[[route]]\nsink = \"nats\""),
        "worker.toml:6: route[0].sink: got \"nats\", but there is no [nats] table; add one"
    );
    let other = "[[route]]\nsource = \"nats\"\ninput = [\"x\"]\nreply_topic = \"y\"\n";
    let message = message(&format!("{both}{other}"));
    let wanted = "route[1].source: is \"nats\", but route[0] has \"kafka\"; a worker has one source and one sink";
    assert!(message.contains(wanted), "{message}");
}

#[test]
fn connections_to_nats() {
    let nats = |lines: &str| message(&format!("{LEAST}[nats]\n{lines}\n"));
    let wants = "wants \"nats://host:port\" or \"tls://host:port\", several joined by commas or as a list";
    for server in ["", "nats://", "http://a:1", "ws://a:1", "a:0", "a:99999", "a b", "a/b", "nats://a?b", "nats://a#b"]
    {
        let want = format!("worker.toml:13: nats.servers: got \"{server}\", {wants}");
        assert_eq!(nats(&format!("servers = \"{server}\"")), want);
    }
    let list = nats("servers = [\"a\", \"b:c\"]");
    assert_eq!(list, format!("worker.toml:13: nats.servers[1]: got \"b:c\", {wants}"));
    assert_eq!(
        nats("servers = \"a, nats://ann:hunter2@b\""),
        "worker.toml:13: nats.servers: holds a user or password; use nats.user and nats.password, or nats.token"
    );
    let cases = [
        ("user = \"ann\"", "12: nats.password: is missing, and nats.user is of no use without it"),
        ("password = \"hunter2\"", "12: nats.user: is missing, and nats.password is of no use without it"),
        (
            "token = \"hunter2\"\nnkey = \"hunter2\"",
            "14: nats.nkey: there is nats.token too; a worker logs in one way, so keep one",
        ),
        (
            "creds_file = \"a\"\nuser = \"ann\"\npassword = \"hunter2\"",
            "13: nats.creds_file: there is nats.user too; a worker logs in one way, so keep one",
        ),
        ("tls.cert_file = \"a\"", "13: nats.tls.key_file: is missing, and nats.tls.cert_file is of no use without it"),
        ("tls.key_file = \"a\"", "13: nats.tls.cert_file: is missing, and nats.tls.key_file is of no use without it"),
        (
            "tls.first = true\ntls.required = false",
            "14: nats.tls.required: got false, but nats.tls.first encrypts every connection; remove one of them",
        ),
    ];
    for (lines, want) in cases {
        assert_eq!(nats(lines), format!("worker.toml:{want}"));
    }
}

#[test]
fn the_service_of_nats() {
    let service = |lines: &str| message(&format!("{LEAST}[nats.service]\n{lines}\n"));
    let cases = [
        ("name = \"a.b\"", "name: got \"a.b\", wants 1 to 128 of the characters a-z, A-Z, 0-9, \"_\" and \"-\""),
        (
            "prefix = \"a..b\"",
            "prefix: got \"a..b\", wants 1 to 200 of the characters a-z, A-Z, 0-9, \"_\" and \"-\", in parts that are \
             joined by \".\"",
        ),
        ("version = \"v1\"", "version: got \"v1\", wants a version such as \"1.2.3\" or \"1.2.3-rc.1\""),
        (
            "description = \"\\n\"",
            "description: got \"\\n\", wants 1000 characters at most, no control characters among them",
        ),
        (
            "queue_group = \"q q\"",
            "queue_group: got \"q q\", wants 1 to 128 of the characters a-z, A-Z, 0-9, \".\", \"_\" and \"-\"",
        ),
        ("models = [\"fraud\", \"x\"]", "models[1]: got \"x\", wants the name of a [[model]]: \"fraud\""),
        ("models = [\"fraud\", \"fraud\"]", "models[1]: is in this list twice; name it once"),
    ];
    for (lines, want) in cases {
        assert_eq!(service(lines), format!("worker.toml:13: nats.service.{want}"));
    }
}

#[test]
fn names_of_models_make_subjects() {
    let text = |names: [&str; 2], lines: &str| {
        let [first, second] = names.map(|name| format!("[[model]]\nname = \"{name}\"\npath = \"m\"\n"));
        format!("{first}{second}[nats.service]\n{lines}\n")
    };
    let remedy = "rename the model, or name in nats.service.models those that shall have an endpoint";
    for name in [".a", "a.", "a..b"] {
        assert_eq!(
            message(&text(["good", name], "")),
            format!(
                "worker.toml:5: model[1].name: got \"{name}\", wants no \".\" at its ends and no \"..\" in it, for a NATS \
                 subject is made of it; {remedy}"
            )
        );
        assert_eq!(good(&text(["good", name], "models = [\"good\"]")).nats.unwrap().service.unwrap().models, ["good"]);
    }
    assert_eq!(
        message(&text(["a.b", "a_b"], "")),
        format!(
            "worker.toml:5: model[1].name: names the same endpoint as another model does: there \".\" becomes \"_\"; \
             {remedy}"
        )
    );
    let service = good(&text(["a.b", "a-b"], "")).nats.unwrap().service.unwrap();
    assert_eq!(
        (service.subject("a.b"), &service.models[..]),
        ("forebay.a.b.predict".to_owned(), &["a.b".to_owned(), "a-b".to_owned()][..])
    );
}

#[test]
fn all_problems_are_told_together_in_the_order_of_lines() {
    let text = r#"instance = "${NOBODY}"
[kafka]
grupo = "x"
commit_interval = 5
drain_timeout = "1 year"
[[route]]
input = ["a"]
model = "m"
reply_topic = "a"
[[model]]
name = "n"
type = "abacus"
[model.batch]
priority_default = 9
"#;
    let message = message(text);
    let starts: Vec<&str> = message.lines().filter_map(|line| line.split(':').nth(2)).map(str::trim).collect();
    let want = [
        "instance",
        "kafka.group",
        "kafka.grupo",
        "kafka.commit_interval",
        "kafka.drain_timeout",
        "route[0].model",
        "route[0].reply_topic",
        "model[0].path",
        "model[0].type",
        "model[0].batch.priority_default",
    ];
    assert_eq!(starts, want, "{message}");
}
