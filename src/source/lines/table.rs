//! A table's bytes in, typed rows out: which column is which feature, and what a cell may hold.
//!
//! A cell is a number as Rust's `f64` reads it, or missing: empty, `NA`, `NaN`, `null` in any case. All else is a
//! rejection that names row and column. Where the model takes text, a cell is what stands in it, to the last blank, and
//! only an empty one is missing. Quoting is CSV's (RFC 4180): `"` around a cell, `""` inside it.

use std::fmt;
use std::io::{self, BufRead};

use csv_core::ReadRecordResult;

use super::{RECORD_BYTES_MAX, position, push};
use crate::decode::Received;
use crate::model::{FeatureKind, ModelEntry};
use crate::record::{Chunk, ErrorCode, Reject};

/// Most characters of a cell that a message repeats.
const CELL_CHARS_MAX: usize = 40;
/// Most names that a message lists.
const NAMES_MAX: usize = 5;

/// Where a table's features are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// Whether the first line is a header.
    pub header: bool,
    /// Columns to leave out at the left.
    pub skip: usize,
    /// The columns to take, in the model's order: names of the header, or numbers from 1 where there is none.
    pub chosen: Option<Vec<String>>,
}

/// Why a table does not fit the model.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The columns cannot be matched with the model's features.
    #[error("{0}")]
    Columns(String),
    /// The input cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A table's reader, and its columns as the model wants them.
pub struct Table {
    records: Records,
    columns: Columns,
    model: ModelEntry,
    /// For each feature its column, once known.
    places: Vec<usize>,
    /// The header's names, as they stand in the file; empty without a header.
    names: Vec<String>,
    /// How many columns a row must have.
    width: Width,
}

#[derive(Clone, Copy)]
enum Width {
    Exactly(usize),
    AtLeast(usize),
}

impl Table {
    /// A table whose rows go to `model`.
    ///
    /// # Errors
    /// [`TableError::Columns`] when the chosen columns are not as many as the features, or no numbers from 1 where
    /// there is no header.
    pub fn new(delimiter: u8, columns: Columns, model: &ModelEntry) -> Result<Self, TableError> {
        let wanted = model.width;
        if let Some(chosen) = columns.chosen.as_ref().filter(|chosen| chosen.len() != wanted) {
            let got = chosen.len();
            return Err(TableError::Columns(format!("--columns names {got} columns, the model has {wanted} features")));
        }
        let (places, width) = match &columns.chosen {
            Some(chosen) if !columns.header => {
                let places = chosen.iter().map(|text| number(text)).collect::<Result<Vec<_>, _>>()?;
                let last = places.iter().max().map_or(0, |last| last + 1);
                (places, Width::AtLeast(last))
            }
            _ => ((columns.skip..columns.skip + wanted).collect(), Width::Exactly(columns.skip + wanted)),
        };
        let records = Records::new(delimiter);
        let (model, names) = (model.clone(), Vec::new());
        Ok(Self { records, columns, model, places, names, width })
    }

    /// Reads the header, where there is one, and finds the features' columns.
    pub(super) fn read_header(&mut self, reader: &mut impl BufRead) -> Result<(), TableError> {
        if !self.columns.header {
            return Ok(());
        }
        match self.records.read(reader)? {
            Found::End => return Ok(()),
            Found::TooLong { bytes } => {
                let message = format!("the header has {bytes} bytes and no end: is this a table?");
                return Err(TableError::Columns(message));
            }
            Found::Record => {}
        }
        let cells = self.records.cells();
        self.names = cells.map(|cell| String::from_utf8_lossy(cell.trim_ascii()).into_owned()).collect();
        self.places = match &self.columns.chosen {
            Some(chosen) => places_of(chosen, &self.names, 0)?,
            None => match_header(self.model.feature_names(), &self.names, self.columns.skip)?,
        };
        self.width = Width::Exactly(self.names.len());
        Ok(())
    }

    /// Reads a row into the chunk. Returns its bytes; 0 at the end of the input.
    pub(super) fn read_row(
        &mut self,
        reader: &mut impl BufRead,
        received: Received,
        chunk: &mut Chunk,
    ) -> io::Result<usize> {
        let before = self.records.bytes;
        let (mark, text_mark) = (chunk.features_mut().len(), chunk.texts_mut().mark());
        let row = match self.records.read(reader)? {
            Found::End => return Ok(0),
            Found::TooLong { bytes } => {
                let message = format!(
                    "the row has more than {RECORD_BYTES_MAX} bytes ({bytes} up to the next line): is a quote missing? \
                     The rows that it took in are lost"
                );
                Err(Reject::new(ErrorCode::TooLarge, message))
            }
            Found::Record => self.push_values(chunk),
        };
        let work = row.map(|()| {
            let mut work = chunk.work(self.model.id, mark, 1, false, self.model.priority_default, None);
            chunk.attach_texts(&mut work, text_mark);
            work
        });
        if work.is_err() {
            chunk.features_mut().truncate(mark);
            chunk.texts_mut().truncate(text_mark);
        }
        push(position(self.records.record_line), received, work, chunk);
        Ok(usize::try_from(self.records.bytes - before).unwrap_or(usize::MAX))
    }

