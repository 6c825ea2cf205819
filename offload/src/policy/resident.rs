//! Resident experts of each layer and the least wanted one of each: what `lfu` and `gating` share.
//!
//! How much an expert is wanted is a number the policy sets, layer by layer. The least wanted expert of
//! a layer is found once (O(experts of the layer)) and remembered until a number or the residency of
//! the layer changes; a victim then costs O(layers).

use crate::ExpertId;

/// An expert and how much it is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) wanted: f64,
    pub(super) id: ExpertId,
}

/// Which experts are resident, and how much each is wanted.
pub(super) struct Residents {
    layers: Vec<Layer>,
}

struct Layer {
    resident: Vec<bool>,      // (experts)
    wanted: Vec<f64>,         // (experts)
    least: Option<Candidate>, // None when not known
}

impl Residents {
    /// Nothing resident, nothing wanted.
    pub(super) fn new(experts: &[u32]) -> Residents {
        let layer = |n: &u32| Layer {
            resident: vec![false; *n as usize],
            wanted: vec![0.0; *n as usize],
            least: None,
        };
        Residents { layers: experts.iter().map(layer).collect() }
    }

    pub(super) fn layers(&self) -> u32 {
        self.layers.len() as u32
    }

    /// Sets how much each expert of a layer is wanted.
    pub(super) fn want(&mut self, layer: u32, wanted: impl Iterator<Item = f64>) {
        let Some(layer) = self.layers.get_mut(layer as usize) else { return };
        layer.wanted.iter_mut().zip(wanted).for_each(|(old, new)| *old = new);
        layer.least = None;
    }

    pub(super) fn insert(&mut self, id: ExpertId) {
        self.set(id, true);
    }

    pub(super) fn remove(&mut self, id: ExpertId) {
        self.set(id, false);
    }

    /// The evictable expert of a layer that is wanted least, the lowest on ties.
    pub(super) fn least(&mut self, layer: u32, evictable: &dyn Fn(ExpertId) -> bool) -> Option<Candidate> {
        let known = self.layers.get(layer as usize)?.least;
        let least = known.or_else(|| self.scan(layer, &|_| true));
        self.layers.get_mut(layer as usize)?.least = least;
        least.filter(|c| evictable(c.id)).or_else(|| self.scan(layer, evictable))
    }

    fn scan(&self, layer: u32, evictable: &dyn Fn(ExpertId) -> bool) -> Option<Candidate> {
        let Layer { resident, wanted, .. } = self.layers.get(layer as usize)?;
        let experts = (0..).zip(resident.iter().zip(wanted)).filter(|(_, (resident, _))| **resident);
        let experts = experts.map(|(expert, (_, wanted))| (ExpertId { layer, expert }, *wanted));
        experts
            .filter(|(id, _)| evictable(*id))
            .map(|(id, wanted)| Candidate { wanted, id })
            .min_by(|a, b| a.wanted.total_cmp(&b.wanted))
    }

    fn set(&mut self, id: ExpertId, resident: bool) {
        let Some(layer) = self.layers.get_mut(id.layer as usize) else { return };
        let Some(place) = layer.resident.get_mut(id.expert as usize) else { return };
        *place = resident;
        layer.least = None;
    }
}
