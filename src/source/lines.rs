//! Files and stdin in, chunks of requests out: JSON lines through the route's own decoder, CSV and TSV as typed rows.
//!
//! Invariants:
//! 1. Every line of JSON lines and every row of a table is exactly one request, readable or rejected, in the input's
//!    order. A table's blank lines and header are no rows.
//! 2. A request's position is the number of its line, from 1; its default id is `line/<number>`.
//! 3. Memory does not grow with the input: a line, a row and a chunk have bounds.
//! 4. A chunk waits for a full one only as long as the input brings whole lines: what came through a pipe goes on.

mod rows;
mod table;

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::clock;
use crate::decode::Received;
use crate::model::ModelEntry;
use crate::record::{Chunk, ErrorCode, Message, NewRequest, PartitionId, Position, Reject, ReplyAddress, Work};

pub use self::rows::{RowsError, each_row, entry_of, route_decoder};
pub use self::table::{Columns, Table, TableError};

/// Most bytes of a line or row: the worker's default of `record_bytes_max`.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// Most bytes of a message's payload: a line, and what a bare array is wrapped in.
pub const PAYLOAD_BYTES_MAX: usize = RECORD_BYTES_MAX + OPENING.len() + 1;
/// A bare array becomes the value of `features`; this stands before each line and is left out for objects.
const OPENING: &[u8] = b"{\"features\":";
/// Bytes of input after which a chunk is full.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Feature values after which a chunk is full: named rows of a wide model are short as text and long as numbers.
const CHUNK_VALUES_MAX: usize = 1 << 20;
/// Bytes that one read of the input may bring.
const READ_BYTES_MAX: usize = 1 << 20;
const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";

/// How the lines of an input are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A request, or a bare array of numbers, a line.
    JsonLines,
    /// A table with this byte between its columns.
    Table {
        /// A comma, or a tab.
        delimiter: u8,
    },
}

impl Format {
    /// Comma-separated values.
    pub const CSV: Self = Self::Table { delimiter: b',' };
    /// Tab-separated values.
    pub const TSV: Self = Self::Table { delimiter: b'\t' };

    /// The format that a file's name tells.
    #[must_use]
    pub fn of_name(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" | "json" => Some(Self::JsonLines),
            "csv" => Some(Self::CSV),
            "tsv" | "tab" => Some(Self::TSV),
            _ => None,
        }
    }

    /// The format that the first bytes of an input look like.
    #[must_use]
    pub fn of_bytes(start: &[u8]) -> Self {
        let start = start.trim_ascii_start();
        let first_line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
        match start.first() {
            None | Some(b'{' | b'[') => Self::JsonLines,
            Some(_) if first_line.contains(&b'\t') => Self::TSV,
            Some(_) => Self::CSV,
        }
    }
}

/// An input whose format is not looked at yet.
pub struct Input<R> {
    reader: BufReader<WithoutBom<R>>,
}

impl<R: Read> Input<R> {
    /// Wraps an input. Nothing is read yet.
    pub fn new(input: R) -> Self {
        let input = WithoutBom { input, started: false };
        Self { reader: BufReader::with_capacity(READ_BYTES_MAX, input) }
    }

    /// The format that the first bytes look like.
    ///
    /// # Errors
    /// As the input's own read.
    pub fn look(&mut self) -> io::Result<Format> {
        Ok(Format::of_bytes(self.reader.fill_buf()?))
    }
}

/// An input without the byte order mark that some programs begin UTF-8 with.
struct WithoutBom<R> {
    input: R,
    started: bool,
}

impl<R: Read> Read for WithoutBom<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.started || into.len() <= UTF8_BOM.len() {
            return self.input.read(into);
        }
        self.started = true;
        let mut start = 0;
        // Byte by byte, and no further than it may be one: a pipe may bring less than the mark.
        while start < UTF8_BOM.len() && into[..start] == UTF8_BOM[..start] {
            if self.input.read(&mut into[start..=start])? == 0 {
                return Ok(start);
            }
            start += 1;
        }
        if into[..start] == *UTF8_BOM {
            start = 0;
        }
        Ok(start + self.input.read(&mut into[start..])?)
    }
}

/// Lines in, chunks out.
pub struct LinesSource<R> {
    reader: BufReader<WithoutBom<R>>,
    lines: Lines,
    records_max: usize,
}

enum Lines {
    Json(JsonLines),
    Table(Box<Table>),
}

#[derive(Default)]
struct JsonLines {
    number: i64,
    line: Vec<u8>,
    key: String,
}

impl<R: Read> LinesSource<R> {
    /// Reads lines of that format; `columns` are for tables. A chunk holds `records_max` of them at most.
    ///
    /// # Errors
    /// [`TableError`] when a table's columns do not fit the model.
    pub fn open(
        input: Input<R>,
        format: Format,
        columns: Columns,
        entry: &ModelEntry,
        records_max: usize,
    ) -> Result<Self, TableError> {
        match format {
            Format::JsonLines => Ok(Self::json_lines(input, records_max)),
            Format::Table { delimiter } => {
                let table = Table::new(delimiter, columns, entry)?;
                Self::table(input, table, records_max)
            }
        }
    }

