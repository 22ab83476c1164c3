//! The pure stages, each alone, reached through the library's public modules.
//!
//! A round prepares its inputs, hands the work to the [`Probe`], and checks what came out: a stage that failed would be
//! cheap.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use forebay::batch::{BatchPolicy, Dispatch, DynamicBatcher, Entry, MemoryPool};
use forebay::clock;
use forebay::commit::{Budget, Finish, LIMIT, OffsetMap, Tracker};
use forebay::config::{Ordering, ReplyMetadata};
use forebay::encode::Encoder;
use forebay::model::{LoadedModel, Rows, Values};
use forebay::record::{Chunk, Reply, ScoredBatch, Ticket};

use crate::inputs::{self, Front, RowTexts, priority};
use crate::path;
use crate::probe::Probe;

/// One part of a record's way.
pub(crate) struct Stage {
    /// Its name in the table.
    pub(crate) name: &'static str,
    /// What a round of it counts as: records, rows of a batch or buffers.
    pub(crate) records: usize,
    /// Whether other threads than the one that measures take part. A round must then be no more than what it measures.
    pub(crate) threads: bool,
    /// Makes what all rounds share.
    pub(crate) prepare: fn() -> anyhow::Result<Round>,
}

/// One round; its probe measures once.
pub(crate) type Round = Box<dyn FnMut(&mut Probe) -> anyhow::Result<()>>;

/// In the order in which a record meets them; last the whole way.
pub(crate) const STAGES: &[Stage] = &[
    Stage { name: "decode", records: CHUNK, threads: false, prepare: decode },
    Stage { name: "batch", records: CHUNK, threads: false, prepare: || Ok(batch()) },
    Stage { name: "buffer", records: CHUNK, threads: false, prepare: || Ok(buffer()) },
    Stage { name: "score-1", records: SCORED, threads: false, prepare: || score(1) },
    Stage { name: "score-64", records: SCORED, threads: false, prepare: || score(BATCH) },
    Stage { name: "encode", records: ENCODED, threads: false, prepare: encode },
    Stage { name: "track", records: ENCODED, threads: false, prepare: track },
    Stage { name: "path", records: path::CHUNKS * CHUNK, threads: true, prepare: path::path },
];

/// Records of a chunk.
pub(crate) const CHUNK: usize = 1_000;
/// Rows of a full batch: the default of `batch_size_max`.
pub(crate) const BATCH: usize = 64;
/// Rows that are scored: whole batches out of the sample's 500 rows.
const SCORED: usize = 7 * BATCH;
/// Replies: whole batches out of about a chunk.
const ENCODED: usize = 15 * BATCH;
/// Features of a reference record.
const REFERENCE_WIDTH: usize = 32;
/// Features of the shipped model.
pub(crate) const HIGGS_WIDTH: usize = 28;

/// JSON bodies of 32 numbers of nine significant digits, into a new chunk.
fn decode() -> anyhow::Result<Round> {
    let bodies = RowTexts::load(REFERENCE_WIDTH)?.requests(CHUNK);
    let front = Front::of_width(REFERENCE_WIDTH);
    Ok(Box::new(move |probe| {
        let mut chunk = Chunk::default();
        probe.measure(|| chunk = front.decode(black_box(&bodies), 0));
        inputs::ensure_readable(&chunk, CHUNK)
    }))
}

/// How the shipped model's requests are queued.
pub(crate) fn policy() -> BatchPolicy {
    BatchPolicy { batch_size_max: whole(BATCH), ..BatchPolicy::default() }
}

fn whole(number: usize) -> NonZeroU32 {
    u32::try_from(number).ok().and_then(NonZeroU32::new).expect("a small count that is not 0")
}

/// A chunk of one-row requests into the queue and out in full batches, each a new `Vec`, as a score thread takes them.
fn batch() -> Round {
    let mut batcher = DynamicBatcher::new(policy());
    let now = clock::now();
    // As large as what the engine queues: a ticket and its submitter.
    let entry = move |item| Entry { item: [item; 3], rows: 1, priority: priority(), arrived: now, deadline: None };
    Box::new(move |probe| {
        let mut entries: Vec<_> = (0..CHUNK).map(entry).collect();
        let mut rows = 0;
        probe.measure(|| rows += through(&mut batcher, &mut entries, now));
        ensure!(rows == CHUNK && batcher.is_empty(), "{rows} of {CHUNK} entries came out");
        Ok(())
    })
}

fn through<T>(batcher: &mut DynamicBatcher<T>, entries: &mut Vec<Entry<T>>, now: Instant) -> usize {
    for entry in entries.drain(..) {
        assert!(batcher.enqueue(entry).is_ok(), "the queue is deep enough");
    }
    let (mut rows, mut expired) = (0, Vec::new());
    loop {
        let mut batch = Vec::new();
        batcher.expire(now, &mut expired);
        if batcher.poll(now, &mut batch) != Dispatch::Batch {
            return rows;
        }
        rows += black_box(&batch).len();
    }
}

/// A batch's buffer, lent (it reads as zero) and taken back.
fn buffer() -> Round {
    let pool = MemoryPool::<f64>::new(64 << 20);
    Box::new(move |probe| {
        probe.measure(|| {
            for _ in 0..CHUNK {
                black_box(pool.get_buffer(BATCH * HIGGS_WIDTH));
            }
        });
        let stats = pool.get_stats();
        ensure!(stats.total_buffers == 1 && stats.misses == 1, "one buffer serves all: {stats:?}");
        Ok(())
    })
}

