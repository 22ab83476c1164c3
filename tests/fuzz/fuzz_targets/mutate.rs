//! A number of records in; as many good bodies with up to three random edits each, read in both ways. Needs no fuzzer.

mod compare;
mod random;

use random::Random;

/// Bytes that an edit writes: those that mean something in a body, for the most part.
const BYTES: &[u8] = b"{}[]\",:.-+eE0123456789 \n\\nuldfipmt_\0\x1f\x7f\x80\xc3\xff";

fn main() {
    let records: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let seed = std::env::args().nth(2).and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut random = Random::new(seed);
    let mut good = 0_u64;
    for _ in 0..records {
        let mut payload = random.body().into_bytes();
        for _ in 0..random.below(4) {
            random.edit(&mut payload, BYTES);
        }
        good += u64::from(compare::compare(&payload));
    }
    println!("{records} records, {good} of them read as work, the rest rejected; no difference");
}

impl Random {
    fn body(&mut self) -> String {
        let cells: Vec<String> = (0..=self.below(30)).map(|_| self.number()).collect();
        let comma = [",", ", ", " ,\n"][self.below(3)];
        let features = format!("\"features\":[{}]", cells.join(comma));
        let id = ["\"id\":\"r123\"", "\"id\": -12", "\"id\":\"näher\""][self.below(3)];
        let other = ["\"model\":\"m7\"", "\"priority\":1", "\"timeout_ms\":2.5", "\"timeout_ms\":18446744073709551616"];
        match self.below(6) {
            0 => format!("{{{features}}}"),
            1 => format!("{{{features},{id}}}"),
            2 => format!("{{{id},{},{features}}}", other[self.below(other.len())]),
            _ => format!("{{{id},{features}}}"),
        }
    }

    fn number(&mut self) -> String {
        let unit = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let float = unit * 4.0 - 2.0;
        let places = self.below(22);
        let bits = f64::from_bits(self.next());
        match self.below(12) {
            0 | 1 => format!("{float:?}"),
            2 | 3 => format!("{:?}", float as f32),
            4 | 5 => format!("{float:.places$}"),
            6 => format!("{:.places$}", float * 10_f64.powi(self.below(12) as i32)),
            7 if bits.is_finite() => format!("{bits:?}"),
            8 if bits.is_finite() => format!("{bits:e}"),
            9 => (self.next() >> self.below(64)).to_string(),
            // Halfway between two numbers.
            10 => format!("{}.5", (1_u64 << 52) + (self.next() >> 12)),
            11 => ["null", "0", "-0", "-0.0", "1e23", "5e-324", "1e-400"][self.below(7)].to_owned(),
            _ => format!("{float:.8}"),
        }
    }
}
