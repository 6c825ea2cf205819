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
