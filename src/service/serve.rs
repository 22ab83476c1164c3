//! The service's thread: waits for requests and for what ended, and drains when it is asked to stop.

use std::cell::Cell;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_nats::{Client, Message, SubscribeError, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, coop};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::discovery::Discovery;
use super::endpoint::Endpoint;
use super::waiting::{Subjects, Waiting};
use super::{PART, Parts, ServiceError};
use crate::client::nats::NatsConnection;
use crate::clock;
use crate::decode::RouteDecoder;
use crate::encode::Encoder;
use crate::record::{Chunk, Reply, ScoredBatch};
use crate::score::{Submitter, SubmitterId};

/// Most requests that make one chunk.
pub(super) const CHUNK_REQUESTS_MAX: usize = 512;
/// Most scored batches that are answered in one go.
const BATCHES_MAX: usize = 64;
/// Most messages that the client holds for a subscription; what comes past it, it drops. It reads 8 MiB at the most before this
/// thread takes what it read, and that is no more messages than this. Fewer would drop, of a burst, what is refused with an
/// answer. More lie there only while this thread waits for room for an answer: when it cannot keep up with what comes (what is
/// dropped is counted), or for [`ANSWER_BOUND`] when the server takes nothing.
const SUBSCRIPTION_MESSAGES_MAX: usize = 1 << 18;
/// How often the thread looks after the connection, and whether it shall stop.
const TICK: Duration = Duration::from_millis(50);
/// How long the server may take for what the thread waits for once.
pub(super) const ANSWER_BOUND: Duration = Duration::from_secs(1);
/// How long the client is kept from its socket while a server takes back the subscriptions: at least, at the most, and in
/// round trips.
const HOLD: (Duration, Duration, u32) = (Duration::from_millis(20), Duration::from_millis(250), 20);

/// What the thread wakes for.
enum Wake {
    Ended,
    Requests,
    Tick,
}

/// An endpoint and what comes in there.
pub(super) struct Lane {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) decoder: RouteDecoder,
    /// `None` once nothing more can come.
    requests: Option<Subscriber>,
}

/// Hands back what the score threads end. Each batch holds a request in flight, and there are as many places as those.
struct Returns {
    ended: mpsc::Sender<ScoredBatch>,
}

impl Submitter for Returns {
    fn completed(&self, batch: ScoredBatch) {
        // A service that has ended wants no more.
        if let Err(mpsc::error::TrySendError::Full(batch)) = self.ended.try_send(batch) {
            tracing::error!(requests = batch.tickets.len(), "more batches ended than requests were in flight");
        }
    }
}

/// All that the thread holds.
pub(super) struct Serve {
    pub(super) parts: Parts,
    pub(super) connection: NatsConnection,
    pub(super) client: Client,
    pub(super) lanes: Vec<Lane>,
    /// Which lane is taken from first.
    turn: usize,
    pub(super) submitter: SubmitterId,
    ended: mpsc::Receiver<ScoredBatch>,
    tick: Interval,
    discovery: JoinHandle<()>,
    /// Where the service hears itself.
    inbox: String,
    /// Whether the server has answered since the subscriptions were made.
    is_there: Arc<AtomicBool>,
    is_ready: Cell<bool>,
    /// Since when the client has had no room for an answer while connected; `None` while it has.
    pub(super) full_since: Cell<Option<Instant>>,
    pub(super) waiting: Waiting,
    pub(super) subjects: Subjects,
    pub(super) incoming: Vec<(usize, Message)>,
    pub(super) batches: Vec<ScoredBatch>,
    pub(super) replies: Vec<Reply>,
    pub(super) encoder: Encoder,
    pub(super) scratch: Chunk,
    /// The next request's number, which stands in its default id.
    pub(super) number: i64,
    /// Requests that had come and were never taken.
    untaken: usize,
}

/// Runs until it is asked to stop; says how many requests were not answered.
pub(super) async fn serve(parts: Parts) -> Result<usize, ServiceError> {
    let options = |options: async_nats::ConnectOptions| options.subscription_capacity(SUBSCRIPTION_MESSAGES_MAX);
    let connection = NatsConnection::open_with(&parts.connection, options).await?;
    let serve = Serve::new(parts, connection).await.map_err(|error| ServiceError::Failed(error.to_string()))?;
    // It gives way to the client's task whenever it waits, and that is what fills its queues: no need to stop it midway.
    Ok(coop::unconstrained(serve.run()).await)
}

