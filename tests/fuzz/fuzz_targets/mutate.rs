//! A number of records in; as many good bodies with up to three random edits each, read in both ways. Needs no fuzzer.

mod compare;

/// Bytes that an edit writes: those that mean something in a body, for the most part.
const BYTES: &[u8] = b"{}[]\",:.-+eE0123456789 \n\\nuldfipmt_\0\x1f\x7f\x80\xc3\xff";

fn main() {
    let records: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let seed = std::env::args().nth(2).and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed << 32));
    let mut good = 0_u64;
    for _ in 0..records {
        let mut payload = random.body().into_bytes();
        for _ in 0..random.below(4) {
            random.edit(&mut payload);
        }
        good += u64::from(compare::compare(&payload));
    }
    println!("{records} records, {good} of them read as work, the rest rejected; no difference");
}

/// A xorshift generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

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

    fn edit(&mut self, payload: &mut Vec<u8>) {
        if payload.is_empty() {
            return;
        }
        let at = self.below(payload.len());
        let end = payload.len().min(at + self.below(12));
        let byte = BYTES[self.below(BYTES.len())];
        match self.below(6) {
            0 | 1 => payload[at] = byte,
            2 => payload.insert(at, byte),
            3 => drop(payload.remove(at)),
            4 => drop(payload.drain(at..end)),
            _ => {
                let again = payload[at..end].to_vec();
                payload.splice(at..at, again);
            }
        }
    }
}
