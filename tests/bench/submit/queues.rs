//! What a producer hands its chunks to: the engine, its door for single requests, and the queues that are the least that
//! such a hand-over can cost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, Sender, bounded};
use forebay::engine::{PendingPrediction, PredictionRequest};
use forebay::record::{Chunk, ScoredBatch, Ticket};
use forebay::score::SubmitterId;
use parking_lot::{Condvar, Mutex};

use crate::engine::{Ended, Engine, Hold, THREADS};

/// What is at the other end.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Consumers {
    /// Threads that take what comes as fast as they can.
    Idle,
    /// Nobody takes anything until all is handed over.
    Busy,
}

/// A queue that producers hand chunks to.
pub(crate) trait Queue: Sync {
    /// Before a pass: from now on busy consumers take nothing.
    fn hold(&self) -> anyhow::Result<()>;

    fn submit(&self, chunk: &Arc<Chunk>);

    /// After a pass: waits until all its requests were taken; every one must have been, once.
    fn drain(&self, requests: usize) -> anyhow::Result<()>;
}

type Make = fn(Consumers) -> anyhow::Result<Box<dyn Queue>>;

pub(crate) const QUEUES: [(&str, Make); 4] = [
    ("submit", |consumers| Ok(Box::new(Submitted::new(consumers)?))),
    ("deque", |consumers| Ok(Box::new(Deque::new(consumers)?))),
    ("channel, records", |consumers| Ok(Box::new(Channel::new(consumers, Sends::Records)?))),
    ("channel, chunks", |consumers| Ok(Box::new(Channel::new(consumers, Sends::Chunks)?))),
];

pub(crate) const DOOR: (&str, Make) = ("door", |consumers| Ok(Box::new(Door::new(consumers)?)));

/// The engine's score threads are the consumers.
struct Submitted {
    engine: Engine,
    id: SubmitterId,
    ended: Arc<Ended<fn(&ScoredBatch)>>,
    consumers: Consumers,
}

impl Submitted {
    fn new(consumers: Consumers) -> anyhow::Result<Self> {
        let engine = Engine::new(Hold::Sleeping)?;
        let ended = Arc::new(Ended::new((|_| {}) as fn(&ScoredBatch)));
        let id = engine.engine.register(Arc::clone(&ended) as _);
        Ok(Self { engine, id, ended, consumers })
    }
}

impl Queue for Submitted {
    fn hold(&self) -> anyhow::Result<()> {
        if self.consumers == Consumers::Idle {
            return Ok(());
        }
        self.engine.hold_all(self.id)
    }

    fn submit(&self, chunk: &Arc<Chunk>) {
        let taken = self.engine.engine.submit(self.id, chunk, 0);
        assert_eq!(taken, Ok(chunk.requests().len()), "deep enough");
    }

    fn drain(&self, requests: usize) -> anyhow::Result<()> {
        self.engine.let_go();
        let held = if self.consumers == Consumers::Busy { THREADS } else { 0 };
        self.ended.take(requests + held)
    }
}

/// A request at a time, with all that is made for it.
struct Door {
    inner: Submitted,
    pending: Mutex<Vec<PendingPrediction>>,
}

impl Door {
    fn new(consumers: Consumers) -> anyhow::Result<Self> {
        Ok(Self { inner: Submitted::new(consumers)?, pending: Mutex::default() })
    }
}

impl Queue for Door {
    fn hold(&self) -> anyhow::Result<()> {
        self.inner.hold()
    }

    fn submit(&self, chunk: &Arc<Chunk>) {
        for _ in chunk.requests() {
            let pending = self.inner.engine.engine.enqueue_prediction(PredictionRequest::new([1.0]));
            self.pending.lock().push(pending.expect("there are places"));
        }
    }

    fn drain(&self, requests: usize) -> anyhow::Result<()> {
        self.inner.engine.let_go();
        let pending = std::mem::take(&mut *self.pending.lock());
        anyhow::ensure!(pending.len() == requests, "{} of {requests} requests", pending.len());
        pending.into_iter().try_for_each(|pending| pending.wait().map(|_| ()).context("the door"))?;
        // The requests that held the score threads are the submitter's own.
        self.inner.drain(0)
    }
}

/// Threads that take from a queue until it is closed, and count.
struct Takers {
    threads: Vec<JoinHandle<()>>,
    taken: Arc<AtomicUsize>,
}

impl Takers {
    fn start(consumers: Consumers, take: impl Fn(&AtomicUsize) + Clone + Send + 'static) -> anyhow::Result<Self> {
        let taken = Arc::new(AtomicUsize::new(0));
        let threads = if consumers == Consumers::Idle { THREADS } else { 0 };
        let start = |_| {
            let (taken, take) = (Arc::clone(&taken), take.clone());
            Builder::new().name("consumer".to_owned()).spawn(move || take(&taken))
        };
        Ok(Self { threads: (0..threads).map(start).collect::<Result<_, _>>()?, taken })
    }

