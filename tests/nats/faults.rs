//! What goes wrong with `JetStream`, one fault at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt as _;
use parking_lot::Mutex;

use crate::support::checks::number;
use crate::support::jetstream::{Flow, held};
use crate::support::nats::{Nats, run, until_async};
use crate::support::{Higgs, Worker, until};

/// Acknowledgements as anybody on the server can see them: sequence in the stream, and number of the delivery.
#[derive(Clone, Default)]
struct Acks(Arc<Mutex<BTreeSet<(u64, u64)>>>);

impl Acks {
    async fn watch(nats: &Nats) -> Self {
        let acks = Self::default();
        let (seen, client) = (acks.clone(), nats.client().await);
        let mut messages = client.subscribe("$JS.ACK.>").await.unwrap();
        client.flush().await.unwrap();
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                if message.payload.starts_with(b"+ACK") {
                    let tokens: Vec<&str> = message.subject.split('.').collect();
                    let numbers = &tokens[if tokens.len() == 9 { 5..7 } else { 7..9 }];
                    seen.0.lock().insert((numbers[0].parse().unwrap(), numbers[1].parse().unwrap()));
                }
            }
            drop(client);
        });
        acks
    }
}

/// Two live workers believe to hold a partition: the one whose checkpoint is not the last is refused, lets go and acknowledges
/// nothing of what the other answers.
pub(crate) fn zombie() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("zombie", 1));
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let toml = flow.toml(&nats);
        let acks = Acks::watch(&nats).await;
        // Behind its claim and a first batch the sink stands still, for longer than the lease.
        let mut first = Worker::start(&toml, "first", "sink::begin=1*off->1*sleep(6000)->off");
        first.wait_ready();
        flow.send(&client, &higgs, 0..50).await;
        until("a batch, and one that is under way", || first.metric("forebay_records_received_total") == 50);
        flow.send(&client, &higgs, 50..100).await;
        until("records in flight", || first.metric("forebay_records_received_total") == 100);
        let second = Worker::start(&toml, "second", "");
        until("the second worker's claim", || held(std::slice::from_ref(&second)) == [1]);
        assert_eq!(first.metric("forebay_partitions_assigned"), 1, "{}", first.log());
        flow.wait_answered(&client, 100).await;
        let (fence, checkpoint) = flow.checkpoint(&client, 0).await;
        assert_eq!(checkpoint["owner"], "second-0");
        until("the first worker's letting go", || first.metric("forebay_partitions_assigned") == 0);
        let log = first.log();
        assert!(log.contains("wrong last sequence") && log.contains("the partition is held by another"), "{log}");
        assert!(first.exit().is_none(), "{log}");
        flow.send(&client, &higgs, 100..150).await;
        flow.wait_answered(&client, 150).await;
        flow.wait_acknowledged(&client).await;
        flow.tally(&client, &higgs, 150).await.assert_exactly_once();
        assert!(flow.checkpoint(&client, 0).await.0 > fence);
        // Deliveries are numbered anew for the second worker: the first one's have the records' own numbers.
        let done: u64 = first.metric("forebay_commit_records_sum");
        let acks = acks.0.lock();
        let of_first: Vec<_> = acks.iter().filter(|(sequence, delivery)| sequence == delivery).collect();
        assert!(!acks.is_empty() && of_first.len() as u64 <= done, "{done} done, acknowledged {of_first:?}");
        assert!(of_first.iter().all(|(sequence, _)| *sequence <= 50), "{of_first:?}");
    });
}

/// A worker that stands still as a whole, and goes on when another has its partitions.
pub(crate) fn stopped_and_continued() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("stopped", 4));
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let toml = flow.toml(&nats);
        let mut workers = vec![
            Worker::start(&toml, "a", "score::batch=sleep(20)"),
            Worker::start(&toml, "b", "score::batch=sleep(20)"),
        ];
        workers.iter_mut().for_each(Worker::wait_ready);
        until("two partitions each", || held(&workers) == [2, 2]);
        let mut sent = 0;
        for round in 0..crate::support::stream::env_or("FOREBAY_KILLS", 2) {
            let (one, other) = (&workers[round % 2], &workers[(round + 1) % 2]);
            flow.send(&client, &higgs, sent..sent + 200).await;
            one.signal("-STOP");
            until("all partitions at the other", || held(std::slice::from_ref(other)) == [4]);
            one.signal("-CONT");
            sent += 200;
            flow.wait_answered(&client, sent).await;
            until("two partitions each", || held(&workers) == [2, 2]);
        }
        flow.wait_acknowledged(&client).await;
        flow.tally(&client, &higgs, sent).await.assert_exactly_once();
        assert!(workers.iter_mut().all(|worker| worker.terminate() == Some(0)));
    });
}