    fn push_values(&self, chunk: &mut Chunk) -> Result<(), Reject> {
        let columns = self.records.ends_len;
        match self.width {
            Width::Exactly(wanted) if columns != wanted => return Err(self.wrong_width(columns, &wanted.to_string())),
            Width::AtLeast(least) if columns < least => {
                return Err(self.wrong_width(columns, &format!("at least {least}")));
            }
            _ => {}
        }
        for (feature, &column) in self.places.iter().enumerate() {
            let (cell, kind) = (self.records.cell(column), self.model.kinds.of(feature));
            if kind == FeatureKind::Text {
                let text = std::str::from_utf8(cell).map_err(|_| self.bad_cell(feature, column, cell))?;
                chunk.texts_mut().push(Some(text).filter(|text| !text.is_empty()));
                chunk.features_mut().push(f64::NAN);
                continue;
            }
            let value = cell_value(cell).ok_or_else(|| self.bad_cell(feature, column, cell))?;
            chunk.features_mut().push(value);
        }
        let (features, width) = (chunk.features_mut(), self.model.width);
        let whole = self.model.kinds.check_integers(&features[features.len() - width..], width);
        whole.map_err(|bad| {
            let column = self.places[bad.column];
            self.bad_cell(bad.column, column, self.records.cell(column))
        })
    }

    fn wrong_width(&self, got: usize, wanted: &str) -> Reject {
        let line = self.records.record_line;
        let columns = if self.names.is_empty() {
            let skipped =
                if self.columns.skip > 0 { format!("{} skipped, then ", self.columns.skip) } else { String::new() };
            format!("{skipped}the model's {}: {}", self.model.width, Names(self.model.feature_names()))
        } else if let Some(missing) = self.names.get(got..).filter(|missing| !missing.is_empty()) {
            format!("without {}", Names(missing))
        } else {
            format!("the header's {}", Names(&self.names))
        };
        Reject::bad_request(format!("line {line}: got {got} columns, wants {wanted} ({columns})"))
    }

    fn bad_cell(&self, feature: usize, column: usize, cell: &[u8]) -> Reject {
        let (line, place) = (self.records.record_line, column + 1);
        let name = self.names.get(column).unwrap_or(&self.model.feature_names()[feature]);
        let text = String::from_utf8_lossy(cell);
        let mut shown: String = text.chars().take(CELL_CHARS_MAX).collect();
        if shown.len() < text.len() {
            shown.push('…');
        }
        let wants = match self.model.kinds.of(feature) {
            FeatureKind::Number => "wants a finite number, or nothing, NA, NaN or null where it is missing".to_owned(),
            FeatureKind::Text => "wants UTF-8".to_owned(),
            integer @ FeatureKind::Integer { .. } => {
                format!("wants {integer}, or nothing, NA, NaN or null where it is missing")
            }
        };
        Reject::bad_request(format!("line {line}, column {place} ({name}): got {shown:?}, {wants}"))
    }
}

/// A cell's number, NaN where it is missing, and `None` where it holds something else.
fn cell_value(cell: &[u8]) -> Option<f64> {
    let cell = std::str::from_utf8(cell).ok()?.trim();
    if cell.is_empty() || cell.eq_ignore_ascii_case("na") || cell.eq_ignore_ascii_case("null") {
        return Some(f64::NAN);
    }
    // The parser reads "inf" and "infinity" too, and 1e999 as infinite.
    cell.parse().ok().filter(|value: &f64| !value.is_infinite())
}

/// A column's number from 1, as its place from 0.
fn number(text: &str) -> Result<usize, TableError> {
    let place = text.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    place.filter(|place| *place < RECORD_BYTES_MAX).ok_or_else(|| {
        TableError::Columns(format!("--columns: got {text:?}; without a header, columns are named by numbers from 1"))
    })
}

/// The place of each wanted name among the names from `skip` on.
fn places_of(wanted: &[String], names: &[String], skip: usize) -> Result<Vec<usize>, TableError> {
    let place = |wanted: &String| {
        let mut found = (skip..names.len()).filter(|&place| names[place] == *wanted);
        match (found.next(), found.next()) {
            (Some(place), None) => Ok(place),
            (Some(_), Some(_)) => Err(TableError::Columns(format!("the header has the column {wanted:?} twice"))),
            (None, _) => {
                Err(TableError::Columns(format!("the header has no column {wanted:?}; it has {}", Names(names))))
            }
        }
    };
    wanted.iter().map(place).collect()
}

