//! Who waits for which answer: the reply subjects of the requests in flight, by chunk. Pure.
//!
//! Invariant: a subject is taken once, by the request that it came with; a chunk's place is free again when its last one was,
//! and who had been there before gets nothing of who came after.

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
    /// The number of the chunk's first request. The others' follow.
    first: i64,
    subjects: Vec<Option<Subject>>,
    left: usize,
}

impl Waiting {
    /// Requests that wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A place for a chunk's subjects, which stands in its requests' positions. `first` is the number of its first request.
    pub(super) fn open(&mut self, first: i64) -> PartitionId {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            u32::try_from(self.places.len() - 1).expect("fewer places than requests in flight")
        });
        self.places[place as usize].first = first;
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
        if place.first + i64::from(index) != position.offset {
            return None;
        }
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
        let first = waiting.open(7);
        waiting.fill(first, &subjects(&["_INBOX.a", "", "_INBOX.c"]));
        let second = waiting.open(10);
        waiting.fill(second, &subjects(&["x"]));
        assert!(first != second && waiting.len() == 4);
        let at = |partition, offset| Position { partition, offset };
        let mut take = |place, offset, index| waiting.take(at(place, offset), index).map(|subject| subject.to_string());
        assert_eq!(take(first, 9, 2).as_deref(), Some("_INBOX.c"));
        assert_eq!((take(first, 9, 2), take(first, 10, 3), take(PartitionId(9), 7, 0)), (None, None, None));
        assert_eq!((take(second, 10, 0).as_deref(), take(first, 7, 0).as_deref()), (Some("x"), Some("_INBOX.a")));
        assert_eq!(waiting.open(11), second);
        assert_eq!(waiting.take(at(first, 8), 1).as_deref(), Some(""));
        assert_eq!((waiting.len(), waiting.open(11)), (0, first));
    }

    #[test]
    fn a_second_end_takes_nothing_of_who_came_after() {
        let mut waiting = Waiting::default();
        let place = waiting.open(7);
        waiting.fill(place, &subjects(&["old"]));
        let old = Position { partition: place, offset: 7 };
        assert_eq!(waiting.take(old, 0).as_deref(), Some("old"));
        assert_eq!(waiting.open(8), place);
        waiting.fill(place, &subjects(&["new"]));
        assert_eq!((waiting.take(old, 0), waiting.len()), (None, 1));
        assert_eq!(waiting.take(Position { offset: 8, ..old }, 0).as_deref(), Some("new"));
    }

    #[test]
    fn an_empty_chunk_keeps_no_place() {
        let mut waiting = Waiting::default();
        let place = waiting.open(0);
        waiting.fill(place, &Subjects::default());
        assert_eq!((waiting.len(), waiting.open(0)), (0, place));
    }
}
