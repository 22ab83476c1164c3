//! At least once, where workers share a consumer: each reply goes out by itself under an id that its record always has, and
//! when the stream has it the record is acknowledged, and that confirmed. A record that comes again gets the same reply under
//! the same id, which the stream drops within its duplicate window. Past that it is doubled, and counted as such.

use std::sync::Arc;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::GetStreamByNameErrorKind;
use async_nats::{Request, Subject};
use parking_lot::Mutex;

use super::super::inbox::{Event, Inbox};
use super::super::ledger::{Ledger, Pending};
use super::batch::Outgoing;
use super::{Committer, IDLE, REFUSED_PAUSE, SinkError};
use crate::client::checkpoints::{Answer, ApiError};
use crate::client::{acks, delivery};
use crate::clock;
use crate::commit::Budget;
use crate::record::{ErrorCode, PartitionId, Reject, ReplyAddress};

/// How long a stream may take to answer.
const ANSWER_BOUND: Duration = Duration::from_secs(5);
/// "Message size exceeds maximum allowed", "header size exceeds maximum allowed of 64k".
const TOO_LARGE: [u32; 2] = [10054, 10097];
/// Most replies that are under way at once.
const UNDER_WAY_MAX: usize = 4096;

/// What became of a record's reply.
struct Settled {
    id: PartitionId,
    offset: i64,
    end: End,
}

enum End {
    /// The stream has it, and the record is acknowledged.
    Done { duplicates: usize, is_first: bool },
    /// No stream takes it, the reply itself or its dead letter.
    Refused { is_letter: bool, reason: String },
    /// It is sent again.
    Failed(String),
}

/// What a message is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A reply to the route's own subject.
    Reply,
    /// A reply to the subject that its request names.
    NamedReply,
    /// A dead letter.
    Letter,
}

/// What has come to its end and was not looked at.
#[derive(Default)]
struct Ends(Mutex<Vec<Settled>>);

impl Ends {
    /// Wakes the sink for the first of several.
    fn push(&self, settled: Settled, inbox: &Inbox) {
        let mut ends = self.0.lock();
        ends.push(settled);
        if ends.len() == 1 {
            inbox.send(Event::Look);
        }
    }
}

impl Committer {
    pub(super) fn run_shared(mut self) -> Result<usize, SinkError> {
        self.ledger.share();
        let ends = Arc::new(Ends::default());
        let mut under_way = 0_usize;
        loop {
            let now = clock::now();
            let paused = self.paused_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
            self.ledger.gather(if paused.is_zero() { IDLE } else { paused.min(IDLE) });
            let settled = std::mem::take(&mut *ends.0.lock());
            under_way -= settled.len();
            for settled in settled {
                self.take_end(settled);
            }
            if self.paused_until.is_none_or(|until| clock::now() >= until) {
                self.paused_until = None;
                under_way += self.send_shared(&ends, UNDER_WAY_MAX.saturating_sub(under_way));
            }
            self.ledger.forget_leaving();
            self.tell_progress(clock::now());
            if (self.ledger.draining && self.ledger.in_flight() == 0) || self.sink.stop.overdue() {
                // Others need not wait for what this worker does not answer.
                let open = self.ledger.partitions.values().flat_map(|partition| partition.acks.values().cloned());
                self.publish_all(open.collect(), b"-NAK");
                return Ok(self.ledger.in_flight());
            }
        }
    }

    /// Sends what is finished. Returns how many records that were.
    fn send_shared(&mut self, ends: &Arc<Ends>, most: usize) -> usize {
        let mut sent = 0;
        let ids: Vec<PartitionId> = self.ledger.partitions.keys().copied().collect();
        for id in ids {
            let mut offsets = Vec::new();
            while let Some(partition) = self.ledger.partitions.get_mut(&id) {
                let mut budget = Budget::new(most - sent, self.sink.limits.commit_bytes_max.get());
                partition.tracker.send(&mut budget, Pending::bytes, &mut offsets);
                if offsets.is_empty() {
                    break;
                }
                for offset in offsets.drain(..) {
                    sent += usize::from(self.send_shared_one(ends, id, offset));
                }
            }
        }
        sent
    }

    /// Returns whether a reply is under way. If not, another is in its place, and is sent next.
    fn send_shared_one(&mut self, ends: &Arc<Ends>, id: PartitionId, offset: i64) -> bool {
        if let Some(fault) = self.ledger.pending(id, offset).and_then(|pending| self.fault(pending)) {
            self.mend(id, offset, &fault);
            return false;
        }
        let Ledger { partitions, inbox, .. } = &self.ledger;
        let Some(partition) = partitions.get(&id) else { return false };
        let Some(pending) = partition.tracker.reply(offset) else { return false };
        let messages = self.shared_messages(id, pending);
        let ack = partition.acks.get(&offset).cloned();
        let (checkpoints, inbox, ends) = (Arc::clone(&self.sink.checkpoints), Arc::clone(inbox), Arc::clone(ends));
        self.sink.runtime.spawn(async move {
            let end = settle(checkpoints.context(), messages, ack).await;
            ends.push(Settled { id, offset, end }, &inbox);
        });
        true
    }