/// Acknowledgements that are lost bring their records again, which are found done.
pub(crate) fn lost_acknowledgements() {
    let (nats, higgs) = (Nats::start(), Higgs::load());
    let flow = Flow { nats: "ack_wait = \"1s\"\n".to_owned(), ..Flow::new("lostacks", 2) };
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let mut worker = Worker::start(&flow.toml(&nats), "w", "sink::acknowledge=3*return->off");
        worker.wait_ready();
        flow.send(&client, &higgs, 0..200).await;
        flow.wait_acknowledged(&client).await;
        flow.tally(&client, &higgs, 200).await.assert_exactly_once();
        assert!(worker.metric("forebay_redeliveries_total") > 0, "nothing was shown");
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// A record that takes longer than the server waits for a word on it does not come again, nor do those behind it.
pub(crate) fn slow_head() {
    let (nats, higgs) = (Nats::start(), Higgs::load());
    let nats_lines = "ack_wait = \"1s\"\n".to_owned();
    let model = "[model.batch]\nbatch_size_max = 1\n".to_owned();
    let flow = Flow { nats: nats_lines, model, ..Flow::new("slow", 1) };
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let mut worker = Worker::start(&flow.toml(&nats), "w", "score::batch=1*sleep(4000)->off");
        worker.wait_ready();
        flow.send(&client, &higgs, 0..200).await;
        // All but the slow one, and what it may have taken with it.
        flow.wait_answered(&client, 190).await;
        assert!(worker.metric("forebay_records_in_flight") > 0, "the slow record is not slow");
        flow.wait_answered(&client, 200).await;
        flow.wait_acknowledged(&client).await;
        flow.tally(&client, &higgs, 200).await.assert_exactly_once();
        assert_eq!(worker.metric("forebay_redeliveries_total"), 0);
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// A stream that was made anew has other records, whatever their sequences.
pub(crate) fn stream_recreated() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("recreated", 1));
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        flow.send(&client, &higgs, 0..100).await;
        flow.wait_answered(&client, 100).await;
        let context = jetstream::new(client.clone());
        context.delete_stream(flow.input()).await.unwrap();
        context.create_stream(flow.input_config()).await.unwrap();
        flow.send(&client, &higgs, 100..150).await;
        flow.wait_answered(&client, 150).await;
        flow.wait_acknowledged(&client).await;
        flow.tally(&client, &higgs, 150).await.assert_exactly_once();
        assert!(worker.log().contains("the stream was made anew"), "{}", worker.log());
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// A checkpoint that somebody removed stops its partition alone; told to, the worker goes on behind what was acknowledged.
pub(crate) fn checkpoint_evicted() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("evicted", 2));
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        flow.send(&client, &higgs, 0..100).await;
        flow.wait_answered(&client, 100).await;
        flow.wait_acknowledged(&client).await;
        assert_eq!(worker.terminate(), Some(0));
        let replies = jetstream::new(client.clone()).get_stream(flow.output()).await.unwrap();
        replies.purge().filter(format!("ckpt.evicted.{}.1", flow.input())).await.unwrap();

        let mut worker = Worker::start(&flow.toml(&nats), "w", "");
        until("the stopped partition", || {
            worker.get("/readyz").is_some_and(|(_, text)| text.contains("its checkpoint is gone"))
        });
        flow.send(&client, &higgs, 100..200).await;
        flow.wait_answered(&client, 150).await;
        until("one partition", || held(std::slice::from_ref(&worker)) == [1]);
        let log = worker.log();
        assert!(log.contains("nats.on_missing_checkpoint = \"continue\""), "{log}");
        assert_eq!(worker.terminate(), Some(0));
        assert_eq!(flow.answered(&client).await, 150);

        let flow = Flow { nats: "on_missing_checkpoint = \"continue\"\n".to_owned(), ..flow };
        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        flow.wait_answered(&client, 200).await;
        flow.tally(&client, &higgs, 200).await.assert_exactly_once();
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// Past the stream's duplicate window: exactly once knows by its checkpoint; at least once doubles, and counts what it may have
/// doubled.
pub(crate) fn duplicate_window() {
    let (nats, higgs) = (Nats::start(), Higgs::load());
    for delivery in ["exactly_once", "at_least_once"] {
        let nats_lines = "ack_wait = \"1s\"\n".to_owned();
        let flow = Flow { delivery, nats: nats_lines, ..Flow::new(&format!("window-{delivery}"), 1) };
        run(async {
            let client = nats.client().await;
            flow.create(&client).await;
            // Replies go out, and no record is acknowledged before its worker is killed.
            let mut worker = Worker::start(&flow.toml(&nats), "w", "sink::acknowledge=return");
            worker.wait_ready();
            flow.send(&client, &higgs, 0..100).await;
            flow.wait_answered(&client, 100).await;
            worker.kill();
            // The stream forgets ids after 2 s; its own count of them says when.
            let context = jetstream::new(client.clone());
            probe_forgotten(&context, &flow).await;
            let mut worker = Worker::ready(&flow.toml(&nats), "w");
            flow.send(&client, &higgs, 100..150).await;
            flow.wait_answered(&client, 150).await;
            flow.wait_acknowledged(&client).await;
            let tally = flow.tally(&client, &higgs, 150).await;
            let counted = worker.metric("forebay_replies_maybe_doubled_total");
            println!("{delivery}: {tally}, forebay_replies_maybe_doubled_total {counted}");
            if delivery == "exactly_once" {
                tally.assert_exactly_once();
            } else {
                assert_eq!((tally.lost, tally.wrong), (0, 0), "{tally}");
                assert!(tally.doubled > 0 && counted >= tally.doubled as u64, "{tally}, counted {counted}");
            }
            assert_eq!(worker.terminate(), Some(0));
        });
    }
}

