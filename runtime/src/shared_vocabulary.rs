//! Which token ids mean the same to a draft model and its target.
//!
//! Owns the comparison of two token lists and what may differ: tokens that stand for no text (control, added,
//! unused, padding), as between members of one model family whose embeddings are padded to other sizes or
//! whose reserved tokens were put to use. Anything else that differs is refused. It must not know what a
//! drafter does with the rest.

use drafthorse_draft::{SharedVocabulary, TokenId};

use crate::Error;
use crate::gguf::{Gguf, Strings, quoted};
use crate::models::{Blueprint, LoadError};

const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
const TYPES_KEY: &str = "tokenizer.ggml.token_type";
/// `tokenizer.ggml.token_type` of tokens that stand for no text of their own: control, user-defined, unused.
const TEXTLESS_TYPES: [i32; 3] = [3, 4, 5];

/// A vocabulary as a file lists it.
struct Listed<'a> {
    tokens: &'a Strings,
    types: &'a [i32],
    /// Size of the embedding; ids beyond the list are padding.
    vocab: usize,
}

impl<'a> Listed<'a> {
    fn of(gguf: &'a Gguf, blueprint: &Blueprint) -> Result<Option<Listed<'a>>, Error> {
        let Some(tokens) = gguf.metadata.strings(TOKENS_KEY)? else { return Ok(None) };
        let types = gguf.metadata.i32s(TYPES_KEY)?.unwrap_or_default();
        let vocab = blueprint.spec.vocab;
        if tokens.len() > vocab {
            return Err(Error::Load(LoadError::BadKey {
                path: gguf.metadata.file().into(),
                key: TOKENS_KEY.into(),
                problem: format!("{} tokens, the embedding has {vocab}", tokens.len()),
            }));
        }
        Ok(Some(Listed { tokens, types, vocab }))
    }

    /// Whether the id, which must not be the other model's too, may still be in the vocabulary.
    fn may_be_alone(&self, id: usize) -> bool {
        id >= self.tokens.len() || self.types.get(id).is_some_and(|kind| TEXTLESS_TYPES.contains(kind))
    }

    /// An id's text for a message.
    fn shown(&self, id: usize) -> String {
        match self.tokens.get(id) {
            Some(token) => quoted(&String::from_utf8_lossy(token)),
            None if id < self.vocab => "padding".to_owned(),
            None => format!("not among its {} tokens", self.vocab),
        }
    }
}

/// What draft and target share: `None` for all of it, else the ids and a line for the user.
///
/// # Errors
/// [`Error::Vocabulary`] names the first token that stands for text and is another on the other side.
pub fn shared_vocabulary(
    target: (&Gguf, &Blueprint),
    draft: (&Gguf, &Blueprint),
) -> Result<Option<(SharedVocabulary, String)>, Error> {
    let refuse = |difference: String| Error::Vocabulary {
        target: target.0.metadata.file().into(),
        draft: draft.0.metadata.file().into(),
        difference,
    };
    let (vocab, theirs) = (target.1.spec.vocab, draft.1.spec.vocab);
    match (Listed::of(target.0, target.1)?, Listed::of(draft.0, draft.1)?) {
        (None, None) if vocab == theirs => Ok(None),
        (None, _) | (_, None) if vocab != theirs => {
            Err(refuse(format!("it has {theirs} tokens, the target {vocab}")))
        }
        (Some(_), None) => Err(refuse("it has no token list, the target has one".into())),
        (None, _) => Err(refuse("it has a token list, the target has none".into())),
        (Some(ours), Some(other)) => {
            let shared = compare(&ours, &other).map_err(refuse)?;
            Ok(shared.map(|shared| {
                let line = notice(&shared, theirs);
                (shared, line)
            }))
        }
    }
}

/// A head has no tokens of its own to choose from; where its file lists some, they must be the target's.
///
/// # Errors
/// [`Error::Vocabulary`] names the first that is not.
pub fn check_head_tokens(target: &Gguf, head: &Gguf) -> Result<(), Error> {
    let Some(theirs) = head.metadata.strings(TOKENS_KEY)? else { return Ok(()) };
    let shown = |tokens: Option<&Strings>, id: usize| match tokens.and_then(|tokens| tokens.get(id)) {
        Some(token) => quoted(&String::from_utf8_lossy(token)),
        None => "not listed".to_owned(),
    };
    let ours = target.metadata.strings(TOKENS_KEY)?;
    let listed = theirs.len().max(ours.map_or(0, Strings::len));
    let differs = |id: &usize| ours.and_then(|ours| ours.get(*id)) != theirs.get(*id);
    (0..listed).find(differs).map_or(Ok(()), |id| {
        let (ours, theirs) = (shown(ours, id), shown(Some(theirs), id));
        Err(Error::Vocabulary {
            target: target.metadata.file().into(),
            draft: head.metadata.file().into(),
            difference: format!("token {id} is {theirs}, the target's is {ours}"),
        })
    })
}

/// The ids in common, `None` for all; the first difference that cannot be put up with, in words.
fn compare(target: &Listed<'_>, draft: &Listed<'_>) -> Result<Option<SharedVocabulary>, String> {
    let both = target.tokens.len().min(draft.tokens.len());
    let listed = target.tokens.len().max(draft.tokens.len());
    let differs = |id: &usize| target.tokens.get(*id) != draft.tokens.get(*id);
    let mut except: Vec<TokenId> = Vec::new();
    for id in (0..listed).filter(differs) {
        if !(target.may_be_alone(id) && draft.may_be_alone(id)) {
            let (ours, theirs) = (target.shown(id), draft.shown(id));
            return Err(format!("token {id} is {theirs}, the target's is {ours}"));
        }
        if id < both {
            except.push(id as TokenId);
        }
    }
    let is_all = except.is_empty() && both == listed && target.vocab == draft.vocab;
    Ok((!is_all).then_some(SharedVocabulary { target: target.vocab, shared: both, except }))
}

fn notice(shared: &SharedVocabulary, theirs: usize) -> String {
    let SharedVocabulary { target, shared, except } = shared;
    format!(
        "draft: of its {theirs} tokens and the target's {target}, {} are the same; the others, which stand for no \
         text, are neither drafted nor shown to it",
        shared - except.len()
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]
    use super::*;

    const NORMAL: i32 = 1;
    const CONTROL: i32 = 3;
    const UNUSED: i32 = 5;

    fn strings(tokens: &[(&str, i32)]) -> (Strings, Vec<i32>) {
        let texts = tokens.iter().map(|(text, _)| text);
        (Strings::try_from_iter(texts).unwrap(), tokens.iter().map(|(_, kind)| *kind).collect())
    }

    /// Compares two lists whose embeddings have `vocab` rows.
    fn compared(
        target: &[(&str, i32)],
        draft: &[(&str, i32)],
        vocab: (usize, usize),
    ) -> Result<Option<(usize, Vec<TokenId>)>, String> {
        let ((ours, our_types), (theirs, their_types)) = (strings(target), strings(draft));
        let target = Listed { tokens: &ours, types: &our_types, vocab: vocab.0 };
        let draft = Listed { tokens: &theirs, types: &their_types, vocab: vocab.1 };
        Ok(compare(&target, &draft)?.map(|shared| (shared.shared, shared.except)))
    }

    const BASE: [(&str, i32); 3] = [("<s>", CONTROL), ("a", NORMAL), ("b", NORMAL)];

    fn base_and(more: &[(&'static str, i32)]) -> Vec<(&'static str, i32)> {
        [&BASE[..], more].concat()
    }

    #[test]
    fn equal_lists_are_one_vocabulary_and_padding_of_another_width_is_left_out() {
        assert_eq!(compared(&BASE, &BASE, (3, 3)), Ok(None));
        assert_eq!(compared(&BASE, &BASE, (8, 8)), Ok(None));
        assert_eq!(compared(&BASE, &BASE, (8, 4)), Ok(Some((3, vec![]))));
        let padded = base_and(&[("[PAD3]", UNUSED), ("[PAD4]", UNUSED)]);
        assert_eq!(compared(&padded, &BASE, (5, 3)), Ok(Some((3, vec![]))));
        assert_eq!(compared(&BASE, &padded, (8, 8)), Ok(Some((3, vec![]))));
    }

    #[test]
    fn tokens_that_stand_for_no_text_may_differ_one_by_one() {
        let ours = base_and(&[("<|reserved_0|>", CONTROL), ("<|eot|>", CONTROL)]);
        let theirs = base_and(&[("<|pad|>", CONTROL), ("<|eot|>", CONTROL), ("<|fim|>", CONTROL)]);
        assert_eq!(compared(&ours, &theirs, (5, 6)), Ok(Some((5, vec![3]))));
    }

    #[test]
    fn a_token_of_text_that_differs_is_named() {
        let respelled = [("<s>", CONTROL), ("a", NORMAL), ("c", NORMAL)];
        let said = compared(&BASE, &respelled, (3, 3)).unwrap_err();
        assert_eq!(said, "token 2 is \"c\", the target's is \"b\"");
        let said = compared(&BASE, &base_and(&[("d", NORMAL)]), (3, 4)).unwrap_err();
        assert_eq!(said, "token 3 is \"d\", the target's is not among its 3 tokens");
        let said = compared(&base_and(&[("d", NORMAL)]), &base_and(&[("<x>", CONTROL)]), (4, 4)).unwrap_err();
        assert_eq!(said, "token 3 is \"<x>\", the target's is \"d\"");
    }

    #[test]
    fn without_types_every_token_is_text() {
        let ((ours, _), (theirs, _)) = (strings(&BASE), strings(&base_and(&[("<x>", CONTROL)])));
        let target = Listed { tokens: &ours, types: &[], vocab: 3 };
        let draft = Listed { tokens: &theirs, types: &[], vocab: 4 };
        assert!(compare(&target, &draft).is_err());
    }
}
