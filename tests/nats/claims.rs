//! Where a partition begins, and where it must not: streams that lost their end, partitions that nobody reads any more,
//! checkpoints that are gone, consumers that cannot be made.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, stream};
use forebay::clock;

use crate::support::jetstream::{Flow, held};
use crate::support::nats::{Nats, run};
use crate::support::{BOUND, Higgs, Worker, until};

/// Longer than the test waits for what must not take a lease.
const LONG_LEASE: &str = "lease = \"60s\"";

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// A server comes back with an older state of the input stream, as after a loss of power: what comes there then has the sequences
/// of records that were answered.
pub(crate) fn stream_set_back() {
    let (mut nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("setback", 1));
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        flow.send(&client, &higgs, 0..50).await;
        flow.wait_answered(&client, 50).await;
        let files = nats.folder().join("data/jetstream/$G/streams").join(flow.input());
        let kept = nats.folder().join("kept");
        nats.kill();
        copy(&files, &kept);
        nats.restart();
        flow.send(&client, &higgs, 50..100).await;
        flow.wait_answered(&client, 100).await;
        nats.kill();
        copy(&kept, &files);
        nats.restart();
        until("the stopped partition", || worker.is_not_ready_for("it has lost its last records"));
        let log = worker.log();
        assert!(log.contains("up to 100 are answered, and the stream ends at 50"), "{log}");
        assert_eq!(worker.terminate(), Some(0));

        // Told to, it goes on with what comes from then on.
        let flow = Flow { nats: "on_missing_checkpoint = \"continue\"".to_owned(), ..flow };
        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        until("the claim", || held(std::slice::from_ref(&worker)) == [1]);
        flow.send(&client, &higgs, 100..130).await;
        flow.wait_answered(&client, 130).await;
        flow.tally(&client, &higgs, 130).await.assert_exactly_once();
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// Records wait in a partition past the last one that is read.
pub(crate) fn fewer_partitions() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("fewer", 4));
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        until("all partitions", || held(std::slice::from_ref(&worker)) == [4]);
        assert_eq!(worker.terminate(), Some(0));
        flow.send(&client, &higgs, 0..8).await;
        let toml = flow.toml(&nats).replace("partitions = 4", "partitions = 2");
        let mut fewer = Worker::start(&toml, "w", "");
        assert_eq!(fewer.wait_exit(), Some(1));
        let log = fewer.log();
        assert!(log.contains("nats.partitions is 2, but 2 records wait in partition 2 of FEWER-IN"), "{log}");

        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        flow.wait_answered(&client, 8).await;
        flow.wait_acknowledged(&client).await;
        assert_eq!(worker.terminate(), Some(0));
        let mut fewer = Worker::ready(&toml, "w");
        until("two partitions", || held(std::slice::from_ref(&fewer)) == [2]);
        assert_eq!(fewer.terminate(), Some(0));
    });
}

