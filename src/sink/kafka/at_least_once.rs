//! At least once: a reply goes out as soon as it is there, and its position is committed when it has arrived. After a
//! crash what was not committed comes again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use async_nats::Subject;
use crossbeam_channel::{Receiver, Sender, bounded};
use rdkafka::TopicPartitionList;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use super::super::inbox::{Event, Inbox};
use super::super::ledger::{Pending, Take};
use super::super::producer::{ReplyProducer, TransactionError, is_definite};
use super::refused::{REFUSED_PAUSE, Refused};
use super::{CALL_BOUND, Committer, IDLE, SinkError, Told};
use crate::client::{BATCH_BYTES, delivery};
use crate::clock;
use crate::commit::Budget;
use crate::record::PartitionId;

/// The least time between two looks at the delivery reports, but for those that come with other events.
const REPORTS_WAIT: Duration = Duration::from_millis(5);
/// How far delivery reports may be behind the deliveries.
const REPORTS_BOUND: Duration = Duration::from_secs(1);

/// What is with the producer, in the order in which it was handed over.
#[derive(Default)]
struct Sending {
    first: usize,
    entries: VecDeque<Entry>,
    offsets: Vec<i64>,
    /// The route's own topic refuses replies until then.
    paused_until: Option<Instant>,
    /// What is being committed.
    commits: Option<Commits>,
    last_commit: Option<Instant>,
}

/// What the source is told of records whose replies have arrived.
enum Commits {
    /// The group's positions.
    Positions(Take),
    /// Records of NATS, acknowledged one by one.
    Acks(Vec<(PartitionId, i64)>),
}

/// The same, as the source takes it.
enum Job {
    Positions(TopicPartitionList),
    Acks(Vec<Subject>),
}

/// A thread that waits for the broker in this one's stead: a commit takes milliseconds, in which replies go out.
struct CommitThread {
    jobs: Option<Sender<Job>>,
    results: Receiver<KafkaResult<()>>,
    thread: Option<JoinHandle<()>>,
}

impl CommitThread {
    fn start(told: Told, inbox: Arc<Inbox>, shard: u32) -> std::io::Result<Self> {
        let (jobs, todo) = bounded::<Job>(1);
        let (done, results) = bounded(1);
        let thread = Builder::new().name(format!("forebay-commit-{shard}")).spawn(move || {
            for job in todo {
                let result = match (job, &told) {
                    (Job::Positions(positions), Told::Group(group)) => group.commit(&positions),
                    (Job::Acks(subjects), Told::Acks(acks)) => {
                        acks.acknowledge(subjects);
                        Ok(())
                    }
                    // Each has the jobs of its own kind.
                    _ => Ok(()),
                };
                // Who asked may have gone.
                let _ = done.send(result);
                inbox.send(Event::Look);
            }
        })?;
        Ok(Self { jobs: Some(jobs), results, thread: Some(thread) })
    }

    /// Only when the result of the one before was taken.
    fn commit(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
    }
}

impl Drop for CommitThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Entry {
    id: PartitionId,
    offset: i64,
    /// Reports that are still to come: of the reply and of its dead letter. 0 when one of them has failed.
    waits: u8,
}

impl Sending {
    fn push(&mut self, id: PartitionId, offset: i64, waits: u8) -> usize {
        self.entries.push_back(Entry { id, offset, waits });
        2 * (self.first + self.entries.len() - 1)
    }

    /// The entry of a report's index, while it waits.
    fn entry(&mut self, index: usize) -> Option<&mut Entry> {
        let entry = self.entries.get_mut((index / 2).checked_sub(self.first)?)?;
        (entry.waits > 0).then_some(entry)
    }

    /// Forgets what has had its reports.
    fn shrink(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.waits == 0) {
            self.entries.pop_front();
            self.first += 1;
        }
    }
}

