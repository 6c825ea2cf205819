//! Memory-budget arithmetic: what is planned, line by line, and how many expert slots fit the rest.
//!
//! Owns [`Needs`] -> [`MemoryPlan`] or [`BudgetError`]. The budget is a hard limit (DESIGN I1): a plan
//! never exceeds it, and what does not fit is refused at start with the whole sum shown. It must not
//! know how anything is allocated. Sizes come from files, so all arithmetic is checked.

use std::fmt;

/// Bytes that every plan sets aside for what allocators hold beyond what was asked of them.
const MARGIN_BYTES: u64 = 8 << 20;
/// One part in this many of everything but the slots (which are one allocation) and a GPU's share joins the margin.
const MARGIN_DIVISOR: u64 = 50;

/// What a model needs, in bytes; slots are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The process before any model: code, runtime, I/O buffers.
    pub process_bytes: u64,
    /// Weights that stay resident.
    pub dense_bytes: u64,
    /// The target's KV cache.
    pub kv_bytes: u64,
    /// Activations and other scratch.
    pub scratch_bytes: u64,
    /// The draft model with its KV cache and scratch, and what other drafters remember; 0 without either.
    pub draft_bytes: u64,
    /// What a GPU that shares the process's memory is planned to take of it, with its own margin; 0 for any other.
    pub device_bytes: u64,
    /// One expert slot.
    pub slot_bytes: u64,
    /// The fewest slots a pass can run with; 0 for a model without experts.
    pub slots_min: usize,
    /// A slot for every expert: more are of no use.
    pub slots_max: usize,
}

/// One line of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PlanLine {
    /// What it is for.
    pub name: &'static str,
    /// How many bytes.
    pub bytes: u64,
}

/// A plan that fits its budget. `Display` shows the sum.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MemoryPlan {
    /// Every line, expert slots last.
    pub lines: Vec<PlanLine>,
    /// Expert slots to allocate.
    pub slots: usize,
    /// Bytes of one slot.
    pub slot_bytes: u64,
    /// The sum of the lines.
    pub planned_bytes: u64,
    /// The limit.
    pub budget_bytes: u64,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BudgetError {
    /// Even the smallest plan is larger than the budget.
    #[error("{}", refusal(.smallest))]
    TooSmall {
        /// The smallest plan (or the one with the slots asked for): its `planned_bytes` is the
        /// smallest budget that would do.
        smallest: Box<MemoryPlan>,
    },
    /// The number of slots asked for makes no sense for this model.
    #[error("{asked} expert slots asked for: must be from {slots_min} to {slots_max} for this model")]
    Slots {
        /// The setting's value.
        asked: usize,
        /// The fewest a pass can run with.
        slots_min: usize,
        /// One for every expert.
        slots_max: usize,
    },
    /// The sizes add up to more than 64 bits hold: a file lies about them.
    #[error("the model's sizes add up to more than 2^64 bytes")]
    Overflow,
}

impl MemoryPlan {
    /// Plans `needs` within `budget_bytes`: as many slots as fit, at most `slots_max`, or exactly
    /// `slots_override`.
    ///
    /// # Errors
    /// [`BudgetError::TooSmall`] with the arithmetic, [`BudgetError::Slots`] for an override outside
    /// the model's range, [`BudgetError::Overflow`] for sizes that cannot be.
    pub fn fit(
        needs: &Needs,
        budget_bytes: u64,
        slots_override: Option<usize>,
    ) -> Result<MemoryPlan, BudgetError> {
        let slots_min = slots_override.unwrap_or(needs.slots_min);
        if slots_min < needs.slots_min || slots_min > needs.slots_max {
            return Err(slots_error(needs, slots_min));
        }
        let smallest = MemoryPlan::with_slots(needs, budget_bytes, slots_min)?;
        let Some(room) = budget_bytes.checked_sub(smallest.planned_bytes) else {
            return Err(BudgetError::TooSmall { smallest: Box::new(smallest) });
        };
        if slots_override.is_some() {
            return Ok(smallest);
        }
        let extra_max = needs.slots_max - slots_min;
        let extra = room.checked_div(needs.slot_bytes).map_or(extra_max, |n| clamp_to(n, extra_max));
        MemoryPlan::with_slots(needs, budget_bytes, slots_min + extra)
    }