/// A checkpoint that is gone is missed also where the consumer has acknowledged nothing; so it is where workers shared a consumer
/// before, and the other way round.
pub(crate) fn checkpoint_gone_early() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("early", 1));
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        until("the claim", || held(std::slice::from_ref(&worker)) == [1]);
        assert_eq!(worker.terminate(), Some(0));
        let replies = jetstream::new(client.clone()).get_stream(flow.output()).await.unwrap();
        replies.purge().filter("ckpt.early.>").await.unwrap();
        let mut worker = Worker::start(&flow.toml(&nats), "w", "");
        until("the stopped partition", || worker.is_not_ready_for("its checkpoint is gone"));
        assert_eq!(worker.terminate(), Some(0));

        let shared = Flow { delivery: "at_least_once", ..flow.clone() };
        let mut worker = Worker::start(&shared.toml(&nats), "w", "");
        assert_eq!(worker.wait_exit(), Some(1));
        assert!(worker.log().contains("the group early was exactly once before"), "{}", worker.log());

        let shared = Flow { delivery: "at_least_once", ..Flow::new("turned", 1) };
        shared.create(&client).await;
        let mut worker = Worker::ready(&shared.toml(&nats), "w");
        shared.send(&client, &higgs, 0..20).await;
        shared.wait_answered(&client, 20).await;
        shared.wait_acknowledged(&client).await;
        assert_eq!(worker.terminate(), Some(0));
        let exact = Flow { delivery: "exactly_once", ..shared };
        let mut worker = Worker::start(&exact.toml(&nats), "w", "");
        until("the stopped partition", || worker.is_not_ready_for("has acknowledged records up to 20"));
        assert_eq!(worker.terminate(), Some(0));
        let exact = Flow { nats: "on_missing_checkpoint = \"continue\"".to_owned(), ..exact };
        let mut worker = Worker::ready(&exact.toml(&nats), "w");
        exact.send(&client, &higgs, 20..40).await;
        exact.wait_answered(&client, 40).await;
        exact.tally(&client, &higgs, 40).await.assert_exactly_once();
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// A consumer that cannot be made is said, and its partition is free for others meanwhile. One whose stream bounds what it may have
/// open keeps to that.
pub(crate) fn consumer_refused() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("unmade", 1));
    run(async {
        let client = nats.client().await;
        let context = jetstream::new(client.clone());
        let limits = stream::ConsumerLimits { inactive_threshold: Duration::ZERO, max_ack_pending: 50 };
        let config = stream::Config {
            retention: stream::RetentionPolicy::WorkQueue,
            consumer_limits: Some(limits),
            ..flow.input_config()
        };
        let input = context.create_stream(config).await.unwrap();
        context.create_stream(flow.output_config()).await.unwrap();
        let foreign = pull::Config {
            durable_name: Some("foreign".to_owned()),
            ack_policy: AckPolicy::Explicit,
            max_ack_pending: 1,
            ..pull::Config::default()
        };
        input.create_consumer(foreign).await.unwrap();
        let mut worker = Worker::start(&flow.toml(&nats), "w", "");
        until("the reason", || worker.is_not_ready_for("the consumer unmade-0 of UNMADE-IN cannot be made"));
        assert_eq!(flow.checkpoint(&client, 0).await.1["owner"], "");
        input.delete_consumer("foreign").await.unwrap();
        worker.wait_ready();
        flow.send(&client, &higgs, 0..300).await;
        flow.wait_answered(&client, 300).await;
        flow.wait_acknowledged(&client).await;
        flow.tally(&client, &higgs, 300).await.assert_exactly_once();
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// A worker that ends says so: others need not wait until its lease has run out.
pub(crate) fn leaving() {
    let (nats, flow) = (Nats::start(), Flow { nats: LONG_LEASE.to_owned(), ..Flow::new("leaving", 4) });
    let toml = flow.toml(&nats).replace("lease = \"2s\"\n", "");
    run(async { flow.create(&nats.client().await).await });
    let mut workers = vec![Worker::ready(&toml, "a")];
    until("all partitions", || held(&workers) == [4]);
    workers.push(Worker::ready(&toml, "b"));
    until("two partitions each", || held(&workers) == [2, 2]);
    let start = clock::now();
    assert_eq!(workers.remove(0).terminate(), Some(0));
    until("all partitions", || held(&workers) == [4]);
    assert!(clock::now() - start < Duration::from_secs(20), "it took {:?}", clock::now() - start);
    assert_eq!(workers[0].terminate(), Some(0));
}

/// What limits remove of other subjects is no loss of a partition that had nothing.
pub(crate) fn quiet_partition() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("quiet", 2));
    run(async {
        let client = nats.client().await;
        let context = jetstream::new(client.clone());
        let config = stream::Config { max_messages: 50, ..flow.input_config() };
        context.create_stream(config).await.unwrap();
        context.create_stream(flow.output_config()).await.unwrap();
        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        // Odd ones only: they are of partition 1.
        for n in (1..400).step_by(2) {
            flow.publish(&client, n, higgs.request_at(n, 2)).await;
            if n % 40 == 1 {
                flow.wait_acknowledged(&client).await;
            }
        }
        flow.wait_acknowledged(&client).await;
        assert_eq!(flow.answered(&client).await, 200);
        assert_eq!(worker.terminate(), Some(0));
        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        until("both partitions", || held(std::slice::from_ref(&worker)) == [2]);
        assert_eq!(worker.metric("forebay_records_lost_total"), 0, "{}", worker.log());
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// Only the last checkpoint of a partition stays.
pub(crate) fn superseded() {
    let (nats, higgs) = (Nats::start(), Higgs::load());
    let flow = Flow { nats: "commit_records_max = 1\n".to_owned(), ..Flow::new("superseded", 2) };
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let mut worker = Worker::ready(&flow.toml(&nats), "w");
        flow.send(&client, &higgs, 0..1200).await;
        flow.wait_answered(&client, 1200).await;
        flow.wait_acknowledged(&client).await;
        let commits = worker.metric("forebay_commits_total");
        assert!(commits > 1100, "{commits} checkpoints");
        let start = clock::now();
        loop {
            let count = flow.read(&client, "ckpt.superseded.>").await.len();
            if count < 300 {
                break;
            }
            assert!(clock::now() - start < BOUND, "{count} of {commits} checkpoints stay");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        flow.tally(&client, &higgs, 1200).await.assert_exactly_once();
        assert_eq!(worker.terminate(), Some(0));
    });
}
