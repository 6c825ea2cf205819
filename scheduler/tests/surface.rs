//! `auto` in worlds that look like the cells of the break-even surface that were measured (eval/LOG.md).

mod worlds;

use drafthorse_scheduler::DraftLen;
use worlds::{Machine, WORLD, World};

const SEEDS: u64 = 40;

/// As measured on a 12-layer mixture with 100 % of its experts in memory.
const RESIDENT: [f64; 9] = [1.0, 1.30, 1.80, 2.30, 2.75, 3.15, 3.60, 4.00, 4.40];
/// And with 10 %.
const TENTH: [f64; 9] = [1.0, 1.50, 2.05, 2.60, 3.15, 3.60, 4.00, 4.40, 4.80];
const NOISY: Machine =
    Machine { noise: 0.12, drift: 0.08, cold: 0.2, first: 0.1, after_draft: 0.08, misses: 0.0, miss_s: 0.0 };

#[test]
fn table() {
    let only: Option<String> = std::env::var("CELL").ok();
    for tokens in [192, 384] {
        for (name, verify, draft_s, machine) in [
            ("100%", (|n| RESIDENT[n]) as fn(usize) -> f64, 0.07, NOISY),
            ("10%", |n| TENTH[n], 0.04, Machine { misses: 34.0, miss_s: 0.008, ..NOISY }),
        ] {
            for acceptance in [0.3, 0.6, 0.8, 0.95] {
                let cell = format!("{name} {acceptance} {tokens}");
                if only.as_ref().is_some_and(|o| !cell.contains(o.as_str())) {
                    continue;
                }
                let world = World { verify, draft_s, acceptance, machine, tokens, ..WORLD };
                let (mut off, mut best, mut pred, mut plain, mut hist, mut worst, mut within) =
                    (0.0, 0.0, 0.0, 0.0, [0.0; 9], 0.0f64, 0);
                let mut fixed = [0.0; 9];
                let mut oracle = [0.0f64; 5];
                for seed in 0..SEEDS {
                    let world = World { seed, ..world };
                    let f = [0, 1, 2, 4, 8].map(|k| world.run(DraftLen::Fixed(k)).seconds);
                    for (i, k) in [0, 1, 2, 4, 8].iter().enumerate() {
                        fixed[*k] += f[0] / f[i] / SEEDS as f64;
                    }
                    let b = f.iter().copied().fold(f64::INFINITY, f64::min);
                    for i in 0..5 {
                        oracle[i] += b / f[i] / SEEDS as f64;
                    }
                    let auto = world.run(DraftLen::Auto);
                    off += f[0] / auto.seconds / SEEDS as f64;
                    worst = worst.max(auto.seconds / f[0]);
                    best += b / auto.seconds / SEEDS as f64;
                    let p = auto.controller.explanation().speedup.unwrap() / (f[0] / auto.seconds);
                    pred += p / SEEDS as f64;
                    within += u64::from((p - 1.0).abs() <= 0.1);
                    plain += auto.passes.iter().filter(|p| p.0 == 0).count() as f64
                        / auto.passes.len() as f64
                        / SEEDS as f64;
                    for p in &auto.passes {
                        hist[p.1] += 1.0 / auto.passes.len() as f64 / SEEDS as f64;
                    }
                    if only.is_some() && seed < 12 {
                        println!(
                            "   seed {seed} {:?} auto {:.3} best {:.3}",
                            auto.passes.iter().map(|p| format!("{}", p.0)).collect::<String>(),
                            f[0] / auto.seconds,
                            f[0] / b
                        );
                    }
                }
                println!(
                    "{cell:14} of best {best:.3} vs off {off:.3} (worst {worst:.3}) pred/meas {pred:.3} within {within}/{SEEDS} oracle {:.3} plain {plain:.2} widths {} fixed {}",
                    oracle.iter().copied().fold(0.0, f64::max),
                    hist.map(|h| format!("{h:.2}")).join(" "),
                    [1, 2, 4, 8].map(|k| format!("{k}:{:.2}", fixed[k])).join(" ")
                );
            }
        }
    }
}
