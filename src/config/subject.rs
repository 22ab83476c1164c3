//! NATS' rules for subjects, and filters over them.

use std::fmt;

/// Longer subjects are taken by servers, but stand in the way of their own limits on a protocol line.
const SUBJECT_CHARS_MAX: usize = 255;
/// What stands for a partition's number in a filter.
const PARTITION: &str = "{partition}";

/// Whether records can be published to it: tokens joined by dots, none of them empty or a wildcard.
pub(super) fn is_subject(text: &str) -> bool {
    text.len() <= SUBJECT_CHARS_MAX && text.split('.').all(|token| is_token(token) && token != "*" && token != ">")
}

/// Whether a name is one token, such as a consumer's or a stream's: 1 to `chars_max` of the characters a-z, A-Z, 0-9, "_"
/// and "-".
pub(super) fn is_plain_token(text: &str, chars_max: usize) -> bool {
    (1..=chars_max).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

fn is_token(token: &str) -> bool {
    // JetStream's own subjects, and what a server refuses in any.
    !token.is_empty() && !token.chars().any(|c| c.is_whitespace() || c.is_control()) && !token.contains(['{', '}'])
}

/// Subjects by tokens: `*` stands for any one, `>` at the end for all that follow, and `{partition}` for the number of an
/// input partition.
///
/// ```
/// # use forebay::config::SubjectFilter;
/// let filter = SubjectFilter::new("features.{partition}.*").expect("tokens");
/// assert!(filter.has_partition() && filter.of_partition(3).as_str() == "features.3.*");
/// assert!(filter.matches("features.12.eu") && !filter.matches("features.x.eu") && !filter.matches("features.1"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SubjectFilter(String);

impl SubjectFilter {
    /// The filter; `None` when it is none.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let mut tokens = text.split('.').peekable();
        let mut partitions = 0;
        while let Some(token) = tokens.next() {
            let is_good = match token {
                ">" => tokens.peek().is_none(),
                PARTITION => {
                    partitions += 1;
                    partitions == 1
                }
                token => is_token(token),
            };
            if !is_good {
                return None;
            }
        }
        (text.len() <= SUBJECT_CHARS_MAX && !text.starts_with('$')).then(|| Self(text.to_owned()))
    }

    /// Whether it has a place for a partition's number.
    #[must_use]
    pub fn has_partition(&self) -> bool {
        self.0.contains(PARTITION)
    }

    /// The filter of one partition.
    #[must_use]
    pub fn of_partition(&self, number: i32) -> Self {
        Self(self.0.replace(PARTITION, &number.to_string()))
    }

    /// Whether a subject is among those that it stands for.
    #[must_use]
    pub fn matches(&self, subject: &str) -> bool {
        let mut subject = subject.split('.');
        for token in self.0.split('.') {
            let is_there = match (token, subject.next()) {
                (_, None) => false,
                (">", Some(_)) => return true,
                ("*", Some(_)) => true,
                (PARTITION, Some(number)) => number.bytes().all(|byte| byte.is_ascii_digit()),
                (token, Some(there)) => token == there,
            };
            if !is_there {
                return false;
            }
        }
        subject.next().is_none()
    }

    /// Whether a subject may be among those of both. A partition's number counts as any token.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut these, mut those) = (self.0.split('.'), other.0.split('.'));
        loop {
            match (these.next(), those.next()) {
                (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (None, Some(_)) | (Some(_), None) => return false,
                (Some(this), Some(that)) => {
                    let is_any = |token| token == "*" || token == PARTITION;
                    if this != that && !is_any(this) && !is_any(that) {
                        return false;
                    }
                }
            }
        }
    }

    /// The filter as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SubjectFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a subject begins with these tokens.
pub(crate) fn is_at(subject: &str, root: &str) -> bool {
    subject.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(text: &str) -> SubjectFilter {
        SubjectFilter::new(text).unwrap_or_else(|| panic!("{text} is a filter"))
    }

    #[test]
    fn subjects_and_filters_are_told_from_other_texts() {
        assert!(is_subject("scores.eu-1.a_b") && is_subject("ä"));
        for text in ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "a.{partition}", &"x".repeat(256)] {
            assert!(!is_subject(text), "{text}");
        }
        for text in ["a", "*", ">", "a.*.b", "a.>", "a.{partition}", "{partition}.>"] {
            filter(text);
        }
        for text in ["", "a..b", "a.>.b", "a b", "{partition}.{partition}", "a{partition}", "{x}", "$JS.a"] {
            assert_eq!(SubjectFilter::new(text), None, "{text}");
        }
    }

    proptest! {
        /// What two filters share is found among all subjects of a small alphabet.
        #[test]
        fn overlaps_as_the_subjects_say(one in "([ab*]\\.){0,2}[ab*>]", other in "([ab*]\\.){0,2}[ab*>]") {
            let (one, other) = (filter(&one), filter(&other));
            let tokens = ["a", "b", "c"];
            let mut subjects: Vec<String> = tokens.iter().map(ToString::to_string).collect();
            let mut longest = subjects.clone();
            for _ in 0..3 {
                longest = longest.iter().flat_map(|head| tokens.map(|token| format!("{head}.{token}"))).collect();
                subjects.extend(longest.iter().cloned());
            }
            let shared = subjects.iter().any(|subject| one.matches(subject) && other.matches(subject));
            prop_assert_eq!(one.overlaps(&other), shared);
        }
    }
}