impl Committer {
    pub(super) fn run_at_least_once(&mut self) -> Result<usize, SinkError> {
        if let Told::Acks(_) = self.sink.told {
            self.ledger.share();
        }
        let mut producer = self.new_producer(true)?;
        if !self.topics_exist(&producer) {
            return Ok(self.ledger.in_flight());
        }
        if self.bytes_max < BATCH_BYTES {
            // Made anew with the batches that the topics take.
            producer = self.new_producer(true)?;
        }
        self.sink.ready();
        let thread =
            CommitThread::start(self.sink.told.clone(), Arc::clone(&self.ledger.inbox), self.sink.settings.shard());
        let thread = thread.map_err(|error| SinkError::Fatal(format!("cannot start a thread: {error}")))?;
        let mut sending = Sending::default();
        loop {
            let wait = self.patience(&sending);
            self.gather(wait);
            self.take_reports(&producer, &mut sending);
            let sent = self.send_finished(&producer, &mut sending);
            let broken = match sent {
                Ok(()) => producer.fatal_error().map(TransactionError::Failed),
                Err(error) => Some(error),
            };
            if let Some(error) = broken {
                producer = self.replace(producer, &mut sending, &error)?;
            }
            self.commit_answered(&thread, &mut sending)?;
            if let Told::Acks(acks) = &mut self.sink.told {
                let waiting = self.ledger.partitions.values().flat_map(|partition| partition.acks.values());
                acks.tell_progress(clock::now(), waiting);
            }
            if !self.ledger.leaving.is_empty() {
                self.settle(&producer, &thread, &mut sending)?;
                self.forget_leaving();
            }
            if self.is_over() {
                return Ok(self.ledger.in_flight());
            }
        }
    }

    /// How long there is nothing to do but to wait for events. Delivery reports are none: they are looked at when a commit
    /// is due, and a refused reply waits as long.
    fn patience(&self, sending: &Sending) -> Duration {
        let now = clock::now();
        let left = |until: Instant| until.saturating_duration_since(now);
        let resume = sending.paused_until.map(left);
        let is_due = self.ledger.is_news || !sending.entries.is_empty();
        let interval = self.sink.limits.commit_interval.max(REPORTS_WAIT);
        let commit = sending.last_commit.filter(|_| is_due && sending.commits.is_none());
        resume.into_iter().chain(commit.map(|last| left(last + interval))).fold(IDLE, Duration::min)
    }

    fn take_reports(&mut self, producer: &ReplyProducer, sending: &mut Sending) {
        let mut arrivals = Vec::new();
        for (index, code) in producer.take_reports() {
            let Some(entry) = sending.entry(index) else { continue };
            let (id, offset) = (entry.id, entry.offset);
            let Some(code) = code else {
                self.ledger.metrics.dead_letters.inc_by(u64::from(index % 2 == 1));
                entry.waits -= 1;
                if entry.waits == 0
                    && let Some(partition) = self.ledger.partitions.get_mut(&id)
                {
                    let pending = partition.tracker.reply(offset);
                    arrivals.extend(pending.map(|pending| pending.reply.ticket.request().arrived));
                    partition.tracker.answered(offset);
                }
                self.arrived(sending);
                continue;
            };
            entry.waits = 0;
            self.not_delivered(sending, id, offset, index % 2 == 1, code);
        }
        if !arrivals.is_empty() {
            self.ledger.metrics.request_seconds.add_since(clock::now(), arrivals.into_iter());
        }
        sending.shrink();
    }

    /// After a delivery: its last reports are on their way from librdkafka's queue.
    fn take_all_reports(&mut self, producer: &ReplyProducer, sending: &mut Sending) {
        let end = clock::now() + REPORTS_BOUND;
        self.take_reports(producer, sending);
        while !sending.entries.is_empty() && clock::now() < end {
            std::thread::sleep(Duration::from_millis(1));
            self.take_reports(producer, sending);
        }
    }

    /// The route's topics take replies.
    fn arrived(&mut self, sending: &mut Sending) {
        if std::mem::take(&mut self.refusing) {
            sending.paused_until = None;
            self.sink.ready();
        }
        self.sink.watch.back();
    }

