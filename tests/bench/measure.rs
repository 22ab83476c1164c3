//! One subject measured: a topic filled before it starts gives throughput and CPU, a paced one then gives latency.
//!
//! Throughput and CPU are taken over the steady middle, from samples of what a `read_committed` reader could see and of
//! what the process had used. Nothing else runs meanwhile but the sampling: the replies are read and checked afterwards.

use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use forebay::clock;
use rdkafka::consumer::BaseConsumer;

use crate::clients::{self, Feeder, PARTITIONS};
use crate::ledger::{Answer, Ledger, SentUs};
use crate::progress::Progress;
use crate::stream::{Format, Stream};
use crate::subject::{CpuUs, LATENCY_RATES, Place, Process, Subject};
use crate::support::Kafka;

const SAMPLE_EVERY: Duration = Duration::from_millis(50);
/// Nothing new for so long: it is done, or stuck.
const DONE_AFTER: Duration = Duration::from_secs(1);
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// The steady middle, as shares of all records. It ends early: what was fetched ahead must be as much at both ends.
const MIDDLE: (f64, f64) = (0.15, 0.75);
/// How long a latency phase is, after a second that is not timed.
const LATENCY_S: f64 = 10.0;
/// Half as long again where records come slower than this.
const SLOW_BELOW_PER_S: f64 = 100.0;

/// Where and how subjects are measured.
pub(crate) struct Bench<'a> {
    pub(crate) kafka: &'a Kafka,
    pub(crate) stream: Arc<Stream>,
    pub(crate) folder: &'a Path,
    pub(crate) progress: &'a Progress,
    /// A twentieth of the records, and a fifth of the latency phase: to see that it runs.
    pub(crate) quick: bool,
}

/// A row of the table.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) subject: Subject,
    pub(crate) records_per_s: f64,
    pub(crate) cpu_us_per_record: f64,
    /// Of each kind of thread.
    pub(crate) thread_us_per_record: Vec<(String, f64)>,
    /// At each of its rates.
    pub(crate) latencies: Vec<Latency>,
    pub(crate) peak_mb: f64,
    /// While it worked through the filled topic.
    pub(crate) batch_rows_mean: Option<f64>,
    pub(crate) checked: usize,
}

impl Measured {
    /// At the rate that all subjects have.
    pub(crate) fn latency(&self) -> Latency {
        self.latencies[0]
    }
}

/// From the feeder's hands to a reader.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    pub(crate) rate_per_s: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

impl Latency {
    fn of(ledger: &Ledger<'_>, rate_per_s: f64) -> Self {
        let ms = |quantile| ledger.counts.latency_us.value_at_quantile(quantile) as f64 / 1e3;
        Self { rate_per_s, p50_ms: ms(0.5), p99_ms: ms(0.99) }
    }
}

struct Sample {
    at: Instant,
    cpu: CpuUs,
    ends: Vec<i64>,
}

