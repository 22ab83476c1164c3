//! Messages that the stream of the replies does not take: each is told from its neighbours, and those go out.

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};

use crate::support::jetstream::Flow;
use crate::support::nats::{Nats, run};
use crate::support::{Higgs, Record, Worker, until};

fn codes(replies: &[Record]) -> Vec<String> {
    let code = |reply: &Record| reply.value_of("forebay-error").map(|code| String::from_utf8_lossy(code).into_owned());
    replies.iter().filter_map(code).collect()
}

/// The stream takes less than it did when the worker looked: the server refuses whole batches for one reply in them.
pub(crate) fn smaller_messages() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("smaller", 1));
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let context = jetstream::new(client.clone());
        let mut worker = Worker::start(&flow.toml(&nats), "w", "score::batch=1*sleep(1000)->off");
        worker.wait_ready();
        flow.send(&client, &higgs, 0..1).await;
        flow.wait_answered(&client, 1).await;
        context.update_stream(stream::Config { max_message_size: 9000, ..flow.output_config() }).await.unwrap();
        let rows = vec![&*higgs.rows[0]; 800].join(",");
        flow.send(&client, &higgs, 1..50).await;
        let large = format!("{{\"id\":\"large\",\"features\":[{rows}]}}");
        context.publish("smaller-in.0", large.into()).await.unwrap().await.unwrap();
        flow.send(&client, &higgs, 50..100).await;
        flow.wait_answered(&client, 100).await;
        flow.wait_acknowledged(&client).await;
        let replies = flow.replies(&client).await;
        assert_eq!((replies.len(), codes(&replies)), (101, vec!["too_large".to_owned()]), "{}", worker.log());
        assert_eq!(worker.metric("forebay_replies_dropped_total"), 0);
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// A dead letter whose subject no stream takes is dropped and counted; its record has its reply, and so have the others.
pub(crate) fn letter_without_a_stream() {
    let (nats, higgs) = (Nats::start(), Higgs::load());
    let route = "dead_letter = \"letters-dead.<input>\"\n".to_owned();
    let flow = Flow { route, ..Flow::new("letters", 1) };
    run(async {
        let client = nats.client().await;
        let context = jetstream::new(client.clone());
        context.create_stream(flow.input_config()).await.unwrap();
        let subjects = ["letters-out", "letters-dead.letters-in.0", "ckpt.letters.>"].map(str::to_owned).to_vec();
        context.create_stream(stream::Config { subjects, ..flow.output_config() }).await.unwrap();
        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        for (subject, payload) in [("letters-in.0", "{"), ("letters-in.1", "{"), ("letters-in.0", &*higgs.request(0))] {
            context.publish(subject, payload.to_owned().into()).await.unwrap().await.unwrap();
        }
        flow.wait_acknowledged(&client).await;
        assert_eq!(flow.replies(&client).await.len(), 3);
        assert_eq!(flow.read(&client, "letters-dead.>").await.len(), 1);
        assert_eq!(worker.metric("forebay_dead_letters_dropped_total"), 1, "{}", worker.log());
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// A sender's header that is carried over grows past what a server takes.
pub(crate) fn headers_too_large() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("headers", 1));
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let context = jetstream::new(client.clone());
        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        let mut headers = HeaderMap::new();
        // Each is two bytes, and six when it is percent-encoded.
        headers.insert("kafka_correlationId", "\u{86}".repeat(15_000));
        let sent = context.publish_with_headers("headers-in.0", headers, higgs.request(0).into()).await;
        sent.unwrap().await.unwrap();
        flow.send(&client, &higgs, 1..20).await;
        flow.wait_answered(&client, 20).await;
        flow.wait_acknowledged(&client).await;
        let replies = flow.replies(&client).await;
        assert_eq!((replies.len(), codes(&replies)), (20, vec!["too_large".to_owned()]), "{}", worker.log());
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// A full stream is waited for: no record is at fault, and none gets another answer for it.
pub(crate) fn full_stream() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("full", 1));
    run(async {
        let client = nats.client().await;
        let context = jetstream::new(client.clone());
        context.create_stream(flow.input_config()).await.unwrap();
        let full = stream::Config { max_messages: 50, discard: stream::DiscardPolicy::New, ..flow.output_config() };
        context.create_stream(full).await.unwrap();
        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        flow.send(&client, &higgs, 0..100).await;
        until("a full stream", || worker.is_not_ready_for("maximum messages exceeded"));
        assert!(flow.answered(&client).await < 50);
        context.update_stream(flow.output_config()).await.unwrap();
        flow.wait_answered(&client, 100).await;
        flow.wait_acknowledged(&client).await;
        flow.tally(&client, &higgs, 100).await.assert_exactly_once();
        worker.wait_ready();
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// At least once, a stream that is gone for a while is waited for, too.
pub(crate) fn stream_away() {
    let (nats, higgs) = (Nats::start(), Higgs::load());
    let flow = Flow { delivery: "at_least_once", nats: "ack_wait = \"1s\"\n".to_owned(), ..Flow::new("away", 1) };
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let context = jetstream::new(client.clone());
        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        flow.send(&client, &higgs, 0..20).await;
        flow.wait_answered(&client, 20).await;
        context.delete_stream(flow.output()).await.unwrap();
        flow.send(&client, &higgs, 20..60).await;
        until("no stream", || worker.is_not_ready_for("replies are not taken"));
        context.create_stream(flow.output_config()).await.unwrap();
        flow.wait_answered(&client, 40).await;
        flow.wait_acknowledged(&client).await;
        let replies = flow.replies(&client).await;
        assert_eq!(codes(&replies), Vec::<String>::new());
        assert_eq!(worker.metric("forebay_replies_dropped_total"), 0);
        assert_eq!(worker.terminate(), Some(0));
    });
}
