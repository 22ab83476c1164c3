//! A number of maps in; each written, edited up to three times at random, and read. Needs no fuzzer.

mod maps;
mod random;

use forebay::commit::OffsetMap;
use maps::{PARTITION, TOPIC};
use random::Random;

/// Bytes that an edit writes: what base64 has, for the most part.
const BYTES: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=:fbm\0 \xff";
const PARALLEL_CONSUMER: &str = include_str!("../../data/offset_maps/parallel_consumer.tsv");

fn main() {
    let records: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let seed = std::env::args().nth(2).and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut random = Random::new(seed);
    let columns = |line: &'static str| line.split('\t').collect::<Vec<_>>();
    let written: Vec<(i64, &[u8])> = PARALLEL_CONSUMER
        .lines()
        .map(columns)
        .map(|line| (line[3].parse().expect("an offset"), line[6].as_bytes()))
        .collect();
    let mut good = 0_u64;
    for _ in 0..records {
        let (committed, mut metadata) = match random.below(8) {
            0 => (random.offset(), random.bytes()),
            1 => (random.offset(), [b"fbm1:", &random.bytes()[..]].concat()),
            2 | 3 => {
                let (committed, metadata) = written[random.below(written.len())];
                (committed, metadata.to_vec())
            }
            _ => {
                let map = random.map();
                maps::check_map(&map, map.base());
                (map.base(), map.encode(TOPIC, PARTITION).into_bytes())
            }
        };
        for _ in 0..random.below(4) {
            random.edit(&mut metadata, BYTES);
        }
        good += u64::from(maps::check(&metadata, committed));
    }
    println!("{records} texts, {good} of them read as maps, each as it was written");
}

impl Random {
    fn offset(&mut self) -> i64 {
        (self.next() >> 1 >> self.below(63)) as i64
    }

    fn bytes(&mut self) -> Vec<u8> {
        (0..self.below(80)).map(|_| BYTES[self.below(BYTES.len())]).collect()
    }

    fn map(&mut self) -> OffsetMap {
        let base = self.offset() >> 1;
        let mut end = base + self.below(3) as i64;
        let most = [1, 3, 200, 20_000, 1 << 40][self.below(5)];
        let mut open = Vec::new();
        for _ in 0..self.below(120) {
            end += self.below(most) as i64;
            open.push(end);
            end += 1;
        }
        OffsetMap::new(base, end + self.below(3) as i64, open)
    }
}
