//! Pre-tokenizers: how byte-level BPE cuts text into words before merging, by the names llama.cpp
//! writes into `tokenizer.ggml.pre` (`convert_hf_to_gguf.py`).
//!
//! Each is a list of steps; a step cuts every piece the step before left, and both its matches and
//! what lies between them go on. Patterns that end in `\s+(?!\S)|\s+` are written without that end
//! and marked [`Step::WithSpaces`]: the look-ahead is done by hand, so that every pattern is a true
//! regular expression, runs in linear time and cannot fail half-way through a text (the
//! `tokenizers` crate drops the rest of a text whose match hits the backtracking limit).

use tokenizers::utils::SysRegex;

use super::error::{TokenizerError, shorten};
use super::vocabulary::PRE;

/// One pattern of a pre-tokenizer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The pattern as it stands.
    Plain(&'static str),
    /// The pattern, then `|\s+(?!\S)|\s+`: a run of spaces gives its last one to the word after it.
    WithSpaces(&'static str),
}

/// A row of [`PRE_TOKENIZERS`].
#[derive(Debug)]
pub(super) struct PreTokenizer {
    /// Names in files, all with one meaning.
    pub(super) names: &'static [&'static str],
    steps: &'static [Step],
    /// A word that is a token as a whole is not merged from its bytes.
    pub(super) ignore_merges: bool,
    /// Whether BOS is added when the file does not say.
    pub(super) add_bos: bool,
}

const GPT2: Step = Step::WithSpaces(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");

/// Letters of alphabets with case, as DeepSeek-LLM's tokenizer lists them.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ",
    "\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}",
    "\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}",
    "\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}",
    "\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}",
    "\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}",
    "\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}",
    "\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}",
    "\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}",
    "\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}",
    "\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+",
);

/// Han from U+4E00 to U+9FA5, then everything from Samaritan up to it, and Hangul.
const DEEPSEEK_CJK: &str = "[\u{4E00}-\u{9FA5}\u{0800}-\u{4E00}\u{AC00}-\u{D7FF}]+";

const QWEN2: &str = concat!(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);

const LLAMA3: &str = concat!(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);

const DEEPSEEK_V3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+",
);

/// Kimi-K2 (`tokenization_kimi.py`): Han runs stand alone, other words split where case changes.
const KIMI_K2: &str = concat!(
    r"\p{Han}+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);

/// Every pre-tokenizer there is. The first is used, with a notice, where the file names none.
pub(super) const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["default"],
        steps: &[
            Step::Plain(r"[\p{P}\$\+<=>\^~\|]+"),
            GPT2,
            Step::Plain(r"\p{N}+"),
            Step::Plain("[0-9][0-9][0-9]"),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer { names: &["gpt-2"], steps: &[GPT2], ignore_merges: false, add_bos: false },
    PreTokenizer {
        names: &["deepseek-llm"],
        steps: &[
            Step::Plain("[\r\n]"),
            Step::Plain(DEEPSEEK_LETTERS),
            Step::Plain("\\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+"),
            Step::Plain(r"\s+$"),
            Step::Plain(DEEPSEEK_CJK),
            Step::Plain(r"\p{N}+"),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        steps: &[
            Step::Plain("[\r\n]"),
            Step::Plain(r"\s?\p{L}+"),
            Step::Plain(r"\s?\p{P}+"),
            Step::Plain(DEEPSEEK_CJK),
            Step::Plain(r"\p{N}"),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-v3"],
        steps: &[
            Step::Plain(r"\p{N}{1,3}"),
            Step::Plain("[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+"),
            Step::WithSpaces(DEEPSEEK_V3),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        steps: &[Step::WithSpaces(QWEN2)],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        steps: &[Step::WithSpaces(LLAMA3)],
        ignore_merges: true,
        add_bos: true,
    },
    PreTokenizer {
        names: &["kimi-k2"],
        steps: &[Step::WithSpaces(KIMI_K2)],
        ignore_merges: false,
        add_bos: false,
    },
];

/// The pre-tokenizer a file asks for.
///
/// # Errors
/// [`TokenizerError::UnsupportedPreTokenizer`] with the list of names.
pub(super) fn by_name(name: &str) -> Result<&'static PreTokenizer, TokenizerError> {
    PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
        let supported: Vec<&str> = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).copied().collect();
        TokenizerError::UnsupportedPreTokenizer { pre: shorten(name), supported: supported.join(", ") }
    })
}

