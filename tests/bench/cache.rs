//! `make bench-cache`: what a lookup in the result cache costs beside scoring the row, and beside another cache.
//!
//! Three tables, in CPU time so that other work on the machine counts little: nanoseconds an operation of forebay's cache and of `quick_cache` (both full, 64 MiB, one and two threads),
//! nanoseconds a row of the models, and nanoseconds a request through the whole engine with the cache off, on and
//! deciding by itself, for rows that all differ and for rows that come again. Before them, what the feature cache takes to
//! find a preprocessed row again beside the steps themselves.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::hash::{BuildHasherDefault, Hasher};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use forebay::batch::BatchPolicy;
use forebay::cache::{CacheKey, CachePolicy, LruTtlCache, RowHasher, Secret, Tally};
use forebay::clock;
use forebay::engine::{InferenceEngine, InferenceEngineConfig, ModelSpec};
use forebay::model::{
    self, Action, Calibration, Category, FeatureKinds, FeatureRange, LoadOptions, ModelBytes, ModelSchema, ModelType,
    Preprocessor, Quantizer, Real, RowType, Rows, Step, Unknown, Values,
};
use forebay::placement::Pin;
use forebay::record::{Chunk, ModelId, NewRequest, PartitionId, Position, Priority, ReplyAddress, ScoredBatch, Texts};
use forebay::score::{Submitter, SubmitterId};
use quick_cache::sync::Cache as QuickCache;

const BYTES_MAX: usize = 64 << 20;
const TTL: Duration = Duration::from_secs(60);
/// An entry of one score, as forebay counts it.
const ENTRY_BYTES: usize = LruTtlCache::<Box<[f64]>>::ENTRY_BYTES + 8 + 24;
/// More keys than fit into the bytes.
const KEYS: u64 = 1_000_000;
/// Passes of which the best counts; of a few microseconds each, and of so many milliseconds.
const PASSES_SHORT: usize = 200;
const PASSES: usize = 5;
const CHUNK: usize = 512;
/// Requests of a run through the engine, and how many different ones where they come again.
const REQUESTS: usize = 2_000 * CHUNK;
const REPEATED: usize = 20 * CHUNK;

/// Measures the result cache.
#[derive(Parser)]
struct Arguments {
    /// Models to score with.
    #[arg(long, default_values = ["target/bench/models/lightgbm_500x63.txt", "tests/data/higgs/higgs.model.txt"])]
    model: Vec<PathBuf>,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    println!("cache, 64 MiB, full; ns of CPU an operation  1 thread  2 threads");
    let secret = Secret::new([7; 32]);
    for width in [4, 28, 128] {
        let (keys, rows) = (RowHasher::new(&secret, b"bench"), rows(1_024, width, 0));
        let pass = || {
            for row in rows.chunks(width) {
                std::hint::black_box(keys.key(row, Texts::NONE));
            }
        };
        let ns = best_short(pass, 1_024);
        println!("  key of {width:3} values                       {ns:8.0}");
    }
    steps(&secret);
    compare::<LruTtlCache<Box<[f64]>>>("lru, sharded")?;
    compare::<Quick>("quick_cache")?;
    for path in &arguments.model {
        println!("{}", path.display());
        score(path)?;
        engine(path)?;
    }
    Ok(())
}

/// The features of the steps' rows.
const STEPS_WIDTH: usize = 28;
/// Rows that the feature cache holds when it has filled 64 MiB with them, and those that are asked for at a time.
const STEPS_KEPT: usize = 200_000;
const STEPS_ROWS: usize = 1_024;