/// By name where the header has all features, else by position; but never where a feature's name stands in another
/// feature's place.
fn match_header(features: &[String], names: &[String], skip: usize) -> Result<Vec<usize>, TableError> {
    let taken = names.get(skip..).unwrap_or_default();
    let missing: Vec<&String> = features.iter().filter(|feature| !taken.contains(feature)).collect();
    if missing.is_empty() {
        return places_of(features, names, skip);
    }
    if !taken.is_empty() && taken.iter().all(|name| cell_value(name.as_bytes()).is_some()) {
        let message = "the first line holds numbers, not names; for a table without a header add --no-header";
        return Err(TableError::Columns(message.to_owned()));
    }
    let remedy = "name every feature in the header, or use --columns, --skip-columns or --no-header";
    if taken.len() != features.len() {
        let (got, wanted) = (taken.len(), features.len());
        let message = format!(
            "the header has {got} columns{}, the model has {wanted} features, and {} is not in the header; {remedy}",
            if skip > 0 { " after those skipped" } else { "" },
            Names(&missing)
        );
        return Err(TableError::Columns(message));
    }
    for (place, name) in taken.iter().enumerate() {
        if let Some(feature) = features.iter().position(|feature| feature == name).filter(|&feature| feature != place) {
            let message = format!(
                "column {} is {name:?}, which is the model's feature {}, and {} is not in the header; {remedy}",
                skip + place + 1,
                feature + 1,
                Names(&missing)
            );
            return Err(TableError::Columns(message));
        }
    }
    Ok((skip..names.len()).collect())
}

/// The first few names of a list, for a message.
struct Names<'a, T>(&'a [T]);

impl<T: AsRef<str>> fmt::Display for Names<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().take(NAMES_MAX).enumerate() {
            let name: String = name.as_ref().chars().take(CELL_CHARS_MAX).collect();
            write!(f, "{}{name}", if index == 0 { "" } else { ", " })?;
        }
        if self.0.len() > NAMES_MAX { f.write_str(", …") } else { Ok(()) }
    }
}

/// What [`Records::read`] came upon.
enum Found {
    Record,
    /// More than [`RECORD_BYTES_MAX`]; the reader stands at the start of the next line.
    TooLong {
        bytes: u64,
    },
    End,
}

/// Splits bytes into records and records into cells, one record at a time.
struct Records {
    core: csv_core::Reader,
    delimiter: u8,
    cells: Vec<u8>,
    ends: Vec<usize>,
    ends_len: usize,
    /// Lines ended so far.
    lines: i64,
    /// Bytes read so far.
    bytes: u64,
    /// The line on which the last record began, from 1.
    record_line: i64,
}

impl Records {
    fn new(delimiter: u8) -> Self {
        let core = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        Self {
            core,
            delimiter,
            cells: vec![0; 4096],
            ends: vec![0; 256],
            ends_len: 0,
            lines: 0,
            bytes: 0,
            record_line: 0,
        }
    }

    fn cell(&self, column: usize) -> &[u8] {
        let start = if column == 0 { 0 } else { self.ends[column - 1] };
        &self.cells[start..self.ends[column]]
    }

    fn cells(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.ends_len).map(|column| self.cell(column))
    }

    fn read(&mut self, reader: &mut impl BufRead) -> io::Result<Found> {
        if !self.skip_blank_lines(reader)? {
            return Ok(Found::End);
        }
        self.record_line = self.lines + 1;
        let before = self.bytes;
        let (mut cells_len, mut ends_len) = (0, 0);
        loop {
            let input = reader.fill_buf()?;
            // Up to the bound and not past it: where a row is given up must not depend on how the input came.
            let left = RECORD_BYTES_MAX + 1 - usize::try_from(self.bytes - before).unwrap_or(RECORD_BYTES_MAX);
            let input = &input[..input.len().min(left)];
            let (cells, ends) = (&mut self.cells[cells_len..], &mut self.ends[ends_len..]);
            let (result, read, cells_new, ends_new) = self.core.read_record(input, cells, ends);
            self.consume(reader, read);
            cells_len += cells_new;
            ends_len += ends_new;
            match result {
                ReadRecordResult::Record => {
                    self.ends_len = ends_len;
                    return Ok(Found::Record);
                }
                ReadRecordResult::End => return Ok(Found::End),
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => self.cells.resize(2 * self.cells.len(), 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
            }
            if self.bytes - before > RECORD_BYTES_MAX as u64 {
                let rest = reader.skip_until(b'\n')?;
                self.bytes += rest as u64;
                self.lines += 1;
                self.core = csv_core::ReaderBuilder::new().delimiter(self.delimiter).build();
                return Ok(Found::TooLong { bytes: self.bytes - before });
            }
        }
    }

    /// The parser passes over blank lines too, but then a record's line would be the first of them.
    fn skip_blank_lines(&mut self, reader: &mut impl BufRead) -> io::Result<bool> {
        loop {
            let input = reader.fill_buf()?;
            let blank = input.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
            let (found, end) = (blank < input.len(), input.is_empty());
            self.consume(reader, blank);
            if found || end {
                return Ok(found);
            }
        }
    }

    fn consume(&mut self, reader: &mut impl BufRead, read: usize) {
        // At the end a terminal would be asked for more.
        if read == 0 {
            return;
        }
        let Ok(input) = reader.fill_buf() else { return };
        let ended = input[..read].split(|byte| *byte == b'\n').count() - 1;
        self.lines += i64::try_from(ended).unwrap_or(i64::MAX);
        self.bytes += read as u64;
        reader.consume(read);
    }
}
