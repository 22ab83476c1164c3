//! What of a batch need not be scored: requests in; out, those that are left to score, and the keys that they lead.
//!
//! The rows of a request together are one key, rounded first where the model rounds its features. Its scores are in the
//! cache (a hit), or the same key is being scored by this batch or another thread's (it follows the request that leads
//! there), or it leads. A request that is not in the policy's sample is scored as if there were no cache, and so is a
//! suspect of the journal, which must be scored alone.
//!
//! Invariants:
//! 1. A request goes one way: handed back with what the cache holds, left in the batch, or behind a leader.
//! 2. A key in flight is led by one batch that is being scored. [`Leads`] ends it: with scores, which the followers are
//!    handed back with; without, also by a panic, and then they go back to the queue.
//! 3. A request that went back follows nobody again, so it ends with its own outcome, and does so after one more turn.
//! 4. Only finite scores that a model gave without an error are put in the cache, before their key is in flight no more:
//!    who then finds no leader finds them.

mod in_flight;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use self::in_flight::InFlight;
use super::attempt::{Outcomes, features_of, fits, texts_of};
use super::{Queued, Scheduler, Scored, Turn};
use crate::batch::Entry;
use crate::cache::{CacheKey, CachePolicy, Look, LookPolicy, LruTtlCache, Observed, RowHasher, Secret, Tally};
use crate::clock;
use crate::model::{LoadedModel, ModelSchema, Preprocessor};
use crate::record::{ModelId, Texts};

/// The batch at which scoring a row is held against looking it up.
const BATCH_USUAL: usize = 64;
/// Lookups that are timed, in a cache of so many bytes: more than the processor's own caches hold near a core.
const TIMED_LOOKUPS: u32 = 16_384;
const TIMED_BYTES_MAX: usize = 4 << 20;

type Results = LruTtlCache<Box<[f64]>>;

/// The results of all models, and the requests that wait for one.
pub(crate) struct ResultCache {
    results: Results,
    in_flight: InFlight<Entry<Queued>>,
    secret: Secret,
    policy: CachePolicy,
}

/// A model version whose requests are looked up.
pub(super) struct Admitted {
    keys: RowHasher,
    /// What rounds its rows: those that are equal then have one key.
    rounding: Option<Arc<Preprocessor>>,
    /// `None`: all are.
    looking: Option<Mutex<LookPolicy>>,
}

/// The rows of one request after the other, as they are looked up: rounded, where the model rounds them.
struct Rounding<'a> {
    by: Option<&'a Preprocessor>,
    values: Vec<f64>,
}

impl Rounding<'_> {
    /// `None` for rows that the steps before the model refuse.
    fn round<'r>(&'r mut self, features: &'r [f64], texts: Texts<'_>) -> Option<&'r [f64]> {
        let Some(by) = self.by else { return Some(features) };
        let texts: Vec<Option<&str>> = texts.iter().collect();
        by.check(features, &texts).ok()?;
        by.apply(features, &texts, &mut self.values, &mut Vec::new());
        Some(&self.values)
    }
}

