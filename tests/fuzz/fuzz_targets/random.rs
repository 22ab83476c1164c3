//! Random numbers, and random edits of good input.

/// A xorshift generator.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ (seed << 32))
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    /// One edit somewhere; what it writes is one of `bytes`, or what stands there already.
    pub fn edit(&mut self, payload: &mut Vec<u8>, bytes: &[u8]) {
        if payload.is_empty() {
            return;
        }
        let at = self.below(payload.len());
        let end = payload.len().min(at + self.below(12));
        let byte = bytes[self.below(bytes.len())];
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
