//! The tokenizer's contract on small vocabularies, without any file from outside: ids against
//! SentencePiece and the Python `tokenizers` package (scripts in `scripts/fixtures/`), round trips,
//! streaming, specials, and every hostile vocabulary we could think of.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use drafthorse_runtime::tokenizer::{
    AddSpecial, EncodeOptions, ParseSpecial, Tokenizer, TokenizerError, Vocabulary,
};
use proptest::prelude::*;
use serde_json::Value;

const RAW: EncodeOptions = EncodeOptions { add_special: AddSpecial::No, parse_special: ParseSpecial::No };

fn fixture(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

fn spm() -> Value {
    fixture(include_str!("fixtures/spm_vectors.json"))
}

fn bpe() -> Value {
    fixture(include_str!("fixtures/bpe_vectors.json"))
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn spm_tokenizer() -> Tokenizer {
    let fixture = spm();
    let numbers = |key: &str| fixture[key].as_array().unwrap().clone();
    let scores: Vec<f32> = numbers("scores").iter().map(|score| score.as_f64().unwrap() as f32).collect();
    let types: Vec<i32> = numbers("types").iter().map(|kind| kind.as_i64().unwrap() as i32).collect();
    let tokens = strings(&fixture["tokens"]);
    Tokenizer::new(&Vocabulary {
        model: "llama",
        tokens,
        scores: &scores,
        types: &types,
        ..Vocabulary::default()
    })
    .unwrap()
}

fn bpe_tokenizer(pre: &str) -> Tokenizer {
    let fixture = bpe();
    let (tokens, merges) = (strings(&fixture["tokens"]), strings(&fixture["merges"]));
    let add_bos = Some(false);
    Tokenizer::new(&Vocabulary {
        model: "gpt2",
        pre: Some(pre),
        tokens,
        merges,
        add_bos,
        ..Vocabulary::default()
    })
    .unwrap()
}

#[test]
fn spm_ids_are_those_of_sentencepiece() {
    let (fixture, tokenizer) = (spm(), spm_tokenizer());
    for case in fixture["texts"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let encoded = tokenizer.encode_with(text, RAW).unwrap();
        assert_eq!(encoded, ids(&case["ids"]), "{text:?}");
        // U+2581 and a space are one and the same to SPM.
        assert_eq!(tokenizer.decode(&encoded), text.replace('\u{2581}', " "));
    }
}

#[test]
fn bpe_ids_are_those_of_the_models_own_patterns() {
    let fixture = bpe();
    let texts = strings(&fixture["texts"]);
    for case in fixture["cases"].as_array().unwrap() {
        let pre = case["pre"].as_str().unwrap();
        let tokenizer = bpe_tokenizer(pre);
        for (text, expected) in texts.iter().zip(case["ids"].as_array().unwrap()) {
            assert_eq!(tokenizer.encode_with(text, RAW).unwrap(), ids(expected), "{pre}: {text:?}");
        }
    }
}

#[test]
fn other_names_of_a_pre_tokenizer_mean_the_same() {
    let encode = |pre: &str| bpe_tokenizer(pre).encode_with("It's 1234  x\n\n y", RAW).unwrap();
    assert_eq!(encode("qwen2"), encode("deepseek-r1-qwen"));
    assert_eq!(encode("llama-bpe"), encode("llama3"));
    assert_ne!(encode("qwen2"), encode("deepseek-llm"));
}

/// A byte-level vocabulary with a few specials: 0 `<s>`, 1 `</s>`, 2 `<|im_end|>`, 3 `<tool>`
/// (user-defined), 4 `<tool><tool>` (control), then the bytes.
fn with_specials(add_bos: bool, add_eos: bool) -> Tokenizer {
    let fixture = bpe();
    let mut tokens = vec!["<s>", "</s>", "<|im_end|>", "<tool>", "<tool><tool>"];
    let mut types = vec![3, 3, 3, 4, 3];
    tokens.extend(strings(&fixture["tokens"]));
    types.resize(tokens.len(), 1);
    Tokenizer::new(&Vocabulary {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens,
        types: &types,
        merges: strings(&fixture["merges"]),
        bos: Some(0),
        eos: Some(1),
        add_bos: Some(add_bos),
        add_eos: Some(add_eos),
        ..Vocabulary::default()
    })
    .unwrap()
}

#[test]
fn bos_and_eos_are_added_as_the_metadata_says() {
    let surrounded = with_specials(true, true).encode("a", AddSpecial::Yes).unwrap();
    assert_eq!((surrounded[0], surrounded[2], surrounded.len()), (0, 1, 3));
    assert_eq!(with_specials(true, true).encode("a", AddSpecial::No).unwrap(), surrounded[1..2]);
    assert_eq!(with_specials(false, false).encode("a", AddSpecial::Yes).unwrap(), surrounded[1..2]);
}

#[test]
fn control_tokens_are_found_when_parsed_and_user_defined_ones_always() {
    let tokenizer = with_specials(false, false);
    let parsed = tokenizer.encode("<|im_end|><tool>", AddSpecial::No).unwrap();
    assert_eq!(parsed, [2, 3]);
    let raw = tokenizer.encode_with("<|im_end|><tool>", RAW).unwrap();
    assert!(raw.len() > 3 && !raw.contains(&2) && raw.last() == Some(&3), "{raw:?}");
    assert_eq!(tokenizer.encode("<tool><tool><tool>", AddSpecial::No).unwrap(), [4, 3], "the longest wins");
}

#[test]
fn control_tokens_print_nothing_and_pieces_show_them() {
    let tokenizer = with_specials(false, false);
    assert_eq!(tokenizer.decode(&[0, 3, 2]), "<tool>");
    assert_eq!(tokenizer.piece(2), "<|im_end|>");
    assert_eq!(tokenizer.token_text(2), Some("<|im_end|>"));
    assert_eq!(tokenizer.token_text(u32::MAX), None);
    assert_eq!(tokenizer.decode(&[u32::MAX]), "\u{FFFD}");
}

#[test]
fn end_tokens_are_the_ids_of_the_metadata_and_known_markers() {
    let tokenizer = with_specials(false, false);
    assert_eq!(tokenizer.end_tokens(), [1, 2]);
    assert!(tokenizer.is_end(2) && !tokenizer.is_end(0));
    let eot = Vocabulary {
        model: "llama",
        tokens: vec!["<unk>", "<s>", "</s>", "x", "<turn>", "<msg>"],
        scores: &[0.0; 6],
        eot: Some(4),
        eom: Some(5),
        ..Vocabulary::default()
    };
    assert_eq!(Tokenizer::new(&eot).unwrap().end_tokens(), [2, 4, 5]);
}

#[test]
fn spm_puts_a_space_in_front_of_text_and_after_specials_only() {
    let tokenizer = spm_tokenizer();
    let cat = tokenizer.encode("cat", AddSpecial::No).unwrap();
    let bos = tokenizer.bos().unwrap();
    let twice = tokenizer.encode("cat<s>cat", AddSpecial::Yes).unwrap();
    assert_eq!(twice, [&[bos][..], &cat, &[bos], &cat].concat());
    assert_eq!(tokenizer.decode(&twice), "cat cat");
    let mut answer = tokenizer.continue_stream();
    let text: String = cat.iter().map(|&id| answer.push(id)).collect();
    assert_eq!(text, " cat", "an answer keeps the space between it and its prompt");
}

#[test]
fn a_missing_pre_tokenizer_is_said_and_an_unknown_one_refused() {
    let fixture = bpe();
    let (tokens, merges) = (strings(&fixture["tokens"]), strings(&fixture["merges"]));
    let silent = Vocabulary { model: "gpt2", tokens, merges, ..Vocabulary::default() };
    let tokenizer = Tokenizer::new(&silent).unwrap();
    assert!(tokenizer.notices()[0].contains("tokenizer.ggml.pre"), "{:?}", tokenizer.notices());
    assert!(bpe_tokenizer("gpt-2").notices().is_empty());
    let error = Tokenizer::new(&Vocabulary { pre: Some("mystery"), ..silent }).unwrap_err().to_string();
    assert!(error.contains("\"mystery\"") && error.contains("deepseek-llm, "), "{error}");
}

fn error_of(vocabulary: &Vocabulary<'_>) -> String {
    let error = Tokenizer::new(vocabulary).unwrap_err().to_string();
    assert!(!error.contains('\n') && error.len() < 300, "{error:?}");
    error
}

fn tiny_bpe() -> Vocabulary<'static> {
    let tokens = vec!["a", "b", "ab", "c"];
    Vocabulary { model: "gpt2", pre: Some("gpt-2"), tokens, merges: vec!["a b"], ..Vocabulary::default() }
}

fn tiny_spm() -> Vocabulary<'static> {
    let tokens = vec!["<unk>", "<s>", "</s>", "a", "aa"];
    Vocabulary { model: "llama", tokens, scores: &[0.0, 0.0, 0.0, -1.0, -2.0], ..Vocabulary::default() }
}

