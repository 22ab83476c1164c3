//! From one system to the other: records of Kafka answered on NATS exactly once, and records of NATS answered on Kafka.

use std::collections::BTreeSet;

use crate::support::checks::Tally;
use crate::support::jetstream::Flow;
use crate::support::nats::{Nats, run};
use crate::support::stream::{Feed, Fleet, Random, env_or};
use crate::support::{Record, Worker, until};
use crate::{Shared, Toml};

const PARTITIONS: i32 = 6;
const RECORDS_A_KILL: usize = 3000;
const RATE_PER_S: f64 = 1500.0;
const SLOWLY: &str = "score::batch=sleep(10)";

/// Three workers, killed at random, and the NATS server once in their midst.
pub(crate) fn kafka_to_nats(shared: &Shared) {
    let (name, kills, seed) = ("tonats", env_or("FOREBAY_KILLS", 4), Random::seed());
    let (mut nats, mut random, records) = (Nats::start(), Random::new(seed), kills * RECORDS_A_KILL);
    let (input, _) = shared.topics(name, PARTITIONS);
    let flow = Flow::new(name, 1);
    run(async { flow.create(&nats.client().await).await });
    let route = "sink = \"nats\"";
    let url = nats.url();
    let model = format!("[model.batch]\nbatch_size_max = 16\n[nats]\nservers = \"{url}\"\nping_interval = \"500ms\"\n");
    let toml = Toml { route, model: &model, ..Toml::new(name) }.text(&shared.kafka.brokers());
    let mut fleet = Fleet::start(&toml, name, 3, SLOWLY);
    let requests: Vec<String> = (0..records).map(|n| shared.higgs.request_at(n, 1 + n % 3)).collect();
    let record = move |n: usize| Record::new(&format!("k{n}"), requests[n].as_bytes());
    let feed = Feed::start(&shared.kafka, &input, RATE_PER_S, records, record);
    let mut hits = 0;
    for kill in 0..kills {
        feed.wait_sent(kill * RECORDS_A_KILL + random.below(RECORDS_A_KILL * 4 / 5));
        if kill == kills / 2 {
            nats.kill();
            nats.restart();
        }
        let victim = random.below(fleet.len());
        fleet.worker(victim).wait_ready();
        hits += usize::from(fleet.kill(victim));
    }
    feed.end();
    // The group's positions follow the checkpoints.
    until("the group at the input's end", || {
        shared.kafka.committed(name, &input, PARTITIONS) == shared.kafka.ends(&input, PARTITIONS)
    });
    let tally = run(async { flow.tally(&nats.client().await, &shared.higgs, records).await });
    println!("{name}: seed={seed} kills={kills} hits={hits} {tally}");
    tally.assert_exactly_once();
    assert!(hits > 0, "no kill struck records in flight: nothing was shown");
    fleet.terminate();
}

/// Without a kill each reply comes once; with one, none is lost.
pub(crate) fn nats_to_kafka(shared: &Shared) {
    let name = "tokafka";
    let nats = Nats::start();
    let flow = Flow { delivery: "at_least_once", ..Flow::new(name, 1) };
    shared.kafka.create(&[&format!("{name}-out")], 2);
    let brokers = shared.kafka.brokers();
    let toml = flow.toml(&nats).replace("[[route]]", "[[route]]\nsource = \"nats\"\nsink = \"kafka\"")
        + &format!("[model.batch]\nbatch_size_max = 16\n[kafka]\nbrokers = \"{brokers}\"\ngroup = \"{name}\"\n");
    let toml = toml.replace("ping_interval", "ack_wait = \"1s\"\nping_interval");
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        let mut workers = [Worker::ready(&toml, "a"), Worker::ready(&toml, "b")];
        flow.send(&client, &shared.higgs, 0..600).await;
        flow.wait_acknowledged(&client).await;
        let replies = shared.kafka.read(&format!("{name}-out"), 600);
        Tally::of(&replies, 600, |n| shared.higgs.score_at(n)).assert_exactly_once();
        let received = workers.each_ref().map(|worker| worker.metric("forebay_records_received_total"));
        assert!(received.iter().all(|count| *count > 0), "they share: {received:?}");

        workers[0].kill();
        workers[0] = Worker::start(&toml, "a", SLOWLY);
        workers[0].wait_ready();
        flow.send(&client, &shared.higgs, 600..1000).await;
        until("records in flight", || workers[0].metric("forebay_records_in_flight") > 0);
        workers[0].kill();
        flow.wait_acknowledged(&client).await;
        let replies = shared.kafka.read(&format!("{name}-out"), 1000);
        // By their ids a reader tells those that came twice.
        let ids: BTreeSet<_> = replies.iter().map(|reply| reply.value_of("forebay-message-id").unwrap()).collect();
        assert!(ids.len() == 1000 && ids.iter().all(|id| id.ends_with(b":reply")), "{} ids", ids.len());
        let tally = Tally::of(&replies, 1000, |n| shared.higgs.score_at(n));
        println!("{name}: {tally}");
        assert_eq!((tally.lost, tally.wrong), (0, 0), "{tally}");
        let counted = workers[1].metric("forebay_replies_maybe_doubled_total");
        assert!(counted > 0 && counted >= tally.doubled as u64, "counted {counted}, {tally}");
        assert_eq!(workers[1].terminate(), Some(0));
    });
}

/// A topic that was made anew has other records, whatever their offsets: its checkpoint is of the one that is no more.
pub(crate) fn topic_made_anew(shared: &Shared) {
    let name = "anew";
    let nats = Nats::start();
    let (input, _) = shared.topics(name, 1);
    let flow = Flow::new(name, 1);
    let model = format!("[nats]\nservers = \"{}\"\n", nats.url());
    let toml = Toml { route: "sink = \"nats\"", model: &model, ..Toml::new(name) }.text(&shared.kafka.brokers());
    let send = |rows: std::ops::Range<usize>| {
        let record = |n: usize| Record::new(&format!("k{n}"), shared.higgs.request_at(n, 2).as_bytes());
        shared.kafka.send(&input, &rows.map(record).collect::<Vec<_>>());
    };
    let wait_answered = |count| run(async { flow.wait_answered(&nats.client().await, count).await });
    run(async { flow.create(&nats.client().await).await });
    let mut worker = Worker::ready(&toml, "w");
    send(0..50);
    wait_answered(50);
    assert_eq!(worker.terminate(), Some(0));
    shared.kafka.delete(&input);
    shared.kafka.create(&[&input], 1);
    // More than the checkpoint says are done.
    send(50..150);
    let mut worker = Worker::ready(&toml, "w");
    wait_answered(150);
    run(async { flow.tally(&nats.client().await, &shared.higgs, 150).await }).assert_exactly_once();
    assert!(worker.log().contains("the topic was made anew"), "{}", worker.log());
    assert_eq!(worker.terminate(), Some(0));
}
