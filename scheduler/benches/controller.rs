//! What deciding costs: a pass of `auto`'s bookkeeping, which a pass of the target has to be long against.
//!
//! Owns the measurement of [`Controller`] alone, with made-up passes. It must not know models.
//!
//!     cargo bench -p drafthorse-scheduler

use divan::{Bencher, black_box};
use drafthorse_draft::{Draft, UNREAD_MAX};
use drafthorse_offload::Residency;
use drafthorse_scheduler::{Controller, ControllerConfig, DraftEffort, DraftLen, StepOutcome};

const RESIDENCY: Residency =
    Residency { slots: 8, resident: 8, experts_total: 64, hit_rate_recent: 0.3, is_filling: false };
/// Passes before the measured one: `auto` has found its way.
const PASSES: usize = 300;

fn main() {
    divan::main();
}

/// One pass of a target whose rows cost 0.3 of a plain pass each, and of whose drafted tokens so many stand.
fn pass(controller: &mut Controller, stands: bool) {
    let plan = controller.plan(&RESIDENCY);
    let draft = Draft::new(vec![1; plan.draft_len], vec![0.8; plan.draft_len]);
    let kept = controller.keep(&draft);
    let verify_s = 1e-3 * (1.0 + 0.3 * kept as f64);
    controller.observe(&StepOutcome {
        draft_len: kept,
        accepted: if stands { kept } else { 0 },
        draft_s: 2e-5 * kept as f64,
        verify_s,
        stall_s: 0.4 * verify_s,
        experts: 16 + 6 * kept as u64,
        misses: 8 + 3 * kept as u64,
        ..StepOutcome::default()
    });
}

/// Of a drafter that is no good, which is off, and of one that is.
#[divan::bench(args = [false, true])]
fn pass_of_auto(bencher: Bencher, stands: bool) {
    let config = ControllerConfig { mode: DraftLen::Auto, draft_len_max: 8 };
    let mut controller =
        Controller::new(config, DraftEffort { token_share: 0.02, unread_max: UNREAD_MAX, is_lookup: false });
    controller.begin_text((0.1, 0.1), 1000);
    (0..PASSES).for_each(|_| pass(&mut controller, stands));
    bencher.bench_local(|| pass(black_box(&mut controller), stands));
}