#[test]
fn hostile_vocabularies_are_errors_that_name_the_key() {
    let long = "x".repeat(100_000);
    let cases = [
        ("gpt3", Vocabulary { model: "gpt3", ..tiny_bpe() }),
        ("tokenizer.ggml.tokens", Vocabulary { tokens: vec![], ..tiny_bpe() }),
        ("tokenizer.ggml.tokens", Vocabulary { tokens: vec![], scores: &[], ..tiny_spm() }),
        ("\"a\" is both token 0 and token 3", Vocabulary { tokens: vec!["a", "b", "ab", "a"], ..tiny_bpe() }),
        ("token 1", Vocabulary { tokens: vec![&long, &long], merges: vec![], ..tiny_bpe() }),
        (
            "both token 3 and token 4",
            Vocabulary { tokens: vec!["<unk>", "<s>", "</s>", "a", "a"], ..tiny_spm() },
        ),
        ("tokenizer.ggml.merges: entry 0", Vocabulary { merges: vec!["ab"], ..tiny_bpe() }),
        ("tokenizer.ggml.merges: entry 0", Vocabulary { merges: vec![""], ..tiny_bpe() }),
        ("tokenizer.ggml.merges: entry 0", Vocabulary { merges: vec!["a "], ..tiny_bpe() }),
        ("tokenizer.ggml.merges: entry 0", Vocabulary { merges: vec!["é"], ..tiny_bpe() }),
        (
            "\"z\" is not a token",
            Vocabulary { merges: vec!["a b", "z ab"], tokens: vec!["a", "b", "ab", "zab"], ..tiny_bpe() },
        ),
        ("\"abab\" is not a token", Vocabulary { merges: vec!["ab ab"], ..tiny_bpe() }),
        ("twice", Vocabulary { merges: vec!["a b", "a b"], ..tiny_bpe() }),
        ("tokenizer.ggml.token_type: 1 entries for 4", Vocabulary { types: &[1], ..tiny_bpe() }),
        ("entry 3: 9 is not", Vocabulary { types: &[1, 1, 1, 9], ..tiny_bpe() }),
        ("tokenizer.ggml.bos_token_id: token id 4", Vocabulary { bos: Some(4), ..tiny_bpe() }),
        ("tokenizer.ggml.eos_token_id", Vocabulary { eos: Some(u64::MAX), ..tiny_bpe() }),
        ("tokenizer.ggml.eot_token_id", Vocabulary { eot: Some(1 << 32), ..tiny_bpe() }),
        ("tokenizer.ggml.eom_token_id", Vocabulary { eom: Some(5), ..tiny_spm() }),
        ("tokenizer.ggml.unknown_token_id", Vocabulary { unk: Some(5), ..tiny_spm() }),
        ("add_bos_token is true", Vocabulary { add_bos: Some(true), ..tiny_bpe() }),
        ("add_eos_token is true", Vocabulary { add_eos: Some(true), ..tiny_bpe() }),
        ("tokenizer.ggml.scores: 0 entries for 5", Vocabulary { scores: &[], ..tiny_spm() }),
        ("scores: entry 1: NaN", Vocabulary { scores: &[0.0, f32::NAN, 0.0, 0.0, 0.0], ..tiny_spm() }),
        ("scores: entry 4: inf", Vocabulary { scores: &[0.0, 0.0, 0.0, 0.0, f32::INFINITY], ..tiny_spm() }),
    ];
    for (part, vocabulary) in &cases {
        let error = error_of(vocabulary);
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_byte_without_a_token_is_an_error_and_the_unknown_token_stands_in() {
    let error = Tokenizer::new(&tiny_bpe()).unwrap().encode("abd", AddSpecial::No).unwrap_err();
    assert_eq!(error, TokenizerError::ByteWithoutToken { byte: b'd' });
    let spm = Tokenizer::new(&Vocabulary { add_space_prefix: Some(false), ..tiny_spm() }).unwrap();
    assert_eq!(spm.encode("aaad", AddSpecial::No).unwrap(), [4, 3, 0]);
}

#[test]
fn empty_tokens_can_be_decoded_and_are_never_encoded() {
    let tokens = vec!["a", "b", "", ""];
    let tokenizer = Tokenizer::new(&Vocabulary { tokens, merges: vec![], ..tiny_bpe() }).unwrap();
    assert_eq!(tokenizer.encode("ab", AddSpecial::No).unwrap(), [0, 1]);
    assert_eq!(tokenizer.decode(&[0, 2, 1, 3]), "ab");
}

#[test]
fn special_tokens_full_of_pattern_characters_match_themselves_alone() {
    let tokens = vec!["a", "b", ".*", "(a|b)+", "[\\d]", "\\", "a-z&&^$#~ "];
    let types = [1, 1, 4, 4, 4, 4, 4];
    let tokenizer =
        Tokenizer::new(&Vocabulary { tokens, merges: vec![], types: &types, ..tiny_bpe() }).unwrap();
    let found = tokenizer.encode_with("a.*b(a|b)+[\\d]\\a-z&&^$#~ ab", RAW).unwrap();
    assert_eq!(found, [0, 2, 1, 3, 4, 5, 6, 0, 1]);
}

/// Text that stresses splitting: spaces, newlines, marks, digits, several scripts.
fn text() -> impl Strategy<Value = String> {
    let any = proptest::collection::vec(any::<char>(), 0..40).prop_map(String::from_iter);
    prop_oneof![any, "[ \\t\\r\\n'sStTlLdD0-9a-zé漢かア한\u{301}\u{200d}🦙.,!_-]{0,60}"]
}

proptest! {
    #[test]
    fn byte_level_bpe_gives_every_text_back(text in text(), row in 0usize..9) {
        let names = ["default", "gpt-2", "deepseek-llm", "deepseek-coder", "deepseek-v3", "qwen2",
            "deepseek-r1-qwen", "llama-bpe", "kimi-k2"];
        let tokenizer = bpe_tokenizer(names[row]);
        let ids = tokenizer.encode_with(&text, RAW).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids), text);
    }

    #[test]
    fn spm_gives_every_text_back(text in text()) {
        let tokenizer = spm_tokenizer();
        let ids = tokenizer.encode_with(&text, RAW).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids), text.replace('\u{2581}', " "));
    }

    #[test]
    fn a_stream_gives_what_decoding_at_once_gives(
        ids in proptest::collection::vec(0u32..400, 0..60), is_spm in any::<bool>(),
    ) {
        let tokenizer = if is_spm { spm_tokenizer() } else { bpe_tokenizer("gpt-2") };
        let mut stream = tokenizer.decode_stream();
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        prop_assert_eq!(&text, &tokenizer.decode(&ids));
        // Independently: all bytes first, then one lossy conversion.
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| bytes_of(&tokenizer, id)).collect();
        let whole = String::from_utf8_lossy(&bytes).into_owned();
        let whole = if is_spm { whole.strip_prefix(' ').unwrap_or(&whole).to_owned() } else { whole };
        prop_assert_eq!(text, whole);
    }
}

