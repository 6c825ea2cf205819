//! Decides and never acts: how many tokens to draft, how many to verify, and what fits the budget.
//!
//! Owns the draft-length [`Controller`] and the memory-budget arithmetic of [`MemoryPlan`]. Plain data
//! in, plain data out: it performs no I/O, starts no thread and reads no clock; the engine measures
//! and reports through [`Controller::observe`].
//!
//! 1. Draft length 0 is a plan like any other and costs exactly a plain step (DESIGN I4).
//! 2. A plan never exceeds its budget; a refusal shows the arithmetic and the budget that would do (I1).

mod budget;
mod controller;
mod draft_len;
mod error;
mod estimate;
mod prefetch;

pub use budget::{BudgetError, MemoryPlan, Needs, PlanLine};
pub use controller::{Controller, ControllerConfig, DRAFT_LEN_LIMIT, Plan, StepOutcome};
pub use draft_len::DraftLen;
pub use prefetch::PrefetchMode;
pub use error::SchedulerError;
