//! The tokenizer: checks a [`Vocabulary`], picks the model, and puts specials, BOS and EOS around.

use std::sync::Arc;

use drafthorse_draft::TokenId;

use super::bpe::Bpe;
use super::error::{TokenizerError, shorten};
use super::pieces::{Alphabet, Kind, Pieces};
use super::pre::{self, PRE_TOKENIZERS, PreTokenizer};
use super::special::{self, Part, Specials};
use super::spm::{Spm, SpmOptions};
use super::stream::StreamDecoder;
use super::vocabulary::{ADD_BOS, ADD_EOS, BOS, EOM, EOS, EOT, UNK, Vocabulary};

/// Whether the BOS and EOS that the file asks for are added around the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddSpecial {
    /// As `add_bos_token` and `add_eos_token` say: for a prompt of plain text.
    Yes,
    /// Never: for a piece of text, and for a rendered chat template, which has its own BOS.
    No,
}

/// Whether control tokens written out in the text become that token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseSpecial {
    /// `<|im_end|>` in the text is the token: for templates and prompts.
    Yes,
    /// `<|im_end|>` in the text is text: for data.
    No,
}

/// How to encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// BOS and EOS.
    pub add_special: AddSpecial,
    /// Control tokens in the text.
    pub parse_special: ParseSpecial,
}

/// Text to ids and back for one vocabulary. Shared freely between threads.
#[derive(Debug)]
pub struct Tokenizer {
    model: Model,
    pieces: Arc<Pieces>,
    all_specials: Specials,
    user_defined: Specials,
    ends: Vec<TokenId>,
    ids: SpecialIds,
    chat_template: Option<String>,
    token_bytes_max: usize,
    notices: Vec<String>,
}

#[derive(Debug)]
enum Model {
    Bpe(Box<Bpe>),
    Spm(Spm),
}

/// Special ids of the metadata, checked.
#[derive(Clone, Copy, Debug)]
struct SpecialIds {
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    eot: Option<TokenId>,
    eom: Option<TokenId>,
    unk: Option<TokenId>,
    add_bos: bool,
    add_eos: bool,
}

/// What a kind of model assumes where the file is silent.
#[derive(Clone, Copy, Debug)]
struct Defaults {
    bos: Option<u64>,
    eos: Option<u64>,
    unk: Option<u64>,
    add_bos: bool,
}

impl Tokenizer {
    /// Checks a vocabulary and builds its tokenizer.
    ///
    /// # Errors
    /// Anything in the vocabulary that is missing, contradicts itself or is not supported.
    pub fn new(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
        match vocabulary.model {
            "gpt2" => Tokenizer::new_bpe(vocabulary),
            "llama" => Tokenizer::new_spm(vocabulary),
            model => Err(TokenizerError::UnsupportedModel { model: shorten(model) }),
        }
    }

    fn new_bpe(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
        let mut notices = Vec::new();
        let pre = match vocabulary.pre {
            Some(name) => pre::by_name(name)?,
            None => default_pre(&mut notices),
        };
        let tokens = &vocabulary.tokens;
        let strips_space = vocabulary.add_space_prefix.unwrap_or(false);
        let pieces = Pieces::new(Alphabet::ByteLevel, tokens, vocabulary.types, strips_space)?;
        let defaults = Defaults { bos: None, eos: None, unk: None, add_bos: pre.add_bos };
        let ids = SpecialIds::new(vocabulary, defaults)?;
        let model = Model::Bpe(Box::new(Bpe::new(tokens, &vocabulary.merges, pre)?));
        Tokenizer::assemble(vocabulary, Parts { model, pieces, ids, notices })
    }

    fn new_spm(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
        let mut notices = Vec::new();
        if vocabulary.remove_extra_whitespaces == Some(true) {
            notices.push(
                "tokenizer.ggml.remove_extra_whitespaces is set, spaces are kept all the same".to_owned(),
            );
        }
        let tokens = &vocabulary.tokens;
        let add_space_prefix = vocabulary.add_space_prefix.unwrap_or(true);
        let pieces = Pieces::new(Alphabet::Spm, tokens, vocabulary.types, add_space_prefix)?;
        let default_id = |id: u64| (id < tokens.len() as u64).then_some(id);
        let defaults = Defaults { bos: default_id(1), eos: default_id(2), unk: default_id(0), add_bos: true };
        let ids = SpecialIds::new(vocabulary, defaults)?;
        let options = SpmOptions { unk: ids.unk, add_space_prefix };
        let model = Model::Spm(Spm::new(tokens, vocabulary.scores, &options)?);
        Tokenizer::assemble(vocabulary, Parts { model, pieces, ids, notices })
    }

    fn assemble(vocabulary: &Vocabulary<'_>, parts: Parts) -> Result<Tokenizer, TokenizerError> {
        let Parts { model, pieces, ids, notices } = parts;
        Ok(Tokenizer {
            model,
            all_specials: Specials::new(&pieces, &[Kind::Control, Kind::Unknown, Kind::UserDefined])?,
            user_defined: Specials::new(&pieces, &[Kind::UserDefined])?,
            ends: special::end_tokens(&pieces, [ids.eos, ids.eot, ids.eom].into_iter().flatten()),
            pieces: Arc::new(pieces),
            ids,
            chat_template: vocabulary.chat_template.map(str::to_owned),
            token_bytes_max: vocabulary.tokens.iter().map(|token| token.len()).max().unwrap_or(0),
            notices,
        })
    }

