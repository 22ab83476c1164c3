//! `${NAME}`, `${NAME:-default}` and `${file:/path}` in a string of the config become what they stand for; `$$` is a
//! dollar. What was put in is not looked at again, so that a secret may hold any characters.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::Path;

/// What a config may ask of the world. Tests answer from a table.
pub trait Environment {
    /// The environment variable, if it is set.
    fn var(&self, name: &str) -> Option<String>;

    /// The text of a file.
    ///
    /// # Errors
    /// The file cannot be read, or is not UTF-8.
    fn read(&self, path: &Path) -> io::Result<String>;

    /// The system's host name: `${HOSTNAME}` where no such variable is set (shells set it, but seldom export it).
    fn host_name(&self) -> Option<String>;
}

/// The environment, files and host name of this process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn var(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        fs::read_to_string(path)
    }

    fn host_name(&self) -> Option<String> {
        let read = |path| fs::read_to_string(path).ok().map(|name: String| name.trim().to_owned());
        ["/proc/sys/kernel/hostname", "/etc/hostname"].into_iter().find_map(read).filter(|name| !name.is_empty())
    }
}

/// The text with everything filled in; borrowed when there was nothing to fill in. Relative files are taken from
/// `base_dir`.
///
/// # Errors
/// A message that names the variable or file, and the remedy. It never holds what was read.
pub(super) fn substitute<'t>(text: &'t str, base_dir: &Path, env: &dyn Environment) -> Result<Cow<'t, str>, String> {
    if !text.contains("${") && !text.contains("$$") {
        return Ok(Cow::Borrowed(text));
    }
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        filled.push_str(before);
        rest = if let Some(tail) = after.strip_prefix('$') {
            filled.push('$');
            tail
        } else if let Some(tail) = after.strip_prefix('{') {
            let (reference, tail) =
                tail.split_once('}').ok_or("\"${\" has no closing \"}\"; write \"$$\" for a plain dollar")?;
            filled.push_str(&resolve(reference, base_dir, env)?);
            tail
        } else {
            filled.push('$');
            after
        };
    }
    filled.push_str(rest);
    Ok(Cow::Owned(filled))
}

/// The text that [`substitute`] turns back into `text`.
pub(super) fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

fn resolve(reference: &str, base_dir: &Path, env: &dyn Environment) -> Result<String, String> {
    if let Some(path) = reference.strip_prefix("file:") {
        return read(path, base_dir, env);
    }
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    if !is_variable(name) {
        return Err(format!(
            "\"${{{reference}}}\" is neither a variable nor a file; write \"${{NAME}}\", \"${{NAME:-default}}\", \
             \"${{file:/path}}\", or \"$$\" for a plain dollar"
        ));
    }
    let host_name = || {
        if name == "HOSTNAME" { env.host_name() } else { None }
    };
    // As in a shell: `:-` also replaces a variable that is set but empty. An empty host name names nobody.
    let may_be_empty = default.is_none() && name != "HOSTNAME";
    let value = env.var(name).filter(|value| may_be_empty || !value.is_empty());
    value
        .or_else(host_name)
        .or_else(|| default.map(str::to_owned))
        .ok_or_else(|| format!("the environment variable {name} is not set; set it, or write \"${{{name}:-default}}\""))
}

fn read(path: &str, base_dir: &Path, env: &dyn Environment) -> Result<String, String> {
    let path = base_dir.join(path);
    let mut text = env.read(&path).map_err(|source| {
        format!("the file {} cannot be read: {source}; check the path and who may read it", path.display())
    })?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

fn is_variable(name: &str) -> bool {
    let starts = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    starts && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::tests::Fake;

    fn filled(text: &str) -> Result<String, String> {
        let env =
            Fake::new(&[("USER_1", "ann"), ("EMPTY", ""), ("TRICKY", "${USER_1}$$")], &[("/run/pw", "a$${b\r\n")]);
        substitute(text, Path::new("/run"), &env).map(Cow::into_owned)
    }

    #[test]
    fn fills_in_once() {
        let cases = [
            ("plain $5 {x}", "plain $5 {x}"),
            ("<${USER_1}>", "<ann>"),
            ("${NONE:-a:-b}${EMPTY:-c}${USER_1:-d}", "a:-bcann"),
            ("[${EMPTY}${NONE:-}]", "[]"),
            ("${TRICKY}", "${USER_1}$$"),
            ("${file:/run/pw}${file:pw}", "a$${ba$${b"),
            ("$$${USER_1} $${USER_1} $", "$ann ${USER_1} $"),
            ("${HOSTNAME}", "box"),
        ];
        for (text, want) in cases {
            assert_eq!(filled(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn faults_name_the_remedy() {
        let cases = [
            ("${NONE}", "the environment variable NONE is not set; set it, or write \"${NONE:-default}\""),
            ("a ${USER_1", "\"${\" has no closing \"}\"; write \"$$\" for a plain dollar"),
            (
                "${1+1}",
                "\"${1+1}\" is neither a variable nor a file; write \"${NAME}\", \"${NAME:-default}\", \
                 \"${file:/path}\", or \"$$\" for a plain dollar",
            ),
            ("${file:gone}", "the file /run/gone cannot be read: entity not found; check the path and who may read it"),
        ];
        for (text, want) in cases {
            assert_eq!(filled(text), Err(want.to_owned()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_literal_comes_back(text in "[a${}:/ -]{0,20}") {
            prop_assert_eq!(filled(&literal(&text)), Ok(text));
        }
    }
}