    /// A record's messages, each with its own id.
    fn shared_messages(&self, id: PartitionId, pending: &Pending) -> Vec<(Kind, Outgoing)> {
        let mut messages: Vec<(Kind, Outgoing)> = Vec::new();
        messages.extend(self.letter(id, pending).map(|letter| (Kind::Letter, letter)));
        if !pending.dropped && !super::super::drops_a_reply() {
            let is_named = matches!(pending.address(), ReplyAddress::Named { .. });
            messages.push((if is_named { Kind::NamedReply } else { Kind::Reply }, self.reply(pending)));
        }
        for (kind, message) in &mut messages {
            let kind = if *kind == Kind::Letter { "letter" } else { "reply" };
            let position = pending.reply.ticket.request().position;
            if let Some(id) = self.ledger.message_id(&self.sink.limits.group, position, kind) {
                message.headers.insert("Nats-Msg-Id", id);
            }
        }
        messages
    }

    fn take_end(&mut self, settled: Settled) {
        let Settled { id, offset, end } = settled;
        match end {
            End::Done { duplicates, is_first } => {
                self.sink.health.ready(&self.sink.part);
                let metrics = &self.ledger.metrics;
                metrics.replies_deduplicated.inc_by(duplicates as u64);
                if !is_first && duplicates == 0 {
                    metrics.replies_maybe_doubled.inc();
                }
                self.ledger.settled(id, offset);
            }
            End::Refused { is_letter: true, reason } => self.ledger.drop_letter(id, offset, &reason),
            End::Refused { is_letter: false, reason } => {
                let reject = Reject::new(ErrorCode::TooLarge, format!("the reply was refused: {reason}"));
                self.ledger.readdress(id, offset, &reject);
            }
            End::Failed(reason) => {
                if self.paused_until.is_none() {
                    tracing::warn!(reason, "a reply is sent again");
                    self.sink.health.not_ready(&self.sink.part, &format!("replies are not taken: {reason}"));
                }
                self.paused_until = Some(clock::now() + REFUSED_PAUSE);
                if let Some(partition) = self.ledger.partitions.get_mut(&id) {
                    partition.tracker.send_again(offset);
                }
            }
        }
    }
}

/// Sends a record's messages, and acknowledges it when the stream has them all.
async fn settle(context: &Context, messages: Vec<(Kind, Outgoing)>, ack: Option<Subject>) -> End {
    let client = context.client();
    let mut duplicates = 0;
    for (kind, Outgoing { subject, headers, payload, .. }) in messages {
        let is_letter = kind == Kind::Letter;
        fail::fail_point!("sink::produced", |_| End::Failed("a fail point".to_owned()));
        let request = Request::new().headers(headers).payload(payload).timeout(Some(ANSWER_BOUND));
        let answer = match client.send_request(subject.clone(), request).await {
            Ok(answer) => answer,
            // The route's own subject had its stream when the worker began, and will have it again.
            Err(error)
                if kind != Kind::Reply
                    && error.kind() == RequestErrorKind::NoResponders
                    && has_no_stream(context, &subject).await =>
            {
                return End::Refused { is_letter, reason: format!("no stream takes the subject {subject}") };
            }
            Err(error) => return End::Failed(error.to_string()),
        };
        match serde_json::from_slice::<Answer>(&answer.payload) {
            Ok(Answer { error: None, duplicate, .. }) => duplicates += usize::from(duplicate),
            Ok(Answer { error: Some(ApiError { err_code, description }), .. }) if TOO_LARGE.contains(&err_code) => {
                return End::Refused { is_letter, reason: description };
            }
            Ok(Answer { error: Some(ApiError { err_code, description }), .. }) => {
                return End::Failed(format!("{description} ({err_code})"));
            }
            Err(error) => return End::Failed(error.to_string()),
        }
    }
    let Some(ack) = ack else { return End::Done { duplicates, is_first: true } };
    let is_first = delivery::read(&ack).is_none_or(|delivery| delivery.count <= 1);
    fail::fail_point!("sink::acknowledge", |_| End::Done { duplicates, is_first });
    acks::confirm(&client, ack).await;
    End::Done { duplicates, is_first }
}

/// Whether it is certain that no stream takes a subject: a server that just started says nothing of it.
async fn has_no_stream(context: &Context, subject: &str) -> bool {
    let found = context.stream_by_subject(subject).await;
    found.is_err_and(|error| error.kind() == GetStreamByNameErrorKind::NotFound)
}