impl ResultCache {
    /// An empty cache under a secret of its own.
    pub(crate) fn new(policy: CachePolicy) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        Ok(Self {
            results: LruTtlCache::new(policy.bytes_max, policy.ttl),
            in_flight: InFlight::new(),
            secret: Secret::new(secret),
            policy,
        })
    }

    /// Makes keys for a version that is put in service in that slot; `None` where nothing is looked up. With `auto` both are timed first, scoring and
    /// looking up, and what is not the dearer one is said.
    pub(super) fn admit(&self, id: ModelId, model: &LoadedModel) -> Option<Arc<Admitted>> {
        let (schema, slot) = (model.schema(), id.0 as usize);
        // No two loads of an engine share slot and version; what else makes scores is there for the reader's peace.
        let (row_type, width, outputs) = (schema.row_type, schema.width(), schema.outputs);
        let (version, texts) = (model.version(), schema.kinds.text_columns().len());
        let rounding = model.preprocessor().filter(|steps| steps.quantizer().is_some()).cloned();
        let rounded = rounding.as_ref().map(|steps| steps.digest());
        let scope = format!(
            "{slot} {version} {} {row_type:?} {width} {texts} {outputs} {rounded:?} {}",
            model.sha256(),
            model.name()
        );
        let keys = RowHasher::new(&self.secret, scope.as_bytes());
        let admitted = if self.policy.auto {
            self.measure(model, &keys, rounding.as_deref()).map(|score_ns| Some(Mutex::new(LookPolicy::new(score_ns))))
        } else {
            Some(None)
        };
        admitted.map(|looking| Arc::new(Admitted { keys, rounding, looking }))
    }

    /// What scoring a row costs, in nanoseconds, if looking it up costs less.
    fn measure(&self, model: &LoadedModel, keys: &RowHasher, by: Option<&Preprocessor>) -> Option<f64> {
        let costs = (model.nanos_a_row(1), model.nanos_a_row(BATCH_USUAL));
        let (Ok(alone), Ok(batched)) = costs else {
            tracing::warn!(model = model.name(), "cannot be timed, so its requests are not looked up in the cache");
            return None;
        };
        let lookup = nanos_a_lookup(keys, (model.schema(), by), self.policy);
        let cheaper = lookup < batched;
        tracing::info!(
            model = model.name(),
            version = model.version(),
            cache = if cheaper { "on" } else { "off" },
            lookup_ns = lookup.round(),
            score_ns = batched.round(),
            score_alone_ns = alone.round(),
            "timed a lookup against scoring a row in a batch of 64"
        );
        cheaper.then_some(batched)
    }
}

impl Admitted {
    /// The key of a request that is looked up.
    fn key(&self, entry: &Entry<Queued>, look: Look, rounding: &mut Rounding<'_>) -> Option<CacheKey> {
        let texts = texts_of(entry);
        let values = rounding.round(features_of(entry), texts)?;
        look.includes(values, texts).then(|| self.keys.key(values, texts))
    }

    fn look(&self) -> Look {
        self.looking.as_ref().map_or(Look::All, |policy| policy.lock().look())
    }
}

/// A row's rounding, a key, a lookup that finds nothing, and putting a result in, all under locks that nobody else wants.
fn nanos_a_lookup(keys: &RowHasher, (schema, by): (&ModelSchema, Option<&Preprocessor>), policy: CachePolicy) -> f64 {
    let bytes_max = policy.bytes_max.min(NonZeroUsize::new(TIMED_BYTES_MAX).unwrap_or(NonZeroUsize::MIN));
    let (results, in_flight): (Results, InFlight<()>) = (LruTtlCache::new(bytes_max, policy.ttl), InFlight::new());
    let (mut row, mut tally) = (vec![0.5; schema.width()], Tally::default());
    let (cells, mut rounded) = (vec![None; schema.kinds.text_columns().len()], Vec::new());
    let mut look_up = |number| {
        row[0] = f64::from(number);
        if let Some(by) = by {
            let _ = std::hint::black_box(by.check(&row, &cells));
            by.apply(&row, &cells, &mut rounded, &mut Vec::new());
            std::hint::black_box(&rounded);
        }
        // Of the row as it was, which is no other's.
        let key = keys.key(&row, Texts::NONE);
        let mut flights = in_flight.lock(key);
        let now = clock::now();
        if results.get(key, now, &mut tally, |scores| scores[0]).is_none() {
            flights.insert(key, Vec::new());
        }
        drop(flights);
        results.insert(key, [0.5].into(), now, &mut tally);
        in_flight.end(key);
    };
    // The first half fills the tables.
    (0..TIMED_LOOKUPS / 2).for_each(&mut look_up);
    let start = clock::now();
    (TIMED_LOOKUPS / 2..TIMED_LOOKUPS).for_each(&mut look_up);
    (clock::now() - start).as_secs_f64() * 1e9 / f64::from(TIMED_LOOKUPS / 2)
}

