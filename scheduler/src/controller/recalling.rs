//! Handing on what was learned, and beginning with it.
//!
//! Owns which of it holds for another run. What it is worth there is each estimator's to say. It must not plan.

use super::{Controller, Lessons};
use crate::DraftLen;
use crate::estimate::Mean;
use crate::lessons::DraftLesson;

impl Controller {
    /// What holds for another run of the same model, drafter and machine; `None` before plain passes and drafts were
    /// measured, and where the length was fixed: it teaches one length only.
    pub fn lessons(&self) -> Option<Lessons> {
        let drafts = || {
            let pace_s = self.verify_s.pace_now_s();
            let measured = self.drafting.measured().map(|(draft_len, passes)| (draft_len, passes * pace_s));
            measured.map(|(draft_len, seconds)| DraftLesson { draft_len, seconds }).collect::<Vec<_>>()
        };
        let is_whole = self.config.mode == DraftLen::Auto && self.verify_s.is_measured(0);
        (is_whole && self.planned_max > 0).then(drafts).filter(|drafts| !drafts.is_empty()).map(|drafts| {
            let (texts_unlooked, texts_vain) = self.texts_with_this();
            Lessons {
                passes: self.verify_s.lessons(),
                drafts,
                texts_unlooked,
                texts_vain,
                catch_up_s: self.catching_up.map(|mean| mean.value() * self.verify_s.pace_now_s()),
                survival: self.survival.clone(),
                calibration: self.calibration.clone(),
                certainty: self.certainty.clone(),
            }
        })
    }

    /// Begins with the lessons of an earlier run, which have passed [`Lessons::validate`], instead of plain passes.
    /// They are believed as far as a few passes would be, as the machine may have other things to do now. What follows
    /// is another text ([`Controller::begin_text`]). Without effect on a controller that has run passes, or has a fixed
    /// length.
    pub fn recall(&mut self, lessons: &Lessons) {
        let length_max = self.config.draft_len_max;
        let drafts = lessons.drafts.iter().filter(|draft| (1..=length_max).contains(&draft.draft_len));
        let drafts: Vec<_> = drafts.collect();
        let Some(longest) = drafts.last().filter(|_| self.passes == 0 && self.config.mode == DraftLen::Auto)
        else {
            return;
        };
        self.planned_max = longest.draft_len;
        (self.texts_unlooked, self.texts_vain) = (lessons.texts_unlooked, lessons.texts_vain);
        self.verify_s.recall(&lessons.passes);
        let Some(pace_s) = self.verify_s.pace_s() else { return };
        drafts.iter().for_each(|draft| self.drafting.add(draft.draft_len, draft.seconds / pace_s));
        self.catching_up = lessons.catch_up_s.map(|seconds| Mean::prior(seconds / pace_s, 1.0));
        self.survival = lessons.survival.clone();
        self.calibration = lessons.calibration.clone();
        self.certainty = lessons.certainty.clone();
        self.plain_first = 0;
    }
}
