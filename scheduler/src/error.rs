//! The errors of this crate.
//!
//! Owns [`SchedulerError`]: refused budgets, settings outside their limits and lessons that cannot be.

use crate::BudgetError;

/// What the scheduler refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// The memory budget cannot be planned.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// A setting lies outside its limits.
    #[error("{field} = {value}: must be {limits}")]
    Setting {
        /// The setting's name as users write it.
        field: &'static str,
        /// The value given.
        value: String,
        /// The values allowed, in words.
        limits: String,
    },
    /// What is said to have been learned was learned by no controller.
    #[error("lessons of an earlier run: {what}")]
    Lessons {
        /// What is wrong.
        what: String,
    },
}
