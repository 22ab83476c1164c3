//! Replies in, in any order; lines out, in the order in which their requests were read.
//!
//! Invariants: a line is written when all before it are; no line is written twice or left out; what waits here is no
//! more than what is in flight.

use std::collections::VecDeque;
use std::io::{self, Write};

use bytes::Bytes;

use crate::record::{Chunk, Position};

/// Puts lines back in order and writes them.
#[derive(Debug)]
pub struct LinesSink<W> {
    output: W,
    /// By rising position: what was read, and its line once it is there.
    waiting: VecDeque<(Position, Option<Bytes>)>,
    /// For each chunk of which a line waits, the lines that it still has to write.
    chunks: VecDeque<usize>,
}

impl<W: Write> LinesSink<W> {
    /// A sink that nothing waits in.
    pub fn new(output: W) -> Self {
        Self { output, waiting: VecDeque::new(), chunks: VecDeque::new() }
    }

    /// Notes the requests of a chunk. Chunks are noted in the order in which they were read.
    ///
    /// # Panics
    /// Panics when the positions do not rise.
    pub fn expect(&mut self, chunk: &Chunk) {
        if chunk.requests().is_empty() {
            return;
        }
        for request in chunk.requests() {
            let last = self.waiting.back().map(|(position, _)| *position);
            assert!(last.is_none_or(|last| last < request.position), "lines are noted in the order of the input");
            self.waiting.push_back((request.position, None));
        }
        self.chunks.push_back(chunk.requests().len());
    }

    /// Takes the line (or lines, without the last one's end) that answer the request at `position`.
    ///
    /// # Panics
    /// Panics when no such request was noted, or it was answered before.
    pub fn finish(&mut self, position: Position, line: Bytes) {
        let place = self.waiting.binary_search_by_key(&position, |(position, _)| *position);
        let place = place.expect("a request is noted before it is answered, and answered once");
        let answered = self.waiting[place].1.replace(line).is_some();
        assert!(!answered, "a request is answered once");
    }

    /// Writes what is complete, and returns how many chunks were completed with it.
    ///
    /// # Errors
    /// As the output's own write.
    ///
    /// # Panics
    /// Never: a line that waits is of a chunk.
    pub fn write_ready(&mut self) -> io::Result<usize> {
        let mut completed = 0;
        while let Some((_, Some(line))) = self.waiting.front() {
            self.output.write_all(line)?;
            self.output.write_all(b"\n")?;
            self.waiting.pop_front();
            let left = self.chunks.front_mut().expect("a line that waits is of a chunk");
            *left -= 1;
            if *left == 0 {
                self.chunks.pop_front();
                completed += 1;
            }
        }
        Ok(completed)
    }

    /// Writes a line that answers no request: a table's header.
    ///
    /// # Errors
    /// As the output's own write.
    pub fn write_header(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.output, "{line}")
    }

    /// Hands on what the output has gathered.
    ///
    /// # Errors
    /// As the output's own write.
    pub fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    /// Whether every request noted has its line written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// The header of a table of scores: `prediction`, or `prediction_0` and so on, then `error`. The error column is always
/// there: whether a row will fail is not known when the header is written.
#[must_use]
pub fn table_header(outputs: usize) -> String {
    let names: Vec<String> = match outputs {
        1 => vec!["prediction".to_owned()],
        _ => (0..outputs).map(|output| format!("prediction_{output}")).collect(),
    };
    names.join(",") + ",error"
}

/// The rows of a table of scores, `outputs` scores a row, without the last one's end.
#[must_use]
pub fn table_rows(scores: &[f64], outputs: usize) -> Bytes {
    let mut text = Vec::with_capacity(scores.len() * 20 + 2);
    for (index, row) in scores.chunks(outputs.max(1)).enumerate() {
        if index > 0 {
            text.push(b'\n');
        }
        for score in row {
            text.extend_from_slice(zmij::Buffer::new().format(*score).as_bytes());
            text.push(b',');
        }
    }
    text.into()
}

/// The row of a request without scores: empty cells, then what was wrong.
#[must_use]
pub fn table_error(message: &str, outputs: usize) -> Bytes {
    let message = message.replace('"', "\"\"").replace(['\n', '\r'], " ");
    format!("{}\"{message}\"", ",".repeat(outputs)).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock;
    use crate::record::{NewRequest, PartitionId, Reject, ReplyAddress};

    fn position(offset: i64) -> Position {
        Position { partition: PartitionId(0), offset }
    }

    fn chunk(offsets: &[i64]) -> Chunk {
        let mut chunk = Chunk::default();
        for &offset in offsets {
            let id_json = chunk.push_text(b"");
            let work = Err(Reject::bad_request(""));
            let (arrived, address) = (clock::now(), ReplyAddress::Route);
            chunk.push(NewRequest { position: position(offset), route: 0, arrived, id_json, key: None, address, work });
        }
        chunk
    }

    proptest! {
        #[test]
        fn any_order_of_answers_gives_the_order_of_the_input(
            gaps in prop::collection::vec(1_i64..4, 1..60),
            sizes in prop::collection::vec(1_usize..9, 60),
            order in prop::collection::vec(any::<prop::sample::Index>(), 60),
        ) {
            let mut offsets: Vec<i64> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }).collect();
            let wanted = offsets.iter().map(i64::to_string).collect::<Vec<_>>().join("\n") + "\n";
            let mut sink = LinesSink::new(Vec::new());
            let (mut rest, mut chunks) = (&offsets[..], 0);
            for size in sizes {
                let (now, later) = rest.split_at(size.min(rest.len()));
                sink.expect(&chunk(now));
                chunks += usize::from(!now.is_empty());
                rest = later;
            }
            let mut completed = 0;
            for index in order {
                if offsets.is_empty() {
                    break;
                }
                let offset = offsets.swap_remove(index.index(offsets.len()));
                sink.finish(position(offset), offset.to_string().into());
                completed += sink.write_ready().unwrap();
                prop_assert_eq!(sink.is_empty(), sink.output == wanted.as_bytes());
            }
            prop_assert_eq!(completed, chunks);
            prop_assert_eq!(String::from_utf8(sink.output).unwrap(), wanted);
        }
    }

    #[test]
    fn tables_have_the_same_columns_in_every_row() {
        assert_eq!(table_header(1), "prediction,error");
        assert_eq!(table_header(2), "prediction_0,prediction_1,error");
        assert_eq!(table_rows(&[0.5], 1), "0.5,");
        assert_eq!(table_rows(&[0.5, 1.0, 1e300, -2.0], 2), "0.5,1.0,\n1e+300,-2.0,");
        assert_eq!(table_error("got \"a\"\nhere", 2), ",,\"got \"\"a\"\" here\"");
    }
}
