//! Who waits for which answer: the reply subjects of the requests in flight, by chunk. Pure.
//!
//! Invariant: a subject is taken once; a chunk's place is free again when its last one was.

use async_nats::Subject;
use bytes::Bytes;

use crate::record::{PartitionId, Position};

/// The reply subjects of what is in flight.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    places: Vec<Place>,
    free: Vec<u32>,
    len: usize,
}

#[derive(Debug, Default)]
struct Place {
    subjects: Vec<Option<Subject>>,
    left: usize,
}

impl Waiting {
    /// Requests that wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A place for a chunk's subjects, which stands in its requests' positions.
    pub(super) fn open(&mut self) -> PartitionId {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            u32::try_from(self.places.len() - 1).expect("fewer places than requests in flight")
        });
        PartitionId(place)
    }

    /// Fills a place with a subject for each request of its chunk, in their order.
    pub(super) fn fill(&mut self, place: PartitionId, subjects: &Subjects) {
        let here = &mut self.places[place.0 as usize];
        here.subjects.extend(subjects.all().map(Some));
        here.left = here.subjects.len();
        self.len += here.left;
        if here.left == 0 {
            self.free.push(place.0);
        }
    }

    /// The subject of a request that ended; `None` when it had ended before.
    pub(super) fn take(&mut self, position: Position, index: u32) -> Option<Subject> {
        let number = position.partition.0;
        let place = self.places.get_mut(number as usize)?;
        let subject = place.subjects.get_mut(index as usize)?.take()?;
        self.len -= 1;
        place.left -= 1;
        if place.left == 0 {
            place.subjects.clear();
            self.free.push(number);
        }
        Some(subject)
    }
}

/// Subjects on their way into a place. They are copied into one allocation: a message's own would hold on to the whole
/// buffer that it was read into, for as long as it waits.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Subjects {
    pub(super) fn push(&mut self, subject: &Subject) {
        self.text.extend_from_slice(subject.as_bytes());
        self.ends.push(self.text.len());
    }

    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }

    fn all(&self) -> impl Iterator<Item = Subject> {
        let text = Bytes::copy_from_slice(&self.text);
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let subject = text.slice(start..end);
            start = end;
            Subject::from_utf8(subject).expect("a subject is text")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subjects(names: &[&str]) -> Subjects {
        let mut subjects = Subjects::default();
        for name in names {
            subjects.push(&Subject::from(*name));
        }
        subjects
    }

    #[test]
    fn each_is_taken_once_and_places_come_again() {
        let mut waiting = Waiting::default();
        let first = waiting.open();
        waiting.fill(first, &subjects(&["_INBOX.a", "", "_INBOX.c"]));
        let second = waiting.open();
        waiting.fill(second, &subjects(&["x"]));
        assert!(first != second && waiting.len() == 4);
        let at = |partition| Position { partition, offset: 7 };
        let mut take = |place, index| waiting.take(at(place), index).map(|subject| subject.to_string());
        assert_eq!(take(first, 2).as_deref(), Some("_INBOX.c"));
        assert_eq!((take(first, 2), take(first, 3), take(PartitionId(9), 0)), (None, None, None));
        assert_eq!((take(second, 0).as_deref(), take(first, 0).as_deref()), (Some("x"), Some("_INBOX.a")));
        assert_eq!(waiting.open(), second);
        assert_eq!(waiting.take(at(first), 1).as_deref(), Some(""));
        assert_eq!((waiting.len(), waiting.open()), (0, first));
    }

    #[test]
    fn an_empty_chunk_keeps_no_place() {
        let mut waiting = Waiting::default();
        let place = waiting.open();
        waiting.fill(place, &Subjects::default());
        assert_eq!((waiting.len(), waiting.open()), (0, place));
    }
}