    fn not_delivered(
        &mut self,
        sending: &mut Sending,
        id: PartitionId,
        offset: i64,
        is_letter: bool,
        code: RDKafkaErrorCode,
    ) {
        if is_definite(code) && self.refuse(id, offset, is_letter, code) == Refused::Reply {
            return;
        }
        if is_definite(code) {
            sending.paused_until = Some(clock::now() + REFUSED_PAUSE);
        } else {
            tracing::debug!(%code, "a reply was not delivered; it is sent again");
        }
        if let Some(partition) = self.ledger.partitions.get_mut(&id) {
            partition.tracker.send_again(offset);
        }
    }

    fn send_finished(&mut self, producer: &ReplyProducer, sending: &mut Sending) -> Result<(), TransactionError> {
        if sending.paused_until.is_some_and(|until| clock::now() < until) {
            return Ok(());
        }
        sending.paused_until = None;
        let ids: Vec<PartitionId> = self.ledger.partitions.keys().copied().collect();
        let mut offsets = std::mem::take(&mut sending.offsets);
        for id in ids {
            let Some(partition) = self.ledger.partitions.get_mut(&id) else { continue };
            offsets.clear();
            let mut budget = Budget::new(usize::MAX, self.sink.limits.commit_bytes_max.get());
            partition.tracker.send(&mut budget, Pending::bytes, &mut offsets);
            for &offset in &offsets {
                self.send_one(producer, sending, id, offset)?;
            }
        }
        sending.offsets = offsets;
        Ok(())
    }

