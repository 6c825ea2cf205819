//! Routing traces of what the engine generates (`--record-trace`).
//!
//! Owns the recorder that the target's layers report to and the file it is written to. Rows of
//! rejected drafts never enter a trace: it is the routing of the text.

use std::path::PathBuf;
use std::sync::Arc;

use drafthorse_offload::{OffloadError, TraceRecorder};
use parking_lot::Mutex;

use crate::Error;
use crate::layers::{Route, RouteSink};
use crate::models::Blueprint;

/// A trace being recorded.
pub struct Recording {
    shared: Arc<Mutex<Shared>>,
    path: PathBuf,
}

struct Shared {
    recorder: TraceRecorder,
    /// The first thing that could not be recorded; the layers cannot return it themselves.
    failure: Option<OffloadError>,
}

/// The end that layers report to.
struct Sink(Arc<Mutex<Shared>>);

impl RouteSink for Sink {
    fn routed(&mut self, layer: u32, _used: usize, routes: &[Route]) {
        let experts: Vec<u32> = routes.iter().map(|route| route.expert).collect();
        let weights: Vec<f32> = routes.iter().map(|route| route.weight).collect();
        let mut shared = self.0.lock();
        if let Err(error) = shared.recorder.record(layer, &experts, &weights) {
            shared.failure.get_or_insert(error);
        }
    }
}

impl Recording {
    /// A recording of a model's routing, to be written to `path`.
    ///
    /// # Errors
    /// A model without routed experts, or with more than the format can name.
    pub fn new(blueprint: &Blueprint, path: PathBuf) -> Result<Recording, Error> {
        let (Some(moe), Some(experts)) = (&blueprint.spec.moe, &blueprint.experts) else {
            return Err(Error::Usage("--record-trace: the model has no routed experts".into()));
        };
        let layers = experts.index.layers();
        let recorder = TraceRecorder::new(blueprint.spec.architecture, layers, moe.experts, moe.used)?;
        Ok(Recording { shared: Arc::new(Mutex::new(Shared { recorder, failure: None })), path })
    }

    /// The sink to be given to the model.
    pub fn sink(&self) -> Box<dyn RouteSink + Send> {
        Box::new(Sink(Arc::clone(&self.shared)))
    }

    /// Keeps the first `rows` rows reported since the last call and drops the others.
    pub fn commit(&self, rows: usize) -> Result<(), Error> {
        let mut shared = self.shared.lock();
        match shared.failure.take() {
            Some(failure) => Err(failure.into()),
            None => Ok(shared.recorder.commit(rows)?),
        }
    }

    /// Ends the present sequence and writes everything recorded so far, replacing the file whole.
    pub fn write(&self) -> Result<(), Error> {
        let trace = {
            let mut shared = self.shared.lock();
            shared.recorder.end_sequence();
            shared.recorder.clone().finish()
        };
        let mut bytes = Vec::new();
        trace.write(&mut bytes)?;
        let unfinished = self.path.with_extension("moetrace.part");
        let write = || -> std::io::Result<()> {
            std::fs::write(&unfinished, &bytes)?;
            std::fs::rename(&unfinished, &self.path)
        };
        write().map_err(|source| {
            let _ = std::fs::remove_file(&unfinished);
            Error::io("write", &self.path, source)
        })
    }
}
