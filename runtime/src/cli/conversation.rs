//! A conversation as the model sees it: messages, their rendering, and the ids already in the KV cache.
//!
//! Owns the rule that keeps turns cheap: where the new rendering continues the old one, its ids
//! continue the old ids, so that the engine finds them in its KV cache and reads the new turn only.
//! It must not know the terminal or the engine.

use drafthorse_draft::TokenId;
use drafthorse_runtime::Error;
use drafthorse_runtime::tokenizer::chat::{self, Message, RenderOptions};
use drafthorse_runtime::tokenizer::{AddSpecial, Tokenizer};

/// What has been said.
#[derive(Debug, Default)]
pub struct Conversation {
    messages: Vec<Message>,
    so_far: Transcript,
    asked: Transcript,
}

/// A text and the ids it became.
#[derive(Clone, Debug, Default)]
struct Transcript {
    text: String,
    tokens: Vec<TokenId>,
}

impl Conversation {
    /// The prompt for the user's next message: through the chat template, or, for a model without
    /// one, the text so far with the message after it.
    ///
    /// # Errors
    /// The template or the tokenizer refuses; the conversation stays as it was.
    pub fn ask(&mut self, tokenizer: &Tokenizer, line: &str) -> Result<&[TokenId], Error> {
        let message = Message { role: "user".to_owned(), content: line.to_owned() };
        let messages: Vec<Message> = self.messages.iter().cloned().chain([message]).collect();
        self.asked = match tokenizer.chat_template() {
            Some(template) => self.templated(tokenizer, template, &messages)?,
            None => {
                let text = format!("{}{line}", self.so_far.text);
                let tokens = tokenizer.encode(&text, AddSpecial::Yes)?;
                Transcript { text, tokens }
            }
        };
        self.messages = messages;
        Ok(&self.asked.tokens)
    }

    /// The model's answer to the message last asked.
    pub fn answered(&mut self, text: &str, tokens: &[TokenId]) {
        self.messages.push(Message { role: "assistant".to_owned(), content: text.to_owned() });
        self.so_far = std::mem::take(&mut self.asked);
        self.so_far.text.push_str(text);
        self.so_far.tokens.extend_from_slice(tokens);
    }

    /// Takes the message last asked back: there is no answer to it.
    pub fn unasked(&mut self) {
        self.messages.pop();
        self.asked = Transcript::default();
    }

    fn templated(
        &self,
        tokenizer: &Tokenizer,
        template: &str,
        messages: &[Message],
    ) -> Result<Transcript, Error> {
        let special = |id: Option<TokenId>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
        // No date: the same messages and seed give the same text tomorrow (DESIGN I3).
        let options = RenderOptions {
            add_generation_prompt: true,
            bos_token: special(tokenizer.bos()),
            eos_token: special(tokenizer.eos()),
            date: None,
        };
        let text = chat::render(template, messages, &options)?;
        let tokens = match text.strip_prefix(&self.so_far.text) {
            Some(rest) => {
                let mut tokens = self.so_far.tokens.clone();
                tokens.extend(tokenizer.encode(rest, AddSpecial::No)?);
                tokens
            }
            // The template rewrites past answers (it drops the reasoning, say): all of it anew.
            None => tokenizer.encode(&text, AddSpecial::No)?,
        };
        Ok(Transcript { text, tokens })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use drafthorse_runtime::tokenizer::Vocabulary;

    use super::*;

    const PLAIN: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}\
                         {% if add_generation_prompt %}[assistant]{% endif %}";
    /// Past answers lose their first word, as reasoning templates drop the reasoning.
    const REWRITING: &str = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}\
                             {{ m.content.split(' ')[1:] | join(' ') }}{% else %}{{ m.content }}{% endif %}</s>\
                             {% endfor %}[assistant]";

    /// An SPM vocabulary of bytes, one word and `</s>`.
    fn tokenizer(chat_template: Option<&str>) -> Tokenizer {
        let bytes: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
        let tokens: Vec<&str> =
            ["<unk>", "<s>", "</s>"].into_iter().chain(bytes.iter().map(String::as_str)).collect();
        let types: Vec<i32> = (0..259).map(|id| [2, 3, 3].get(id).copied().unwrap_or(6)).collect();
        let scores = vec![0.0; 259];
        let vocabulary = Vocabulary {
            model: "llama",
            tokens,
            scores: &scores,
            types: &types,
            add_space_prefix: Some(false),
            chat_template,
            ..Vocabulary::default()
        };
        Tokenizer::new(&vocabulary).unwrap()
    }

    #[test]
    fn the_next_turn_continues_the_ids_of_the_last() {
        let tokenizer = tokenizer(Some(PLAIN));
        let mut conversation = Conversation::default();
        let first = conversation.ask(&tokenizer, "one").unwrap().to_vec();
        // Ids the model chose need not be those the tokenizer would choose for the same text.
        let chosen = [7, 8, 9];
        conversation.answered("two", &chosen);
        let second = conversation.ask(&tokenizer, "three").unwrap();
        let kept: Vec<TokenId> = first.iter().chain(&chosen).copied().collect();
        assert_eq!(second[..kept.len()], kept);
        assert_eq!(tokenizer.decode(&second[kept.len()..]), "[user]three[assistant]");
    }

    #[test]
    fn a_template_that_rewrites_answers_is_encoded_anew() {
        let tokenizer = tokenizer(Some(REWRITING));
        let mut conversation = Conversation::default();
        conversation.ask(&tokenizer, "one").unwrap();
        conversation.answered("hmm two", &[7, 8, 9]);
        let second = conversation.ask(&tokenizer, "three").unwrap().to_vec();
        assert_eq!(tokenizer.decode(&second), "[user]one[assistant]two[user]three[assistant]");
    }

    #[test]
    fn without_a_template_the_text_goes_on() {
        let tokenizer = tokenizer(None);
        let mut conversation = Conversation::default();
        conversation.ask(&tokenizer, "Once upon").unwrap();
        conversation.answered(" a time", &[1]);
        let tokens = conversation.ask(&tokenizer, " there").unwrap().to_vec();
        assert_eq!(tokens, tokenizer.encode("Once upon a time there", AddSpecial::Yes).unwrap());
    }

    #[test]
    fn a_question_without_an_answer_is_forgotten() {
        let tokenizer = tokenizer(Some(PLAIN));
        let mut conversation = Conversation::default();
        conversation.ask(&tokenizer, "lost").unwrap();
        conversation.unasked();
        let tokens = conversation.ask(&tokenizer, "kept").unwrap().to_vec();
        assert_eq!(tokenizer.decode(&tokens), "[user]kept[assistant]");
    }
}
