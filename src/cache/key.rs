//! Feature rows in, keys out: the exact bits of every value under a secret of the process and the name of what they are
//! for.
//!
//! Equal bits make equal keys, and only they: `0.0` and `-0.0` are two rows, and so are NaNs of different payloads (the
//! decoder makes one NaN only). A missing text is none of the texts. A request of several rows has one key for all of
//! them.

use highway::{HighwayHash, HighwayHasher, Key};

use super::CacheKey;
use crate::record::Texts;

/// What makes keys unforeseeable from outside. Made once, never written or shown.
pub struct Secret([u64; 4]);

impl Secret {
    /// A secret of 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Self(words)
    }
}

/// Makes the keys of one model version, or of whatever else its scope names.
#[derive(Clone)]
pub struct RowHasher {
    /// `HighwayHash` with the scope's digest taken in: a clone of it is half the work of a hash of 32 values.
    scoped: HighwayHasher,
}

/// Values that are turned into bytes at a time.
const VALUES_AT_ONCE: usize = 32;

impl RowHasher {
    /// Keys that no other scope has.
    #[must_use]
    pub fn new(secret: &Secret, scope: &[u8]) -> Self {
        let mut scoped = HighwayHasher::new(Key(secret.0));
        // A digest of any scope has one length: no scope with a row after it reads as another scope.
        scoped.append(blake3::hash(scope).as_bytes());
        Self { scoped }
    }

    /// The key of these values and texts. They are rows of one width, which the scope has to name; it has to tell whether
    /// there are texts, too.
    #[must_use]
    pub fn key(&self, values: &[f64], texts: Texts<'_>) -> CacheKey {
        let mut hasher = self.scoped.clone();
        if !texts.is_empty() {
            // First, for it tells the number of rows: no text can read as another request's value.
            hasher.append(&(texts.len() as u64).to_le_bytes());
        }
        let mut buffer = [0; VALUES_AT_ONCE * 8];
        for values in values.chunks(VALUES_AT_ONCE) {
            for (place, value) in buffer.as_chunks_mut().0.iter_mut().zip(values) {
                *place = value.to_bits().to_le_bytes();
            }
            hasher.append(&buffer[..values.len() * 8]);
        }
        if !texts.is_empty() {
            append_texts(&mut hasher, texts);
        }
        let [low, high] = hasher.finalize128();
        CacheKey::new(u128::from(high) << 64 | u128::from(low))
    }
}

/// Appends all lengths, and then the texts: none reads as another one's end.
fn append_texts(hasher: &mut HighwayHasher, texts: Texts<'_>) {
    for text in texts.iter() {
        let length = text.map_or(u64::MAX, |text| text.len() as u64);
        hasher.append(&length.to_le_bytes());
    }
    for text in texts.iter().flatten() {
        hasher.append(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::record::{Chunk, ModelId, Priority};

    const NONE: Texts<'static> = Texts::NONE;

    /// The key of rows of two values and a text.
    fn key_with_texts(rows: &[([f64; 2], Option<&str>)]) -> CacheKey {
        let mut chunk = Chunk::default();
        let mark = chunk.texts_mut().mark();
        for (values, text) in rows {
            chunk.features_mut().extend(values);
            chunk.texts_mut().push(*text);
        }
        let count = u32::try_from(rows.len()).unwrap();
        let mut work = chunk.work(ModelId(0), 0, count, true, Priority::new(1).unwrap(), None);
        chunk.attach_texts(&mut work, mark);
        hasher(1, "a").key(chunk.rows(&work), chunk.texts(&work))
    }

    fn hasher(secret: u8, scope: &str) -> RowHasher {
        RowHasher::new(&Secret::new([secret; 32]), scope.as_bytes())
    }

    #[test]
    fn secret_and_scope_are_in_every_key() {
        let row = [1.0, 2.0];
        let keys = [hasher(1, "a"), hasher(2, "a"), hasher(1, "b"), hasher(1, "")].map(|hasher| hasher.key(&row, NONE));
        for (place, key) in keys.iter().enumerate() {
            assert!(!keys[..place].contains(key));
        }
        assert_eq!(hasher(1, "a").key(&row, NONE), keys[0]);
        // Published with the hash: key words 0x0706050403020100 and so on, the bytes 0 to 31.
        let bytes: [u8; 32] = std::array::from_fn(|place| u8::try_from(place).unwrap());
        assert_eq!(Secret::new(bytes).0[0], 0x0706_0504_0302_0100);
    }

    #[test]
    fn bits_count_and_not_numbers() {
        let key = |values: &[f64]| hasher(1, "a").key(values, NONE);
        assert_ne!(key(&[0.0]), key(&[-0.0]));
        let payload = f64::from_bits(f64::NAN.to_bits() | 1);
        assert!(payload.is_nan());
        assert_ne!(key(&[f64::NAN]), key(&[payload]));
        assert_ne!(key(&[f64::NAN]), key(&[-f64::NAN]));
        assert_eq!(key(&[f64::NAN]), key(&[f64::NAN]));
        // Both are the same f32.
        assert_ne!(key(&[0.1]), key(&[f64::from(0.1_f32)]));
        assert_ne!(key(&[0.0]), key(&[0.0, 0.0]));
        assert_ne!(key(&[]), key(&[0.0]));
    }

    #[test]
    fn texts_count_by_length_and_content() {
        let values = [1.0, 2.0];
        let one = |text| key_with_texts(&[(values, text)]);
        let keys = [None, Some(""), Some("a"), Some("b"), Some("a\0"), Some("ab")].map(one);
        for (place, key) in keys.iter().enumerate() {
            assert!(!keys[..place].contains(key));
        }
        assert_eq!(one(Some("ab")), keys[5]);
        let two = |a, b| key_with_texts(&[(values, Some(a)), (values, Some(b))]);
        assert_ne!(two("ab", "c"), two("a", "bc"));
        assert_ne!(two("a", ""), two("", "a"));
        // The second row's values and texts, as the text of one row.
        let bits = |value: f64| value.to_bits().to_le_bytes();
        let as_text = [&bits(1.0)[..4], &bits(2.0)[..4]].concat();
        let as_text = String::from_utf8_lossy(&as_text);
        assert_ne!(one(Some(&as_text)), two("", ""));
    }

    proptest! {
        /// Among rows that differ little, of lengths around the buffer's, equal keys are equal bits.
        #[test]
        fn keys_are_equal_where_bits_are(
            rows in prop::collection::vec(prop::collection::vec(prop::sample::select(vec![0.0, -0.0, 1.0]), 0..100), 1..50)
        ) {
            let hasher = hasher(7, "model");
            let mut seen: HashMap<CacheKey, Vec<u64>> = HashMap::new();
            let mut rows_by_bits: HashMap<Vec<u64>, CacheKey> = HashMap::new();
            for row in rows {
                let (key, bits): (_, Vec<u64>) = (hasher.key(&row, NONE), row.iter().map(|value: &f64| value.to_bits()).collect());
                prop_assert_eq!(seen.entry(key).or_insert_with(|| bits.clone()), &bits);
                prop_assert_eq!(*rows_by_bits.entry(bits).or_insert(key), key);
            }
        }
    }
}
