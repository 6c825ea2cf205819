//! Several drafters in order: the first that does not abstain drafts.
//!
//! Owns [`ChainDrafter`]. What costs nothing and knows when it does not know (n-gram, suffix) stands before
//! what always has a guess (a model). It must not know how a member drafts.

use crate::{Draft, DraftError, Drafter, FeatureNeed, Request};

/// Asks its members in order; see the module.
///
/// A member that fails is put away and said so in [`Drafter::notices`]; the others go on. When the last one
/// fails, so does the chain.
pub struct ChainDrafter {
    members: Vec<Member>,
    notices: Vec<String>,
}

/// A drafter and its place in the chain as it was made, by which its drafts are told apart.
struct Member {
    drafter: Box<dyn Drafter>,
    source: usize,
}

impl ChainDrafter {
    /// A chain of these drafters, asked in this order.
    pub fn new(drafters: Vec<Box<dyn Drafter>>) -> ChainDrafter {
        let members = drafters.into_iter().enumerate();
        let members = members.map(|(source, drafter)| Member { drafter, source }).collect();
        ChainDrafter { members, notices: Vec::new() }
    }

    /// Puts the member away; an error if it was the last.
    fn put_away(&mut self, index: usize, error: DraftError) -> Result<(), DraftError> {
        let Member { drafter, .. } = self.members.remove(index);
        let name = drafter.name();
        if self.members.is_empty() {
            return Err(DraftError::LastMember { name, source: Box::new(error) });
        }
        self.notices.push(format!("the {name} drafter failed and was put away, the others go on: {error}"));
        Ok(())
    }
}

impl Drafter for ChainDrafter {
    fn name(&self) -> &'static str {
        "chain"
    }

    fn propose(&mut self, request: Request<'_>) -> Result<Draft, DraftError> {
        let (mut drafted, mut index) = (Draft::default(), 0);
        while let Some(Member { drafter, source }) = self.members.get_mut(index) {
            // Those behind the one that drafted are asked for nothing, so that all may follow the text.
            let max_tokens = if drafted.tokens.is_empty() { request.max_tokens } else { 0 };
            match drafter.propose(Request { max_tokens, stop: request.stop.of(*source), ..request }) {
                Ok(draft) if max_tokens > 0 && !draft.tokens.is_empty() => {
                    drafted = Draft { source: *source, ..draft };
                    index += 1;
                }
                Ok(_) => index += 1,
                Err(error) => self.put_away(index, error)?,
            }
        }
        Ok(drafted)
    }

    fn run_ahead(&mut self, request: Request<'_>, draft: &Draft) {
        if let Some(member) = self.members.iter_mut().find(|member| member.source == draft.source) {
            member.drafter.run_ahead(Request { stop: request.stop.of(member.source), ..request }, draft);
        }
    }

    fn rest(&mut self) {
        self.members.iter_mut().for_each(|member| member.drafter.rest());
    }

    /// At most one member needs any: two heads in one chain would draft for each other's openings.
    fn features(&self) -> FeatureNeed {
        let needs = self.members.iter().map(|member| member.drafter.features());
        needs.into_iter().find(|need| *need != FeatureNeed::None).unwrap_or(FeatureNeed::None)
    }

    fn notices(&mut self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.notices);
        lines.extend(self.members.iter_mut().flat_map(|member| member.drafter.notices()));
        lines
    }

    fn forget(&mut self) {
        self.members.iter_mut().for_each(|member| member.drafter.forget());
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]
    use super::*;
    use crate::{Sampler, SamplerConfig, TokenId};

    /// Drafts `token` when the context is at least `from` long, and fails at `fails_at`.
    struct Plain {
        token: TokenId,
        from: usize,
        fails_at: usize,
    }

    impl Drafter for Plain {
        fn name(&self) -> &'static str {
            "plain"
        }

        fn propose(&mut self, request: Request<'_>) -> Result<Draft, DraftError> {
            let len = request.context.len();
            if len >= self.fails_at {
                return Err(DraftError::ModelMissing { drafter: "plain" });
            }
            let tokens = if len >= self.from { vec![self.token; request.max_tokens] } else { Vec::new() };
            let confidence = vec![0.5; tokens.len()];
            Ok(Draft::new(tokens, confidence))
        }
    }

    fn chain(members: &[(TokenId, usize, usize)]) -> ChainDrafter {
        let member = |&(token, from, fails_at): &_| Box::new(Plain { token, from, fails_at }) as _;
        ChainDrafter::new(members.iter().map(member).collect())
    }

    /// The first drafted token and its source, for a context of `len` tokens.
    fn ask(chain: &mut ChainDrafter, len: usize) -> Result<Option<(TokenId, usize)>, DraftError> {
        let sampler = Sampler::new(SamplerConfig::plain(0.0, 0));
        let draft = chain.propose(Request::new(&vec![0; len], 2, &sampler))?;
        Ok(draft.tokens.first().map(|token| (*token, draft.source)))
    }

    #[test]
    fn the_first_that_does_not_abstain_drafts_and_is_named() {
        let mut chain = chain(&[(7, 5, 99), (8, 3, 99), (9, 2, 99)]);
        let asked: Vec<_> = (1..6).map(|len| ask(&mut chain, len).unwrap()).collect();
        assert_eq!(asked, [None, Some((9, 2)), Some((8, 1)), Some((8, 1)), Some((7, 0))]);
        assert!(chain.notices().is_empty());
    }

    #[test]
    fn one_that_fails_is_put_away_and_the_others_keep_their_places() {
        let mut chain = chain(&[(7, 5, 6), (8, 1, 9)]);
        assert_eq!(ask(&mut chain, 5).unwrap(), Some((7, 0)));
        assert_eq!(ask(&mut chain, 6).unwrap(), Some((8, 1)), "asked at once instead");
        let [line] = &chain.notices()[..] else { unreachable!("one line") };
        assert!(line.contains("the plain drafter failed") && line.contains("needs a draft model"), "{line}");
        assert!(chain.notices().is_empty(), "said once");
        assert_eq!(ask(&mut chain, 5).unwrap(), Some((8, 1)), "it does not come back");
        let error = ask(&mut chain, 9).unwrap_err();
        assert!(matches!(error, DraftError::LastMember { name: "plain", .. }), "{error}");
    }
}
