//! Where the demo streams, as the rest of it sees that: requests in, replies out, and how far the workers are. What is
//! Kafka's own is in `cluster`, what is NATS' own in `streams`.

use std::sync::Arc;

use super::data::Data;

/// Partitions of the input.
pub(super) const PARTITIONS: i32 = 4;

/// Requests and replies of one run, made for it and removed after it.
pub(super) trait Place {
    /// What the head says of it, a line or two.
    fn head(&self, rate_per_s: u32) -> String;

    /// What worker.toml says of it, its route included.
    fn toml(&self) -> String;

    /// Where requests go.
    fn requests(&self) -> anyhow::Result<Box<dyn Requests>>;

    /// All replies, from the first.
    fn replies(&self) -> anyhow::Result<Box<dyn Replies>>;

    /// Whether this many workers share the partitions.
    fn is_shared_by(&self, workers: usize) -> bool;

    /// Whether the workers have said of all of the input that it is done.
    fn is_all_done(&self) -> bool;

    /// Shows what the workers do besides the flow, before it. Returns what was wrong with that.
    fn show_service(&self, _data: &Arc<Data>) -> anyhow::Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// What to do next.
    fn next(&self) -> Option<&'static str>;

    /// Removes what was made.
    fn clean_up(&self);
}

/// Takes requests.
pub(super) trait Requests: Send {
    /// Sends one; it may go out later, and again until it is there, once.
    fn send(&mut self, record: usize, body: String) -> anyhow::Result<()>;

    /// Waits until all that was sent is there.
    fn flush(&mut self) -> anyhow::Result<()>;
}

/// Gives replies.
pub(super) trait Replies {
    /// Hands on what is there; waits a moment when nothing is.
    fn read(&mut self, each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()>;

    /// Whether all that is there was handed on.
    fn is_at_end(&self) -> anyhow::Result<bool>;
}
