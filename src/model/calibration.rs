//! The rows that quantized features take their ranges from: a file of records in, read as `forebay score` reads them; out,
//! the least and the greatest value of each feature behind the steps before the model.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{Calibration, FeatureRange, ModelSchema, Preprocessor, hex};
use crate::source::lines::{self, Columns, Format, Input, LinesSource};

/// Fewer rows say too little of what is to come.
const ROWS_MIN: u64 = 100;
/// Rows that are held at a time.
const CHUNK_ROWS: usize = 1024;

/// Reads the file's rows for a model of that schema behind its steps. A range a column of the model.
///
/// # Errors
/// What is wrong with the file, and the remedy.
pub(super) fn ranges(
    path: &Path,
    steps: &Preprocessor,
    schema: &ModelSchema,
) -> Result<(Vec<FeatureRange>, Calibration), String> {
    let told = |reason: String| format!("calibration {}: {reason}", path.display());
    let mut file = File::open(path).map(Hashing::new).map_err(|error| {
        told(format!(
            "cannot read the file: {error}; name a file of rows (JSON lines, CSV or TSV) that the model is to score"
        ))
    })?;
    let mut ranges = vec![FeatureRange::default(); schema.width()];
    let mut rows = 0;
    {
        let mut values = Vec::new();
        let entry = lines::entry_of(schema);
        let mut source = open(path, Input::new(&mut file), &entry).map_err(told)?;
        let read = lines::each_row(&mut source, &entry, |raw, cells| {
            let cells: Vec<Option<&str>> = cells.iter().collect();
            steps.check(raw, &cells).map_err(|unfit| unfit.to_string())?;
            steps.apply(raw, &cells, &mut values, &mut Vec::new());
            for row in values.chunks_exact(ranges.len()) {
                ranges.iter_mut().zip(row).for_each(|(range, value)| range.take(*value));
                rows += 1;
            }
            Ok(())
        });
        read.map_err(|error| told(error.to_string()))?;
    }
    if rows < ROWS_MIN {
        let reason = format!("{rows} rows; give at least {ROWS_MIN}, such as the model will score");
        return Err(told(reason));
    }
    let sha256 = file.finish().map_err(|error| told(error.to_string()))?;
    Ok((ranges, Calibration { path: path.to_owned(), sha256, rows }))
}

impl Calibration {
    /// Whether its file still holds what the ranges were taken from.
    #[must_use]
    pub fn is_current(&self) -> bool {
        File::open(&self.path).and_then(|file| Hashing::new(file).finish()).is_ok_and(|sha256| sha256 == self.sha256)
    }
}

fn open<R: Read>(path: &Path, mut input: Input<R>, entry: &super::ModelEntry) -> Result<LinesSource<R>, String> {
    let format = match Format::of_name(path) {
        Some(format) => format,
        None => input.look().map_err(|error| error.to_string())?,
    };
    let columns = Columns { header: true, ..Columns::default() };
    LinesSource::open(input, format, columns, entry, CHUNK_ROWS).map_err(|error| error.to_string())
}

/// A file whose bytes are hashed as they are read.
struct Hashing {
    file: File,
    sha256: Sha256,
}

impl Hashing {
    fn new(file: File) -> Self {
        Self { file, sha256: Sha256::new() }
    }

    /// Reads what is left, and gives the digest of all, hex.
    fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(hex(&self.sha256.finalize()))
    }
}

impl Read for Hashing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(into)?;
        self.sha256.update(&into[..read]);
        Ok(read)
    }
}
