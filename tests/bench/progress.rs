//! What the bench is doing, on standard error: a bar on a terminal, else a line for each stage.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// The stage that runs and how far it is.
pub(crate) struct Progress {
    bar: ProgressBar,
    terminal: bool,
}

impl Progress {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let style = ProgressStyle::with_template("{elapsed_precise} {msg:40} {wide_bar} {human_pos}/{human_len}")?;
        Ok(Self { bar: ProgressBar::new(0).with_style(style), terminal: std::io::stderr().is_terminal() })
    }

    /// Another stage begins, of so many steps.
    pub(crate) fn stage(&self, what: &str, steps: usize) {
        self.bar.set_length(steps as u64);
        self.bar.set_position(0);
        self.bar.set_message(what.to_owned());
        if !self.terminal {
            eprintln!("bench: {:4.0} s  {what}", self.bar.elapsed().as_secs_f64());
        }
    }

    pub(crate) fn at(&self, step: usize) {
        self.bar.set_position(step as u64);
    }

    /// A line that stays.
    pub(crate) fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("bench: {line}"));
    }

    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
