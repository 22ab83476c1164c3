//! Fail points that meet one record, named by its id: the id's JSON text, its quotes left out or not. They are built in
//! with the cargo feature `failpoints` only.

use std::time::Duration;

use super::Queued;
use crate::batch::Entry;
use crate::model::ScoreError;

/// Before a batch is scored. `score::slow_record=return(<id>:<ms>)` sleeps that long when the batch holds the record.
pub(super) fn before_batch(batch: &[Entry<Queued>]) {
    fail::fail_point!("score::slow_record", |text| {
        let text = text.unwrap_or_default();
        let (id, ms) = with_number(&text);
        if batch.iter().any(|entry| has_id(entry, id)) {
            std::thread::sleep(Duration::from_millis(ms));
        }
    });
}

/// After a batch was named in the journal. `score::crash_record=return(<id>)` aborts the process when the batch holds the
/// record.
pub(super) fn after_naming(batch: &[Entry<Queued>]) {
    fail::fail_point!("score::crash_record", |id| {
        let id = id.unwrap_or_default();
        if batch.iter().any(|entry| has_id(entry, &id)) {
            std::process::abort();
        }
    });
}

/// `score::transient=return(<id>:<tries>)`: a batch with the record in it fails transiently as long as the record has
/// failed fewer times than that.
pub(super) fn fail_transiently(batch: &[Entry<Queued>]) -> Result<(), ScoreError> {
    fail::fail_point!("score::transient", |text| {
        let text = text.unwrap_or_default();
        let (id, tries) = with_number(&text);
        let fails = |entry| has_id(entry, id) && u64::from(entry.item.tries) < tries;
        if batch.iter().any(fails) { Err(ScoreError::Transient("a fail point".to_owned())) } else { Ok(()) }
    });
    Ok(())
}

fn with_number(text: &str) -> (&str, u64) {
    let parts = text.rsplit_once(':').and_then(|(id, number)| Some((id, number.parse().ok()?)));
    parts.unwrap_or_else(|| panic!("got {text:?}, wants <id>:<number>"))
}

fn has_id(entry: &Entry<Queued>, id: &str) -> bool {
    let ticket = &entry.item.ticket;
    let json = ticket.chunk.str(ticket.request().id_json);
    json == id || json.strip_prefix('"').and_then(|json| json.strip_suffix('"')) == Some(id)
}