impl Bench<'_> {
    /// A run that is not reported. A broker that is still compiling itself takes half of this machine: what is measured
    /// first would be charged for it, small transactions most of all.
    pub(crate) fn warm_up(&self) -> anyhow::Result<()> {
        self.measure_as("warm-up", Subject::Forebay, 6.0 * LATENCY_S, &LATENCY_RATES[..1]).map(drop)
    }

    pub(crate) fn measure(&self, subject: Subject) -> anyhow::Result<Measured> {
        self.measure_as(subject.name(), subject, LATENCY_S, subject.latency_rates())
    }

    /// What any worker's latency stands beside: a plain producer to a plain `read_committed` reader, one topic, nobody
    /// between them.
    pub(crate) fn round_trips(&self) -> anyhow::Result<Vec<Latency>> {
        let place = self.place("round-trip");
        self.kafka.create(&[&place.input], PARTITIONS);
        let mut ledger = Ledger::new(&self.stream, &place.brokers, &place.input, Answer::Copy)?;
        let (mut latencies, mut first) = (Vec::new(), 0);
        for rate_per_s in LATENCY_RATES {
            let phase = Phase { first, rate_per_s, seconds: self.latency_s(rate_per_s, LATENCY_S) };
            let sent = self.latency("round-trip", &mut ledger, &place, Format::Reference, phase)?;
            latencies.push(Latency::of(&ledger, rate_per_s));
            first += phase.count();
            ledger.read_to_end(&sent)?;
        }
        ledger.counts.verdict().context("round-trip is not right")?;
        Ok(latencies)
    }

    fn latency_s(&self, rate_per_s: f64, latency_s: f64) -> f64 {
        let longer = if rate_per_s < SLOW_BELOW_PER_S { 1.5 } else { 1.0 };
        latency_s * longer / if self.quick { 5.0 } else { 1.0 }
    }

    fn measure_as(&self, name: &str, subject: Subject, latency_s: f64, rates: &[f64]) -> anyhow::Result<Measured> {
        let records = subject.records() / if self.quick { 20 } else { 1 };
        let place = self.place(name);
        self.kafka.create(&[&place.input, &place.output], PARTITIONS);
        let mut ledger = Ledger::new(&self.stream, &place.brokers, &place.output, subject.answer())?;
        let nothing_timed = SentUs::new(0, 0);

        self.progress.stage(&format!("{name}: fill"), records);
        let mut process;
        if subject.reads_from_now() {
            process = Process::start(subject, &place, self.folder)?;
            self.probe(&mut process, &mut ledger, &place, subject)?;
            self.fill(&place, subject, records)?;
        } else {
            self.fill(&place, subject, records)?;
            process = Process::start(subject, &place, self.folder)?;
        }

        self.progress.stage(&format!("{name}: throughput"), records);
        let samples = self.samples(&mut process, &place, records, ledger.counts.probes())?;
        self.progress.stage(&format!("{name}: check"), records);
        ledger.counts.expect(records, usize::MAX);
        ledger.read_all(&nothing_timed, STUCK_AFTER, |answered| self.progress.at(answered))?;
        let middle = middle(&samples, &ledger, records).with_context(|| format!("{name} {}", process.log_end()))?;
        let batch_rows_mean = ledger.counts.batch_rows_mean();

        let (mut latencies, mut first) = (Vec::new(), records);
        for &rate_per_s in rates {
            let rate_per_s = rate_per_s.min((middle.records_per_s / 2.0).floor());
            let phase = Phase { first, rate_per_s, seconds: self.latency_s(rate_per_s, latency_s) };
            self.latency(name, &mut ledger, &place, subject.format(), phase)?;
            process.check()?;
            latencies.push(Latency::of(&ledger, rate_per_s));
            first += phase.count();
        }
        let peak_mb = process.peak_mb();
        process.stop()?;
        ledger.read_to_end(&nothing_timed)?;
        let checked = ledger.counts.verdict().with_context(|| format!("{name} is not right"))?;
        Ok(Measured {
            subject,
            records_per_s: middle.records_per_s,
            cpu_us_per_record: middle.cpu_us_per_record,
            thread_us_per_record: middle.thread_us_per_record,
            latencies,
            peak_mb,
            batch_rows_mean,
            checked,
        })
    }

    fn place(&self, name: &str) -> Place {
        Place {
            brokers: self.kafka.brokers(),
            input: format!("{name}-in"),
            output: format!("{name}-out"),
            group: format!("bench-{name}"),
            model: self.stream.model.clone(),
        }
    }

    fn fill(&self, place: &Place, subject: Subject, records: usize) -> anyhow::Result<()> {
        let feeder = Feeder::new(&place.brokers, &place.input, subject.format(), 5)?;
        for record in 0..records {
            feeder.send(&self.stream, record)?;
            if record % 1000 == 0 {
                self.progress.at(record);
            }
        }
        feeder.flush()
    }

    /// Sends records of no number until one is answered: from then on nothing is missed.
    fn probe(
        &self,
        process: &mut Process,
        ledger: &mut Ledger<'_>,
        place: &Place,
        subject: Subject,
    ) -> anyhow::Result<()> {
        let feeder = Feeder::new(&place.brokers, &place.input, subject.format(), 0)?;
        let (start, nothing_timed) = (clock::now(), SentUs::new(0, 0));
        for number in 0.. {
            process.check()?;
            ensure!(clock::now() - start < STUCK_AFTER, "{} answers nothing:\n{}", subject.name(), process.log_end());
            feeder.probe(&self.stream, number)?;
            feeder.flush()?;
            std::thread::sleep(SAMPLE_EVERY);
            ledger.read(&nothing_timed)?;
            if ledger.counts.probes() > 0 {
                break;
            }
        }
        // Those that are still under way: the last answer, then nothing for a while.
        while ledger.read(&nothing_timed)? {}
        Ok(())
    }

    /// Samples until the replies to all records can be read.
    fn samples(
        &self,
        process: &mut Process,
        place: &Place,
        records: usize,
        probes: usize,
    ) -> anyhow::Result<Vec<Sample>> {
        let asker: BaseConsumer =
            clients::client(&place.brokers, &[clients::CONSUMER_OF_A_LOOP, &[("group.id", "bench-asker")]]).create()?;
        let (mut samples, mut seen, mut last_new) = (Vec::new(), 0, clock::now());
        loop {
            let ends = clients::visible_ends(&asker, &place.output)?;
            let (now, total) = (clock::now(), usize::try_from(ends.iter().sum::<i64>())?);
            samples.push(Sample { at: now, cpu: process.cpu(), ends });
            if total > seen {
                (seen, last_new) = (total, now);
            }
            self.progress.at(total.saturating_sub(probes).min(records));
            process.check()?;
            // Each transaction leaves a mark, which counts in the ends: there may be fewer replies than that.
            let quiet = now - last_new;
            ensure!(quiet < STUCK_AFTER, "only {total} of {records} replies:\n{}", process.log_end());
            if total >= records + probes && quiet > DONE_AFTER {
                return Ok(samples);
            }
            std::thread::sleep(SAMPLE_EVERY);
        }
    }

    /// Sends at a fixed rate and reads the replies as they come. The first second is not timed.
    fn latency(
        &self,
        name: &str,
        ledger: &mut Ledger<'_>,
        place: &Place,
        format: Format,
        phase: Phase,
    ) -> anyhow::Result<Arc<SentUs>> {
        let (Phase { first, rate_per_s, .. }, early, count) = (phase, phase.early(), phase.count());
        ensure!(count > early, "too slow for a latency: {rate_per_s} records/s");
        self.progress.stage(&format!("{name}: latency at {rate_per_s}/s"), count);
        let sent = Arc::new(SentUs::new(first, count));
        ledger.counts.expect(count, first + early);
        let feeder = Feeder::new(&place.brokers, &place.input, format, 0)?;
        let feed = feed_at(rate_per_s, feeder, Arc::clone(&self.stream), Arc::clone(&sent), first..first + count)?;
        ledger.read_all(&sent, DONE_AFTER * 15, |answered| self.progress.at(answered - first.min(answered)))?;
        feed.join().map_err(|_| anyhow::anyhow!("the feeder panicked"))??;
        Ok(sent)
    }
}