impl Serve {
    async fn new(parts: Parts, connection: NatsConnection) -> Result<Self, SubscribeError> {
        let (service, client) = (&parts.service, connection.client().clone());
        let mut lanes = Vec::with_capacity(parts.models.len());
        for ((model, id), route) in parts.models.iter().zip(0..) {
            let endpoint = Endpoint::new(service, model, *id, parts.engine.metrics());
            connection.watch_permissions([endpoint.subject.clone()]);
            let requests = client.queue_subscribe(endpoint.subject.clone(), service.queue_group.clone()).await?;
            let decoder = endpoint.decoder(route, service);
            lanes.push(Lane { endpoint, decoder, requests: Some(requests) });
        }
        let inbox = client.new_inbox();
        connection.watch_permissions([inbox.clone()]);
        let id = inbox.rsplit('.').next().unwrap_or_default().to_owned();
        let endpoints: Vec<_> = lanes.iter().map(|lane| Arc::clone(&lane.endpoint)).collect();
        let subjects: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.subject.as_str()).collect();
        tracing::info!(name = service.name, id, queue_group = service.queue_group, ?subjects, "NATS service");
        let discovery = Discovery::new(id, &parts.connection.name, service, endpoints, &parts.engine);
        let asked = discovery.subscribe(&client).await?;
        let discovery = tokio::spawn(discovery.run(client.clone(), asked));
        let is_there = Arc::new(AtomicBool::new(false));
        tokio::spawn({
            let (client, inbox, is_there) = (client.clone(), inbox.clone(), Arc::clone(&is_there));
            async move {
                // An account may not be allowed to hear itself: then being connected must do.
                let _ = timeout(ANSWER_BOUND, round_trip(&client, &inbox)).await;
                is_there.store(true, Ordering::Relaxed);
            }
        });
        let (sender, ended) = mpsc::channel(parts.service.in_flight_max.get() as usize + CHUNK_REQUESTS_MAX);
        let submitter = parts.engine.register(Arc::new(Returns { ended: sender }));
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            parts,
            connection,
            client,
            lanes,
            turn: 0,
            submitter,
            ended,
            tick,
            discovery,
            inbox,
            is_there,
            is_ready: Cell::new(false),
            full_since: Cell::new(None),
            waiting: Waiting::default(),
            subjects: Subjects::default(),
            incoming: Vec::with_capacity(CHUNK_REQUESTS_MAX),
            batches: Vec::new(),
            replies: Vec::new(),
            encoder: Encoder::new(),
            scratch: Chunk::default(),
            number: 0,
            untaken: 0,
        })
    }

    async fn run(mut self) -> usize {
        while !self.parts.stop.requested() {
            if let Wake::Tick = self.step().await {
                self.look_after_connection();
            }
        }
        self.drain().await;
        let unanswered = self.waiting.len();
        self.parts.engine.metrics().records_in_flight.sub(i64::try_from(unanswered).unwrap_or(i64::MAX));
        unanswered + self.untaken
    }

    /// Waits for one thing and does it.
    async fn step(&mut self) -> Wake {
        let wake = poll_fn(|cx| self.poll(cx)).await;
        match wake {
            Wake::Ended => self.answer_batches().await,
            Wake::Requests => self.take_requests().await,
            Wake::Tick => {}
        }
        wake
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Wake> {
        if let Poll::Ready(1..) = self.ended.poll_recv_many(cx, &mut self.batches, BATCHES_MAX) {
            return Poll::Ready(Wake::Ended);
        }
        self.poll_requests(cx);
        if !self.incoming.is_empty() {
            return Poll::Ready(Wake::Requests);
        }
        self.tick.poll_tick(cx).map(|_| Wake::Tick)
    }

    /// Takes what waits, as much as makes a chunk.
    fn poll_requests(&mut self, cx: &mut Context<'_>) {
        let lanes = self.lanes.len();
        for step in 0..lanes {
            let number = (self.turn + step) % lanes;
            let place = &mut self.lanes[number].requests;
            while let Some(requests) = place
                && self.incoming.len() < CHUNK_REQUESTS_MAX
            {
                match requests.poll_next_unpin(cx) {
                    Poll::Ready(Some(message)) => self.incoming.push((number, message)),
                    Poll::Ready(None) => *place = None,
                    Poll::Pending => break,
                }
            }
        }
        self.turn = (self.turn + 1) % lanes.max(1);
    }

    pub(super) fn look_after_connection(&self) {
        let dropped = &self.parts.engine.metrics().service_dropped;
        dropped.inc_by(self.connection.dropped().saturating_sub(dropped.get()));
        let is_there = self.connection.is_connected() && self.is_there.load(Ordering::Relaxed);
        let refused = self.lanes.iter().find_map(|lane| self.connection.refused(&lane.endpoint.subject));
        let is_ready = is_there && refused.is_none();
        let health = &self.parts.health;
        if is_ready && !self.is_ready.get() {
            health.ready(PART);
        } else if let Some(words) = refused.filter(|_| is_there) {
            let remedy = "allow it to the user of [nats]; it is asked for again with the next connection";
            health.not_ready(PART, &format!("the NATS server says: {words}; {remedy}"));
        } else if !is_ready {
            health.not_ready(PART, &self.connection.why_away());
        }
        self.is_ready.set(is_ready);
    }

    /// Takes no more than what the server has sent by the time it takes back the subscriptions, and answers all of it, within
    /// the stop's bound.
    async fn drain(&mut self) {
        self.parts.health.not_ready(PART, "draining");
        self.discovery.abort();
        if self.connection.is_connected() && !self.unsubscribe().await {
            tracing::warn!("the NATS server did not take back the subscriptions in time; some requests may be lost");
        }
        while (self.waiting.len() > 0 || self.lanes.iter().any(|lane| lane.requests.is_some()))
            && !self.parts.stop.overdue()
        {
            self.step().await;
            if !self.connection.is_connected() {
                // Nothing more can come, and who asks again is told by another worker.
                self.close_lanes();
            }
        }
        self.close_lanes();
        // The last answers are with the server when what was sent after them has come back; where nothing comes back, they
        // are with the system, which sends them without us.
        if let Ok(Ok(())) = timeout(ANSWER_BOUND, self.client.flush()).await {
            self.round_trip().await;
        }
    }

    /// Takes back the subscriptions. `false` when the server may not have done so by then.
    ///
    /// The client forgets a subscription at the first turn of its task after it has told the server, with all that is still
    /// on its way (`Subscriber::drain` does not wait for the server). So its task, which runs on this very thread, gets no
    /// turn until the server must have answered: then all there will be is in the socket, and read before it forgets.
    async fn unsubscribe(&mut self) -> bool {
        let (least, most, times) = HOLD;
        let before = clock::now();
        let is_heard = self.round_trip().await;
        // How far a server is that was not heard, nobody knows.
        let hold = if is_heard { (times * (clock::now() - before)).clamp(least, most) } else { most };
        let (client, lanes) = (&self.client, &mut self.lanes);
        let told = timeout(ANSWER_BOUND, async {
            client.flush().await.ok()?;
            for requests in lanes.iter_mut().filter_map(|lane| lane.requests.as_mut()) {
                requests.drain().await.ok()?;
            }
            // Behind the others in the same queue: when it is flushed, they have been sent.
            client.flush().await.ok()
        });
        if told.await.ok().flatten().is_none() {
            return false;
        }
        std::thread::sleep(hold);
        // The runtime looks at sockets when no task is ready. Were an answer sent first, the client's task would be ready: it
        // would not be told that there is something to read, and forget.
        tokio::task::yield_now().await;
        is_heard || self.is_unheard()
    }

    /// Takes no more, and counts what would have been next.
    fn close_lanes(&mut self) {
        for mut requests in self.lanes.iter_mut().filter_map(|lane| lane.requests.take()) {
            while let Some(Some(message)) = requests.next().now_or_never() {
                self.untaken += usize::from(message.reply.is_some());
            }
        }
    }

    /// Waits until the server has done all that it was told before, and says whether it has.
    async fn round_trip(&self) -> bool {
        !self.is_unheard() && matches!(timeout(ANSWER_BOUND, round_trip(&self.client, &self.inbox)).await, Ok(Some(())))
    }

    /// Whether the account is known not to let the service hear itself.
    fn is_unheard(&self) -> bool {
        self.connection.refused(&self.inbox).is_some()
    }
}

/// Waits until the server has done all that it was told before, and what was sent to this subject then has come back.
async fn round_trip(client: &Client, inbox: &str) -> Option<()> {
    let mut there = client.subscribe(inbox.to_owned()).await.ok()?;
    client.publish(inbox.to_owned(), Bytes::new()).await.ok()?;
    there.next().await.map(|_| ())
}
