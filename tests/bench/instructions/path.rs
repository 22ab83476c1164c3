//! The whole way of a record but for Kafka's client: decoded, queued and scored by the engine's own threads, encoded,
//! tracked, committed.
//!
//! One score thread, and the next chunk comes when the last is committed: batches are the same in every run. All threads
//! are counted.

use std::sync::Arc;

use anyhow::ensure;
use crossbeam_channel::{Receiver, Sender, bounded};
use forebay::commit::{Budget, Finish, LIMIT, OffsetMap, Tracker};
use forebay::config::{Ordering, ReplyMetadata};
use forebay::encode::Encoder;
use forebay::engine::{InferenceEngine, InferenceEngineConfig, ModelSpec};
use forebay::model::LoadOptions;
use forebay::placement::Pin;
use forebay::record::{Reply, ScoredBatch};
use forebay::score::{Submitter, SubmitterId};

use crate::inputs::{Front, RowTexts, model_path, priority};
use crate::stages::{CHUNK, HIGGS_WIDTH, Round, policy};

/// Chunks of a round.
pub(crate) const CHUNKS: usize = 4;

pub(crate) fn path() -> anyhow::Result<Round> {
    let bodies = RowTexts::load(HIGGS_WIDTH)?.requests(CHUNK);
    let mut line = Line::new()?;
    Ok(Box::new(move |probe| {
        let mut answered = 0;
        probe.measure(|| {
            for _ in 0..CHUNKS {
                answered += line.chunk(&bodies);
            }
        });
        ensure!(answered == CHUNKS * CHUNK, "{answered} of {} records were answered", CHUNKS * CHUNK);
        Ok(())
    }))
}

/// A worker's line, both its threads' work on one.
struct Line {
    engine: InferenceEngine,
    submitter: SubmitterId,
    ended: Receiver<Box<ScoredBatch>>,
    front: Front,
    encoder: Encoder,
    replies: Vec<Reply>,
    tracker: Tracker<Reply>,
}

impl Line {
    fn new() -> anyhow::Result<Self> {
        let config = InferenceEngineConfig {
            num_threads: 1,
            pin: Pin::Off,
            // The same bodies come again and again, and each is to be scored.
            enable_request_deduplication: false,
            ..InferenceEngineConfig::default()
        };
        let engine = InferenceEngine::new(config)?;
        engine.load_spec(&ModelSpec {
            name: "higgs".to_owned(),
            path: model_path(),
            load: LoadOptions::default(),
            sha256: None,
            batch: policy(),
            priority_default: priority(),
        })?;
        let (returns, ended) = bounded(CHUNK);
        let submitter = engine.register(Arc::new(Returns(returns)));
        Ok(Self {
            front: Front::new(engine.catalog()),
            engine,
            submitter,
            ended,
            encoder: Encoder::new(),
            replies: Vec::new(),
            tracker: Tracker::new(&OffsetMap::empty(0), Ordering::None),
        })
    }

    /// A chunk from its bodies to the commit. Returns how many were scored.
    fn chunk(&mut self, bodies: &[String]) -> usize {
        let base = self.tracker.base();
        let chunk = Arc::new(self.front.decode(bodies, base));
        for request in chunk.requests() {
            self.tracker.deliver(request.position.offset, None);
        }
        let taken = self.engine.submit(self.submitter, &chunk, 0).expect("the engine runs until it is dropped");
        assert_eq!(taken, bodies.len(), "the queue is deep enough, and every request can be scored");
        drop(chunk);
        let mut scored = 0;
        while self.tracker.unfinished() > 0 {
            let batch = self.ended.recv().expect("the engine holds the other end");
            self.encoder.encode_batch(*batch, |_| ReplyMetadata::Short, &mut self.replies);
            for reply in self.replies.drain(..) {
                scored += usize::from(reply.error.is_none());
                let end = self.tracker.finish(reply.ticket.request().position.offset, reply);
                assert_eq!(end, Finish::Accepted, "each record ends once");
            }
        }
        let mut budget = Budget::new(usize::MAX, usize::MAX);
        let commit = self.tracker.take(&mut budget, LIMIT, |reply| reply.payload.len());
        let commit = commit.expect("all are finished");
        self.tracker.sent().take(commit.records).for_each(|sent| {
            std::hint::black_box(sent);
        });
        self.tracker.commit(&commit);
        scored
    }
}

/// Hands ended batches to the line, as the worker's own queue does.
struct Returns(Sender<Box<ScoredBatch>>);

impl Submitter for Returns {
    fn completed(&self, batch: ScoredBatch) {
        // A line that is gone wants none.
        let _ = self.0.send(Box::new(batch));
    }
}
