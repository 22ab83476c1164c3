//! Records of `JetStream`, each answered exactly once.

use crate::support::jetstream::{Flow, held};
use crate::support::nats::{Nats, run};
use crate::support::{Higgs, Worker, until};

pub(crate) fn flows() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("flows", 3));
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let mut worker = Worker::ready(&flow.toml(&nats), "w0");
        flow.send(&client, &higgs, 0..600).await;
        flow.wait_answered(&client, 600).await;
        flow.wait_acknowledged(&client).await;
        flow.tally(&client, &higgs, 600).await.assert_exactly_once();
        assert_eq!(flow.checkpoint(&client, 2).await.1["owner"], "w0-0");
        assert_eq!(worker.terminate(), Some(0));
        let (_, checkpoint) = flow.checkpoint(&client, 2).await;
        assert_eq!((&checkpoint["owner"], &checkpoint["next"]), (&"".into(), &601.into()), "{checkpoint}");

        // What comes while nobody is there is answered by who comes next, and nothing else is.
        flow.send(&client, &higgs, 600..700).await;
        let mut worker = Worker::ready(&flow.toml(&nats), "w1");
        flow.wait_answered(&client, 700).await;
        flow.tally(&client, &higgs, 700).await.assert_exactly_once();
        assert_eq!(worker.metric("forebay_records_received_total"), 100);
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// Three workers share what one had, and a partition has a standby.
pub(crate) fn three_workers() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("three", 6));
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let toml = flow.toml(&nats);
        let mut workers = vec![Worker::ready(&toml, "a")];
        until("all partitions", || held(&workers) == [6]);
        workers.extend(["b", "c"].map(|name| Worker::start(&toml, name, "")));
        until("two partitions each", || held(&workers) == [2, 2, 2]);
        flow.send(&client, &higgs, 0..600).await;
        flow.wait_answered(&client, 600).await;
        let received: Vec<u64> = workers.iter().map(|worker| worker.metric("forebay_records_received_total")).collect();
        assert_eq!(received, [200, 200, 200]);

        // One is killed: the others take its partitions when its lease has run out.
        workers.remove(2).kill();
        flow.send(&client, &higgs, 600..900).await;
        flow.wait_answered(&client, 900).await;
        assert_eq!(held(&workers), [3, 3]);
        // One goes: the other has them at once.
        assert_eq!(workers.remove(1).terminate(), Some(0));
        until("all partitions", || held(&workers) == [6]);
        flow.send(&client, &higgs, 900..1000).await;
        flow.wait_answered(&client, 1000).await;
        flow.tally(&client, &higgs, 1000).await.assert_exactly_once();
        assert_eq!(workers[0].terminate(), Some(0));
    });
}
