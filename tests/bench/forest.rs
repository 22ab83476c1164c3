//! What the forest alone costs: the model as the worker scores it, on batches of the stream's rows.

use std::path::Path;
use std::thread::Builder;
use std::time::Duration;

use anyhow::Context as _;
use forebay::clock;
use forebay::model::{self, LoadOptions, ModelBytes, Rows, Values};

use crate::cpu::task_cpu_us;
use crate::stream::Stream;

const LONG_ENOUGH: Duration = Duration::from_millis(400);

/// CPU time of a row, in microseconds: the mean of so many threads that score at the same time.
pub(crate) fn us_per_row(stream: &Stream, batch: usize, threads: usize) -> anyhow::Result<f64> {
    std::thread::scope(|scope| {
        let start = || Builder::new().name("bench-forest".to_owned()).spawn_scoped(scope, || one_thread(stream, batch));
        let running = (0..threads).map(|_| start()).collect::<Result<Vec<_>, _>>()?;
        let costs =
            running.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?);
        Ok(costs.sum::<anyhow::Result<f64>>()? / threads as f64)
    })
}

fn one_thread(stream: &Stream, batch: usize) -> anyhow::Result<f64> {
    let model = model::load(&ModelBytes::read(&stream.model, None)?, &LoadOptions::default())?;
    let mut scorer = model.scorer()?;
    let mut scores = vec![0.0; batch];
    let cpu_us = || task_cpu_us(Path::new("/proc/thread-self")).context("/proc/thread-self/schedstat");
    let (start, from) = (clock::now(), cpu_us()?);
    let mut rows = 0;
    for values in stream.values.chunks_exact(batch * stream.width).cycle() {
        scorer.score(Rows::numbers(Values::F64(values), stream.width), &mut scores)?;
        std::hint::black_box(&scores);
        rows += batch;
        if clock::now() - start > LONG_ENOUGH {
            break;
        }
    }
    Ok((cpu_us()? - from) / rows as f64)
}
