//! Decides and never acts: how many tokens to draft, to verify and to drop again, what to read ahead, what fits the
//! budget.
//!
//! Owns the draft-length [`Controller`], the [`PrefetchController`] and the memory-budget arithmetic of
//! [`MemoryPlan`]. Plain data in, plain data out: it performs no I/O, starts no thread and reads no
//! clock; the engine measures and reports through `observe`.
//!
//! 1. Draft length 0 is a plan like any other and costs exactly a plain step (DESIGN I4).
//! 2. A plan never exceeds its budget; a refusal shows the arithmetic and the budget that would do (I1).

mod account;
mod budget;
mod calibration;
mod certainty;
mod controller;
mod cost;
mod draft_len;
mod elastic;
mod error;
mod estimate;
mod explain;
mod fit;
mod lessons;
mod normal;
mod pace;
mod paired;
mod prefetch;
mod prefetch_mode;
mod prospect;
mod undrafted;

pub use budget::{BudgetError, MemoryPlan, Needs, PlanLine};
pub use controller::{
    Controller, ControllerConfig, DRAFT_LEN_LIMIT, DraftEffort, Plan, StepOutcome, Watched,
};
pub use cost::CostTerms;
pub use draft_len::DraftLen;
pub use elastic::{ElasticMode, RowRule, RowsSeen};
pub use error::SchedulerError;
pub use explain::{Explanation, LengthReport};
pub use lessons::Lessons;
pub use prefetch::{
    PREFETCH_RANKS_MAX, PrefetchController, PrefetchLessons, PrefetchOutcome, PrefetchPlan, RankOutcome,
};
pub use prefetch_mode::PrefetchMode;