    /// Bytes of the longest token's text: no token covers more of a text than this.
    pub fn token_bytes_max(&self) -> usize {
        self.token_bytes_max
    }

    /// The ids of `text`; control tokens written out in it become those tokens.
    ///
    /// # Errors
    /// A character that the vocabulary can express neither as a whole nor in bytes.
    pub fn encode(&self, text: &str, add_special: AddSpecial) -> Result<Vec<TokenId>, TokenizerError> {
        self.encode_with(text, EncodeOptions { add_special, parse_special: ParseSpecial::Yes })
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// A character that the vocabulary can express neither as a whole nor in bytes.
    pub fn encode_with(&self, text: &str, options: EncodeOptions) -> Result<Vec<TokenId>, TokenizerError> {
        let EncodeOptions { add_special, parse_special } = options;
        let specials = match parse_special {
            ParseSpecial::Yes => &self.all_specials,
            ParseSpecial::No => &self.user_defined,
        };
        let surrounds = add_special == AddSpecial::Yes;
        let mut ids = Vec::new();
        ids.extend(self.ids.bos.filter(|_| surrounds && self.ids.add_bos));
        let mut after_special = true;
        for part in specials.partition(text) {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) => self.encode_text(text, after_special, &mut ids)?,
            }
            after_special = matches!(part, Part::Token(_));
        }
        ids.extend(self.ids.eos.filter(|_| surrounds && self.ids.add_eos));
        Ok(ids)
    }

    fn encode_text(
        &self,
        text: &str,
        after_special: bool,
        ids: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        match &self.model {
            Model::Bpe(bpe) => bpe.encode(text, ids),
            Model::Spm(spm) => spm.encode(text, after_special, ids),
        }
    }

    /// The text of a whole sequence: control tokens print nothing, bytes that are no UTF-8 become
    /// U+FFFD, and the space that SPM puts in front is taken away.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let mut stream = self.decode_stream();
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// Decodes a sequence from its start, piece by piece: the pieces together are what
    /// [`decode`](Tokenizer::decode) gives.
    pub fn decode_stream(&self) -> StreamDecoder {
        StreamDecoder::new(Arc::clone(&self.pieces), true)
    }

    /// Decodes what follows other text, such as an answer after its prompt: a space in front is
    /// the text's own.
    pub fn continue_stream(&self) -> StreamDecoder {
        StreamDecoder::new(Arc::clone(&self.pieces), false)
    }

    /// What one token stands for, control tokens by their name; U+FFFD for parts of characters.
    pub fn piece(&self, id: TokenId) -> String {
        let mut bytes = Vec::new();
        self.pieces.write_visible(id, &mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The token as the file writes it, to compare vocabularies; `None` outside the vocabulary.
    pub fn token_text(&self, id: TokenId) -> Option<&str> {
        self.pieces.text(id)
    }

    /// Number of tokens.
    pub fn vocab_len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether the token ends a text or a turn.
    pub fn is_end(&self, id: TokenId) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// Every token that ends a text or a turn, in order.
    pub fn end_tokens(&self) -> &[TokenId] {
        &self.ends
    }

    /// The token at the beginning of a text.
    pub fn bos(&self) -> Option<TokenId> {
        self.ids.bos
    }

    /// The token at the end of a text.
    pub fn eos(&self) -> Option<TokenId> {
        self.ids.eos
    }

    /// The file's chat template, for [`chat::render`](super::chat::render); `None` if it has none.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// One line each about what the file left open or asked for in vain; the caller prints them.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }
}

struct Parts {
    model: Model,
    pieces: Pieces,
    ids: SpecialIds,
    notices: Vec<String>,
}

impl SpecialIds {
    fn new(vocabulary: &Vocabulary<'_>, defaults: Defaults) -> Result<SpecialIds, TokenizerError> {
        let vocab_len = vocabulary.tokens.len();
        let checked = |key: &'static str, id: Option<u64>| {
            let Some(id) = id else { return Ok(None) };
            let in_range = u32::try_from(id).ok().filter(|&index| (index as usize) < vocab_len);
            in_range.map(Some).ok_or(TokenizerError::IdOutOfRange { key, id, vocab_len })
        };
        let ids = SpecialIds {
            bos: checked(BOS, vocabulary.bos.or(defaults.bos))?,
            eos: checked(EOS, vocabulary.eos.or(defaults.eos))?,
            eot: checked(EOT, vocabulary.eot)?,
            eom: checked(EOM, vocabulary.eom)?,
            unk: checked(UNK, vocabulary.unk.or(defaults.unk))?,
            add_bos: vocabulary.add_bos.unwrap_or(defaults.add_bos),
            add_eos: vocabulary.add_eos.unwrap_or(false),
        };
        if ids.add_bos && ids.bos.is_none() {
            return Err(TokenizerError::NoSuchSpecial { add_key: ADD_BOS, id_key: BOS });
        }
        if ids.add_eos && ids.eos.is_none() {
            return Err(TokenizerError::NoSuchSpecial { add_key: ADD_EOS, id_key: EOS });
        }
        Ok(ids)
    }
}

fn default_pre(notices: &mut Vec<String>) -> &'static PreTokenizer {
    let pre = &PRE_TOKENIZERS[0];
    notices.push(format!(
        "tokenizer.ggml.pre is missing: words are split by {:?}, which may not be how the model was trained",
        pre.names[0]
    ));
    pre
}