/// What the steps before a model take for a row, and what the feature cache takes instead (a hit), or besides (a miss).
fn steps(secret: &Secret) {
    let real = |value| vec![Real(value)];
    let names: Vec<String> = (0..STEPS_WIDTH).map(|place| format!("f{place}")).collect();
    let step = |count: usize, action| Step { features: names[..count].to_vec(), action };
    let codes = (0..50).map(|code| (Category::Number(f64::from(code).to_bits()), Real(f64::from(code) / 7.0)));
    let code = |count| step(count, Action::Categories { codes: codes.clone().collect(), unknown: Unknown::Missing });
    let impute = |count| step(count, Action::Impute(real(0.5)));
    let scale = || step(STEPS_WIDTH, Action::Scale { offset: real(0.1), divisor: real(1.7) });
    let clip = || step(STEPS_WIDTH, Action::Clip { min: real(-2.5), max: real(2.5) });
    let log = || step(STEPS_WIDTH, Action::Log1p);
    let cases = [
        ("impute, 4 of 28 features", vec![impute(4)]),
        ("impute, standard, clip, all 28", vec![impute(STEPS_WIDTH), scale(), clip()]),
        ("50 categories, 8 of 28", vec![code(8)]),
        ("50 categories, all 28, and impute", vec![code(STEPS_WIDTH), impute(STEPS_WIDTH)]),
        ("log1p, impute, standard, clip, all", vec![log(), impute(STEPS_WIDTH), scale(), clip()]),
    ];
    println!(
        "steps before a model, rows of 28 values; ns a row          steps  hit, few  hit, 64 MiB  miss   hits/steps"
    );
    let range = Some(FeatureRange { min: -3.0, max: 3.0 });
    let calibration = Calibration { path: PathBuf::new(), sha256: String::new(), rows: 0 };
    let rounding = [
        ("none, rounded to f16", Vec::new(), Some(Quantizer::half(&[true; STEPS_WIDTH]))),
        ("none, rounded to u8", Vec::new(), Some(Quantizer::levels(&[range; STEPS_WIDTH], calibration))),
    ];
    for (name, steps, quantizer) in cases.into_iter().map(|(name, steps)| (name, steps, None)).chain(rounding) {
        let schema = ModelSchema {
            model_type: ModelType::LightGbm,
            feature_names: names.clone(),
            kinds: FeatureKinds::default(),
            row_type: RowType::F64,
            outputs: 1,
            details: Vec::new(),
        };
        let steps = Preprocessor::new(&steps, &schema).expect("they fit the schema");
        let steps = match quantizer {
            Some(quantizer) => steps.with_quantizer(quantizer),
            None => steps,
        };
        let (mut out, mut texts) = (Vec::new(), Vec::new());
        let mut apply = |row: &[f64]| {
            let _ = std::hint::black_box(steps.check(row, &[]));
            steps.apply(row, &[], &mut out, &mut texts);
            std::hint::black_box(&out);
        };
        let rows = rows(STEPS_KEPT, STEPS_WIDTH, 0);
        let first = &rows[..STEPS_ROWS * STEPS_WIDTH];
        let own = best_short(|| first.chunks(STEPS_WIDTH).for_each(&mut apply), STEPS_ROWS);
        let [few, full, miss] = lookups(secret, steps.digest(), &rows);
        println!("  {name:50}  {own:9.0} {few:9.0} {full:12.0} {miss:5.0}   {:4.2} {:5.2}", few / own, full / own);
    }
}

/// Nanoseconds of a lookup as the score threads make it, which copies what it finds: in a cache of a thousand rows, in one
/// of 64 MiB, and of one that finds nothing and keeps the row.
fn lookups(secret: &Secret, scope: &[u8], rows: &[f64]) -> [f64; 3] {
    let (keys, now) = (RowHasher::new(secret, scope), clock::now());
    let cache = LruTtlCache::<Box<[f64]>>::new(NonZeroUsize::new(BYTES_MAX).expect("64 MiB"), TTL);
    let mut out = vec![0.0; STEPS_WIDTH];
    let mut find = |row: &[f64]| {
        let key = keys.key(row, Texts::NONE);
        let found = cache.get(key, now, &mut Tally::default(), |prepared| out.copy_from_slice(prepared)).is_some();
        std::hint::black_box(&out);
        (key, found)
    };
    let keep = |key, row: &[f64]| cache.insert(key, row.into(), now, &mut Tally::default());
    let first = &rows[..STEPS_ROWS * STEPS_WIDTH];
    first.chunks(STEPS_WIDTH).for_each(|row| keep(keys.key(row, Texts::NONE), row));
    let few = best_short(|| first.chunks(STEPS_WIDTH).for_each(|row| assert!(find(row).1)), STEPS_ROWS);
    let start = clock::now();
    for row in rows.chunks(STEPS_WIDTH).skip(STEPS_ROWS) {
        let (key, found) = find(row);
        assert!(!found);
        keep(key, row);
    }
    let miss = (clock::now() - start).as_secs_f64() * 1e9 / (STEPS_KEPT - STEPS_ROWS) as f64;
    // Far apart, so that none is in the processor's own caches; the row itself is at hand, as it is when it was decoded.
    let kept: Vec<&[f64]> = rows.chunks(STEPS_WIDTH).filter(|row| find(row).1).collect();
    let asked: Vec<f64> = (0..kept.len()).flat_map(|place| kept[place * 7_919 % kept.len()]).copied().collect();
    let start = clock::now();
    asked.chunks(STEPS_WIDTH).for_each(|row| assert!(find(row).1));
    let full = (clock::now() - start).as_secs_f64() * 1e9 / kept.len() as f64;
    [few, full, miss]
}