/// Waits until the stream takes an id for new that it was given at the start of the wait.
async fn probe_forgotten(context: &jetstream::Context, flow: &Flow) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", "probe");
    let subject = format!("{}-dead.probe", flow.name);
    let mut is_new = Vec::new();
    let start = forebay::clock::now();
    while is_new.iter().filter(|new| **new).count() < 2 {
        assert!(forebay::clock::now() - start < crate::support::BOUND);
        let sent = context.publish_with_headers(subject.clone(), headers.clone(), "".into()).await.unwrap();
        is_new.push(!sent.await.unwrap().duplicate);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Workers share a consumer: one is killed, and what it had comes to the other.
pub(crate) fn shared_consumer() {
    let (nats, higgs) = (Nats::start(), Higgs::load());
    let nats_lines = "ack_wait = \"1s\"\n".to_owned();
    let model = "[model.batch]\nbatch_size_max = 4\n".to_owned();
    let flow = Flow { delivery: "at_least_once", nats: nats_lines, model, ..Flow::new("shared", 1) };
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let toml = flow.toml(&nats);
        let mut workers = [Worker::start(&toml, "a", "score::batch=sleep(10)"), Worker::start(&toml, "b", "")];
        workers.iter_mut().for_each(Worker::wait_ready);
        flow.send(&client, &higgs, 0..500).await;
        until("records in flight", || workers[0].metric("forebay_records_in_flight") > 0);
        workers[0].kill();
        flow.send(&client, &higgs, 500..600).await;
        flow.wait_answered(&client, 600).await;
        flow.wait_acknowledged(&client).await;
        let tally = flow.tally(&client, &higgs, 600).await;
        println!("shared: {tally}");
        // What was sent and not acknowledged is sent again within the duplicate window of 2 s.
        assert_eq!((tally.lost, tally.wrong), (0, 0), "{tally}");
        assert!(workers[1].metric("forebay_records_received_total") > 100, "the other did nothing");
        assert!(workers[1].log().contains("at least once"), "it says which of the two it gives");
        assert_eq!(workers[1].terminate(), Some(0));
    });
}

