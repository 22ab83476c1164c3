//! Damaged model files: each reader ends in a forest or an error, with no panic, no hang over a second, and no more
//! memory than ten times the file.
//!
//! The files are those of `tests/models_forest.py`, `models_treelite.py` and `models_onnx_trees.py`, in target/models or
//! where `FOREST_MODELS` says. `FOREST_MUTATIONS` is how many damaged files a format gets (20,000 when not set, in all).
//! A failure names the model and the number of the mutation, which are all that is needed to make it again.
#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use forebay::forest::read::Format;
use forebay::forest::read::fuzz::{is_past_header, read_any, score};

/// How long a reading may take, in processor time: on a busy machine a reading may wait for longer than this.
const READ_MAX: Duration = Duration::from_secs(1);
/// Memory for each byte of the file, and for messages.
const MEMORY_TIMES_MAX: usize = 10;
const MEMORY_SLACK_BYTES: usize = 4096;
/// Seeds larger than this are left out: what they could show, small ones do sooner.
const SEED_BYTES_MAX: usize = 64 << 10;
/// The share that must get past the header.
const PAST_HEADER_MIN: f64 = 0.3;

#[path = "mutate_forest/hostile.rs"]
mod hostile;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator with counters beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The counters are everybody's: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Seed {
    name: String,
    bytes: Vec<u8>,
    /// Where the first tree, or weight, begins.
    header_bytes: usize,
    header_lines: usize,
}

/// What the kernel says that this thread has had of a processor.
fn thread_time() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number of nanoseconds"))
}

#[test]
fn damaged_files_end_in_a_forest_or_an_error() {
    let folder = models();
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let stated = std::env::var("FOREST_MUTATIONS").ok().map(|count| count.parse::<usize>().expect("a count"));
    let kinds = [
        ("json", "model.json", Format::XGBoost, &b"\"left_children\""[..]),
        ("ubjson", "model.ubj", Format::XGBoost, b"left_children"),
        ("binary", "model.bin", Format::XGBoost, b"gbtree"),
        ("lightgbm", "model.txt", Format::LightGbm, b"Tree=0"),
        ("onnx", "model.onnx", Format::Onnx, b"nodes_falsenodeids"),
        ("treelite", "model.tl", Format::Treelite, b"{}\0\0\0\0"),
        ("treelite 3.9", "model.v3.tl", Format::Treelite, &[0; 64]),
    ];
    let kinds = kinds.map(|(kind, file, format, mark)| (kind, seeds(&folder, file, mark), format));
    let count = stated.unwrap_or(20_000_usize.div_ceil(kinds.len()));
    for (kind, seeds, format) in &kinds {
        assert!(
            !seeds.is_empty(),
            "{kind}: no models in {}; the scripts tests/models_*.py make them",
            folder.display()
        );
        let (mut past, mut read, mut worst, mut slowest) = (0_usize, 0_usize, 0.0_f64, Duration::ZERO);
        for number in 0..count {
            let seed = &seeds[number % seeds.len()];
            let bytes = mutated(seed, number as u64);
            let started = thread_time();
            let before = LIVE.load(Relaxed);
            PEAK.store(before, Relaxed);
            let result = read_any(Some(*format), &bytes);
            let memory = PEAK.load(Relaxed) - before;
            let took = thread_time().saturating_sub(started);
            let place = || format!("{} mutation {number} of {}, {} bytes", kind, seed.name, bytes.len());
            assert!(took < READ_MAX, "{}: {took:?}", place());
            let most = bytes.len() * MEMORY_TIMES_MAX + MEMORY_SLACK_BYTES;
            assert!(memory <= most, "{}: {memory} bytes of memory: {:?}", place(), result.err());
            worst = worst.max(memory.saturating_sub(MEMORY_SLACK_BYTES) as f64 / bytes.len().max(1) as f64);
            slowest = slowest.max(took);
            past += usize::from(is_past_header(result.as_ref(), seed.header_bytes, seed.header_lines));
            if let Ok(forest) = result {
                read += 1;
                score(&forest);
            }
        }
        let share = past as f64 / count as f64;
        println!(
            "{kind}: {count} damaged files of {} models, {:.1}% past the header, {:.1}% read, \
             memory up to {worst:.1} times the file, {slowest:?} at most",
            seeds.len(),
            share * 100.0,
            read as f64 / count as f64 * 100.0
        );
        assert!(share >= PAST_HEADER_MIN, "{kind}: only {share:.2} get past the header");
    }
}