/// Records from number `first` on at a fixed rate; those of the first second are not timed.
#[derive(Clone, Copy)]
struct Phase {
    first: usize,
    rate_per_s: f64,
    seconds: f64,
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate a second, times seconds")]
impl Phase {
    fn early(self) -> usize {
        self.rate_per_s as usize
    }

    fn count(self) -> usize {
        (self.rate_per_s * (self.seconds + 1.0)) as usize
    }
}

fn feed_at(
    rate_per_s: f64,
    feeder: Feeder,
    stream: Arc<Stream>,
    sent: Arc<SentUs>,
    records: std::ops::Range<usize>,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let feed = move || {
        let (start, first) = (clock::now(), records.start);
        for record in records {
            let due = Duration::from_secs_f64((record - first) as f64 / rate_per_s);
            std::thread::sleep(due.saturating_sub(clock::now() - start));
            sent.stamp(record);
            feeder.send(&stream, record)?;
        }
        feeder.flush()
    };
    Ok(Builder::new().name("bench-feed".to_owned()).spawn(feed)?)
}

struct Middle {
    records_per_s: f64,
    cpu_us_per_record: f64,
    thread_us_per_record: Vec<(String, f64)>,
}

fn middle(samples: &[Sample], ledger: &Ledger<'_>, records: usize) -> anyhow::Result<Middle> {
    let counts: Vec<usize> = samples.iter().map(|sample| ledger.counts.before(&sample.ends)).collect();
    let share = |share: f64| records as f64 * share;
    let first = counts.iter().position(|&count| count as f64 >= share(MIDDLE.0));
    let last = counts.iter().rposition(|&count| count as f64 <= share(MIDDLE.1));
    // A run that is over within a few samples has no middle: all of it, then, the start-up included.
    let whole = || {
        Some((
            counts.iter().rposition(|&count| count == counts[0])?,
            counts.iter().position(|count| Some(count) == counts.last())?,
        ))
    };
    let found = first.zip(last).filter(|(first, last)| first + 2 <= *last).or_else(whole);
    let (first, last) = found.filter(|(first, last)| first < last).context("no replies came while it was sampled")?;
    let (from, to) = (&samples[first], &samples[last]);
    let count = (counts[last] - counts[first]) as f64;
    let threads = to.cpu.threads.iter().map(|(name, us)| {
        let before = from.cpu.threads.get(name).copied().unwrap_or(0.0);
        (name.clone(), (us - before) / count)
    });
    Ok(Middle {
        records_per_s: count / (to.at - from.at).as_secs_f64(),
        cpu_us_per_record: (to.cpu.process - from.cpu.process) / count,
        thread_us_per_record: threads.collect(),
    })
}