/// Requests whose scores the cache held.
#[derive(Default)]
struct Hits {
    entries: Vec<Entry<Queued>>,
    outcomes: Outcomes,
    scores: Vec<f64>,
}

/// Which way a request goes.
enum Way {
    Hit(Entry<Queued>),
    Follows,
    Leads(Entry<Queued>),
    /// It would have to follow, and follows nobody again.
    Alone(Entry<Queued>),
}

impl ResultCache {
    fn way_of(&self, key: CacheKey, entry: Entry<Queued>, now: Instant, hits: &mut Vec<f64>, tally: &mut Tally) -> Way {
        // Held while the results are asked: a leader that ends puts its scores there first.
        let mut flights = self.in_flight.lock(key);
        if let Some(followers) = flights.get_mut(&key) {
            if entry.item.alone {
                return Way::Alone(entry);
            }
            followers.push(entry);
            return Way::Follows;
        }
        if self.results.get(key, now, tally, |scores| hits.extend_from_slice(scores)).is_some() {
            return Way::Hit(entry);
        }
        flights.insert(key, Vec::new());
        Way::Leads(entry)
    }
}

impl Scheduler {
    /// Hands back what the cache holds, leaves what follows with its leader, and returns the rest with the keys that it
    /// leads.
    pub(super) fn look_up<'a>(
        &'a self,
        turn: Turn<'_>,
        batch: Vec<Entry<Queued>>,
        started: Instant,
    ) -> (Vec<Entry<Queued>>, Option<Leads<'a>>) {
        let Some(cache) = self.cache.as_ref().filter(|_| !turn.suspect) else { return (batch, None) };
        let Some(admitted) = turn.admitted().cloned() else { return (batch, None) };
        let (look, schema) = (admitted.look(), turn.model().schema());
        let mut leads =
            Leads { scheduler: self, cache, admitted, id: turn.id, keys: Vec::new(), ended: 0, seen: Seen::default() };
        let (mut hits, mut rest) = (Hits::default(), Vec::with_capacity(batch.len()));
        let admitted = Arc::clone(&leads.admitted);
        let mut rounding = Rounding { by: admitted.rounding.as_deref(), values: Vec::new() };
        for entry in batch {
            let rows = entry.rows as usize;
            // Of another width: its model was replaced, and scoring will say so.
            let Some(key) = fits(&entry, schema).then(|| admitted.key(&entry, look, &mut rounding)).flatten() else {
                rest.push(entry);
                continue;
            };
            let first = hits.scores.len() / schema.outputs.max(1);
            let seen = &mut leads.seen;
            match cache.way_of(key, entry, started, &mut hits.scores, &mut seen.tally) {
                Way::Hit(entry) => {
                    hits.entries.push(entry);
                    hits.outcomes.push(Ok(first));
                    seen.spared_rows += rows;
                }
                Way::Follows => {
                    seen.joined += 1;
                    seen.spared_rows += rows;
                }
                Way::Leads(entry) => {
                    leads.keys.push((rest.len(), key));
                    seen.misses += 1;
                    rest.push(entry);
                }
                Way::Alone(entry) => {
                    seen.misses += 1;
                    rest.push(entry);
                }
            }
        }
        leads.seen.hits = hits.entries.len();
        leads.seen.time = clock::now() - started;
        // Before anybody has an answer: who has one finds it counted.
        let Seen { joined, misses, .. } = leads.seen;
        self.metrics.cache.add((hits.entries.len(), joined, misses), std::mem::take(&mut leads.seen.tally));
        if !hits.entries.is_empty() {
            let Hits { entries, outcomes, scores } = hits;
            let (outputs, model) = (schema.outputs, Some(Arc::clone(turn.model())));
            let scored = Scored { outcomes, scores, outputs, model, batch_size: 0, started, cache_hit: true };
            self.hand_back(entries, scored, Duration::ZERO);
        }
        (rest, Some(leads))
    }

    /// Puts followers back whose leader has no scores for them. They are due at once, in a closed engine too: the thread
    /// that calls this has not ended, and takes them if no other does.
    fn put_followers_back(&self, id: ModelId, followers: Vec<Entry<Queued>>) {
        if followers.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        let now = clock::now();
        for mut entry in followers {
            entry.item.alone = true;
            state.lanes[id.0 as usize].batcher.put_back(entry, now);
        }
        let crew = state.lanes[id.0 as usize].crew.clone();
        drop(state);
        crew.as_deref().unwrap_or(&self.work).notify_one();
        self.deadlines.notify_one();
    }
}