/// Files made to cost more than they are: each part of a file at its smallest, many times.
#[test]
fn hostile_files_cost_little() {
    const TIMES: usize = 60_000;
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let learner = |booster: &str, rest: &str| {
        format!(r#"{{"learner":{{"learner_model_param":{rest},"gradient_booster":{booster}}},"version":[3,2,0]}}"#)
    };
    let many = |part: &str| vec![part; TIMES].join(",");
    let names = |width: usize| (0..TIMES).map(|name| format!("\"{name:0width$}\"")).collect::<Vec<_>>().join(",");
    let tree = r#"{"default_left":[0],"id":0,"left_children":[-1],"right_children":[-1],"split_conditions":[0],"split_indices":[0],"tree_param":{"num_nodes":"1"}}"#;
    let trees = (0..TIMES).map(|id| tree.replace("\"id\":0", &format!("\"id\":{id}"))).collect::<Vec<_>>().join(",");
    let binary = |key: &str, marker: char| {
        let mut bytes =
            format!("{{i\u{7}learner{{i\u{10}gradient_booster{{i\u{5}model{{i\u{7}{key}[${marker}#l").into_bytes();
        bytes.retain(|&byte| byte != b'\xc2');
        bytes.extend_from_slice(&u32::try_from(TIMES).expect("small").to_be_bytes());
        bytes.extend(vec![1; TIMES]);
        bytes.extend_from_slice(b"}}}}");
        bytes
    };
    let text = |trees: String| {
        format!("tree\nversion=v4\nnum_class=1\nmax_feature_idx=0\nfeature_names=a\n\n{trees}end of trees\n")
    };
    let numbers = |number: &str| vec![number; TIMES].join(" ");
    let half = TIMES / 2;
    let files: Vec<(&str, Format, Vec<u8>)> = vec![
        ("names", Format::XGBoost, format!(r#"{{"learner":{{"feature_names":[{}]}}}}"#, names(1)).into()),
        ("empty names", Format::XGBoost, format!(r#"{{"learner":{{"feature_names":[{}]}}}}"#, many("\"\"")).into()),
        (
            "weights",
            Format::XGBoost,
            learner(&format!(r#"{{"name":"gblinear","model":{{"weights":[{}]}}}}"#, many("0")), "{}").into(),
        ),
        (
            "commas",
            Format::XGBoost,
            learner(&format!(r#"{{"model":{{"weights":[{}]}}}}"#, ",".repeat(TIMES)), "{}").into(),
        ),
        ("base scores", Format::XGBoost, learner("{}", &format!(r#"{{"base_score":"[{}]"}}"#, many("1"))).into()),
        (
            "base score commas",
            Format::XGBoost,
            learner("{}", &format!(r#"{{"base_score":"[{}]"}}"#, ",".repeat(TIMES))).into(),
        ),
        ("small trees", Format::XGBoost, learner(&format!(r#"{{"model":{{"trees":[{trees}]}}}}"#), "{}").into()),
        ("typed weights", Format::XGBoost, binary("weights", 'U')),
        ("escapes", Format::XGBoost, format!(r#"{{"{}":0}}"#, "\\n".repeat(TIMES)).into()),
        ("no trees", Format::LightGbm, text("Tree=\n".repeat(TIMES)).into()),
        (
            "small trees",
            Format::LightGbm,
            text("Tree=0\nnum_leaves=1\nnum_cat=0\nleaf_value=0\n\n".repeat(TIMES)).into(),
        ),
        (
            "empty sets",
            Format::LightGbm,
            text(format!(
                "Tree=0\nnum_leaves=2\nnum_cat={}\nleaf_value=0 0\ncat_boundaries={}\ncat_threshold=\n\n",
                TIMES - 1,
                numbers("0")
            ))
            .into(),
        ),
        (
            "leaves",
            Format::LightGbm,
            text(format!("Tree=0\nnum_leaves={TIMES}\nnum_cat=0\nleaf_value={}\n\n", numbers("0"))).into(),
        ),
        (
            "splits",
            Format::LightGbm,
            text(format!(
                "Tree=0\nnum_leaves={TIMES}\nnum_cat={half}\nleaf_value={n}\nleft_child={m}\nright_child={m}\n\
                 split_feature={m}\nthreshold={m}\ndecision_type={m}\ncat_boundaries={b}\ncat_threshold=\n\n",
                n = numbers("0"),
                m = vec!["0"; TIMES - 1].join(" "),
                b = vec!["0"; half + 1].join(" ")
            ))
            .into(),
        ),
        (
            "feature names",
            Format::LightGbm,
            format!(
                "tree\nversion=v4\nnum_class=1\nmax_feature_idx={}\nfeature_names={}\n\nTree=0\n",
                TIMES - 1,
                (0..TIMES).map(|name| format!("{name:x}")).collect::<Vec<_>>().join(" ")
            )
            .into(),
        ),
    ];
    let checkpoints = hostile::checkpoints(TIMES).map(|(name, bytes)| (name, Format::Treelite, bytes));
    let graphs = hostile::graphs(TIMES).into_iter().map(|(name, bytes)| (name, Format::Onnx, bytes));
    for (name, format, bytes) in files.into_iter().chain(checkpoints).chain(graphs) {
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        let result = read_any(Some(format), &bytes);
        let times = (PEAK.load(Relaxed) - before) as f64 / bytes.len() as f64;
        println!("{name:18} {times:5.2} times the {} bytes of the file: {:?}", bytes.len(), result.as_ref().err());
        assert!(times <= MEMORY_TIMES_MAX as f64, "{name}: {times} times the file: {:?}", result.err());
    }
}

/// Where `tests/models_forest.py` wrote: `FOREST_MODELS`, or target/models.
fn models() -> PathBuf {
    let named = std::env::var_os("FOREST_MODELS").map(PathBuf::from);
    named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models"))
}

fn seeds(folder: &Path, file: &str, mark: &[u8]) -> Vec<Seed> {
    let mut seeds = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        let Ok(bytes) = fs::read(path.join(file)) else { continue };
        let first = bytes.windows(mark.len()).position(|window| window == mark);
        let header_bytes = first.unwrap_or(bytes.len() / 4);
        let header_lines = bytes[..header_bytes].split(|&byte| byte == b'\n').count() - 1;
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if bytes.len() <= SEED_BYTES_MAX {
            seeds.push(Seed { name, bytes, header_bytes, header_lines });
        }
    }
    seeds.sort_by(|a, b| a.name.cmp(&b.name));
    seeds
}

/// Sebastiano Vigna's splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        #[allow(clippy::cast_possible_truncation, reason = "below a usize")]
        let number = (self.next() % end.max(1) as u64) as usize;
        number
    }
}

const NUMBERS: [&str; 20] = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "-2",
    "31",
    "255",
    "65536",
    "2147483647",
    "-2147483648",
    "4294967295",
    "1e999",
    "NaN",
    "Infinity",
    "-0.0",
    "5e-324",
    "1E-46",
    "9223372036854775808",
    "0.5",
];
const WORDS: [u32; 12] =
    [0, 1, 2, 3, 0xff, 0xffff_ffff, 0x7fff_ffff, 0x8000_0000, 0x7fc0_0000, 0x7f80_0000, 0x0100_0000, 0x1_0000];

/// One to three wounds, most of them behind the header.
fn mutated(seed: &Seed, number: u64) -> Vec<u8> {
    let mut random = Random(number.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut bytes = seed.bytes.clone();
    for _ in 0..=random.below(3) {
        let start = if random.below(5) == 0 { 0 } else { seed.header_bytes.min(bytes.len()) };
        let at = start + random.below(bytes.len() - start);
        wound(&mut bytes, at, &mut random);
    }
    bytes
}

fn wound(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    if at >= bytes.len() {
        return;
    }
    let end = (at + 1 + random.below(40)).min(bytes.len());
    match random.below(10) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next().to_le_bytes()[0],
        2 => {
            bytes.drain(at..end);
        }
        3 => {
            let copy = bytes[at..end].to_vec();
            let to = random.below(bytes.len());
            bytes.splice(to..to, copy);
        }
        4 if random.below(4) == 0 => bytes.truncate(at),
        4 => bytes.insert(at, random.next().to_le_bytes()[0]),
        5 | 6 => {
            // A number of a text in another's place.
            let token = token(bytes, at);
            let other = if random.below(2) == 0 {
                NUMBERS[random.below(NUMBERS.len())].as_bytes().to_vec()
            } else {
                let from = random.below(bytes.len());
                let from = self::token(bytes, from);
                bytes[from].to_vec()
            };
            bytes.splice(token, other);
        }
        7 => {
            // A word of a binary file, in either order of bytes.
            let word = WORDS[random.below(WORDS.len())];
            let word = if random.below(2) == 0 { word.to_be_bytes() } else { word.to_le_bytes() };
            bytes.iter_mut().skip(at).zip(word).for_each(|(byte, new)| *byte = new);
        }
        8 => {
            let copy = bytes[at..end].to_vec();
            let to = random.below(bytes.len());
            bytes.iter_mut().skip(to).zip(copy).for_each(|(byte, new)| *byte = new);
        }
        _ => {
            let new = bytes[at].wrapping_add(if random.below(2) == 0 { 1 } else { 255 });
            bytes[at] = new;
        }
    }
}

/// The number of a text at or after a place, as a range.
fn token(bytes: &[u8], at: usize) -> std::ops::Range<usize> {
    let part = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'+' | b'e' | b'E');
    let digit = bytes[at..].iter().position(u8::is_ascii_digit).map_or(at, |skip| at + skip);
    let start = bytes[..digit].iter().rposition(|byte| !part(byte)).map_or(0, |before| before + 1);
    let end = bytes[digit..].iter().position(|byte| !part(byte)).map_or(bytes.len(), |length| digit + length);
    start..end.max(start)
}
