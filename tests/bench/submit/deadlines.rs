//! How long after its deadline a request is answered while every score thread is in the model, and beside it how long
//! after such moments a thread awakes that waits for them and does nothing else: what the machine itself is late.

use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use anyhow::ensure;
use forebay::clock;
use forebay::record::{ErrorCode, ScoredBatch};
use parking_lot::{Condvar, Mutex};

use crate::engine::{Ended, Engine, Hold, THREADS, chunk};

const REQUESTS: usize = 10_000;
/// Deadlines lie evenly in so long a time, which starts after `AHEAD`.
const SPREAD: Duration = Duration::from_secs(2);
const AHEAD: Duration = Duration::from_millis(200);
const CHUNK: usize = 500;
const GOAL: Duration = Duration::from_millis(5);

pub(crate) fn print() -> anyhow::Result<()> {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<_> = load.split_whitespace().take(3).collect();
    println!(
        "\n{REQUESTS} requests whose deadlines lie within {} s, all {THREADS} score threads in the model;",
        SPREAD.as_secs()
    );
    println!("how long after its deadline each was answered. Load average before: {}", load.join(" "));
    for (name, hold) in [("sleeping", Hold::Sleeping), ("computing", Hold::Computing)] {
        row(&format!("model {name}"), &measure(hold)?);
        row("  a bare thread", &bare(hold)?);
    }
    Ok(())
}

/// `late` is sorted.
fn row(name: &str, late: &[Duration]) {
    let at = |percent: usize| late[(late.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    let within = late.iter().filter(|late| **late <= GOAL).count();
    println!(
        "{name:<17}  p50 {:.3} ms, p99 {:.3} ms, max {:.3} ms; within {} ms: {within} of {REQUESTS}",
        at(50),
        at(99),
        at(100),
        GOAL.as_millis(),
    );
}

/// As [`measure`], of a thread that waits for the same moments under a lock of its own.
fn bare(hold: Hold) -> anyhow::Result<Vec<Duration>> {
    let engine = Engine::new(hold)?;
    let ended = Arc::new(Ended::new(|_: &ScoredBatch| {}));
    let id = engine.engine.register(Arc::clone(&ended) as _);
    engine.hold_all(id)?;
    let first = clock::now() + AHEAD;
    let wait = move || {
        let (lock, condvar) = (Mutex::new(()), Condvar::new());
        let mut guard = lock.lock();
        let moments = (0..).map(|index| first + step() * index).take(REQUESTS);
        moments
            .map(|moment| {
                while !condvar.wait_until(&mut guard, moment).timed_out() {}
                clock::now().saturating_duration_since(moment)
            })
            .collect::<Vec<_>>()
    };
    let waiting = Builder::new().name("bare".to_owned()).spawn(wait)?;
    let mut late = waiting.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
    engine.let_go();
    ended.take(THREADS)?;
    late.sort();
    Ok(late)
}

fn step() -> Duration {
    SPREAD / u32::try_from(REQUESTS).expect("small")
}

/// Sorted.
fn measure(hold: Hold) -> anyhow::Result<Vec<Duration>> {
    let engine = Engine::new(hold)?;
    let late = Arc::new(Mutex::new(Vec::with_capacity(REQUESTS)));
    let ended = {
        let late = Arc::clone(&late);
        Arc::new(Ended::new(move |batch: &ScoredBatch| {
            let now = clock::now();
            let mut late = late.lock();
            for (ticket, outcome) in batch.tickets.iter().zip(&batch.outcomes) {
                let work = ticket.request().work.as_ref();
                let Some(deadline) = work.ok().and_then(|work| work.deadline) else { continue };
                let expired = outcome.as_ref().is_err_and(|reject| reject.code == ErrorCode::DeadlineExceeded);
                late.extend(expired.then(|| now.saturating_duration_since(deadline)));
            }
        }))
    };
    let id = engine.engine.register(Arc::clone(&ended) as _);
    engine.hold_all(id)?;
    let first = clock::now() + AHEAD;
    for from in (0..REQUESTS).step_by(CHUNK) {
        // Not in the order of their deadlines: 7919 is prime to the number of requests.
        let place = |index: usize| u32::try_from((from + index) * 7_919 % REQUESTS).expect("small");
        let chunk = chunk(CHUNK, |index| Some(first + step() * place(index)));
        ensure!(engine.engine.submit(id, &chunk, 0)? == CHUNK, "deep enough");
    }
    ensure!(clock::now() < first, "the machine was too slow to submit before the first deadline");
    std::thread::sleep(first + SPREAD + AHEAD - clock::now());
    let before = late.lock().len();
    engine.let_go();
    ended.take(REQUESTS + THREADS)?;
    let mut late = std::mem::take(&mut *late.lock());
    ensure!(late.len() == REQUESTS && before == REQUESTS, "{before}, then {} of {REQUESTS} expired", late.len());
    late.sort();
    Ok(late)
}