    fn wait_for(&self, requests: usize) -> anyhow::Result<()> {
        while self.taken.load(Ordering::Acquire) < requests {
            std::thread::yield_now();
        }
        let taken = self.taken.swap(0, Ordering::AcqRel);
        anyhow::ensure!(taken == requests, "{taken} were taken of {requests} requests");
        Ok(())
    }

    fn join(&mut self) {
        self.threads.drain(..).for_each(|thread| thread.join().expect("a consumer does not panic"));
    }
}

/// One lock around a deque of tickets, taken once a chunk, and a wake-up for whoever waits.
struct Deque {
    shared: Arc<Shared>,
    takers: Takers,
}

#[derive(Default)]
struct Shared {
    tickets: Mutex<VecDeque<Ticket>>,
    some: Condvar,
    closed: AtomicBool,
}

impl Deque {
    fn new(consumers: Consumers) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let take = {
            let shared = Arc::clone(&shared);
            move |count: &AtomicUsize| shared.take(count)
        };
        Ok(Self { takers: Takers::start(consumers, take)?, shared })
    }
}

impl Shared {
    /// A batch at a time, until it is closed.
    fn take(&self, count: &AtomicUsize) {
        let mut taken = Vec::new();
        loop {
            let mut tickets = self.tickets.lock();
            self.some.wait_while(&mut tickets, |tickets| tickets.is_empty() && !self.closed.load(Ordering::Acquire));
            if tickets.is_empty() {
                return;
            }
            let batch = tickets.len().min(1_024);
            taken.extend(tickets.drain(..batch));
            let more = !tickets.is_empty();
            drop(tickets);
            if more {
                self.some.notify_one();
            }
            count.fetch_add(taken.len(), Ordering::AcqRel);
            taken.clear();
        }
    }
}

impl Queue for Deque {
    fn hold(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn submit(&self, chunk: &Arc<Chunk>) {
        let mut tickets = self.shared.tickets.lock();
        tickets.extend(tickets_of(chunk));
        drop(tickets);
        self.shared.some.notify_one();
    }

    fn drain(&self, requests: usize) -> anyhow::Result<()> {
        if self.takers.threads.is_empty() {
            let mut tickets = self.shared.tickets.lock();
            self.takers.taken.fetch_add(tickets.len(), Ordering::AcqRel);
            tickets.clear();
        }
        self.takers.wait_for(requests)
    }
}

impl Drop for Deque {
    fn drop(&mut self) {
        let lock = self.shared.tickets.lock();
        self.shared.closed.store(true, Ordering::Release);
        drop(lock);
        self.shared.some.notify_all();
        self.takers.join();
    }
}

/// A channel of whole chunks, or of their tickets.
struct Channel {
    /// `None` once it is closed.
    sender: Option<Sender<Sent>>,
    receiver: Receiver<Sent>,
    sends: Sends,
    takers: Takers,
}

#[derive(Clone, Copy)]
enum Sends {
    Records,
    Chunks,
}

enum Sent {
    Record(Ticket),
    Chunk(Arc<Chunk>),
}

impl Channel {
    fn new(consumers: Consumers, sends: Sends) -> anyhow::Result<Self> {
        let (sender, receiver) = bounded(1 << 18);
        let take = {
            let receiver = receiver.clone();
            move |count: &AtomicUsize| receiver.iter().for_each(|sent| take(sent, count))
        };
        Ok(Self { sender: Some(sender), takers: Takers::start(consumers, take)?, receiver, sends })
    }
}

fn take(sent: Sent, count: &AtomicUsize) {
    let requests = match sent {
        Sent::Record(ticket) => {
            drop(ticket);
            1
        }
        Sent::Chunk(chunk) => chunk.requests().len(),
    };
    count.fetch_add(requests, Ordering::AcqRel);
}

impl Queue for Channel {
    fn hold(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn submit(&self, chunk: &Arc<Chunk>) {
        let sender = self.sender.as_ref().expect("open until it is dropped");
        let send = |sent| sender.send(sent).expect("this holds the other end");
        match self.sends {
            Sends::Records => tickets_of(chunk).map(Sent::Record).for_each(send),
            Sends::Chunks => send(Sent::Chunk(Arc::clone(chunk))),
        }
    }

    fn drain(&self, requests: usize) -> anyhow::Result<()> {
        if self.takers.threads.is_empty() {
            self.receiver.try_iter().for_each(|sent| take(sent, &self.takers.taken));
        }
        self.takers.wait_for(requests)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.sender = None;
        self.takers.join();
    }
}

fn tickets_of(chunk: &Arc<Chunk>) -> impl Iterator<Item = Ticket> {
    (0..chunk.requests().len())
        .map(|index| Ticket { chunk: Arc::clone(chunk), index: u32::try_from(index).expect("a small chunk") })
}
