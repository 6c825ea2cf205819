//! Who hears where the target's rows were sent: the trace (`--record-trace`) and the shadow of the expert cache.
//!
//! Owns both, and tells them which rows stay: rejected drafts are in no trace, and in the shadow's plain half
//! never were. What follows from the shadow's counts is the scheduler's.

use std::sync::Arc;

use drafthorse_offload::{Shadow, ShadowMisses};
use parking_lot::Mutex;

use crate::Error;
use crate::layers::{Route, RouteSink};
use crate::models::Model;
use crate::recorder::Recording;

/// The hearers of one engine.
pub(super) struct Routes {
    recording: Option<Recording>,
    shadow: Option<Arc<Mutex<Shadow>>>,
}

/// The shadow's end that layers report to.
struct ToShadow(Arc<Mutex<Shadow>>);

impl RouteSink for ToShadow {
    fn routed(&mut self, layer: u32, _used: usize, routes: &[Route]) {
        self.0.lock().routed(layer, routes.iter().map(|route| route.expert));
    }
}

impl Routes {
    /// Makes `target` report to `recording`, and where drafts may drive experts out (`has_drafter`, and fewer slots
    /// than experts) to a shadow of its cache.
    pub(super) fn new(recording: Option<Recording>, has_drafter: bool, target: &mut Model) -> Routes {
        let shadow = shadow_of(target).filter(|_| has_drafter).map(|shadow| Arc::new(Mutex::new(shadow)));
        let to_shadow = shadow.iter().map(|shadow| Box::new(ToShadow(Arc::clone(shadow))) as Box<_>);
        target.set_route_sinks(recording.iter().map(Recording::sink).chain(to_shadow).collect());
        Routes { recording, shadow }
    }

    /// Of the rows since the last call the first `rows` stay. They were a prompt's, or one pass's.
    ///
    /// # Errors
    /// Routes that cannot be.
    pub(super) fn commit(&self, rows: usize, is_prompt: bool) -> Result<Option<ShadowMisses>, Error> {
        self.recording.as_ref().map_or(Ok(()), |recording| recording.commit(rows))?;
        let misses = self.shadow.as_ref().map(|shadow| shadow.lock().commit(rows, is_prompt));
        Ok(misses.transpose()?)
    }

    /// Writes the trace of what was generated; after an error, drops the rows of the pass that failed.
    pub(super) fn end<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        self.shadow.iter().for_each(|shadow| shadow.lock().abandon());
        match (&self.recording, &outcome) {
            (Some(recording), Ok(_)) => recording.write()?,
            (Some(recording), Err(_)) => recording.abandon(),
            (None, _) => {}
        }
        outcome
    }
}

fn shadow_of(target: &Model) -> Option<Shadow> {
    let blueprint = target.blueprint();
    let (moe, experts) = blueprint.spec.moe.as_ref().zip(blueprint.experts.as_ref())?;
    let residency = target.residency()?;
    // What is on a GPU is not read from the disk either.
    let slots = residency.slots + target.gpu_stats().map_or(0, |stats| stats.slots);
    (slots < residency.experts_total).then(|| Shadow::new(&experts.index, slots, moe.used))
}