/// The keys that a batch leads, while it is scored.
#[must_use = "keys that nobody ends give their followers back"]
pub(super) struct Leads<'a> {
    scheduler: &'a Scheduler,
    cache: &'a ResultCache,
    admitted: Arc<Admitted>,
    id: ModelId,
    /// Each with the place of its request in the batch.
    keys: Vec<(usize, CacheKey)>,
    /// The first so many are in flight no more.
    ended: usize,
    seen: Seen,
}

/// What looking up a batch came to.
#[derive(Default)]
struct Seen {
    hits: usize,
    joined: usize,
    misses: usize,
    spared_rows: usize,
    time: Duration,
    tally: Tally,
}

impl Leads<'_> {
    /// The batch was scored, in that time. Its scores go into the cache and to the followers, which come to its end;
    /// followers of a request without scores go back to the queue.
    pub(super) fn settle(
        mut self,
        batch: &mut Vec<Entry<Queued>>,
        outcomes: &mut Outcomes,
        (scores, outputs): (&[f64], usize),
        scoring_time: Duration,
    ) {
        let now = clock::now();
        let mut orphans = Vec::new();
        while let Some(&(place, key)) = self.keys.get(self.ended) {
            let first = outcomes[place].as_ref().ok().copied();
            if let Some(first) = first {
                let own = &scores[first * outputs..(first + batch[place].rows as usize) * outputs];
                self.cache.results.insert(key, own.into(), now, &mut self.seen.tally);
            }
            let followers = self.cache.in_flight.end(key);
            self.ended += 1;
            match first {
                Some(first) => {
                    outcomes.extend(followers.iter().map(|_| Ok(first)));
                    batch.extend(followers);
                }
                None => orphans.extend(followers),
            }
        }
        self.seen.time += clock::now() - now;
        let scored_rows = scores.len() / outputs.max(1);
        self.count(scored_rows as u64, scoring_time);
        self.scheduler.put_followers_back(self.id, orphans);
    }

    /// Nothing of the batch was left to score.
    pub(super) fn settle_empty(self) {
        self.count(0, Duration::ZERO);
    }

    fn count(&self, scored_rows: u64, scoring_time: Duration) {
        let Seen { hits, joined, misses, spared_rows, time, tally } = self.seen;
        self.scheduler.metrics.cache.add((0, 0, 0), tally);
        let Some(looking) = &self.admitted.looking else { return };
        let batch = Observed {
            lookups: (hits + joined + misses) as u64,
            spared_rows: spared_rows as u64,
            lookup_time: time,
            scored_rows,
            scoring_time,
        };
        if let Some(all) = looking.lock().observe(&batch) {
            tracing::debug!(model = self.id.0, all, "which requests are looked up in the cache has changed");
        }
    }
}

impl Drop for Leads<'_> {
    /// A panic on the way: whoever follows is not lost with the batch.
    fn drop(&mut self) {
        let unended = &self.keys[self.ended..];
        let orphans = unended.iter().flat_map(|(_, key)| self.cache.in_flight.end(*key)).collect();
        self.scheduler.put_followers_back(self.id, orphans);
    }
}
