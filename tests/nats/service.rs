//! The microservice of a worker: found by another's client, asked by it, overloaded, shared, drained.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use serde_json::{Value as Json, json};

use crate::support::nats::{Nats, run, until_async};
use crate::support::{BOUND, Higgs, Worker, repository, until};

/// A worker.toml that serves the HIGGS model under this name, and nothing else.
fn toml(nats: &Nats, model: &str, service: &str, more: &str) -> String {
    format!(
        "[nats]\nservers = \"{}\"\nping_interval = \"500ms\"\n[nats.service]\n{service}\n\
         [[model]]\nname = \"{model}\"\npath = \"{}\"\n{more}\n",
        nats.url(),
        Higgs::model().display()
    )
}

fn worker(nats: &Nats, service: &str, more: &str) -> Worker {
    Worker::ready(&toml(nats, "higgs", service, more), "w")
}

/// A worker each of whose batches takes that many milliseconds.
fn slow_worker(nats: &Nats, service: &str, more: &str, batch_ms: u32) -> Worker {
    let toml = toml(nats, "higgs", service, &format!("{more}\n[engine]\nnum_threads = 1"));
    let mut worker = Worker::start(&toml, "w", &format!("score::batch=sleep({batch_ms})"));
    worker.wait_ready();
    worker
}

