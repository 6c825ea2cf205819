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
        let shared = Arc::new(Mutex::new(Shared { recorder, failure: None }));
        let recording = Recording { shared, path };
        // A place that cannot be written to is found now, not after the text.
        std::fs::write(recording.unfinished(), b"")
            .and_then(|()| std::fs::remove_file(recording.unfinished()))
            .map_err(|source| recording.unwritable(source))?;
        Ok(recording)
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

    /// Drops the rows of a pass that failed, and what could not be recorded; ends the sequence.
    pub fn abandon(&self) {
        let mut shared = self.shared.lock();
        shared.failure = None;
        // Committing no rows cannot fail: no layer has fewer.
        let _ = shared.recorder.commit(0);
        shared.recorder.end_sequence();
    }

    /// Where the file is written before it takes its name.
    fn unfinished(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".part");
        name.into()
    }

    fn unwritable(&self, source: std::io::Error) -> Error {
        let _ = std::fs::remove_file(self.unfinished());
        Error::io("write", &self.path, source)
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
        std::fs::write(self.unfinished(), &bytes)
            .and_then(|()| std::fs::rename(self.unfinished(), &self.path))
            .map_err(|source| self.unwritable(source))
    }
}