/// A pre-tokenizer's compiled patterns.
#[derive(Debug)]
pub(super) struct Splitter {
    steps: Vec<CompiledStep>,
}

#[derive(Debug)]
struct CompiledStep {
    regex: SysRegex,
    spaces: Spaces,
}

/// Who owns the last character of a run of spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spaces {
    /// The pattern says it all.
    AsMatched,
    /// `\s+(?!\S)|\s+` follows the pattern.
    GiveBackLast,
    /// The same, behind `\s*[\r\n]+`: a match that ends in a newline is that one's and stays whole.
    GiveBackLastUnlessNewline,
}

impl Splitter {
    /// Compiles the steps of `pre`.
    ///
    /// # Errors
    /// None on the patterns of this file; the library's message otherwise.
    pub(super) fn new(pre: &PreTokenizer) -> Result<Splitter, TokenizerError> {
        let steps = pre.steps.iter().map(CompiledStep::new).collect::<Result<_, _>>()?;
        Ok(Splitter { steps })
    }

    /// Hands the words of `text` to `word` in order; together they are the whole text.
    pub(super) fn split<'t, E>(
        &self,
        text: &'t str,
        word: &mut dyn FnMut(&'t str) -> Result<(), E>,
    ) -> Result<(), E> {
        split_by(&self.steps, text, word)
    }
}

impl CompiledStep {
    fn new(step: &Step) -> Result<CompiledStep, TokenizerError> {
        let (pattern, spaces) = match *step {
            Step::Plain(pattern) => (pattern.to_owned(), Spaces::AsMatched),
            Step::WithSpaces(pattern) if pattern.ends_with(r"\s*[\r\n]+") => {
                (format!(r"{pattern}|\s+"), Spaces::GiveBackLastUnlessNewline)
            }
            Step::WithSpaces(pattern) => (format!(r"{pattern}|\s+"), Spaces::GiveBackLast),
        };
        let regex = SysRegex::new(&pattern)
            .map_err(|error| TokenizerError::Library { key: PRE, problem: error.to_string() })?;
        Ok(CompiledStep { regex, spaces })
    }

    /// Where a match really ends. Only `\s+` yields a match of spaces alone that something other
    /// than a space follows; if it has two characters or more, the last one is the next word's.
    fn end(&self, text: &str, start: usize, end: usize) -> usize {
        let found = &text[start..end];
        let whole = match self.spaces {
            Spaces::AsMatched => true,
            Spaces::GiveBackLast => false,
            Spaces::GiveBackLastUnlessNewline => found.ends_with(['\r', '\n']),
        };
        if whole || end == text.len() || !found.chars().all(char::is_whitespace) {
            return end;
        }
        match found.char_indices().next_back() {
            Some((last, _)) if last > 0 => start + last,
            _ => end,
        }
    }
}

fn split_by<'t, E>(
    steps: &[CompiledStep],
    text: &'t str,
    word: &mut dyn FnMut(&'t str) -> Result<(), E>,
) -> Result<(), E> {
    if text.is_empty() {
        return Ok(());
    }
    let Some((step, rest)) = steps.split_first() else { return word(text) };
    let mut at = 0;
    while let Some((start, end)) = step.regex.find_iter(&text[at..]).next() {
        let (start, end) = (at + start, step.end(text, at + start, at + end));
        split_by(rest, &text[at..start], word)?;
        split_by(rest, &text[start..end], word)?;
        at = end;
    }
    split_by(rest, &text[at..], word)
}
