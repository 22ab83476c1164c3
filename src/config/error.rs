//! What is wrong with a config, in the user's words: file, line, dotted key, what was found and what is wanted.

use std::fmt;
use std::io;

/// Why there is no [`Config`](super::Config).
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file itself cannot be read.
    #[error("{file}: cannot be read: {source}; check the path and that this user may read it")]
    Unreadable {
        /// The file, as it was named.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file was read, and these are all its problems, one line each.
    #[error("{}", lines(.file, .problems))]
    Invalid {
        /// The file, as it was named.
        file: String,
        /// In the order of the file's lines; never empty.
        problems: Vec<Problem>,
    },
}

/// One thing to change in a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line in the file, from 1, where the file has one for it.
    pub line: Option<usize>,
    /// The dotted key (`model[0].batch.timeout`) or option (`--instance`); empty where the text is not TOML.
    pub key: String,
    /// What was found, and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

fn lines(file: &str, problems: &[Problem]) -> String {
    let line = |problem: &Problem| match problem.line {
        Some(line) => format!("{file}:{line}: {problem}"),
        None => format!("{file}: {problem}"),
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}
