//! Three workers over nine partitions, killed at random while the stream flows: nothing lost, doubled or wrong, and where
//! an order is promised, that order. `FOREBAY_KILLS` sets the number of kills (and with it the records), `FOREBAY_SEED`
//! repeats a run; `make test-kills` is the long one.

use std::collections::HashMap;

use crate::support::Record;
use crate::support::checks::{Placed, Tally, number, out_of_order};
use crate::support::stream::{Feed, Fleet, Random, env_or};
use crate::{EXACTLY_ONCE, Promise, Shared, Toml};

const PARTITIONS: i32 = 9;
const WORKERS: usize = 3;
const RECORDS_A_KILL: usize = 5000;
const RATE_PER_S: f64 = 2500.0;
/// Few enough that records of one key meet in the worker.
const KEYS: usize = 60;

/// Small batches that take their time, so that records queue, and the priorities of those that wait decide who is next.
const BATCHES: &str = "[model.batch]\nbatch_size_max = 16\n";
const SLOWLY: &str = "score::batch=sleep(5)";

/// A run of the stream.
struct Run<'a> {
    name: &'a str,
    promise: Promise,
    kills: usize,
    failpoints: &'a str,
    /// More of worker.toml.
    toml: &'a str,
}

/// What is left of it.
struct Outcome {
    tally: Tally,
    requests: Vec<Record>,
    replies: Vec<Record>,
}

pub(crate) fn at_random(shared: &Shared) {
    let outcome = Run::new("kills", EXACTLY_ONCE, env_or("FOREBAY_KILLS", 6)).on(shared);
    outcome.tally.assert_exactly_once();
}

/// Rows come again and again: most replies come from the cache, or from a neighbour that is being scored.
pub(crate) fn cached(shared: &Shared) {
    let toml = "[cache]\nmode = \"on\"\n";
    let outcome = Run { toml, ..Run::new("killscached", EXACTLY_ONCE, env_or("FOREBAY_KILLS", 3)) }.on(shared);
    outcome.tally.assert_exactly_once();
    let from_cache = outcome.replies.iter().filter(|reply| reply.json()["metadata"]["cache_hit"] == true).count();
    println!("killscached: {from_cache} of {} replies from the cache", outcome.replies.len());
    assert!(from_cache > 0, "nothing was shown");
}

/// The negative control: each worker leaves out one reply and sends another one twice.
pub(crate) fn liars(shared: &Shared) {
    let failpoints = "sink::drop_reply=200*off->1*return->off;sink::double_reply=300*off->1*return->off";
    let Outcome { tally, .. } = Run { failpoints, ..Run::new("killsliars", EXACTLY_ONCE, 1) }.on(shared);
    assert!(tally.lost > 0 && tally.doubled > 0 && tally.wrong == 0, "{tally}");
}

pub(crate) fn at_least_once(shared: &Shared) {
    let promise = Promise { delivery: "at_least_once", ..EXACTLY_ONCE };
    let Outcome { tally, .. } = Run::new("killsatleast", promise, env_or("FOREBAY_KILLS", 3)).on(shared);
    assert_eq!((tally.lost, tally.wrong), (0, 0), "{tally}");
}

pub(crate) fn order_of_keys(shared: &Shared) {
    let promise = Promise { ordering: "key", ..EXACTLY_ONCE };
    let outcome = Run::new("killskey", promise, env_or("FOREBAY_KILLS", 3)).on(shared);
    outcome.tally.assert_exactly_once();
    assert_eq!(outcome.out_of_order(Record::key_text), 0);
}

pub(crate) fn order_of_partitions(shared: &Shared) {
    let promise = Promise { ordering: "partition", ..EXACTLY_ONCE };
    let outcome = Run::new("killspartition", promise, env_or("FOREBAY_KILLS", 3)).on(shared);
    outcome.tally.assert_exactly_once();
    assert_eq!(outcome.out_of_order(|request| request.partition.unwrap().to_string()), 0);
}

/// The negative control: the same stream, without a promise, does come out of order, and the checker sees it.
pub(crate) fn no_order(shared: &Shared) {
    let outcome = Run::new("killsnone", EXACTLY_ONCE, 1).on(shared);
    outcome.tally.assert_exactly_once();
    let by_key = outcome.out_of_order(Record::key_text);
    let by_partition = outcome.out_of_order(|request| request.partition.unwrap().to_string());
    println!("killsnone: out of order: {by_key} in their key, {by_partition} in their partition");
    assert!(by_key > 0 && by_partition > 0, "nothing was out of order, so the other runs show nothing");
}

impl<'a> Run<'a> {
    fn new(name: &'a str, promise: Promise, kills: usize) -> Self {
        Self { name, promise, kills, failpoints: SLOWLY, toml: "" }
    }

    fn on(self, shared: &Shared) -> Outcome {
        let Self { name, promise, kills, failpoints, toml } = self;
        let (kafka, seed, records) = (&shared.kafka, Random::seed(), kills * RECORDS_A_KILL);
        let mut random = Random::new(seed);
        let (input, output) = shared.topics(name, PARTITIONS);
        let model = [BATCHES, toml].concat();
        let toml = Toml { kafka: &promise.lines(), model: &model, ..Toml::new(name) }.text(&kafka.brokers());
        let mut fleet = Fleet::start(&toml, name, WORKERS, failpoints);

        let requests: Vec<String> = (0..records).map(|n| shared.higgs.request_at(n, 1 + (n + n / KEYS) % 3)).collect();
        let record = move |n: usize| Record::new(&format!("k{}", n % KEYS), requests[n].as_bytes());
        let feed = Feed::start(kafka, &input, RATE_PER_S, records, record);
        let mut hits = 0;
        for kill in 0..kills {
            // Somewhere in the kill's own stretch of the stream, but for its end: the replaced one shall have work again.
            feed.wait_sent(kill * RECORDS_A_KILL + random.below(RECORDS_A_KILL * 4 / 5));
            let victim = random.below(fleet.len());
            fleet.worker(victim).wait_ready();
            hits += usize::from(fleet.kill(victim));
        }
        feed.end();
        fleet.wait_quiet(kafka, name, (&input, PARTITIONS), &output);

        let replies = kafka.read(&output, 0);
        let tally = Tally::of(&replies, records, |n| shared.higgs.score_at(n));
        println!("{name}: seed={seed} kills={kills} hits={hits} {tally}");
        // The controls show something else, and have one kill each.
        assert!(hits > 0 || kills == 1, "no kill struck a worker with records in flight: nothing was shown");
        fleet.terminate();
        Outcome { tally, requests: kafka.read(&input, records), replies }
    }
}

impl Outcome {
    /// Replies behind one to a later request of the same scope. The order is that of the input topic's log.
    fn out_of_order(&self, scope: impl Fn(&Record) -> String) -> usize {
        let request_of: HashMap<usize, &Record> =
            self.requests.iter().map(|request| (number(request).unwrap(), request)).collect();
        let place = |reply: &Record| {
            let request = request_of[&number(reply).unwrap()];
            let (reply_partition, reply_offset) = (reply.partition.unwrap(), reply.offset);
            Placed { reply_partition, reply_offset, scope: scope(request), request_offset: request.offset }
        };
        let placed: Vec<Placed<String>> = self.replies.iter().map(place).collect();
        out_of_order(&placed)
    }
}
