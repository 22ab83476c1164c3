//! What a fuzzer feeds: any bytes in; the readers, and a kernel after them, must come to an end without a panic.

use super::{Format, Place, ReadError, format_of, read};
use crate::forest::{Float, Forest, Results, Scratch, Values};

/// More than a fuzzed model's rows are worth.
const SCORED_MAX: u32 = 1 << 12;

/// Values at the edges of what a row can hold.
const EDGES: [f64; 12] = [
    f64::NAN,
    0.0,
    -0.0,
    1.0,
    -1.0,
    f64::INFINITY,
    f64::NEG_INFINITY,
    5e-324,
    1e-35,
    16_777_216.0,
    4_294_967_296.0,
    -1e300,
];

/// Reads a file as `format`, or as what it looks like, with XGBoost's unmarked binary format for the rest.
///
/// # Errors
/// What the reader says.
pub fn read_any(format: Option<Format>, bytes: &[u8]) -> Result<Forest, ReadError> {
    let format = format.or_else(|| format_of(bytes)).unwrap_or(Format::XGBoost);
    read(format, bytes).map(|model| model.forest)
}

/// Scores rows of edge values, where the model is small enough.
///
/// # Panics
/// When a kernel refuses rows of the model's own width.
pub fn score(forest: &Forest) {
    let parts = forest.parts();
    if parts.features > SCORED_MAX || parts.outputs > SCORED_MAX {
        return;
    }
    let (features, outputs) = (parts.features as usize, parts.outputs as usize);
    let rows: Vec<f64> = (0..9 * features).map(|place| EDGES[(place * 5 + place / features) % EDGES.len()]).collect();
    let compiled = forest.compile(Float::F64);
    let mut scratch = Scratch::default();
    for count in [1, 9] {
        let values = Values::F64(&rows[..count * features]);
        // The result's worth is the parity tests' matter; here it only has to come.
        let scored = match compiled.sum_type() {
            Float::F32 => compiled.margins(values, &mut scratch, Results::F32(&mut vec![0.0; count * outputs])),
            Float::F64 => compiled.margins(values, &mut scratch, Results::F64(&mut vec![0.0; count * outputs])),
        };
        assert_eq!(scored, Ok(()), "rows and room of the right size");
    }
}

/// A cargo-fuzz target: `fuzz_target!(|bytes: &[u8]| fuzz::target(bytes))`.
pub fn target(bytes: &[u8]) {
    if let Ok(forest) = read_any(None, bytes) {
        score(&forest);
    }
}

/// Whether a reading got beyond a file's header of so many bytes and lines.
pub fn is_past_header(read: Result<&Forest, &ReadError>, header_bytes: usize, header_lines: usize) -> bool {
    match read.map_err(|error| error.place) {
        Ok(_) | Err(Place::Whole) => true,
        Err(Place::Byte(at)) => at > header_bytes,
        Err(Place::Line(line)) => line > header_lines,
    }
}