/// Rows through the shipped model, `batch` at a time.
fn score(batch: usize) -> anyhow::Result<Round> {
    let (model, _) = inputs::higgs_model()?;
    let values = RowTexts::load(HIGGS_WIDTH)?.values(SCORED)?;
    let mut scorer = model.scorer()?;
    let mut scores = vec![f64::NAN; SCORED];
    Ok(Box::new(move |probe| {
        let mut failed = None;
        probe.measure(|| {
            let batches = black_box(&values).chunks_exact(batch * HIGGS_WIDTH);
            for (rows, scores) in batches.zip(scores.chunks_exact_mut(batch)) {
                let rows = Rows::numbers(Values::F64(rows), HIGGS_WIDTH);
                failed = scorer.score(rows, scores).err().or(failed.take());
            }
        });
        ensure!(failed.is_none(), "{failed:?}");
        ensure!(scores.iter().all(|score| (0.0..=1.0).contains(score)), "a score is no probability");
        Ok(())
    }))
}

/// Scored batches of a chunk, ready to be encoded: what a score thread hands back.
struct Scored {
    chunk: Arc<Chunk>,
    model: Arc<LoadedModel>,
    scores: Vec<f64>,
}

impl Scored {
    fn new() -> anyhow::Result<Self> {
        let texts = RowTexts::load(HIGGS_WIDTH)?;
        let chunk = Front::of_width(HIGGS_WIDTH).decode(&texts.requests(ENCODED), 0);
        inputs::ensure_readable(&chunk, ENCODED)?;
        let (model, sha256) = inputs::higgs_model()?;
        let loaded = Arc::new(LoadedModel::new("higgs", 1, &sha256, model.as_ref(), 1)?);
        let values: Vec<f64> = chunk
            .requests()
            .iter()
            .flat_map(|request| &request.work)
            .flat_map(|work| chunk.rows(work))
            .copied()
            .collect();
        let mut scores = vec![0.0; ENCODED];
        model.scorer()?.score(Rows::numbers(Values::F64(&values), HIGGS_WIDTH), &mut scores)?;
        Ok(Self { chunk: Arc::new(chunk), model: loaded, scores })
    }

    fn batches(&self) -> Vec<ScoredBatch> {
        let tickets = (0..).map(|index| Ticket { chunk: Arc::clone(&self.chunk), index });
        let mut tickets = tickets.take(ENCODED);
        let batch = |scores: &[f64]| {
            let tickets: Vec<Ticket> = tickets.by_ref().take(BATCH).collect();
            let arrived = tickets[0].request().arrived;
            ScoredBatch {
                tickets,
                outcomes: (0..BATCH).map(Ok).collect(),
                scores: scores.to_vec(),
                outputs: 1,
                model: Some(Arc::clone(&self.model)),
                batch_size: whole(BATCH).get(),
                started: arrived + Duration::from_micros(1_234),
                inference: Duration::from_micros(567),
                cache_hit: false,
            }
        };
        self.scores.chunks_exact(BATCH).map(batch).collect()
    }
}

/// Replies of scored batches, their metadata short, which is the default.
fn encode() -> anyhow::Result<Round> {
    let scored = Scored::new()?;
    let (mut encoder, mut replies) = (Encoder::new(), Vec::new());
    Ok(Box::new(move |probe| {
        let mut batches = scored.batches();
        probe.measure(|| {
            for batch in batches.drain(..) {
                encoder.encode_batch(batch, |_| ReplyMetadata::Short, &mut replies);
            }
        });
        let errors = replies.iter().filter(|reply: &&Reply| reply.error.is_some()).count();
        ensure!(replies.len() == ENCODED && errors == 0, "{} replies, {errors} of them errors", replies.len());
        replies.clear();
        Ok(())
    }))
}

/// Offsets delivered, finished with their replies, taken for a transaction and committed.
fn track() -> anyhow::Result<Round> {
    let scored = Scored::new()?;
    let (mut encoder, mut replies) = (Encoder::new(), Vec::new());
    let mut tracker = Tracker::new(&OffsetMap::empty(0), Ordering::None);
    Ok(Box::new(move |probe| {
        for batch in scored.batches() {
            encoder.encode_batch(batch, |_| ReplyMetadata::Short, &mut replies);
        }
        let mut accepted = 0;
        probe.measure(|| accepted += committed(&mut tracker, &mut replies));
        ensure!(accepted == ENCODED && tracker.is_empty(), "{accepted} of {ENCODED} ends were accepted");
        Ok(())
    }))
}

fn committed(tracker: &mut Tracker<Reply>, replies: &mut Vec<Reply>) -> usize {
    let base = tracker.base();
    for (offset, _) in (base..).zip(replies.iter()) {
        tracker.deliver(offset, None);
    }
    let ends = (base..).zip(replies.drain(..)).map(|(offset, reply)| tracker.finish(offset, reply));
    let accepted = ends.filter(|end| *end == Finish::Accepted).count();
    let commit = tracker.take(&mut Budget::new(usize::MAX, usize::MAX), LIMIT, |reply| reply.payload.len());
    let commit = commit.expect("all are finished");
    tracker.sent().take(commit.records).for_each(|sent| {
        black_box(sent);
    });
    tracker.commit(&commit);
    accepted
}
