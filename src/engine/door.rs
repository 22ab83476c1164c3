//! Futures on top of the submitter's path: each request is numbered, and its answer sent to who waits for it. A place
//! is taken before a request is queued and given back with its answer, which bounds what is in flight.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::{PredictError, Prediction, PredictionMetadata};
use crate::record::{Reject, ScoredBatch};
use crate::score::{Closed, Submitter};

/// A request on its way. It is a future; outside of async code, [`PendingPrediction::wait`] blocks for it.
#[derive(Debug)]
pub struct PendingPrediction {
    pub(super) answer: oneshot::Receiver<Result<Prediction, Reject>>,
}

impl PendingPrediction {
    /// Blocks until the answer is there.
    ///
    /// # Errors
    /// [`PredictError`] as the request deserves.
    pub fn wait(self) -> Result<Prediction, PredictError> {
        Ok(self.answer.blocking_recv().map_err(|_| Closed)??)
    }
}

impl Future for PendingPrediction {
    type Output = Result<Prediction, PredictError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| Ok(answer.map_err(|_| Closed)??))
    }
}

/// Who submits for the library's users.
pub(super) struct Door {
    places: Mutex<u32>,
    place_freed: Condvar,
    next: AtomicI64,
    waiting: Mutex<HashMap<i64, Waiting>>,
}

struct Waiting {
    id: String,
    answer: oneshot::Sender<Result<Prediction, Reject>>,
}

impl Door {
    pub(super) fn new(places: u32) -> Self {
        let (next, waiting) = (AtomicI64::new(0), Mutex::default());
        Self { places: Mutex::new(places), place_freed: Condvar::new(), next, waiting }
    }

    pub(super) fn try_place(&self) -> bool {
        let mut places = self.places.lock();
        let free = *places > 0;
        *places -= u32::from(free);
        free
    }

    pub(super) fn wait_for_place(&self) {
        let mut places = self.places.lock();
        self.place_freed.wait_while(&mut places, |places| *places == 0);
        *places -= 1;
    }

    pub(super) fn leave(&self) {
        *self.places.lock() += 1;
        self.place_freed.notify_one();
    }

    pub(super) fn expect_answer(&self, id: String) -> (i64, oneshot::Receiver<Result<Prediction, Reject>>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, receiver) = oneshot::channel();
        self.waiting.lock().insert(number, Waiting { id, answer });
        (number, receiver)
    }

    pub(super) fn forget(&self, number: i64) {
        self.waiting.lock().remove(&number);
    }
}

impl Submitter for Door {
    fn completed(&self, batch: ScoredBatch) {
        for (index, ticket) in batch.tickets.iter().enumerate() {
            let request = ticket.request();
            let Some(waiting) = self.waiting.lock().remove(&request.position.offset) else { continue };
            let answer = batch.scores_of(index).map_err(Reject::clone).map(|scores| Prediction {
                id: waiting.id,
                scores: scores.to_vec(),
                outputs: batch.outputs,
                metadata: PredictionMetadata {
                    model: batch.model.as_ref().map_or_else(String::new, |model| model.name().to_owned()),
                    version: batch.model.as_ref().map_or(0, |model| model.version()),
                    batch_size: batch.batch_size,
                    queued: batch.started.saturating_duration_since(request.arrived),
                    inference: batch.inference,
                    cache_hit: batch.cache_hit,
                },
            });
            // Who dropped the future wants no answer.
            let _ = waiting.answer.send(answer);
            self.leave();
        }
    }
}