/// What the Python client prints, a line of JSON each.
fn python(nats: &Nats, arguments: &[&str], requests: &[Json]) -> Vec<Json> {
    let mut client = Command::new(repository().join(".venv/test/bin/python"))
        .arg(repository().join("tests/nats/client.py"))
        .arg(nats.url())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    for request in requests {
        writeln!(stdin, "{request}").unwrap();
    }
    drop(stdin);
    let done = client.wait_with_output().unwrap();
    assert!(done.status.success());
    String::from_utf8(done.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const SUBJECT: &str = "forebay.higgs.predict";

fn ask(body: &str) -> Json {
    json!({ "subject": SUBJECT, "body": body })
}

fn ask_with(body: &str, headers: &Json) -> Json {
    json!({ "subject": SUBJECT, "body": body, "headers": headers })
}

/// What an error answer says: its code in the body, the headers' number and code, and the message, which header and body
/// have alike.
fn error(answer: &Json) -> (String, String, String) {
    let (body, headers) = (&answer["body"], &answer["headers"]);
    let text = |value: &Json| value.as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    assert_eq!((&body["success"], &headers["forebay-error"]), (&json!(false), &body["error"]["code"]));
    assert_eq!(headers["Nats-Service-Error"], body["error"]["message"]);
    (text(&body["error"]["code"]), text(&headers["Nats-Service-Error-Code"]), text(&body["error"]["message"]))
}

fn is_score(body: &Json, wanted: f64) {
    assert_eq!(body["success"], true, "{body}");
    let got = body["prediction"][0].as_f64().unwrap_or_else(|| panic!("{body}"));
    assert!((got - wanted).abs() <= 1e-9, "{got} is not {wanted}");
}

fn connected(body: impl AsyncFnOnce(Client), nats: &Nats) {
    run(async { body(nats.client().await).await });
}

pub(crate) fn discovered() {
    let nats = Nats::start();
    let service =
        "description = \"scores\"\nversion = \"1.2.3\"\nname = \"fraud\"\nprefix = \"a.b\"\nqueue_group = \"g\"";
    let worker = Worker::ready(&toml(&nats, "hi.ggs", service, ""), "w");
    let higgs = Higgs::load();
    let subject = "a.b.hi.ggs.predict";
    let mut requests: Vec<Json> = (0..5).map(|row| json!({"subject": subject, "body": higgs.request(row)})).collect();
    requests.push(json!({"subject": subject, "body": "{}"}));
    assert_eq!(python(&nats, &["ask"], &requests).len(), 6);

    let found = python(&nats, &["discover", "fraud", "1"], &[]);
    let [ping, info, stats] = [0, 1, 2].map(|at: usize| {
        let all = found[at].as_array().unwrap();
        assert_eq!(all.len(), 1, "{all:?}");
        for (key, value) in all[0]["read"].as_object().unwrap() {
            // What nats-py reads is what was said.
            assert!(key == "started" || key == "endpoints" || all[0]["raw"][key] == *value, "{key}");
        }
        all[0]["raw"].clone()
    });
    for (answer, kind) in [(&ping, "ping"), (&info, "info"), (&stats, "stats")] {
        assert_eq!(answer["type"], format!("io.nats.micro.v1.{kind}_response"));
        assert_eq!((&answer["name"], &answer["version"]), (&json!("fraud"), &json!("1.2.3")));
        assert_eq!((&answer["id"], &answer["metadata"]["instance"]), (&ping["id"], &json!("w")));
    }
    assert_eq!(info["description"], "scores");
    let endpoint = &info["endpoints"][0];
    // What is the same for each version of the model; the rest is in the statistics.
    assert_eq!(endpoint["metadata"], json!({"model": "hi.ggs", "features": "28", "outputs": "1"}));
    let counted = &stats["endpoints"][0];
    let data = &counted["data"];
    assert_eq!((&data["model"], &data["model_version"]), (&json!("hi.ggs"), &json!("1")));
    assert_eq!((&data["kind"], &data["compiled"]), (&json!("lightgbm"), &json!("true")));
    assert_eq!(data["sha256"].as_str().map(str::len), Some(64));
    for told in [endpoint, counted] {
        assert_eq!(
            (&told["name"], &told["subject"], &told["queue_group"]),
            (&json!("hi_ggs"), &json!(subject), &json!("g"))
        );
    }
    assert_eq!((&counted["num_requests"], &counted["num_errors"]), (&json!(6), &json!(1)));
    assert!(counted["last_error"].as_str().unwrap().starts_with("400:features: missing"), "{counted}");
    let (total, average) = (counted["processing_time"].as_u64().unwrap(), counted["average_processing_time"].as_u64());
    assert!(total > 0 && average == Some(total / 6), "{counted}");
    let (_, text) = worker.get("/metrics").unwrap();
    for line in [
        "forebay_service_requests_total{model=\"hi.ggs\"} 6",
        "forebay_service_errors_total{model=\"hi.ggs\"} 1",
        "forebay_requests_failed_total{code=\"bad_request\",model=\"\"} 1",
        "forebay_requests_scored_total{model=\"hi.ggs\"} 5",
        "forebay_records_received_total 6",
        "forebay_records_in_flight 0",
        "forebay_request_seconds_count 6",
    ] {
        assert!(text.lines().any(|there| there == line), "{line} is not in\n{text}");
    }
}

pub(crate) fn scores() {
    let nats = Nats::start();
    let _worker = worker(&nats, "reply_metadata = \"full\"", "");
    let higgs = Higgs::load();
    let count = higgs.rows.len().min(5_000);
    let requests: Vec<Json> = (0..count).map(|row| ask(&higgs.request(row))).collect();
    let answers = python(&nats, &["ask"], &requests);
    assert_eq!(answers.len(), count);
    for (row, answer) in answers.iter().enumerate() {
        assert_eq!(answer["body"]["id"], format!("r{row}"), "{answer}");
        is_score(&answer["body"], higgs.scores[row]);
        assert_eq!((&answer["body"]["metadata"]["model"], &answer["headers"]), (&json!("higgs"), &json!({})));
    }
    // Rows, names of models, and what goes with a request.
    let rows = format!("{{\"features\":[{},{}],\"model\":\"higgs\"}}", higgs.rows[0], higgs.rows[1]);
    let headers = json!({"traceparent": "00-1", "tracestate": "a=b", "correlation_id": "c", "kafka_replyTopic": "t"});
    let answer = python(&nats, &["ask"], &[ask_with(&rows, &headers)]).remove(0);
    let [first, second] = [0, 1].map(|row: usize| answer["body"]["prediction"][row][0].as_f64().unwrap());
    assert!((first - higgs.scores[0]).abs() <= 1e-9 && (second - higgs.scores[1]).abs() <= 1e-9);
    assert_eq!(answer["headers"], json!({"traceparent": "00-1", "tracestate": "a=b", "correlation_id": "c"}));
    // An id that was not given is the request's own.
    let nameless = python(&nats, &["ask"], &vec![ask(&format!("{{\"features\":{}}}", higgs.rows[0])); 2]);
    let ids: Vec<&str> = nameless.iter().map(|answer| answer["body"]["id"].as_str().unwrap()).collect();
    assert!(ids[0] != ids[1] && ids.iter().all(|id| id.starts_with("forebay.higgs.predict/0/")), "{ids:?}");
}

pub(crate) fn errors() {
    let nats = Nats::start();
    let more = format!("[[model]]\nname = \"other\"\npath = \"{}\"\n", Higgs::model().display());
    let worker = worker(&nats, "record_bytes_max = \"1KiB\"\nmodels = [\"higgs\"]", &more);
    let row = &Higgs::load().rows[0];
    let good = |more: &str| format!("{{\"id\":1,\"features\":{row}{more}}}");
    let cases = [
        (ask("no"), "bad_request", "400", "the payload is not JSON"),
        (ask(""), "bad_request", "400", "the payload is empty"),
        (ask(&good(",\"priority\":9")), "bad_request", "400", "priority: got 9"),
        (ask_with(&good(""), &json!({"Content-Type": "text/csv"})), "bad_request", "400", "header content-type"),
        (ask(&good(",\"model\":\"none\"")), "unknown_model", "404", "model: got \"none\", but requests that"),
        // Who may ask which model is decided by subjects.
        (ask_with(&good(""), &json!({"forebay-model": "other"})), "unknown_model", "404", "header forebay-model: got"),
        (ask(&good(&format!(",\"model\":\"{}\"", "x".repeat(1_000)))), "too_large", "413", "the payload has"),
        (ask(&good(",\"timeout_ms\":0.000001")), "deadline_exceeded", "504", "waited"),
        (ask_with(&good(""), &json!({"forebay-timeout-ms": "1e-6"})), "deadline_exceeded", "504", "waited"),
    ];
    let requests: Vec<Json> = cases.iter().map(|(request, ..)| request.clone()).collect();
    for (answer, (request, code, number, words)) in python(&nats, &["ask"], &requests).iter().zip(&cases) {
        let (got_code, got_number, message) = error(answer);
        assert_eq!((&*got_code, &*got_number), (*code, *number), "{request} {answer}");
        assert!(message.starts_with(words), "{message}");
    }
    // A model that was not chosen has no endpoint.
    let other = json!({"subject": "forebay.other.predict", "body": good("")});
    assert_eq!(python(&nats, &["ask"], &[other])[0]["lost"], "NoRespondersError");
    connected(
        async |client| {
            // Nobody to answer: counted, and said once.
            for _ in 0..3 {
                client.publish(SUBJECT, good("").into()).await.unwrap();
            }
            until_async("three requests", || worker.metric("forebay_service_without_reply_total") == 3).await;
            assert_eq!(worker.log().matches("names no subject for its answer").count(), 1);
        },
        &nats,
    );
}

pub(crate) fn open_inference() {
    let nats = Nats::start();
    let _worker = worker(&nats, "reply_metadata = \"short\"\nin_flight_max = 64", "");
    let higgs = Higgs::load();
    let oip = |shape: &str, data: &str| {
        ask(&format!(
            "{{\"id\":\"o1\",\"inputs\":[{{\"name\":\"x\",\"shape\":{shape},\"datatype\":\"FP64\",\"data\":{data}}}]}}"
        ))
    };
    let both = format!("[{},{}]", higgs.rows[0], higgs.rows[1]);
    let native = ask(&format!("{{\"features\":{both}}}"));
    let answers = python(&nats, &["ask"], &[native, oip("[2,28]", &both), oip("[1,28]", &higgs.rows[1])]);
    let (native, tensor, one) = (&answers[0]["body"], &answers[1]["body"], &answers[2]["body"]);
    let scores = [0, 1].map(|row: usize| native["prediction"][row][0].clone());
    let output = json!([{"name": "predict", "datatype": "FP64", "shape": [2, 1], "data": scores}]);
    assert_eq!((&tensor["outputs"], &tensor["id"], &tensor["model_name"]), (&output, &json!("o1"), &json!("higgs")));
    assert_eq!(tensor["model_version"], native["metadata"]["version"]);
    assert!(tensor["parameters"]["queue_ms"].is_f64() && answers[1]["headers"] == json!({}), "{}", answers[1]);
    assert_eq!(one["outputs"][0]["data"], json!([scores[1]]));

    // An error in the body as the standard has it, in the headers as NATS has it.
    let other = json!({"mlserver-model": "other"});
    let named = ask_with(oip("[1,28]", &higgs.rows[0])["body"].as_str().unwrap(), &other);
    let cases = [
        (oip("[1,28]", "[1,2]"), "bad_request", "400", "inputs[0].data: got 2 values, which is not the shape [1, 28]"),
        (
            named,
            "unknown_model",
            "404",
            "header mlserver-model: got \"other\", but requests that come in here are for higgs only",
        ),
    ];
    let requests: Vec<Json> = cases.iter().map(|(request, ..)| request.clone()).collect();
    for (answer, (_, code, number, message)) in python(&nats, &["ask"], &requests).iter().zip(cases) {
        assert_eq!(answer["body"], json!({"id": "o1", "error": message, "parameters": {"code": code}}));
        let headers = json!({"Nats-Service-Error": message, "Nats-Service-Error-Code": number, "forebay-error": code});
        assert_eq!(answer["headers"], headers);
    }
}

pub(crate) fn large_reply() {
    let nats = Nats::start_with(|_| vec!["max_payload: 40000".to_owned()]);
    let worker = worker(&nats, "", "");
    let rows = |count: usize| format!("{{\"id\":7,\"features\":[{}]}}", vec!["{\"lepton_pT\":0}"; count].join(","));
    let answers = python(&nats, &["ask"], &[ask(&rows(2_400)), ask(&rows(1))]);
    let (code, number, message) = error(&answers[0]);
    assert_eq!((&*code, &*number, &answers[0]["body"]["id"]), ("too_large", "413", &json!(7)));
    assert!(message.starts_with("the reply has ") && message.ends_with("takes 40000 (max_payload)"), "{message}");
    assert_eq!(answers[1]["body"]["success"], true, "{}", answers[1]);
    assert_eq!(worker.metric("forebay_replies_dropped_total"), 0);
}

/// Sends requests at once, and waits for all answers; `None` where none came.
async fn ask_all(client: &Client, bodies: Vec<String>, headers: &HeaderMap) -> Vec<Option<Message>> {
    let one = |body: String| async {
        let request =
            async_nats::Request::new().payload(Bytes::from(body)).headers(headers.clone()).timeout(Some(BOUND));
        client.send_request(SUBJECT, request).await.ok()
    };
    join_all(bodies.into_iter().map(one)).await
}

/// The same where each must be answered.
async fn answers_of(client: &Client, bodies: Vec<String>, headers: &HeaderMap) -> Vec<Message> {
    ask_all(client, bodies, headers).await.into_iter().map(|answer| answer.expect("an answer")).collect()
}

fn body(answer: &Message) -> Json {
    serde_json::from_slice(&answer.payload).unwrap()
}

fn code(answer: &Message) -> String {
    body(answer)["error"]["code"].as_str().unwrap_or("scored").to_owned()
}

/// Whether a score thread has taken a request.
fn is_taken(worker: &Worker) -> bool {
    let line = "forebay_queue_seconds_count{model=\"higgs\",priority=\"2\"} 1";
    worker.get("/metrics").is_some_and(|(_, text)| text.lines().any(|there| there == line))
}

pub(crate) fn deadlines_and_priorities() {
    let nats = Nats::start();
    let worker = slow_worker(&nats, "", "[model.batch]\nbatch_size_max = 1\npriority_aging = \"0s\"", 200);
    let row = &Higgs::load().rows[0];
    connected(
        async |client| {
            let mut answers = client.subscribe("inbox.*").await.unwrap();
            // The first keeps the only score thread busy, so that the others wait.
            for (number, more) in
                ["", ",\"priority\":3", ",\"priority\":2", ",\"priority\":1", ",\"timeout_ms\":20"].iter().enumerate()
            {
                let request = format!("{{\"id\":{number},\"features\":{row}{more}}}");
                client.publish_with_reply(SUBJECT, format!("inbox.{number}"), request.into()).await.unwrap();
                client.flush().await.unwrap();
                if number == 0 {
                    until_async("a busy score thread", || is_taken(&worker)).await;
                }
            }
            let mut ended = Vec::new();
            for _ in 0..5 {
                let answer = answers.next().await.unwrap();
                ended.push((body(&answer)["id"].as_u64().unwrap(), code(&answer)));
            }
            // It expires while the score thread is busy, and by their levels the others follow.
            let (numbers, codes): (Vec<u64>, Vec<String>) = ended.into_iter().unzip();
            assert_eq!(numbers, [4, 0, 3, 2, 1]);
            assert_eq!(codes, ["deadline_exceeded", "scored", "scored", "scored", "scored"]);
            // In its time: 20 ms, and not when the score thread is free again after 200.
            let start = forebay::clock::now();
            let slow =
                async { answers_of(&client, vec![format!("{{\"features\":{row}}}"); 3], &HeaderMap::new()).await };
            let fast = async {
                let mut headers = HeaderMap::new();
                headers.insert("forebay-timeout-ms", "20");
                let answer =
                    answers_of(&client, vec![format!("{{\"features\":{row},\"priority\":3}}")], &headers).await;
                (code(&answer[0]), forebay::clock::now() - start)
            };
            let (slow, (fast, took)) = futures_util::future::join(slow, fast).await;
            assert_eq!(slow.iter().map(code).collect::<Vec<_>>(), ["scored"; 3]);
            assert!(fast == "deadline_exceeded" && took < Duration::from_millis(150), "{fast} after {took:?}");
        },
        &nats,
    );
}

pub(crate) fn overload() {
    let nats = Nats::start();
    let more = "[model.batch]\nbatch_size_max = 4\n[[model.batch.level]]\nlevel = 3\nqueue_depth_max = 2";
    let worker = slow_worker(&nats, "in_flight_max = 16", more, 50);
    let row = &Higgs::load().rows[0];
    connected(
        async |client| {
            let count = |answers: &[Message]| {
                let mut codes = BTreeMap::new();
                for answer in answers {
                    *codes.entry(code(answer)).or_insert(0_usize) += 1;
                }
                codes
            };
            // Past what may be in flight.
            let bodies = (0..2_000).map(|number| format!("{{\"id\":\"r{number}\",\"features\":{row}}}")).collect();
            let answers = answers_of(&client, bodies, &HeaderMap::new()).await;
            for (number, answer) in answers.iter().enumerate() {
                assert_eq!(body(answer)["id"], format!("r{number}"));
            }
            let codes = count(&answers);
            assert_eq!(codes.values().sum::<usize>(), 2_000);
            assert!(codes["scored"] >= 16 && codes["queue_full"] >= 1_000, "{codes:?}");
            let refused = answers.iter().find(|answer| answer.headers.is_some()).unwrap();
            let headers = refused.headers.as_ref().unwrap();
            assert_eq!(headers.get("Nats-Service-Error-Code").unwrap().as_str(), "429");
            assert!(headers.get("Nats-Service-Error").unwrap().as_str().contains("in_flight_max"));
            // Past what may wait in one level: the others go on.
            let third = |number: u32| if number < 8 { ",\"priority\":3" } else { "" };
            let bodies = (0..12).map(|number| format!("{{\"features\":{row}{}}}", third(number))).collect();
            let answers = answers_of(&client, bodies, &HeaderMap::new()).await;
            assert!(count(&answers[..8])["queue_full"] >= 1, "{:?}", count(&answers));
            assert_eq!(count(&answers[8..]), [("scored".to_owned(), 4)].into());
            assert_eq!(worker.metric("forebay_records_in_flight"), 0);
        },
        &nats,
    );
}

pub(crate) fn shared() {
    let nats = Nats::start();
    let workers = ["w1", "w2"].map(|instance| Worker::ready(&toml(&nats, "higgs", "", ""), instance));
    let higgs = Higgs::load();
    connected(
        async |client| {
            let bodies = (0..1_000).map(|row| higgs.request(row)).collect();
            let answers = answers_of(&client, bodies, &HeaderMap::new()).await;
            for (row, answer) in answers.iter().enumerate() {
                is_score(&body(answer), higgs.scores[row]);
            }
        },
        &nats,
    );
    let each = workers.each_ref().map(|worker| worker.metric("forebay_records_received_total"));
    assert!(each.iter().sum::<u64>() == 1_000 && each.iter().all(|count| *count > 200), "{each:?}");
    for answers in python(&nats, &["discover", "forebay", "2"], &[]) {
        assert_ne!(answers[0]["raw"]["id"], answers[1]["raw"]["id"]);
    }
}

pub(crate) fn server_killed() {
    let mut nats = Nats::start();
    let worker = worker(&nats, "", "");
    let higgs = Higgs::load();
    let answered = |nats: &Nats| {
        connected(
            async |client| {
                // Right after a start the server may have the client's subscriptions before the worker's.
                let mut answer = None;
                let start = forebay::clock::now();
                while answer.is_none() {
                    assert!(forebay::clock::now() - start < BOUND, "no answer in {BOUND:?}");
                    answer = ask_all(&client, vec![higgs.request(7)], &HeaderMap::new()).await.remove(0);
                }
                is_score(&body(&answer.unwrap()), higgs.scores[7]);
            },
            nats,
        );
    };
    answered(&nats);
    for _ in 0..3 {
        nats.kill();
        until("a worker that is not ready", || {
            worker.get("/readyz").is_some_and(|(status, text)| status == 503 && text.starts_with("service: "))
        });
        nats.restart();
        answered(&nats);
        until("a worker that is ready", || worker.get("/readyz").is_some_and(|(status, _)| status == 200));
    }
}

/// Lines of nats.conf: what the worker's user may do, who logs in by [`user_toml`], and that everybody else may do all.
fn permissions(worker: &str) -> Vec<String> {
    let users = format!("{{user: worker, password: secret, permissions: {{{worker}}}}}, {{user: all, password: all}}");
    vec![format!("authorization {{ users: [{users}] }}"), "no_auth_user: all".to_owned()]
}

/// A worker.toml as [`toml`], for that user.
fn user_toml(nats: &Nats) -> String {
    toml(nats, "higgs", "", "").replace("[nats]\n", "[nats]\nuser = \"worker\"\npassword = \"secret\"\n")
}

pub(crate) fn refused() {
    let mut nats = Nats::start_with(|_| permissions(&format!("subscribe: {{deny: \"{SUBJECT}\"}}")));
    let worker = Worker::start(&user_toml(&nats), "w", "");
    let readiness = || worker.get("/readyz").unwrap_or_default();
    let is_refused = |(status, text): (u16, String)| {
        status == 503 && text.starts_with("service: ") && text.contains(&format!("Subscription to \"{SUBJECT}\""))
    };
    until("a worker that is not ready", || {
        let (status, text) = readiness();
        assert!(status != 200, "{text}");
        is_refused((status, text))
    });
    nats.kill();
    nats.restart_with(permissions("subscribe: \">\""));
    until("a worker that is ready", || readiness().0 == 200);
    nats.kill();
    nats.restart_with(permissions("subscribe: \"_INBOX.>\""));
    until("a worker that is not ready", || is_refused(readiness()));
}

/// Workers leave one after the other under load, and another takes what comes; each request is answered.
fn leave_under_load(nats: &Nats, toml: &str, rounds: usize) {
    // Who does not take back its subscriptions stays for longer than the test waits.
    let toml = toml.replace("[nats]\n", "[nats]\ndrain_timeout = \"5m\"\n");
    let higgs = Higgs::load();
    let mut other = Worker::ready(&toml, "w2");
    run(async {
        let client = nats.client().await;
        for round in 0..rounds {
            let mut leaving = Worker::ready(&toml, "w1");
            std::mem::swap(&mut leaving, &mut other);
            let mut asked = 0;
            let mut answers = Vec::new();
            while asked < 8_000 {
                let bodies = (asked..asked + 100).map(|n| higgs.request_at(n, 2)).collect();
                let client = client.clone();
                answers.push(tokio::spawn(async move { answers_of(&client, bodies, &HeaderMap::new()).await }));
                asked += 100;
                if asked == 4_000 {
                    leaving.signal("-TERM");
                }
                // About 20,000 a second.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mut number = 0;
            for answer in answers {
                for answer in answer.await.unwrap() {
                    is_score(&body(&answer), higgs.score_at(number));
                    number += 1;
                }
            }
            let log = || leaving.log();
            assert!(!log().contains("did not take back"), "round {round}: {}", log());
            assert_eq!((number, leaving.wait_exit()), (8_000, Some(0)), "round {round}: {}", leaving.log());
        }
    });
}

/// An account that lets a worker hear requests and answer them, and no more: it cannot measure how far its server is.
pub(crate) fn drained_unheard() {
    let may = "subscribe: [\"forebay.>\", \"$SRV.>\"], allow_responses: true";
    let nats = Nats::start_with(|_| permissions(may));
    leave_under_load(&nats, &user_toml(&nats), 2);
}

pub(crate) fn drained() {
    let nats = Nats::start();
    let higgs = Higgs::load();
    leave_under_load(&nats, &toml(&nats, "higgs", "", ""), 4);
    // What is in flight is waited for, and what nobody could answer in time is told by the exit code.
    let mut slow = slow_worker(&nats, "prefix = \"slow\"", "", 700);
    let mut stuck = Worker::start(
        &toml(&nats, "higgs", "prefix = \"stuck\"", "").replace("[nats]\n", "[nats]\ndrain_timeout = \"200ms\"\n"),
        "w4",
        "score::batch=sleep(5000)",
    );
    stuck.wait_ready();
    run(async {
        let client = nats.client().await;
        let mut answers = client.subscribe("answers.*").await.unwrap();
        for prefix in ["slow", "stuck"] {
            let (subject, reply) = (format!("{prefix}.higgs.predict"), format!("answers.{prefix}"));
            client.publish_with_reply(subject, reply, higgs.request(3).into()).await.unwrap();
        }
        client.flush().await.unwrap();
        let taken = |worker: &Worker| worker.metric("forebay_records_in_flight") == 1;
        until_async("both requests", || taken(&slow) && taken(&stuck)).await;
        slow.signal("-TERM");
        stuck.signal("-TERM");
        let answer = answers.next().await.unwrap();
        assert_eq!(answer.subject.as_str(), "answers.slow");
        is_score(&body(&answer), higgs.scores[3]);
    });
    assert_eq!((slow.wait_exit(), stuck.wait_exit()), (Some(0), Some(75)));
}
