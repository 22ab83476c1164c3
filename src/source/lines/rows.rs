//! An input's rows, for whom wants no requests: a source in, values and texts of each request out. A line that cannot be
//! read is an error here.

use std::io::{self, Read};

use super::{LinesSource, PAYLOAD_BYTES_MAX};
use crate::decode::RouteDecoder;
use crate::model::{Catalog, LevelTimeout, ModelEntry, ModelSchema};
use crate::record::{ModelId, Priority, Texts};

/// Why an input's rows cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// The input cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line does not fit.
    #[error("line {line}: {reason}")]
    Line {
        /// Its number, from 1.
        line: i64,
        /// What is wrong.
        reason: String,
    },
}

/// How the worker reads a route's records, for lines.
#[must_use]
pub fn route_decoder(model: ModelId) -> RouteDecoder {
    RouteDecoder { record_bytes_max: PAYLOAD_BYTES_MAX, ..RouteDecoder::new(model, "") }
}

/// What readers of rows must know of a model with this schema.
#[must_use]
pub fn entry_of(schema: &ModelSchema) -> ModelEntry {
    const PRIORITY: Priority = Priority::new(1).expect("1 is not 0");
    ModelEntry::new(ModelId(0), "model", schema, vec![LevelTimeout::default()], PRIORITY)
}

/// Reads all requests of a source that was made for [`entry_of`] a schema, as the worker would read them.
///
/// # Errors
/// [`RowsError`], and what `take` says of a request's rows.
pub fn each_row<R: Read>(
    source: &mut LinesSource<R>,
    entry: &ModelEntry,
    mut take: impl FnMut(&[f64], Texts<'_>) -> Result<(), String>,
) -> Result<(), RowsError> {
    let mut catalog = Catalog::default();
    catalog.put(entry.clone());
    let decoder = route_decoder(entry.id);
    loop {
        let chunk = source.recv(|message, received, chunk| {
            decoder.decode(message, received, &catalog, chunk);
        })?;
        let Some(chunk) = chunk else { return Ok(()) };
        for request in chunk.requests() {
            let at = |reason| RowsError::Line { line: request.position.offset, reason };
            let work = request.work.as_ref().map_err(|reject| at(reject.message.clone()))?;
            take(chunk.rows(work), chunk.texts(work)).map_err(at)?;
        }
    }
}