    /// The plan with that many slots, whether it fits or not.
    fn with_slots(needs: &Needs, budget_bytes: u64, slots: usize) -> Result<MemoryPlan, BudgetError> {
        let mut lines = vec![
            PlanLine { name: "process", bytes: needs.process_bytes },
            PlanLine { name: "dense weights", bytes: needs.dense_bytes },
            PlanLine { name: "KV cache", bytes: needs.kv_bytes },
            PlanLine { name: "scratch", bytes: needs.scratch_bytes },
            PlanLine { name: "draft", bytes: needs.draft_bytes },
        ];
        let margin = sum(&lines)? / MARGIN_DIVISOR + MARGIN_BYTES;
        lines.push(PlanLine { name: "margin", bytes: margin });
        if needs.device_bytes > 0 {
            lines.push(PlanLine { name: "GPU", bytes: needs.device_bytes });
        }
        let slot_total = needs.slot_bytes.checked_mul(slots as u64).ok_or(BudgetError::Overflow)?;
        lines.push(PlanLine { name: "expert slots", bytes: slot_total });
        let planned_bytes = sum(&lines)?;
        Ok(MemoryPlan { lines, slots, slot_bytes: needs.slot_bytes, planned_bytes, budget_bytes })
    }
}

fn slots_error(needs: &Needs, asked: usize) -> BudgetError {
    BudgetError::Slots { asked, slots_min: needs.slots_min, slots_max: needs.slots_max }
}

fn clamp_to(n: u64, max: usize) -> usize {
    usize::try_from(n).map_or(max, |n| n.min(max))
}

fn sum(lines: &[PlanLine]) -> Result<u64, BudgetError> {
    lines.iter().try_fold(0u64, |total, line| total.checked_add(line.bytes)).ok_or(BudgetError::Overflow)
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            let slots = line.name == "expert slots";
            let detail = if slots {
                format!("  ({} x {})", self.slots, human(self.slot_bytes))
            } else {
                String::new()
            };
            writeln!(f, "  {:<14} {:>12}{detail}", line.name, human(line.bytes))?;
        }
        writeln!(f, "  {:<14} {:>12}", "sum", human(self.planned_bytes))?;
        write!(f, "  {:<14} {:>12}", "budget", human(self.budget_bytes))
    }
}

/// The message of [`BudgetError::TooSmall`]. What the process itself takes differs by some hundred KiB
/// from one start to the next, so the suggestion is a MiB more than the sum, rounded up: it passes.
fn refusal(smallest: &MemoryPlan) -> String {
    let missing = smallest.planned_bytes.saturating_sub(smallest.budget_bytes);
    let enough = smallest.planned_bytes.div_ceil(1 << 20).saturating_add(1);
    format!(
        "the memory budget cannot hold the model:\n{smallest}\n  {:<14} {:>12}\nthe smallest budget that would do: {enough}MiB",
        "missing",
        human(missing)
    )
}

