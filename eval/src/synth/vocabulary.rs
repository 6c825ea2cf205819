//! The tokenizer of a synthetic model: a real file's, copied, or one made up.
//!
//! The made-up one is an SPM vocabulary with all bytes and all short words of a to z in order, so every
//! text has tokens and `run -p` works. Knows no shapes beyond the number of tokens.

use std::path::Path;

use drafthorse_runtime::gguf::{Gguf, GgufError, Strings, Value, Writer};

const PREFIX: &str = "tokenizer.";
const TOKENS: &str = "tokenizer.ggml.tokens";
const SPECIALS: [&str; 3] = ["<unk>", "<s>", "</s>"];
/// Token types of the format.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;
const NORMAL: i32 = 1;

/// The metadata of a tokenizer.
pub struct Vocabulary {
    /// Token ids.
    pub tokens: u64,
    entries: Vec<(String, Value)>,
}

impl Vocabulary {
    /// The tokenizer of another file.
    ///
    /// # Errors
    /// A file that is no GGUF or has no token list.
    pub fn copy(path: &Path) -> Result<Vocabulary, GgufError> {
        let gguf = Gguf::open(path)?;
        let tokens = gguf.metadata.require_strings(TOKENS)?.len() as u64;
        let tokenizer = gguf.metadata.iter().filter(|(key, _)| key.starts_with(PREFIX));
        Ok(Vocabulary {
            tokens,
            entries: tokenizer.map(|(key, value)| (key.into(), value.clone())).collect(),
        })
    }

    /// A vocabulary of specials, bytes and words; at least 259 tokens.
    pub fn made_up(tokens: u64) -> Vocabulary {
        let mut texts: Vec<String> = SPECIALS.map(str::to_owned).to_vec();
        texts.extend((0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")));
        let mut types = vec![UNKNOWN, CONTROL, CONTROL];
        types.resize(texts.len(), BYTE);
        texts.push("\u{2581}".to_owned());
        texts.extend((0..).map(word).take((tokens as usize).saturating_sub(texts.len())));
        types.resize(texts.len(), NORMAL);
        let scores: Vec<f32> = (0..texts.len()).map(|id| -(id as f32)).collect();
        let tokens = texts.len() as u64;
        let strings = Strings::try_from_iter(texts).expect("invariant: a vocabulary is below 4 GiB");
        let entries = [
            ("tokenizer.ggml.model", Value::from("llama")),
            ("tokenizer.ggml.pre", Value::from("default")),
            (TOKENS, strings.into()),
            ("tokenizer.ggml.scores", scores.into()),
            ("tokenizer.ggml.token_type", types.into()),
            ("tokenizer.ggml.bos_token_id", 1u32.into()),
            ("tokenizer.ggml.eos_token_id", 2u32.into()),
            ("tokenizer.ggml.unknown_token_id", 0u32.into()),
        ];
        Vocabulary { tokens, entries: entries.map(|(key, value)| (key.to_owned(), value)).to_vec() }
    }

    /// Writes the keys.
    pub fn add_metadata(self, writer: &mut Writer<'_>) {
        for (key, value) in self.entries {
            writer.metadata(key, value);
        }
    }
}

/// Word number `index`: a, b, .. z, aa, ab, .. so that every word's beginnings are words.
fn word(mut index: u64) -> String {
    let mut letters = Vec::new();
    loop {
        letters.push(b'a' + (index % 26) as u8);
        index /= 26;
        if index == 0 {
            break;
        }
        index -= 1;
    }
    letters.iter().rev().map(|letter| char::from(*letter)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_count_like_the_columns_of_a_spreadsheet() {
        assert_eq!([0, 25, 26, 51, 52, 701, 702].map(word), ["a", "z", "aa", "az", "ba", "zz", "aaa"]);
    }

    #[test]
    fn a_made_up_vocabulary_has_the_size_asked_for() {
        assert_eq!(Vocabulary::made_up(512).tokens, 512);
        assert_eq!(Vocabulary::made_up(151_936).tokens, 151_936);
    }
}
