//! The cache against a naive one, and what its bounds are made of.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

impl HeapBytes for String {
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

fn cache<V: HeapBytes>(bytes_max: usize, ttl: Duration) -> LruTtlCache<V> {
    LruTtlCache::new(NonZeroUsize::new(bytes_max).unwrap(), ttl)
}

/// A key in a shard of its choice.
fn key(number: u64) -> CacheKey {
    CacheKey::new(u128::from(number) << 64 | u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// Entries in the order of their use, the last one last.
struct Naive {
    entries: Vec<(u64, String, Instant)>,
    bytes_max: usize,
    ttl: Duration,
}

impl Naive {
    fn bytes_of(value: &str) -> usize {
        let heap = if value.is_empty() { 0 } else { value.len() + ALLOCATION_BYTES };
        LruTtlCache::<String>::ENTRY_BYTES + heap
    }

    fn bytes(&self) -> usize {
        self.entries.iter().map(|(_, value, _)| Self::bytes_of(value)).sum()
    }

    fn get(&mut self, key: u64, now: Instant) -> Option<String> {
        let place = self.entries.iter().position(|entry| entry.0 == key)?;
        let entry = self.entries.remove(place);
        (now - entry.2 < self.ttl).then(|| {
            self.entries.push(entry.clone());
            entry.1
        })
    }

    fn insert(&mut self, key: u64, value: String, now: Instant) {
        if Self::bytes_of(&value) > self.bytes_max {
            return;
        }
        self.entries.retain(|entry| entry.0 != key);
        self.entries.push((key, value, now));
        while self.bytes() > self.bytes_max {
            self.entries.remove(0);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Get(u64),
    Insert(u64, usize),
    Wait(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..12_u64).prop_map(Step::Get),
        4 => (0..12_u64, 0..600_usize).prop_map(|(key, length)| Step::Insert(key, length)),
        1 => (0..8_u32).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn it_does_what_a_naive_one_does(steps in steps(), bytes_max in 100..2_000_usize, ttl in 0..20_u32) {
        let (cache, ttl) = (cache::<String>(bytes_max, ttl * MS), ttl * MS);
        let mut naive = Naive { entries: Vec::new(), bytes_max, ttl };
        let (mut now, mut tally, mut inserted) = (crate::clock::now(), Tally::default(), 0);
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Get(number) => {
                    let value = cache.get(key(number), now, &mut tally, String::clone);
                    prop_assert_eq!(value, naive.get(number, now));
                }
                Step::Insert(name, length) => {
                    let value = format!("{number}").repeat(length);
                    let (kept, replaces) =
                        (Naive::bytes_of(&value) <= bytes_max, naive.entries.iter().any(|entry| entry.0 == name));
                    inserted += u64::from(kept && !replaces);
                    naive.insert(name, value.clone(), now);
                    cache.insert(key(name), value, now, &mut tally);
                }
                Step::Wait(ms) => now += ms * MS,
            }
            prop_assert_eq!((cache.len(), cache.bytes()), (naive.entries.len(), naive.bytes()));
            prop_assert!(cache.bytes() <= bytes_max);
            prop_assert_eq!((tally.entries, tally.bytes), (signed(cache.len()), signed(cache.bytes())));
            prop_assert_eq!(tally.evicted_size + tally.evicted_ttl + cache.len() as u64, inserted);
        }
    }
}

#[test]
fn shards_share_the_bytes_and_a_value_fits_into_one() {
    // A value type of the size of preprocessed rows.
    let cache = cache::<Box<[f64]>>(1 << 20, 60_000 * MS);
    let (now, mut tally) = (crate::clock::now(), Tally::default());
    assert_eq!(cache.shards.len(), 4);
    for number in 0..100_000 {
        cache.insert(key(number), vec![number as f64; 4].into(), now, &mut tally);
    }
    assert!((900 << 10..=1 << 20).contains(&cache.bytes()), "{}", cache.bytes());
    let entry = LruTtlCache::<Box<[f64]>>::ENTRY_BYTES + 4 * 8 + ALLOCATION_BYTES;
    assert_eq!((cache.bytes(), cache.len() as u64 + tally.evicted_size), (cache.len() * entry, 100_000));
    assert_eq!(cache.get(key(99_999), now, &mut tally, |scores| scores[3]), Some(99_999.0));
    assert_eq!(cache.get(key(0), now, &mut tally, |scores| scores[3]), None);
    let before = (cache.bytes(), tally);
    cache.insert(key(7), vec![0.0; (256 << 10) / 8].into(), now, &mut tally);
    assert_eq!((cache.bytes(), tally), before, "a quarter of the bytes is a shard's part");
}

#[test]
fn what_leaves_is_counted_by_why() {
    let cache = cache::<String>(2 * Naive::bytes_of("abc"), 10 * MS);
    let (start, mut tally) = (crate::clock::now(), Tally::default());
    let mut insert = |number, now| {
        cache.insert(key(number), "abc".to_owned(), now, &mut tally);
        (tally.evicted_size, tally.evicted_ttl)
    };
    insert(1, start);
    insert(2, start + MS);
    assert_eq!(insert(3, start + 2 * MS), (1, 0), "1 had to go, and was good");
    assert_eq!(insert(4, start + 11 * MS), (1, 1), "2 had to go, and was no longer good");
    assert_eq!(cache.get(key(3), start + 12 * MS, &mut tally, String::len), None);
    assert_eq!((tally.evicted_size, tally.evicted_ttl, tally.entries), (1, 2, 1));
    assert!(!cache.is_empty());
    // A clock that went back makes nothing younger, and nothing fail.
    assert_eq!(cache.get(key(4), start, &mut tally, String::len), Some(3));
}

#[test]
fn threads_share_it() {
    let cache = cache::<Box<[f64]>>(1 << 20, 60_000 * MS);
    let now = crate::clock::now();
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let work = |seed: u64| {
            let cache = &cache;
            move || {
                let mut tally = Tally::default();
                for number in (0..20_000).map(|number| number * seed % 9_000) {
                    let found = cache.get(key(number), now, &mut tally, |scores| scores[0]);
                    assert!(found.is_none_or(|score| score.to_bits() == (number as f64).to_bits()));
                    if found.is_none() {
                        cache.insert(key(number), [number as f64].into(), now, &mut tally);
                    }
                }
                tally
            }
        };
        let threads = [7, 11, 13].map(|seed| {
            std::thread::Builder::new().name("cache-test".to_owned()).spawn_scoped(scope, work(seed)).unwrap()
        });
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let sum = |part: fn(&Tally) -> i64| tallies.iter().map(part).sum::<i64>();
    assert_eq!(sum(|tally| tally.bytes), signed(cache.bytes()));
    assert_eq!(sum(|tally| tally.entries), signed(cache.len()));
}