/// What a token prints, in bytes, worked out from its text alone.
fn bytes_of(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let text = tokenizer.token_text(id).unwrap_or("\u{FFFD}");
    if let Some(hex) = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')) {
        return vec![u8::from_str_radix(hex, 16).unwrap()];
    }
    if ["<unk>", "<s>", "</s>"].contains(&text) {
        return Vec::new();
    }
    let fixture_is_spm = tokenizer.bos().is_some();
    if fixture_is_spm {
        return text.replace('\u{2581}', " ").into_bytes();
    }
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let hidden: Vec<u32> = (0..256).filter(|byte| !printable(byte)).collect();
    let byte = |c: char| if printable(&(c as u32)) { c as u32 } else { hidden[c as usize - 256] };
    text.chars().map(|c| if c == '\u{FFFD}' { b'?' } else { byte(c) as u8 }).collect()
}

#[test]
fn characters_come_whole_and_broken_ones_become_replacements() {
    let tokenizer = spm_tokenizer();
    let byte = |byte: u8| {
        let name = format!("<0x{byte:02X}>");
        (0..).find(|&id| tokenizer.token_text(id) == Some(&name)).unwrap()
    };
    let mut stream = tokenizer.continue_stream();
    let pushed: Vec<String> = "🦙".bytes().map(|b| stream.push(byte(b))).collect();
    assert_eq!(pushed, ["", "", "", "🦙"]);
    assert_eq!(stream.push(byte(0xE2)), "");
    assert_eq!(stream.push(byte(b'a')), "\u{FFFD}a", "can no longer be completed");
    assert_eq!(stream.push(byte(0xFF)), "\u{FFFD}", "can never be completed");
    assert_eq!(stream.push(byte(0xF0)) + &stream.push(byte(0x9F)), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
    assert_eq!(stream.finish(), "");
}

#[test]
fn a_megabyte_of_anything_is_encoded() {
    let (bpe, spm) = (bpe_tokenizer("qwen2"), spm_tokenizer());
    for unit in [" ", "a", "\u{301}", "\0", "the cat said ", "\n ", "'", "🦙", "<s>", "["] {
        let text = unit.repeat((1 << 20) / unit.len());
        for tokenizer in [&bpe, &spm] {
            let ids = tokenizer.encode(&text, AddSpecial::No).unwrap();
            assert!(unit == "<s>" || tokenizer.decode(&ids) == text, "{unit:?}");
        }
    }
}