/// Bytes for people: three to four digits and a binary unit, exact below 10 KiB.
fn human(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..0x2800 => return format!("{bytes} B"),
        0x2800..0xA0_0000 => (1u64 << 10, "KiB"),
        0xA0_0000..0x2_8000_0000 => (1 << 20, "MiB"),
        _ => (1 << 30, "GiB"),
    };
    format!("{:.1} {name}", bytes as f64 / unit as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const NEEDS: Needs = Needs {
        process_bytes: 20 * MIB,
        dense_bytes: 900 * MIB,
        kv_bytes: 60 * MIB,
        scratch_bytes: 20 * MIB,
        draft_bytes: 0,
        device_bytes: 0,
        slot_bytes: 3 * MIB,
        slots_min: 8,
        slots_max: 1000,
    };

    fn line(plan: &MemoryPlan, name: &str) -> u64 {
        plan.lines.iter().find(|line| line.name == name).expect("a line of that name").bytes
    }

    #[test]
    fn the_rest_of_the_budget_becomes_slots() {
        let plan = MemoryPlan::fit(&NEEDS, 2048 * MIB, None).expect("fits");
        assert_eq!(line(&plan, "margin"), 28 * MIB);
        assert_eq!((plan.slots, plan.planned_bytes), (340, 2048 * MIB));
    }

    #[test]
    fn more_slots_than_experts_are_never_planned() {
        assert_eq!(MemoryPlan::fit(&NEEDS, 1 << 40, None).expect("fits").slots, 1000);
    }

    #[test]
    fn a_gpu_in_the_same_memory_takes_its_part_of_the_budget_and_a_line() {
        let plan = MemoryPlan::fit(&NEEDS, 2048 * MIB, None).expect("fits");
        assert!(plan.lines.iter().all(|line| line.name != "GPU"), "{plan}");
        let shared =
            MemoryPlan::fit(&Needs { device_bytes: 300 * MIB, ..NEEDS }, 2048 * MIB, None).expect("fits");
        assert_eq!((line(&shared, "GPU"), line(&shared, "margin")), (300 * MIB, line(&plan, "margin")));
        assert_eq!((shared.slots, plan.slots), (240, 340));
        let error = MemoryPlan::fit(&Needs { device_bytes: 2048 * MIB, ..NEEDS }, 2048 * MIB, None);
        assert!(error.expect_err("too small").to_string().contains("GPU "));
    }

    #[test]
    fn a_dense_model_is_a_model_without_slots() {
        let dense = Needs { slot_bytes: 0, slots_min: 0, slots_max: 0, ..NEEDS };
        let plan = MemoryPlan::fit(&dense, 1028 * MIB, None).expect("fits exactly");
        assert_eq!((plan.slots, plan.planned_bytes), (0, 1028 * MIB));
        assert!(MemoryPlan::fit(&dense, 1028 * MIB - 1, None).is_err());
    }

    #[test]
    fn a_refusal_shows_every_line_the_sum_and_the_way_out() {
        let error = MemoryPlan::fit(&NEEDS, 1000 * MIB, None).expect_err("too small");
        let text = error.to_string();
        let shown = ["process", "dense weights", "900.0 MiB", "KV cache", "scratch", "draft", "margin"];
        let shown =
            shown.iter().chain(&["(8 x 3072.0 KiB)", "1052.0 MiB", "1000.0 MiB", "missing", "52.0 MiB"]);
        for part in shown.chain(&["would do: 1053MiB"]) {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }

    #[test]
    fn an_override_is_obeyed_or_refused_never_bent() {
        assert_eq!(MemoryPlan::fit(&NEEDS, 2048 * MIB, Some(100)).expect("fits").slots, 100);
        for asked in [7, 1001] {
            let refused = MemoryPlan::fit(&NEEDS, 1 << 40, Some(asked)).expect_err("outside the range");
            assert_eq!(refused, BudgetError::Slots { asked, slots_min: 8, slots_max: 1000 });
        }
        let refused = MemoryPlan::fit(&NEEDS, 1100 * MIB, Some(100)).expect_err("too many for the budget");
        assert!(refused.to_string().contains("would do: 1329MiB"), "{refused}");
    }

    #[test]
    fn sizes_that_wrap_are_refused() {
        let hostile = Needs { dense_bytes: u64::MAX - 5, ..NEEDS };
        assert_eq!(MemoryPlan::fit(&hostile, u64::MAX, None), Err(BudgetError::Overflow));
        let hostile = Needs { slot_bytes: u64::MAX / 4, ..NEEDS };
        assert_eq!(MemoryPlan::fit(&hostile, u64::MAX, None), Err(BudgetError::Overflow));
    }

    #[test]
    fn a_range_upside_down_is_refused() {
        let wrong = Needs { slots_min: 9, slots_max: 8, ..NEEDS };
        assert!(matches!(MemoryPlan::fit(&wrong, 1 << 40, None), Err(BudgetError::Slots { asked: 9, .. })));
    }

    fn any_needs() -> impl Strategy<Value = Needs> {
        let size = || prop_oneof![Just(0u64), 1..=1u64 << 44, Just(u64::MAX / 3)];
        let slots = (0usize..300, 0usize..5000);
        (size(), size(), size(), size(), size(), size(), size(), slots).prop_map(
            |(a, b, c, d, e, device_bytes, slot_bytes, (lo, more))| Needs {
                process_bytes: a,
                dense_bytes: b,
                kv_bytes: c,
                scratch_bytes: d,
                draft_bytes: e,
                device_bytes,
                slot_bytes,
                slots_min: lo,
                slots_max: lo + more,
            },
        )
    }

    proptest! {
        #[test]
        fn a_plan_never_exceeds_its_budget_and_wastes_no_slot(needs in any_needs(), budget in 0u64..1 << 47) {
            if let Ok(plan) = MemoryPlan::fit(&needs, budget, None) {
                prop_assert!(plan.planned_bytes <= budget);
                prop_assert_eq!(plan.planned_bytes, plan.lines.iter().map(|l| l.bytes).sum::<u64>());
                prop_assert!((needs.slots_min..=needs.slots_max).contains(&plan.slots));
                let one_more = plan.planned_bytes.saturating_add(needs.slot_bytes) > budget;
                prop_assert!(one_more || plan.slots == needs.slots_max);
            }
        }

        #[test]
        fn a_refusal_names_the_smallest_budget_that_passes(
            needs in any_needs(), budget in 0u64..1 << 45, slots in prop::option::of(0usize..6000),
        ) {
            if let Err(BudgetError::TooSmall { smallest }) = MemoryPlan::fit(&needs, budget, slots) {
                let enough = smallest.planned_bytes;
                prop_assert!(enough > budget);
                let plan = MemoryPlan::fit(&needs, enough, slots);
                prop_assert_eq!(plan.map(|p| p.planned_bytes), Ok(enough));
                prop_assert!(MemoryPlan::fit(&needs, enough - 1, slots).is_err());
                let shown = (enough.div_ceil(1 << 20) + 1) << 20; // what the message suggests
                prop_assert!(MemoryPlan::fit(&needs, shown, slots).is_ok());
            }
        }
    }
}