/// Streams that cannot hold the promise are refused by name, with what to change.
pub(crate) fn set_up_checks() {
    let nats = Nats::start();
    run(async {
        let client = nats.client().await;
        let context = jetstream::new(client.clone());
        let refused = async |name: &str, config: fn(stream::Config) -> stream::Config, words: &[&str]| {
            let flow = Flow::new(name, 1);
            context.create_stream(flow.input_config()).await.unwrap();
            context.create_stream(config(flow.output_config())).await.unwrap();
            let mut worker = Worker::start(&flow.toml(&nats), "w", "");
            let code = worker.wait_exit();
            let log = worker.log();
            assert!(code != Some(0) && words.iter().all(|word| log.contains(word)), "{code:?} {log}");
        };
        refused("c1", |config| stream::Config { allow_atomic_publish: false, ..config }, &["allow_atomic", "C1-OUT"])
            .await;
        refused("c2", |config| stream::Config { max_messages: 9, ..config }, &["max_msgs", "discard"]).await;
        refused("c4", |config| stream::Config { max_message_size: 4096, ..config }, &["max_msg_size", "4096"]).await;
        refused("c3", |config| stream::Config { max_age: Duration::from_secs(60), ..config }, &["max_age"]).await;

        // What is not there yet is waited for, by name.
        let flow = Flow::new("later", 1);
        let mut worker = Worker::start(&flow.toml(&nats), "w", "");
        until("the reason", || {
            worker.get("/readyz").is_some_and(|(_, text)| text.contains("no stream takes the subject later-out"))
        });
        flow.create(&client).await;
        worker.wait_ready();
        assert!(worker.log().contains("exactly once"), "it says which of the two it gives");
        until("the claim", || held(std::slice::from_ref(&worker)) == [1]);
        assert_eq!(worker.terminate(), Some(0));

        // A checkpoint says nothing of records that its partition did not read.
        let toml = Flow { partitions: 2, ..flow }.toml(&nats);
        let mut worker = Worker::start(&toml, "w", "");
        assert_eq!(worker.wait_exit(), Some(1), "{}", worker.log());
        let words = "is for the subjects [later-in.*], and the routes read [later-in.0] there";
        assert!(worker.log().contains(words), "{}", worker.log());
    });
}

/// Bad records get their error, and are dead letters; a reply goes where its request says, if the stream takes that.
pub(crate) fn addresses() {
    let (nats, higgs) = (Nats::start(), Higgs::load());
    let route = "dead_letter = \"addresses-dead.<input>\"\nreply_topics_allowed = [\"addresses-dead*\", \"nowhere\", \"ckpt*\"]\n"
        .to_owned();
    for delivery in ["exactly_once", "at_least_once"] {
        let flow = Flow { delivery, route: route.clone(), ..Flow::new("addresses", 1) };
        run(async {
            let client = nats.client().await;
            flow.create(&client).await;
            let context = jetstream::new(client.clone());
            let mut worker = Worker::ready(&flow.toml(&nats), "w");
            let send = async |header: Option<&str>, payload: &str| {
                let mut headers = HeaderMap::new();
                headers.insert("traceparent", "00-1");
                headers.insert("kafka_correlationId", "c");
                if let Some(subject) = header {
                    headers.insert("kafka_replyTopic", subject);
                }
                let sent = context.publish_with_headers("addresses-in.0", headers, payload.to_owned().into()).await;
                sent.unwrap().await.unwrap();
            };
            send(Some("addresses-dead.elsewhere"), &higgs.request(0)).await;
            send(Some("nowhere"), &higgs.request(1)).await;
            send(Some("addresses-dead.a b"), &higgs.request(2)).await;
            // It would be taken for a checkpoint.
            send(Some("ckpt.addresses.ADDRESSES-IN.0"), &higgs.request(4)).await;
            send(None, "{").await;
            send(None, &higgs.request(3)).await;
            flow.wait_acknowledged(&client).await;
            let elsewhere = flow.read(&client, "addresses-dead.elsewhere").await;
            assert_eq!(elsewhere.iter().map(number).collect::<Vec<_>>(), [Some(0)]);
            assert_eq!(elsewhere[0].value_of("kafka_correlationId"), Some(&b"c"[..]));
            let replies = flow.replies(&client).await;
            let errors = |reply: &&crate::support::Record| reply.value_of("forebay-error") == Some(b"bad_request");
            assert_eq!((replies.len(), replies.iter().filter(errors).count()), (5, 4));
            let text: Vec<String> = replies.iter().map(crate::support::Record::text).collect();
            assert!(text.iter().any(|text| text.contains("is not one of the stream")), "{text:?}");
            let letters = flow.read(&client, "addresses-dead.addresses-in.0").await;
            let bad = letters.iter().find(|letter| letter.text() == "{").unwrap();
            assert_eq!(letters.len(), 4, "{letters:?}");
            assert_eq!(bad.value_of("forebay-original-sequence"), Some(&b"5"[..]));
            assert_eq!(bad.value_of("traceparent"), Some(&b"00-1"[..]));
            until_async("the count", || worker.metric("forebay_dead_letters_total") == 4).await;
            assert_eq!(worker.terminate(), Some(0));
            for name in [flow.input(), flow.output()] {
                context.delete_stream(name).await.unwrap();
            }
        });
    }
}
