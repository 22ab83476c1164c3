//! `make bench-submit`: what submitting costs beside plain queues, and how late deadlines are kept.
//!
//! It goes through the library's own door, as the pipeline's shards do: a registered submitter hands over whole chunks.
//! Times depend on what else runs. The exit code is 1 when a request is lost or ends twice, not when it is slow.
#![allow(clippy::print_stdout, reason = "it is a program")]

mod contention;
mod deadlines;
mod engine;
mod queues;

use std::process::ExitCode;

fn main() -> ExitCode {
    match contention::print().and_then(|()| deadlines::print()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-submit: {error:#}");
            ExitCode::FAILURE
        }
    }
}
