//! Marks the part of a round that counts: callgrind by the name of a function, the allocator by its counts.

use crate::allocator::Counted;

/// What a round hands its work to.
pub(crate) struct Probe {
    measuring: bool,
    counted: Option<Counted>,
}

impl Probe {
    /// Runs the work and counts nothing.
    pub(crate) fn warm_up() -> Self {
        Self { measuring: false, counted: None }
    }

    /// Counts what the work costs.
    pub(crate) fn measuring() -> Self {
        Self { measuring: true, counted: None }
    }

    /// Runs the part of a round that counts. Once a round: callgrind's figures are of the first time.
    pub(crate) fn measure(&mut self, mut work: impl FnMut()) {
        if self.measuring {
            assert!(self.counted.is_none(), "a round measures once");
            let before = Counted::so_far();
            measured_part(&mut work);
            measured_end();
            self.counted = Some(Counted::so_far() - before);
        } else {
            work();
        }
    }

    /// What was counted, if a round measured.
    pub(crate) fn counted(&self) -> Option<Counted> {
        self.counted
    }
}

/// Callgrind starts to count where this is entered.
#[inline(never)]
fn measured_part(work: &mut dyn FnMut()) {
    work();
    // Keeps the call above from becoming a jump out of here.
    std::hint::black_box(());
}

/// Callgrind writes down what it counted before this is entered.
#[inline(never)]
fn measured_end() {
    std::hint::black_box(());
}
