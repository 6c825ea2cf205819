//! Where a pass's time goes: one clock, one phase at a time, so that the phases sum to the wall.
//!
//! Owns the running phase and the totals. It must not know what the phases do; whoever finishes one
//! says so with [`Clock::lap`].

use std::ops::Sub;
use std::time::Instant;

use serde::Serialize;

/// What the time up to a lap was spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The drafter's proposal.
    Draft,
    /// Embedding, norms, attention, dense and shared feed-forward, classifier.
    Dense,
    /// Routing, predictions, and the bookkeeping of the expert cache.
    Router,
    /// Routed experts.
    Experts,
    /// Blocked on the disk.
    Stall,
    /// Choosing tokens and verifying drafted ones.
    Sampling,
}

/// Seconds by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spans {
    /// [`Phase::Draft`].
    pub draft_s: f64,
    /// [`Phase::Dense`].
    pub dense_s: f64,
    /// [`Phase::Router`].
    pub router_s: f64,
    /// [`Phase::Experts`].
    pub experts_s: f64,
    /// [`Phase::Stall`].
    pub stall_s: f64,
    /// [`Phase::Sampling`].
    pub sampling_s: f64,
}

impl Spans {
    /// Seconds of all phases.
    pub fn sum(&self) -> f64 {
        self.draft_s + self.dense_s + self.router_s + self.experts_s + self.stall_s + self.sampling_s
    }

    fn of(&mut self, phase: Phase) -> &mut f64 {
        match phase {
            Phase::Draft => &mut self.draft_s,
            Phase::Dense => &mut self.dense_s,
            Phase::Router => &mut self.router_s,
            Phase::Experts => &mut self.experts_s,
            Phase::Stall => &mut self.stall_s,
            Phase::Sampling => &mut self.sampling_s,
        }
    }
}

impl Sub for Spans {
    type Output = Spans;

    fn sub(self, other: Spans) -> Spans {
        Spans {
            draft_s: self.draft_s - other.draft_s,
            dense_s: self.dense_s - other.dense_s,
            router_s: self.router_s - other.router_s,
            experts_s: self.experts_s - other.experts_s,
            stall_s: self.stall_s - other.stall_s,
            sampling_s: self.sampling_s - other.sampling_s,
        }
    }
}

/// A stopwatch that always runs for somebody.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    last: Instant,
    spans: Spans,
}

impl Clock {
    /// Starts now, with nothing spent.
    pub fn new() -> Clock {
        Clock { last: Instant::now(), spans: Spans::default() }
    }

    /// Forgets the time since the last lap: it was nobody's.
    pub fn restart(&mut self) {
        self.last = Instant::now();
    }

    /// The time since the last lap went to `phase`.
    pub fn lap(&mut self, phase: Phase) {
        let now = Instant::now();
        *self.spans.of(phase) += (now - self.last).as_secs_f64();
        self.last = now;
    }

    /// Seconds so far.
    pub fn spans(&self) -> Spans {
        self.spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_between_laps_belongs_to_exactly_one_phase() {
        let began = Instant::now();
        let mut clock = Clock::new();
        for phase in
            [Phase::Draft, Phase::Dense, Phase::Router, Phase::Experts, Phase::Stall, Phase::Sampling]
        {
            std::thread::sleep(std::time::Duration::from_millis(1));
            clock.lap(phase);
        }
        let spans = clock.spans();
        assert!(spans.sum() <= began.elapsed().as_secs_f64());
        assert!(spans.sum() >= 0.006);
        assert!([spans.draft_s, spans.dense_s, spans.router_s].iter().all(|s| *s >= 0.001));
        assert_eq!((spans - spans).sum(), 0.0);
    }

    #[test]
    fn time_before_a_restart_is_nobodys() {
        let mut clock = Clock::new();
        std::thread::sleep(std::time::Duration::from_millis(20));
        clock.restart();
        clock.lap(Phase::Dense);
        assert!(clock.spans().dense_s < 0.02);
    }
}
