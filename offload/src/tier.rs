//! A second memory for experts, nearer to where they are computed (VRAM): which of them are in it.
//!
//! Owns its slots, who is in which, what the present window holds on to, and whether an expert that is being
//! computed elsewhere is worth a slot. Victims are the policy's choice, as in the cache behind it. It must not
//! know how bytes get there.

use crate::ExpertId;
use crate::error::OffloadError;
use crate::gating::{GatingStats, HalfLife};
use crate::index::ExpertIndex;
use crate::policy::{Policy, WarmStats};

/// An expert takes another's slot only if it is this much likelier to be wanted (ALGORITHMS.md H.8): what is
/// moved to and fro costs the link and gains nothing.
const PROMOTION_MIN: f64 = 1.2;
/// Rows of a layer after which a selection counts half in that comparison.
const HALF_LIFE_ROWS: f64 = 64.0;

/// Counters of a tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierStats {
    /// Experts it has room for.
    pub slots: usize,
    /// Experts wanted that were in it.
    pub hits: u64,
    /// Experts wanted that were not.
    pub misses: u64,
    /// Experts brought in.
    pub admitted: u64,
    /// Of these, those that took another's slot.
    pub evicted: u64,
}

/// The experts in the nearer memory.
pub struct Tier {
    index: ExpertIndex,
    policy: Box<dyn Policy>,
    gating: GatingStats,
    slot_of: Vec<Option<usize>>, // by flat expert number
    held: Vec<Option<ExpertId>>, // by slot
    window_of: Vec<u64>,         // by slot: the window that last held on to it
    free: Vec<usize>,
    window: u64,
    unlearnt: Option<Selection>,
    stats: TierStats,
}

/// What the router selected in a window.
struct Selection {
    layer: u32,
    experts: Vec<u32>,
    counts: Vec<u32>,
}

impl Tier {
    /// An empty tier of `slots` slots; `policy` was built for them. `experts_used` is how many a row wants.
    pub fn new(index: ExpertIndex, slots: usize, policy: Box<dyn Policy>, experts_used: u32) -> Tier {
        let slots = slots.min(index.experts_total());
        let experts: Vec<u32> = (0..index.layers() as u32).map(|layer| index.experts(layer) as u32).collect();
        let half_life = [HalfLife { rows: HALF_LIFE_ROWS, weight: 1.0 }];
        Tier {
            policy,
            gating: GatingStats::new(&experts, experts_used.max(1), &half_life),
            slot_of: vec![None; index.experts_total()],
            held: vec![None; slots],
            window_of: vec![0; slots],
            free: (0..slots).rev().collect(),
            window: 0,
            unlearnt: None,
            stats: TierStats { slots, ..TierStats::default() },
            index,
        }
    }

    /// Begins a window that wants `experts` of `layer`, `counts` rows each. Returns those that are in the tier, in
    /// the order given; they stay until the next window begins. Unknown experts are ignored.
    pub fn begin(&mut self, layer: u32, experts: &[u32], counts: &[u32]) -> Vec<u32> {
        self.window += 1;
        self.learn();
        self.unlearnt = Some(Selection { layer, experts: experts.to_vec(), counts: counts.to_vec() });
        let mut found = Vec::with_capacity(experts.len());
        for &expert in experts {
            match self.slot(ExpertId { layer, expert }) {
                Some(slot) => {
                    self.window_of[slot] = self.window;
                    found.push(expert);
                }
                None => self.stats.misses += 1,
            }
        }
        self.stats.hits += found.len() as u64;
        found
    }

    /// Takes in what the window selected. It is done by itself before somebody comes in or has to go, and when the next
    /// window begins; a caller who has time before that, once the window's work is queued, does it then.
    pub fn learn(&mut self) {
        let Some(Selection { layer, experts, counts }) = self.unlearnt.take() else { return };
        self.gating.observe(layer, &experts, &counts);
        self.policy.observe(layer, &experts, &counts);
    }

    /// The slot that an expert is in.
    pub fn slot(&self, id: ExpertId) -> Option<usize> {
        self.index.flat(id).and_then(|flat| self.slot_of[flat])
    }

    /// Whether bringing the expert in is likely to pay: there is room, or somebody in it is clearly less likely
    /// to be wanted.
    pub fn is_worth_admitting(&mut self, id: ExpertId) -> bool {
        if self.slot(id).is_some() || self.index.flat(id).is_none() {
            return false;
        }
        if !self.free.is_empty() {
            return true;
        }
        self.learn();
        let Some(victim) = self.victim(id.layer) else { return false };
        let chance = |id: ExpertId| self.gating.probability(id.layer, id.expert);
        chance(id) > PROMOTION_MIN * chance(victim)
    }

    /// Gives the expert a slot, which the window holds on to; another may lose its own. `None` when the window
    /// holds on to all.
    ///
    /// # Errors
    /// An unknown expert.
    pub fn admit(&mut self, id: ExpertId) -> Result<Option<usize>, OffloadError> {
        let experts = self.index.experts(id.layer);
        let flat = self.index.flat(id).ok_or(OffloadError::NoSuchExpert { id, experts })?;
        if let Some(slot) = self.slot_of[flat] {
            self.window_of[slot] = self.window;
            return Ok(Some(slot));
        }
        self.learn();
        if self.free.is_empty() {
            let Some(victim) = self.victim(id.layer) else { return Ok(None) };
            self.evict(victim);
        }
        let slot = self.free.pop().expect("invariant: one was made free");
        self.slot_of[flat] = Some(slot);
        self.held[slot] = Some(id);
        self.window_of[slot] = self.window;
        self.policy.insert(id);
        self.stats.admitted += 1;
        Ok(Some(slot))
    }

    /// The window no longer holds on to the expert.
    pub fn release(&mut self, id: ExpertId) {
        if let Some(slot) = self.slot(id) {
            self.window_of[slot] = 0;
        }
    }

    /// Forgets everybody.
    pub fn clear(&mut self) {
        self.held.iter().flatten().for_each(|id| self.policy.remove(*id));
        self.slot_of.fill(None);
        self.held.fill(None);
        self.window_of.fill(0);
        self.free = (0..self.held.len()).rev().collect();
    }

    /// What the policy has learnt, for another run; without a window that is still to be taken in ([`Tier::learn`]).
    pub fn warm_stats(&self) -> Option<WarmStats> {
        self.policy.warm_stats()
    }

    /// Counters so far.
    pub fn stats(&self) -> TierStats {
        self.stats
    }

    fn victim(&mut self, layer: u32) -> Option<ExpertId> {
        let Tier { index, policy, slot_of, window_of, window, .. } = self;
        let evictable = |id: ExpertId| {
            let slot = index.flat(id).and_then(|flat| slot_of[flat]);
            slot.is_some_and(|slot| window_of[slot] != *window)
        };
        policy.victim(layer, &evictable).filter(|id| evictable(*id))
    }

    fn evict(&mut self, id: ExpertId) {
        let slot = self.slot(id).expect("invariant: victims are in the tier");
        let flat = self.index.flat(id).expect("invariant: those in the tier are known");
        self.slot_of[flat] = None;
        self.held[slot] = None;
        self.free.push(slot);
        self.policy.remove(id);
        self.stats.evicted += 1;
    }
}
