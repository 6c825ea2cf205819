//! What a generation reports for the harness: acceptance by place, the cache while decoding, and the bytes
//! that only rejected drafts wanted.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{ask, generate, golden, open, plain_options, tokens};
use drafthorse_runtime::api::{DraftSource, EngineOptions, Generation};
use drafthorse_scheduler::DraftLen;

/// 40 tokens with everything fitting into a cache that is empty at first, so that each expert is read once.
fn run(draft: DraftSource, draft_len: usize) -> Generation {
    run_for(40, draft, draft_len)
}

fn run_for(max_tokens: usize, draft: DraftSource, draft_len: usize) -> Generation {
    let options =
        EngineOptions { draft, draft_len: DraftLen::Fixed(draft_len), ..plain_options(&golden("qwen3moe")) };
    generate(&mut open(&options), &tokens(3, 4), &ask(max_tokens, 0.0))
}

#[test]
fn acceptance_by_place_adds_up_and_falls() {
    for draft in
        [DraftSource::Ngram, DraftSource::Model(golden("qwen3")), DraftSource::Model(golden("qwen3moe"))]
    {
        let speculation = run(draft, 3).speculation;
        let places = &speculation.acceptance_by_position;
        assert!(places.len() <= 3 && speculation.proposed > 0, "{speculation:?}");
        assert_eq!(places.iter().map(|place| place.offered).sum::<u64>(), speculation.proposed);
        assert_eq!(places.iter().map(|place| place.accepted).sum::<u64>(), speculation.accepted);
        assert!(places.is_sorted_by(|a, b| a.accepted >= b.accepted), "{speculation:?}");
        assert!(places.iter().all(|place| place.accepted <= place.offered));
    }
    assert!(run(DraftSource::None, 0).speculation.acceptance_by_position.is_empty());
}

#[test]
fn decoding_is_what_is_left_of_the_whole_without_the_prompt() {
    let plain = run(DraftSource::None, 0).offload;
    let (all, decode) = (plain.hits + plain.misses, plain.decode.hits + plain.decode.misses);
    let moe_layers_used = decode / 39;
    // Four rows of the prompt ask for at least what one row asks for, and 39 rows follow one by one.
    assert_eq!(decode, moe_layers_used * 39, "every row asks for as many experts");
    assert!(all >= decode + moe_layers_used && plain.bytes_read > plain.decode.bytes_read, "{plain:?}");
    assert!((plain.decode.hit_rate - plain.decode.hits as f64 / decode as f64).abs() < 1e-12);
    assert_eq!(plain.rejected_only_bytes, 0, "nothing was drafted");
}

#[test]
fn only_rejected_drafts_read_for_nothing() {
    // Few tokens: many would come to want every expert of so small a model.
    let plain = run_for(6, DraftSource::None, 0);
    let right = run_for(6, DraftSource::Model(golden("qwen3moe")), 3);
    assert_eq!(right.speculation.accepted, right.speculation.proposed, "the target guesses for itself");
    assert_eq!(right.offload.rejected_only_bytes, 0);
    let wrong = run_for(6, DraftSource::Model(golden("qwen3")), 3);
    assert!(wrong.speculation.accepted < wrong.speculation.proposed);
    assert_eq!(wrong.tokens, plain.tokens);
    // Each expert is read once: what was read beyond the text's own experts, rejected drafts alone wanted.
    // (They may also have been the first to want one that the text came to later.)
    let beyond = wrong.offload.bytes_read - plain.offload.bytes_read;
    let rejected_only = wrong.offload.rejected_only_bytes;
    let decode = wrong.offload.decode.bytes_read;
    assert!(beyond > 0 && (beyond..=decode).contains(&rejected_only), "{beyond} {rejected_only} {decode}");
}