    fn send_one(
        &mut self,
        producer: &ReplyProducer,
        sending: &mut Sending,
        id: PartitionId,
        offset: i64,
    ) -> Result<(), TransactionError> {
        let batch_bytes = self.bytes_max.min(BATCH_BYTES);
        if self.readdress_wrong(producer, id, offset)? {
            return Ok(());
        }
        if self.bytes_max < batch_bytes {
            return Err(TransactionError::Connection("a topic takes smaller batches".to_owned()));
        }
        let Some((dropped, letter)) = self.ledger.pending(id, offset).map(|pending| (pending.dropped, pending.letter))
        else {
            return Ok(());
        };
        let waits = u8::from(!dropped) + u8::from(letter);
        if letter {
            self.look_up_letter_topics(producer)?;
        } else if dropped {
            if let Some(partition) = self.ledger.partitions.get_mut(&id) {
                partition.tracker.answered(offset);
            }
            return Ok(());
        }
        let Some(pending) = self.ledger.pending(id, offset) else { return Ok(()) };
        let index = sending.push(id, offset, waits);
        match self.send(producer, pending, index) {
            Ok(()) => Ok(()),
            Err(TransactionError::Refused(refused)) => {
                for refusal in refused {
                    let refused_index = refusal.index.unwrap_or(index);
                    if let Some(entry) = sending.entry(refused_index) {
                        entry.waits = 0;
                        let (id, offset) = (entry.id, entry.offset);
                        self.not_delivered(sending, id, offset, refused_index % 2 == 1, refusal.code);
                    }
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// A producer that can send no more is made anew; what was with it is sent again.
    fn replace(
        &mut self,
        producer: ReplyProducer,
        sending: &mut Sending,
        error: &TransactionError,
    ) -> Result<ReplyProducer, SinkError> {
        self.ledger.metrics.producers_recycled.inc();
        // A broker that is away is waited for.
        if !matches!(error, TransactionError::Connection(_)) {
            tracing::warn!(%error, "the producer is made anew; what was with it is sent again");
            self.count_failure(&error.to_string())?;
        }
        // What arrives still is not sent again.
        let _ = producer.deliver(REPORTS_BOUND);
        self.take_all_reports(&producer, sending);
        drop(producer);
        sending.first += sending.entries.len();
        sending.entries.clear();
        self.ledger.untake();
        self.new_producer(true)
    }

    fn commit_answered(&mut self, thread: &CommitThread, sending: &mut Sending) -> Result<(), SinkError> {
        if sending.commits.is_some()
            && let Ok(done) = thread.results.try_recv()
        {
            self.commit_ended(sending, done)?;
        }
        let now = clock::now();
        let interval = self.sink.limits.commit_interval;
        if sending.commits.is_some() || sending.last_commit.is_some_and(|last| now < last + interval) {
            return Ok(());
        }
        sending.last_commit = Some(now);
        self.ledger.is_news = self.start_commit(thread, sending)?;
        Ok(())
    }

    /// Returns whether there was something to commit.
    fn start_commit(&mut self, thread: &CommitThread, sending: &mut Sending) -> Result<bool, SinkError> {
        if let Told::Acks(_) = self.sink.told {
            return Ok(self.start_acks(thread, sending));
        }
        let commits = self.answered();
        if commits.is_empty() || self.ledger.inbox.losses() != self.ledger.losses {
            return Ok(false);
        }
        let positions = self.positions_of(&commits).map_err(|error| SinkError::Fatal(error.to_string()))?;
        thread.commit(Job::Positions(positions));
        sending.commits = Some(Commits::Positions(commits));
        Ok(true)
    }

    /// Returns whether there was something to acknowledge.
    fn start_acks(&mut self, thread: &CommitThread, sending: &mut Sending) -> bool {
        let (mut places, mut subjects) = (Vec::new(), Vec::new());
        for (id, partition) in &self.ledger.partitions {
            for offset in partition.tracker.answered_offsets() {
                places.push((*id, offset));
                let ack = partition.acks.get(&offset);
                let is_first = ack.and_then(|ack| delivery::read(ack)).is_none_or(|delivery| delivery.count <= 1);
                if !is_first {
                    // Kafka knows no ids: the reply that went out before the redelivery may be there too.
                    self.ledger.metrics.replies_maybe_doubled.inc();
                }
                subjects.extend(ack.cloned());
            }
        }
        if places.is_empty() {
            return false;
        }
        thread.commit(Job::Acks(subjects));
        sending.commits = Some(Commits::Acks(places));
        true
    }

    fn commit_ended(&mut self, sending: &mut Sending, done: KafkaResult<()>) -> Result<(), SinkError> {
        match (sending.commits.take(), done) {
            (Some(Commits::Positions(commits)), Ok(())) => self.commit(&commits),
            (Some(Commits::Acks(places)), Ok(())) => {
                for (id, offset) in places {
                    self.ledger.settled(id, offset);
                }
                self.ledger.metrics.commits.inc();
            }
            (_, Err(error)) => self.commit_failed(&error)?,
            (None, Ok(())) => {}
        }
        self.ledger.is_news = true;
        Ok(())
    }

    fn commit_failed(&mut self, error: &KafkaError) -> Result<(), SinkError> {
        use RDKafkaErrorCode as Code;
        match error.rdkafka_error_code() {
            Some(Code::FencedInstanceId) => Err(SinkError::Fenced(self.sink.fenced_by())),
            Some(Code::OffsetMetadataTooLarge) => {
                self.shrink_maps(self.chars_max);
                Ok(())
            }
            Some(Code::GroupAuthorizationFailed | Code::TopicAuthorizationFailed) => {
                Err(SinkError::Fatal(format!("not allowed to commit the group's positions: {error}")))
            }
            // The group moved on, or no broker can be reached: it is made again.
            _ => {
                tracing::debug!(%error, "a commit failed; it is made again");
                Ok(())
            }
        }
    }

    fn answered(&mut self) -> Take {
        let mut commits = self.ledger.take_idle();
        for (id, partition) in &self.ledger.partitions {
            commits.extend(partition.tracker.answered_commit(self.chars_max).map(|commit| (*id, commit)));
        }
        commits
    }

    /// Partitions leave: what is on its way arrives, and is committed.
    fn settle(
        &mut self,
        producer: &ReplyProducer,
        thread: &CommitThread,
        sending: &mut Sending,
    ) -> Result<(), SinkError> {
        if self.send_finished(producer, sending).is_ok() && producer.deliver(CALL_BOUND).is_ok() {
            self.take_all_reports(producer, sending);
        }
        // The one that is under way first: an older commit must not come after a newer one.
        for _ in 0..2 {
            if sending.commits.is_none() && !self.start_commit(thread, sending)? {
                break;
            }
            match thread.results.recv_timeout(CALL_BOUND) {
                Ok(done) => self.commit_ended(sending, done)?,
                Err(_) => break,
            }
        }
        Ok(())
    }
}