/// The best pass, in nanoseconds an operation.
fn best_short(mut pass: impl FnMut(), operations: usize) -> f64 {
    let time = |pass: &mut dyn FnMut()| {
        let start = clock::now();
        pass();
        (clock::now() - start).as_secs_f64() * 1e9 / operations as f64
    };
    (0..PASSES_SHORT).map(|_| time(&mut pass)).fold(f64::INFINITY, f64::min)
}

/// The best pass in nanoseconds of this thread's CPU time an operation, which the system counts in milliseconds.
fn best(pass: impl Fn(), operations: usize) -> f64 {
    let time = || {
        let start = cpu_ns(Path::new("/proc/thread-self"));
        pass();
        (cpu_ns(Path::new("/proc/thread-self")) - start) / operations as f64
    };
    (0..PASSES).map(|_| time()).fold(f64::INFINITY, f64::min)
}

/// The CPU time that a thread has had.
fn cpu_ns(task: &Path) -> f64 {
    let schedstat = std::fs::read_to_string(task.join("schedstat")).expect("Linux has /proc");
    schedstat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("it begins with nanoseconds")
}

/// The score thread of this process.
fn score_thread() -> anyhow::Result<PathBuf> {
    let tasks = std::fs::read_dir("/proc/self/task")?;
    let mut paths = tasks.filter_map(|task| Some(task.ok()?.path()));
    let is_it =
        |task: &PathBuf| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "forebay-score-0\n");
    paths.find(is_it).context("the engine has a score thread")
}

/// Rows of which no two are equal, whatever the seed.
fn rows(count: usize, width: usize, seed: usize) -> Vec<f64> {
    let number = |place: usize| ((place * 2_654_435_761) % 1_000_003) as f64 / 1e5;
    let mut rows: Vec<f64> = (0..count * width).map(|place| number(place + seed)).collect();
    for (row, first) in rows.chunks_mut(width).zip(seed..) {
        row[0] = first as f64;
    }
    rows
}

/// A cache as the score threads use it.
trait Subject: Sync {
    fn new() -> Self;
    fn get(&self, key: CacheKey, now: Instant) -> Option<f64>;
    fn insert(&self, key: CacheKey, now: Instant);
}

impl Subject for LruTtlCache<Box<[f64]>> {
    fn new() -> Self {
        Self::new(NonZeroUsize::new(BYTES_MAX).expect("64 MiB"), TTL)
    }

    fn get(&self, key: CacheKey, now: Instant) -> Option<f64> {
        self.get(key, now, &mut Tally::default(), |scores| scores[0])
    }

    fn insert(&self, key: CacheKey, now: Instant) {
        self.insert(key, [0.5].into(), now, &mut Tally::default());
    }
}

/// `quick_cache` (S3-FIFO-like, not LRU) bounded by as many bytes an entry.
type Quick = QuickCache<CacheKey, (Instant, Arc<[f64]>), Weight, BuildHasherDefault<KeyIsHash>>;

#[derive(Clone)]
struct Weight;

