//! Another draft length for an engine that is open: what it costs to try one is a generation, no loading.
//!
//! Owns the controllers of the lengths that are not in use. What is planned per step is the controller's.

use drafthorse_draft::FeatureNeed;
use drafthorse_scheduler::{Controller, ControllerConfig, DraftLen};

use super::Engine;
use crate::Error;

/// The draft length in use, and what was measured under others.
pub(super) struct Lengths {
    config: ControllerConfig,
    parked: Vec<(ControllerConfig, Controller)>,
}

impl Lengths {
    /// For an engine whose controller is made from `config`.
    pub(super) fn new(config: ControllerConfig) -> Lengths {
        Lengths { config, parked: Vec::new() }
    }
}

impl Engine {
    /// Drafts are of this length from now on. A length that was in use before goes on with what was
    /// measured then.
    ///
    /// # Errors
    /// A length beyond what the engine was opened for: passes that wide are not in its memory plan. A head in an
    /// engine that was opened for plain decoding: it has not followed the text.
    pub fn set_draft_len(&mut self, mode: DraftLen) -> Result<(), Error> {
        let config = ControllerConfig { mode, ..self.lengths.config };
        config.validate()?;
        let rows = self.logit_rows.min(self.target.rows_max());
        let longest = match mode {
            DraftLen::Fixed(len) => len,
            DraftLen::Auto => config.draft_len_max,
        };
        let is_shown = self.target.features().is_some();
        let needs_showing =
            self.drafter.as_ref().is_some_and(|drafter| drafter.features() != FeatureNeed::None);
        if longest > 0 && needs_showing && !is_shown {
            return Err(Error::Usage(
                "this engine was opened for plain decoding, and its head was shown nothing".into(),
            ));
        }
        if longest >= rows {
            return Err(Error::Usage(format!(
                "draft length {longest}: this engine was opened for at most {}",
                rows - 1
            )));
        }
        if config == self.lengths.config {
            return Ok(());
        }
        let known = self.lengths.parked.iter().position(|(other, _)| *other == config);
        let next = known
            .map_or_else(|| Controller::new(config, self.effort), |at| self.lengths.parked.swap_remove(at).1);
        let last = std::mem::replace(&mut self.controller, next);
        let last_config = std::mem::replace(&mut self.lengths.config, config);
        self.lengths.parked.push((last_config, last));
        Ok(())
    }
}
