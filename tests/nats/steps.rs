//! Where exactly once could break: at each step of a batch, at an answer that is lost, at a connection that is cut in its
//! midst. And the guard itself, taken away: without its fence the same faults double replies.

use crate::support::checks::Tally;
use crate::support::jetstream::{Feed, Flow, held};
use crate::support::nats::{Nats, run};
use crate::support::proxy::Proxy;
use crate::support::stream::{Random, env_or};
use crate::support::{Higgs, Worker, until};

/// Takes the fences off all batches.
const UNFENCED: &str = "sink::unfenced=return";
const SLOWLY: &str = "score::batch=sleep(10)";
const RECORDS_A_CUT: usize = 1000;

/// The process is killed at a step of its second batch.
pub(crate) fn killed_at_each() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("steps", 1));
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let (toml, mut sent) = (flow.toml(&nats), 0);
        for step in ["sink::begin", "sink::produced", "sink::committed"] {
            let mut worker = Worker::start(&toml, "w", &format!("{step}=1*off->pause"));
            worker.wait_ready();
            flow.send(&client, &higgs, sent..sent + 1).await;
            until("a first batch", || worker.metric("forebay_commits_total") == 1);
            flow.send(&client, &higgs, sent + 1..sent + 100).await;
            sent += 100;
            until("records in flight", || worker.metric("forebay_records_received_total") >= 100);
            assert_eq!(worker.metric("forebay_commits_total"), 1, "{step} holds the second batch");
            worker.kill();
        }
        let mut worker = Worker::ready(&toml, "w");
        flow.wait_answered(&client, sent).await;
        flow.wait_acknowledged(&client).await;
        flow.tally(&client, &higgs, sent).await.assert_exactly_once();
        assert_eq!(worker.terminate(), Some(0));
    });
}

/// A batch goes out and its answer is lost: the checkpoint says so, and nothing goes out again.
pub(crate) fn lost_answer() {
    answer_lost("").assert_exactly_once();
}

/// The control: where the checkpoints are not read back, and fence nothing, what went out goes out once more.
pub(crate) fn lost_answer_unfenced() {
    let tally = answer_lost(&format!("{UNFENCED};sink::read_back=return"));
    assert!(tally.doubled > 0 && (tally.lost, tally.wrong) == (0, 0), "{tally}");
}

fn answer_lost(failpoints: &str) -> Tally {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("answer", 2));
    let tally = run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let failpoints = format!("sink::committed=1*off->1*return->2*off->1*return->off;{failpoints}");
        let mut worker = Worker::start(&flow.toml(&nats), "w", &failpoints);
        worker.wait_ready();
        for part in 0..10 {
            flow.send(&client, &higgs, part * 20..(part + 1) * 20).await;
            flow.wait_answered(&client, (part + 1) * 20).await;
        }
        flow.wait_acknowledged(&client).await;
        assert_eq!(worker.metric("forebay_transactions_aborted_total"), 2, "{}", worker.log());
        assert_eq!(worker.terminate(), Some(0));
        flow.tally(&client, &higgs, 200).await
    });
    println!("answer: {failpoints:?} {tally}");
    tally
}

/// One worker's connection is cut again and again, and once it hangs for longer than the lease, so that the other has its
/// partitions meanwhile.
pub(crate) fn connections_cut() {
    let (nats, higgs, seed) = (Nats::start(), Higgs::load(), Random::seed());
    let (cuts, mut random, proxy) = (env_or("FOREBAY_KILLS", 4), Random::new(seed), Proxy::start(nats.port()));
    let flow = Flow { model: "[model.batch]\nbatch_size_max = 16\n".to_owned(), ..Flow::new("cut", 4) };
    run(async { flow.create(&nats.client().await).await });
    let toml = flow.toml(&nats);
    let through = toml.replace(&nats.url(), &format!("nats://127.0.0.1:{}", proxy.port()));
    let mut workers = [Worker::start(&through, "cut", SLOWLY), Worker::start(&toml, "whole", SLOWLY)];
    workers.iter_mut().for_each(Worker::wait_ready);
    until("two partitions each", || held(&workers) == [2, 2]);
    let records = (cuts + 1) * RECORDS_A_CUT;
    let requests = (0..records).map(|n| higgs.request_at(n, 1 + n % 3)).collect();
    let feed = Feed::start(&flow, &nats, 1000.0, requests);
    let mut hits = 0;
    for cut in 0..=cuts {
        feed.wait_sent(cut * RECORDS_A_CUT + random.below(RECORDS_A_CUT / 2));
        until("a partition", || held(&workers[..1]) != [0]);
        hits += usize::from(workers[0].metric("forebay_records_in_flight") > 0);
        if cut == cuts / 2 {
            proxy.hold(true);
            until("all partitions at the other", || held(&workers[1..]) == [4]);
            proxy.hold(false);
        } else {
            proxy.cut();
        }
    }
    feed.end();
    let tally = run(async {
        let client = nats.client().await;
        flow.wait_answered(&client, records).await;
        flow.wait_acknowledged(&client).await;
        flow.tally(&client, &higgs, records).await
    });
    println!("cut: seed={seed} cuts={cuts} hits={hits} {tally}");
    tally.assert_exactly_once();
    assert!(hits > 0, "no cut struck records in flight: nothing was shown");
    assert!(workers.iter_mut().all(|worker| worker.terminate() == Some(0)));
}

/// Two live workers hold one partition, and the stale one's batch has no fence: what the other answered is answered twice.
pub(crate) fn zombie_unfenced() {
    let (nats, higgs, flow) = (Nats::start(), Higgs::load(), Flow::new("unfenced", 1));
    let tally = run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let toml = flow.toml(&nats);
        let stale = format!("sink::begin=1*off->1*sleep(6000)->off;{UNFENCED}");
        let mut first = Worker::start(&toml, "first", &stale);
        first.wait_ready();
        flow.send(&client, &higgs, 0..1).await;
        until("a first batch", || first.metric("forebay_commits_total") == 1);
        flow.send(&client, &higgs, 1..100).await;
        until("records in flight", || first.metric("forebay_records_received_total") == 100);
        let second = Worker::start(&toml, "second", "");
        flow.wait_answered(&client, 100).await;
        until("the first worker's batch", || first.metric("forebay_commits_total") == 2);
        drop((first, second));
        flow.tally(&client, &higgs, 100).await
    });
    println!("unfenced: {tally}");
    assert!(tally.doubled > 0 && (tally.lost, tally.wrong) == (0, 0), "{tally}");
}