impl quick_cache::Weighter<CacheKey, (Instant, Arc<[f64]>)> for Weight {
    fn weight(&self, _: &CacheKey, _: &(Instant, Arc<[f64]>)) -> u64 {
        ENTRY_BYTES as u64
    }
}

#[derive(Default)]
struct KeyIsHash(u64);

impl Hasher for KeyIsHash {
    fn finish(&self) -> u64 {
        self.0
    }

    #[allow(clippy::cast_possible_truncation, reason = "half of the bits are enough")]
    fn write_u128(&mut self, bits: u128) {
        self.0 = bits as u64;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a key is a u128");
    }
}

impl Subject for Quick {
    fn new() -> Self {
        let entries = BYTES_MAX / ENTRY_BYTES;
        Self::with(
            entries,
            BYTES_MAX as u64,
            Weight,
            BuildHasherDefault::default(),
            quick_cache::sync::DefaultLifecycle::default(),
        )
    }

    fn get(&self, key: CacheKey, now: Instant) -> Option<f64> {
        // A copy of the value leaves the lock, so that what is copied is a reference count.
        let (since, scores) = QuickCache::get(self, &key)?;
        (now - since < TTL).then(|| scores[0])
    }

    fn insert(&self, key: CacheKey, now: Instant) {
        QuickCache::insert(self, key, (now, [0.5].into()));
    }
}

/// Keys that look random, without the cost of making them.
fn key(number: u64) -> CacheKey {
    let mix = |number: u64| (number ^ number >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(31);
    CacheKey::new(u128::from(mix(number.wrapping_add(0x9e37_79b9))) << 64 | u128::from(mix(mix(number))))
}

fn compare<C: Subject>(name: &str) -> anyhow::Result<()> {
    let (cache, now) = (C::new(), clock::now());
    let before = resident_bytes()?;
    for number in 0..KEYS {
        cache.insert(key(number), now);
    }
    let resident = resident_bytes()?.saturating_sub(before);
    let kept: Vec<u64> = (0..KEYS).rev().filter(|number| cache.get(key(*number), now).is_some()).collect();
    let fresh = AtomicUsize::new(0);
    let hit = |thread: usize| {
        for number in kept.iter().skip(thread * 1_237).step_by(3).take(100_000) {
            std::hint::black_box(cache.get(key(*number), now));
        }
    };
    let miss = |_: usize| {
        let from = KEYS + fresh.fetch_add(100_000, Ordering::Relaxed) as u64;
        for number in from..from + 100_000 {
            if cache.get(key(number), now).is_none() {
                cache.insert(key(number), now);
            }
        }
    };
    let count = kept.len().div_ceil(3).min(100_000);
    for (what, work, count) in [
        ("hit", &hit as &(dyn Fn(usize) + Sync), count),
        ("miss and insert", &miss as &(dyn Fn(usize) + Sync), 100_000),
    ] {
        let alone = best(|| work(0), count);
        let both = std::thread::scope(|scope| {
            let start = |thread| {
                let work = move || best(|| work(thread), count);
                Builder::new().name("bench-cache".to_owned()).spawn_scoped(scope, work).expect("a thread")
            };
            let threads = [start(0), start(1)];
            threads.map(|thread| thread.join().expect("it ends well")).iter().sum::<f64>() / 2.0
        });
        println!("  {name:14} {what:16}               {alone:8.0}    {both:8.0}");
    }
    println!("  {name:14} {} entries, {:.1} MiB resident", kept.len(), resident as f64 / f64::from(1 << 20));
    Ok(())
}

fn resident_bytes() -> anyhow::Result<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: usize = statm.split(' ').nth(1).context("/proc/self/statm")?.parse()?;
    Ok(pages * 4096)
}

fn score(path: &Path) -> anyhow::Result<()> {
    let model = model::load(&ModelBytes::read(path, None)?, &LoadOptions::default())?;
    let (mut scorer, width) = (model.scorer()?, model.schema().width());
    ensure!(model.schema().row_type == RowType::F64, "{}: wants f64 rows", path.display());
    let rows = rows(1_024, width, 0);
    for batch in [1, 64] {
        let mut scores = vec![0.0; batch * model.schema().outputs];
        let mut pass = || {
            for values in rows.chunks_exact(batch * width) {
                scorer.score(Rows::numbers(Values::F64(values), width), &mut scores).expect("it scores");
            }
        };
        println!("  scoring, batch of {batch:2}                    {:8.0}", best_short(&mut pass, 1_024));
    }
    Ok(())
}

