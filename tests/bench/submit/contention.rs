//! What handing a record over costs its producer, by producers, chunk sizes and what the other side does.

use std::num::NonZeroUsize;
use std::sync::{Arc, Barrier};
use std::thread::Builder;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use forebay::clock;
use forebay::record::Chunk;

use crate::engine::chunk;
use crate::queues::{Consumers, DOOR, QUEUES, Queue};

/// The fastest counts: what else runs only adds.
const ROUNDS: usize = 15;
const PRODUCERS: [usize; 3] = [1, 2, 4];
const CHUNKS: [usize; 3] = [1, 64, 512];

pub(crate) fn print() -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    println!(
        "Nanoseconds of a producer's time for each record, the fastest of {ROUNDS} rounds, by the wall clock; {cores} cores."
    );
    println!(
        "The fastest is one in which nobody else had the core or the lock for long: the cost of the work itself. With as few"
    );
    println!("cores as here threads take turns, and how they wait for the lock on many cores this cannot show.");
    println!(
        "deque: one lock around a VecDeque of tickets, once a chunk; channel: crossbeam's, bounded; two consumers."
    );
    let mut table = Table::new();
    let names = QUEUES.iter().map(|(name, _)| *name);
    let header = ["consumers", "producers", "chunk"].into_iter().chain(names).chain(["submit / deque", DOOR.0]);
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for consumers in [Consumers::Busy, Consumers::Idle] {
        for producers in PRODUCERS {
            for size in CHUNKS {
                let queues = QUEUES.iter().chain((size == 1).then_some(&DOOR));
                let mut fastest = vec![f64::INFINITY; queues.clone().count()];
                // Turn by turn, so that a slow moment of the machine is nobody's own.
                for _ in 0..ROUNDS {
                    for ((_, make), fastest) in queues.clone().zip(&mut fastest) {
                        *fastest = fastest.min(round(&*make(consumers)?, producers, size)?);
                    }
                }
                let mut cells = vec![name(consumers).to_owned(), producers.to_string(), size.to_string()];
                cells.extend(fastest[..QUEUES.len()].iter().map(|ns| format!("{ns:.0}")));
                cells.push(format!("{:.2}", fastest[0] / fastest[1]));
                cells.extend(fastest.get(QUEUES.len()).map(|ns| format!("{ns:.0}")));
                table.add_row(cells);
            }
        }
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    Ok(())
}

fn name(consumers: Consumers) -> &'static str {
    match consumers {
        Consumers::Idle => "idle",
        Consumers::Busy => "busy",
    }
}

/// Nanoseconds a record, of the second pass of two: the queue has grown by then.
///
/// A pass takes a producer about a millisecond, less than the slice of a core that it gets: on a machine with other work a
/// longer one would be interrupted in every round, and the fastest would tell of that.
fn round(queue: &dyn Queue, producers: usize, size: usize) -> anyhow::Result<f64> {
    let submits = if size == 1 { 5_000 } else { 30_000 / size };
    pass(queue, producers, size, submits)?;
    pass(queue, producers, size, submits)
}

/// Each producer hands the same few chunks over again and again: in the cache, as what was just decoded is.
fn pass(queue: &dyn Queue, producers: usize, size: usize, submits: usize) -> anyhow::Result<f64> {
    let work: Vec<[Arc<Chunk>; 8]> = (0..producers).map(|_| std::array::from_fn(|_| chunk(size, |_| None))).collect();
    queue.hold()?;
    let together = Barrier::new(producers);
    let produce = |chunks: &[Arc<Chunk>]| {
        together.wait();
        let start = clock::now();
        chunks.iter().cycle().take(submits).for_each(|chunk| queue.submit(chunk));
        (clock::now() - start).as_secs_f64() * 1e9
    };
    let sum_ns = std::thread::scope(|scope| {
        let produce = &produce;
        let start = |chunks| Builder::new().name("producer".to_owned()).spawn_scoped(scope, move || produce(chunks));
        let threads = work.iter().map(|chunks| start(&chunks[..])).collect::<Result<Vec<_>, _>>()?;
        let ends = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a producer panicked")));
        ends.sum::<anyhow::Result<f64>>()
    })?;
    let records = producers * submits * size;
    queue.drain(records)?;
    Ok(sum_ns / records as f64)
}
