//! What an exactly-once worker stands on: batches that a stream takes as a whole, and fences in them.

use async_nats::jetstream::{self, stream};
use async_nats::{Client, HeaderMap};
use serde_json::Value as Json;

use crate::support::nats::{Nats, run, until_async};

/// "Wrong last sequence": the fence does not hold.
const STALE_FENCE: u64 = 10071;

const CHECKPOINT: &str = "ckpt.group.in.0";

async fn stream(client: &Client) -> stream::Stream {
    let config = stream::Config {
        name: "OUT".to_owned(),
        subjects: vec!["out.>".to_owned(), "ckpt.>".to_owned()],
        allow_atomic_publish: true,
        ..stream::Config::default()
    };
    jetstream::new(client.clone()).create_stream(config).await.unwrap()
}

async fn messages(stream: &mut stream::Stream) -> u64 {
    stream.info().await.unwrap().state.messages
}

/// The sequence of the checkpoint.
async fn fence(stream: &stream::Stream) -> u64 {
    stream.get_last_raw_message_by_subject(CHECKPOINT).await.unwrap().sequence
}

/// Publishes replies, and behind them a checkpoint whose subject's last sequence must be `fence`, as one batch; what the
/// server answers to its last message.
async fn publish(client: &Client, id: &str, replies: usize, fence: u64, is_committed: bool) -> Json {
    let headers = |sequence: usize| {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Batch-Id", id);
        headers.insert("Nats-Batch-Sequence", sequence.to_string());
        headers
    };
    for sequence in 1..=replies {
        let subject = format!("out.{}", sequence % 4);
        client.publish_with_headers(subject, headers(sequence), format!("{id} {sequence}").into()).await.unwrap();
    }
    let mut last = headers(replies + 1);
    last.insert("Nats-Expected-Last-Subject-Sequence", fence.to_string());
    if !is_committed {
        client.publish_with_headers(CHECKPOINT, last, id.to_owned().into()).await.unwrap();
        client.flush().await.unwrap();
        return Json::Null;
    }
    last.insert("Nats-Batch-Commit", "1");
    let answer = client.request_with_headers(CHECKPOINT, last, id.to_owned().into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

pub(crate) fn whole_or_not_at_all() {
    let nats = Nats::start();
    run(async {
        let client = nats.client().await;
        let mut stream = stream(&client).await;
        publish(&client, "open", 63, 0, false).await;
        assert_eq!(messages(&mut stream).await, 0);
        let answer = publish(&client, "closed", 63, 0, true).await;
        assert_eq!((&answer["batch"], &answer["count"], &answer["seq"]), (&"closed".into(), &64.into(), &64.into()));
        assert_eq!(messages(&mut stream).await, 64);
        assert_eq!(fence(&stream).await, 64);
    });
}

pub(crate) fn stale_fence() {
    let nats = Nats::start();
    run(async {
        let client = nats.client().await;
        let mut stream = stream(&client).await;
        assert_eq!(publish(&client, "first", 9, 0, true).await["seq"], 10);
        let answer = publish(&client, "stale", 9, 0, true).await;
        assert_eq!(answer["error"]["err_code"], STALE_FENCE, "{answer}");
        assert_eq!(messages(&mut stream).await, 10);
        assert_eq!(publish(&client, "second", 9, 10, true).await["seq"], 20);
        assert_eq!(messages(&mut stream).await, 20);
    });
}

pub(crate) fn killed() {
    let mut nats = Nats::start();
    run(async {
        let client = nats.client().await;
        let mut stream = stream(&client).await;
        assert_eq!(publish(&client, "before", 99, 0, true).await["seq"], 100);
        publish(&client, "open", 99, 100, false).await;
        nats.kill();
        let away = || client.connection_state() != async_nats::connection::State::Connected;
        until_async("the end of the connection", away).await;
        nats.restart();
        until_async("the connection", || !away()).await;
        // What was not committed is gone with the server.
        assert_eq!(messages(&mut stream).await, 100);
        assert_eq!(fence(&stream).await, 100);
        assert_eq!(publish(&client, "after", 99, 100, true).await["seq"], 200);
    });
}