/// Counts what ended.
struct Ends(AtomicUsize);

impl Submitter for Ends {
    fn completed(&self, batch: ScoredBatch) {
        self.0.fetch_add(batch.tickets.len(), Ordering::Release);
    }
}

fn engine(path: &Path) -> anyhow::Result<()> {
    println!("  through the engine, batches of 64 at the most, ns of the score thread a request");
    println!("                                              off        on      auto");
    for (what, different) in [("all rows differ", REQUESTS), ("10,240 rows again and again", REPEATED)] {
        let run = |enabled, auto| run(path, different, enabled, auto);
        let (off, on, auto) = (run(false, false)?, run(true, false)?, run(true, true)?);
        println!("    {what:33}{off:10.0}{on:10.0}{auto:10.0}");
    }
    Ok(())
}

fn run(path: &Path, different: usize, enabled: bool, auto: bool) -> anyhow::Result<f64> {
    let config = InferenceEngineConfig {
        num_threads: 1,
        pin: Pin::Off,
        enable_request_deduplication: enabled,
        cache: CachePolicy { auto, ..CachePolicy::default() },
        ..InferenceEngineConfig::default()
    };
    let engine = InferenceEngine::new(config)?;
    let id = engine.load_spec(&ModelSpec {
        name: "bench".to_owned(),
        path: path.to_owned(),
        load: LoadOptions::default(),
        sha256: None,
        batch: BatchPolicy { batch_size_max: NonZeroU32::MIN.saturating_add(63), ..BatchPolicy::default() },
        priority_default: Priority::new(1).context("1 is not 0")?,
    })?;
    let width = engine.model(id).context("it was loaded")?.schema().width();
    let ends = Arc::new(Ends(AtomicUsize::new(0)));
    let submitter = engine.register(Arc::clone(&ends) as Arc<dyn Submitter>);
    let chunk = |number| Arc::new(chunk(id, number, width));
    let repeated: Vec<_> = (0..REPEATED / CHUNK).map(chunk).collect();
    let chunks = (0..REQUESTS / CHUNK).map(|number| match different {
        REPEATED => Arc::clone(&repeated[number % repeated.len()]),
        _ => chunk(number),
    });
    let score_thread = score_thread()?;
    let start = cpu_ns(&score_thread);
    submit(&engine, submitter, chunks, &ends)?;
    Ok((cpu_ns(&score_thread) - start) / REQUESTS as f64)
}

/// Never more than 8 chunks ahead of what ended.
fn submit(
    engine: &InferenceEngine,
    submitter: SubmitterId,
    chunks: impl Iterator<Item = Arc<Chunk>>,
    ends: &Ends,
) -> anyhow::Result<()> {
    let mut submitted = 0;
    for chunk in chunks {
        ensure!(engine.submit(submitter, &chunk, 0)? == CHUNK, "the queue is deep enough");
        submitted += CHUNK;
        while ends.0.load(Ordering::Acquire) + 8 * CHUNK < submitted {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    while ends.0.load(Ordering::Acquire) < submitted {
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

fn chunk(model: ModelId, number: usize, width: usize) -> Chunk {
    let mut chunk = Chunk::default();
    let rows = rows(CHUNK, width, number * CHUNK);
    let arrived = clock::now();
    for (row, offset) in rows.chunks(width).zip(0..) {
        let mark = chunk.features_mut().len();
        chunk.features_mut().extend_from_slice(row);
        let work = chunk.work(model, mark, 1, false, Priority::new(1).expect("1 is not 0"), None);
        let id_json = chunk.push_text(b"\"r\"");
        let position = Position { partition: PartitionId(0), offset };
        chunk.push(NewRequest {
            position,
            route: 0,
            arrived,
            id_json,
            key: None,
            address: ReplyAddress::Route,
            work: Ok(work),
        });
    }
    chunk
}
