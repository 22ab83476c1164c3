//! A stream of `JetStream` that flows while its workers or its server are killed: nothing lost, doubled or wrong.
//! `FOREBAY_KILLS` sets the number of kills of a run (and with it the records), `FOREBAY_SEED` repeats one;
//! `make test-faults` is the long one.

use std::time::Duration;

use async_nats::Client;
use forebay::clock;

use crate::support::checks::Tally;
use crate::support::jetstream::{Feed, Flow};
use crate::support::nats::{Nats, run};
use crate::support::stream::{Fleet, Random, env_or};
use crate::support::{BOUND, Higgs};

const PARTITIONS: usize = 6;
const WORKERS: usize = 3;
const RECORDS_A_KILL: usize = 1500;
const RATE_PER_S: f64 = 1000.0;
/// Small batches that take their time, so that records are in flight.
const BATCHES: &str = "[model.batch]\nbatch_size_max = 16\n";
const SLOWLY: &str = "score::batch=sleep(10)";

/// Who is killed.
#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Worker,
    Server,
}

pub(crate) fn workers() {
    on(&with_batches("killed", PARTITIONS), Victim::Worker, SLOWLY, env_or("FOREBAY_KILLS", 5)).assert_exactly_once();
}

pub(crate) fn server() {
    on(&with_batches("server", PARTITIONS), Victim::Server, SLOWLY, env_or("FOREBAY_KILLS", 3)).assert_exactly_once();
}

/// The negative control: each worker leaves out one reply and sends another one twice.
pub(crate) fn liars() {
    let failpoints = "sink::drop_reply=100*off->1*return->off;sink::double_reply=150*off->1*return->off";
    let tally = on(&with_batches("liars", PARTITIONS), Victim::Worker, failpoints, 1);
    assert!(tally.lost > 0 && tally.doubled > 0 && tally.wrong == 0, "{tally}");
}

fn with_batches(name: &str, partitions: usize) -> Flow {
    Flow { model: BATCHES.to_owned(), ..Flow::new(name, partitions) }
}

fn on(flow: &Flow, victim: Victim, failpoints: &str, kills: usize) -> Tally {
    let (mut nats, higgs, seed) = (Nats::start(), Higgs::load(), Random::seed());
    let (records, mut random) = (kills * RECORDS_A_KILL, Random::new(seed));
    run(async { flow.create(&nats.client().await).await });
    let mut fleet = Fleet::start(&flow.toml(&nats), &flow.name, WORKERS, failpoints);
    let requests = (0..records).map(|n| higgs.request_at(n, 1 + n % 3)).collect();
    let feed = Feed::start(flow, &nats, RATE_PER_S, requests);
    let mut hits = 0;
    for kill in 0..kills {
        feed.wait_sent(kill * RECORDS_A_KILL + random.below(RECORDS_A_KILL * 4 / 5));
        let index = random.below(fleet.len());
        match victim {
            Victim::Worker => {
                fleet.worker(index).wait_ready();
                hits += usize::from(fleet.kill(index));
            }
            Victim::Server => {
                let in_flight: u64 =
                    (0..fleet.len()).map(|index| fleet.worker(index).metric("forebay_records_in_flight")).sum();
                nats.kill();
                nats.restart();
                hits += usize::from(in_flight > 0);
            }
        }
    }
    feed.end();
    let tally = run(async {
        let client = nats.client().await;
        wait_quiet(flow, &client, records, failpoints == SLOWLY).await;
        flow.tally(&client, &higgs, records).await
    });
    println!("{}: seed={seed} kills={kills} hits={hits} {tally}", flow.name);
    assert!(hits > 0 || kills == 1, "no kill struck records in flight: nothing was shown");
    fleet.terminate();
    tally
}

/// Waits until all that was sent is done: what is then missing is lost.
async fn wait_quiet(flow: &Flow, client: &Client, records: usize, is_honest: bool) {
    let start = clock::now();
    if is_honest {
        // The checkpoints alone would do; a lost record shows sooner, and with its number, in the tally.
        while flow.answered(client).await < records && clock::now() - start < BOUND {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    flow.wait_acknowledged(client).await;
}
