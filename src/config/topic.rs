//! Kafka's rules for topic names, and patterns over names of topics or subjects.

use std::fmt;

/// Kafka's limit: a partition's folder name is topic, dash and number in 255 bytes.
const TOPIC_CHARS_MAX: usize = 249;

/// Topics by a name in which each `*` stands for any characters, none included.
///
/// ```
/// # use forebay::config::TopicPattern;
/// let pattern = TopicPattern::new("scores-*").expect("dashes and stars are allowed");
/// assert!(pattern.matches("scores-eu") && pattern.matches("scores-"));
/// assert!(!pattern.matches("my-scores-eu"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TopicPattern(String);

impl TopicPattern {
    /// The pattern; `None` when no topic could match it, for length or characters.
    #[must_use]
    pub fn new(pattern: &str) -> Option<Self> {
        let names_only = pattern.chars().all(|c| is_topic_char(c) || c == '*');
        (names_only && !pattern.is_empty() && pattern.len() <= TOPIC_CHARS_MAX).then(|| Self(pattern.to_owned()))
    }

    /// A pattern over subjects of NATS; `None` when no subject could match it.
    #[must_use]
    pub fn of_subjects(pattern: &str) -> Option<Self> {
        // A star may stand for several tokens, so any letter in its place shows what is wrong with the rest.
        super::subject::is_subject(&pattern.replace('*', "x")).then(|| Self(pattern.to_owned()))
    }

    /// Whether a subject that it matches may be among those of a filter. Errs on the side of yes.
    pub(super) fn may_match_any_of(&self, filter: &str) -> bool {
        // The texts before the first wildcard of each: subjects of both begin with the longer of them.
        let of_filter = filter.split(['*', '>', '{']).next().unwrap_or_default();
        let of_pattern = self.0.split('*').next().unwrap_or_default();
        if !self.0.contains('*') {
            return super::SubjectFilter::new(filter).is_none_or(|filter| filter.matches(&self.0));
        }
        if of_filter.len() == filter.len() {
            return self.matches(filter);
        }
        of_filter.starts_with(of_pattern) || of_pattern.starts_with(of_filter)
    }

    /// Whether the whole of `topic` matches.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else {
            return topic == self.0;
        };
        let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        let Some(inner) = topic.strip_prefix(first).and_then(|tail| tail.strip_suffix(last)) else {
            return false;
        };
        // The leftmost place for each piece leaves the most room for the next, so this needs no way back.
        let place = |left: &'_ str, piece: &str| left.find(piece).map(|at| at + piece.len());
        let mut left = inner;
        for piece in middle.split('*') {
            let Some(end) = place(left, piece) else {
                return false;
            };
            left = &left[end..];
        }
        true
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether Kafka takes a topic of this name.
pub(super) fn is_topic(name: &str) -> bool {
    is_name(name, TOPIC_CHARS_MAX) && name != "." && name != ".."
}

/// Whether a name is 1 to `chars_max` of the characters that Kafka takes in topics and in `group.instance.id`.
pub(super) fn is_name(name: &str, chars_max: usize) -> bool {
    (1..=chars_max).contains(&name.len()) && name.chars().all(is_topic_char)
}

fn is_topic_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The textbook matcher, exponential and plain.
    fn naive(pattern: &[u8], topic: &[u8]) -> bool {
        match (pattern.split_first(), topic.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => naive(rest, topic) || (!topic.is_empty() && naive(pattern, &topic[1..])),
            (Some((p, rest)), Some((t, tail))) => p == t && naive(rest, tail),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matches_as_the_naive_matcher(pattern in "[ab*]{1,8}", topic in "[ab]{0,12}") {
            let matcher = TopicPattern::new(&pattern).expect("letters and stars");
            prop_assert_eq!(matcher.matches(&topic), naive(pattern.as_bytes(), topic.as_bytes()));
        }
    }

    #[test]
    fn prefix_and_suffix_do_not_overlap() {
        let pattern = TopicPattern::new("aba*ba").expect("a pattern");
        assert!(!pattern.matches("aba"));
        assert!(pattern.matches("ababa"));
    }

    #[test]
    fn kafka_names() {
        assert!(is_topic("a.B_9-z") && is_topic(&"x".repeat(249)));
        for name in ["", ".", "..", "a b", "a/b", "^a", "ä", &"x".repeat(250)] {
            assert!(!is_topic(name), "{name}");
        }
        assert_eq!(TopicPattern::new(""), None);
        assert_eq!(TopicPattern::new("a b*"), None);
    }
}
