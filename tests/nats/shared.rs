//! Workers that share a consumer, at least once.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use forebay::clock;

use crate::support::jetstream::Flow;
use crate::support::nats::{Nats, run};
use crate::support::{Higgs, Worker};

/// Two groups read the same records and reply into the same stream: neither's replies pass for the other's.
pub(crate) fn two_groups() {
    let (nats, higgs) = (Nats::start(), Higgs::load());
    let flow = Flow { delivery: "at_least_once", ..Flow::new("two", 1) };
    run(async {
        let client = nats.client().await;
        let context = jetstream::new(client.clone());
        context.create_stream(flow.input_config()).await.unwrap();
        let subjects = ["two-out", "two-other"].map(str::to_owned).to_vec();
        let config = stream::Config { subjects, duplicate_window: Duration::from_secs(120), ..flow.output_config() };
        context.create_stream(config).await.unwrap();
        let toml = flow.toml(&nats);
        let other = toml.replace("group = \"two\"", "group = \"other\"").replace("two-out", "two-other");
        let mut workers = [Worker::ready(&toml, "a"), Worker::ready(&other, "b")];
        flow.send(&client, &higgs, 0..50).await;
        flow.wait_answered(&client, 50).await;
        let start = clock::now();
        while flow.read(&client, "two-other").await.len() < 50 {
            assert!(clock::now() - start < crate::support::BOUND, "{}", workers[1].log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(workers.iter_mut().all(|worker| worker.terminate() == Some(0)));
    });
}

/// What a worker that ends has not answered is another's at once, not when the server has waited for a word on it.
pub(crate) fn given_back() {
    let (nats, higgs) = (Nats::start(), Higgs::load());
    let lines = "ack_wait = \"10m\"\ndrain_timeout = \"1s\"\n".to_owned();
    let model = "[model.batch]\nbatch_size_max = 4\n[engine]\nnum_threads = 1\nin_flight_max = 16\n".to_owned();
    let flow = Flow { delivery: "at_least_once", nats: lines, model, ..Flow::new("back", 1) };
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let mut slow = Worker::start(&flow.toml(&nats), "slow", "score::batch=sleep(500)");
        slow.wait_ready();
        flow.send(&client, &higgs, 0..300).await;
        crate::support::nats::until_async("records in flight", || slow.metric("forebay_records_in_flight") > 0).await;
        slow.terminate();
        let mut quick = Worker::ready(&flow.toml(&nats), "quick");
        flow.wait_answered(&client, 300).await;
        flow.wait_acknowledged(&client).await;
        let tally = flow.tally(&client, &higgs, 300).await;
        assert_eq!((tally.lost, tally.wrong), (0, 0), "{tally}");
        assert_eq!(quick.terminate(), Some(0));
    });
}