    /// Reads JSON lines; a chunk holds `records_max` of them at most.
    #[must_use]
    pub fn json_lines(input: Input<R>, records_max: usize) -> Self {
        Self { reader: input.reader, lines: Lines::Json(JsonLines::default()), records_max }
    }

    /// Reads a table, and its header where it has one; a chunk holds `records_max` rows at most.
    ///
    /// # Errors
    /// [`TableError`] when the header does not fit the model.
    pub fn table(mut input: Input<R>, mut table: Table, records_max: usize) -> Result<Self, TableError> {
        table.read_header(&mut input.reader)?;
        Ok(Self { reader: input.reader, lines: Lines::Table(Box::new(table)), records_max })
    }

    /// The next lines, or `None` at the end of the input. `decode` pushes the request of a JSON line.
    ///
    /// # Errors
    /// As the input's own read.
    pub fn recv(&mut self, mut decode: impl FnMut(&Message<'_>, Received, &mut Chunk)) -> io::Result<Option<Chunk>> {
        let mut chunk = Chunk::default();
        let mut bytes = 0;
        if self.reader.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let received = Received { arrived: clock::now(), unix_ms: clock::unix_ms() };
        while chunk.requests().len() < self.records_max
            && bytes < CHUNK_BYTES_MAX
            && chunk.features_mut().len() < CHUNK_VALUES_MAX
        {
            let read = match &mut self.lines {
                Lines::Json(lines) => lines.read_line(&mut self.reader, received, &mut decode, &mut chunk)?,
                Lines::Table(table) => table.read_row(&mut self.reader, received, &mut chunk)?,
            };
            bytes += read;
            // Without a whole line at hand the next read might wait for ever, and these requests with it.
            if read == 0 || (!self.reader.buffer().contains(&b'\n') && !chunk.requests().is_empty()) {
                break;
            }
        }
        // Blank lines at the end of a table are no rows.
        Ok(Some(chunk).filter(|chunk| !chunk.requests().is_empty()))
    }
}

impl JsonLines {
    /// Reads a line and has it decoded. Returns its bytes; 0 at the end of the input.
    fn read_line(
        &mut self,
        reader: &mut impl BufRead,
        received: Received,
        decode: &mut impl FnMut(&Message<'_>, Received, &mut Chunk),
        chunk: &mut Chunk,
    ) -> io::Result<usize> {
        use std::fmt::Write as _;

        self.line.clear();
        self.line.extend_from_slice(OPENING);
        // A bound's worth, and the line's end of either kind.
        let most = (RECORD_BYTES_MAX + 2) as u64;
        let mut read = reader.by_ref().take(most).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(0);
        }
        self.number += 1;
        let position = position(self.number);
        if self.line.last() != Some(&b'\n') && read as u64 == most {
            read += reader.skip_until(b'\n')?;
            let message = format!("the line has about {read} bytes, at most {RECORD_BYTES_MAX} are read");
            reject(position, received, Reject::new(ErrorCode::TooLarge, message), chunk);
            return Ok(read);
        }
        let end = OPENING.len() + self.line[OPENING.len()..].trim_ascii_end().len();
        self.line.truncate(end);
        let text = self.line[OPENING.len()..].trim_ascii_start();
        let payload = if text.first() != Some(&b'[') {
            text
        } else if text.last() == Some(&b']') {
            self.line.push(b'}');
            &self.line
        } else {
            let message = "the line starts with [ and does not end with ]: wants an array of numbers, or a request";
            reject(position, received, Reject::bad_request(message), chunk);
            return Ok(read);
        };
        self.key.clear();
        write!(self.key, "line/{}", self.number).expect("a String takes all");
        let message = Message {
            topic: "line",
            partition_number: 0,
            position,
            timestamp_ms: None,
            is_append_time: false,
            key: Some(self.key.as_bytes()),
            payload: Some(payload),
            headers: &[],
        };
        decode(&message, received, chunk);
        Ok(read)
    }
}

fn position(line: i64) -> Position {
    Position { partition: PartitionId(0), offset: line }
}

fn reject(position: Position, received: Received, reject: Reject, chunk: &mut Chunk) {
    push(position, received, Err(reject), chunk);
}

fn push(position: Position, received: Received, work: Result<Work, Reject>, chunk: &mut Chunk) {
    use std::io::Write as _;

    let mark = chunk.text_mark();
    write!(chunk.text_mut(), "\"line/{}\"", position.offset).expect("a Vec takes all");
    let id_json = chunk.span_from(mark);
    let (arrived, address) = (received.arrived, ReplyAddress::Route);
    chunk.push(NewRequest { position, route: 0, arrived, id_json, key: None, address, work });
}

#[cfg(test)]
mod tests;
