//! The judges of a stream: pure functions over what was sent and what a `read_committed` reader found.
//! Records are told by the payload's own id, `rN` for record `N`; nothing that a worker says about itself counts.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use super::Record;

/// Scores are equal up to this: the same sums in the same order leave nothing to round.
const TOLERANCE: f64 = 1e-12;

/// How the replies to records `0..sent` turned out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub sent: usize,
    pub lost: usize,
    /// Replies beyond the first of their record.
    pub doubled: usize,
    /// Replies with another score than expected, with none, or to nothing that was sent.
    pub wrong: usize,
    /// One of each kind, for people.
    examples: Vec<String>,
}

impl Tally {
    /// Record `n` of `sent` must have one reply, with the score `expected(n)`.
    pub fn of(replies: &[Record], sent: usize, expected: impl Fn(usize) -> f64) -> Self {
        let mut replies_of = vec![0_usize; sent];
        let mut tally = Self { sent, ..Self::default() };
        for reply in replies {
            let Some(n) = number(reply).filter(|n| *n < sent) else {
                tally.wrong(reply, "no record that was sent");
                continue;
            };
            replies_of[n] += 1;
            let score = reply.json()["prediction"][0].as_f64();
            if score.is_none_or(|score| (score - expected(n)).abs() > TOLERANCE) {
                tally.wrong(reply, &format!("expected {}", expected(n)));
            }
        }
        tally.lost = replies_of.iter().filter(|count| **count == 0).count();
        tally.doubled = replies_of.iter().map(|count| count.saturating_sub(1)).sum();
        let found = |what: &str, wanted: fn(usize) -> bool| {
            replies_of.iter().position(|count| wanted(*count)).map(|n| format!("first {what}: r{n}"))
        };
        tally.examples.extend(found("lost", |count| count == 0));
        tally.examples.extend(found("doubled", |count| count > 1));
        tally
    }

    fn wrong(&mut self, reply: &Record, why: &str) {
        if self.wrong == 0 {
            self.examples.push(format!("first wrong ({why}): {}", reply.text()));
        }
        self.wrong += 1;
    }

    /// Fails unless every record has exactly one reply, and the right one.
    pub fn assert_exactly_once(&self) {
        assert!(self.lost == 0 && self.doubled == 0 && self.wrong == 0, "{self}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, lost, doubled, wrong, examples } = self;
        write!(f, "sent={sent} lost={lost} doubled={doubled} wrong={wrong}")?;
        examples.iter().try_for_each(|example| write!(f, "; {example}"))
    }
}

/// The `N` of a payload whose id is `rN`.
pub fn number(record: &Record) -> Option<usize> {
    let json: serde_json::Value = serde_json::from_slice(record.payload.as_deref()?).ok()?;
    json["id"].as_str()?.strip_prefix('r')?.parse().ok()
}

/// A reply's place in its topic, and its request's place in the scope whose order it must keep: a key or a partition.
#[derive(Clone, Copy, Debug)]
pub struct Placed<S> {
    pub reply_partition: i32,
    pub reply_offset: i64,
    pub scope: S,
    pub request_offset: i64,
}

/// Replies that lie behind the reply to a later request of their scope, in the same reply partition.
pub fn out_of_order<S: Hash + Eq>(replies: &[Placed<S>]) -> usize {
    let mut sorted: Vec<&Placed<S>> = replies.iter().collect();
    sorted.sort_by_key(|reply| (reply.reply_partition, reply.reply_offset));
    let mut latest: HashMap<(i32, &S), i64> = HashMap::new();
    let mut count = 0;
    for reply in sorted {
        let latest = latest.entry((reply.reply_partition, &reply.scope)).or_insert(reply.request_offset);
        count += usize::from(reply.request_offset < *latest);
        *latest = reply.request_offset.max(*latest);
    }
    count
}

/// The value below which so many of a hundred lie; 0 for none.
pub fn percentile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((values.len() * percent / 100).min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// The judges see what they are there for.
pub fn can_fail() {
    let reply = |n: usize, score: f64| Record::new("", format!("{{\"id\":\"r{n}\",\"prediction\":[{score}]}}"));
    let all: Vec<Record> = (0..10).map(|n| reply(n, 0.5)).collect();
    let tally = |replies: &[Record]| {
        let Tally { lost, doubled, wrong, .. } = Tally::of(replies, 10, |_| 0.5);
        (lost, doubled, wrong)
    };
    assert_eq!(tally(&all), (0, 0, 0));
    assert_eq!(tally(&all[1..]), (1, 0, 0));
    assert_eq!(tally(&[&all[..], &all[..2]].concat()), (0, 2, 0));
    assert_eq!(tally(&[&all[..9], &[reply(9, 0.25)]].concat()), (0, 0, 1));
    assert_eq!(tally(&[&all[..], &[reply(10, 0.5)], &[Record::new("", "{}")]].concat()), (0, 0, 2));
    let error = Record::new("", "{\"id\":\"r9\",\"success\":false}");
    assert_eq!(tally(&[&all[..9], &[error]].concat()), (0, 0, 1));

    // Two scopes in turn, each in two reply partitions.
    let mut placed: Vec<Placed<u8>> = (0_u8..40)
        .map(|n| Placed {
            reply_partition: i32::from(n / 2 % 2),
            reply_offset: n.into(),
            scope: n % 2,
            request_offset: (n / 2).into(),
        })
        .collect();
    assert_eq!(out_of_order(&placed), 0);
    placed.reverse();
    assert_eq!(out_of_order(&placed), 0, "it is the offset in the log that counts");
    // Neighbours of one scope in one reply partition.
    let (first, second) = (placed[0].reply_offset, placed[4].reply_offset);
    (placed[0].reply_offset, placed[4].reply_offset) = (second, first);
    assert_eq!(out_of_order(&placed), 1);
    (placed[0].reply_offset, placed[4].reply_offset) = (first, second);
    // Of two scopes: nobody promised anything.
    let (first, second) = (placed[0].reply_offset, placed[1].reply_offset);
    (placed[0].reply_offset, placed[1].reply_offset) = (second, first);
    assert_eq!(out_of_order(&placed), 0);

    assert!(percentile((1..=1000).map(f64::from).collect(), 99) - 991.0 < 1e-9);
    assert!(percentile(Vec::new(), 99) < 1e-9);
}
