//! The settings that a sweep crosses, their names in tables, and what they come to for a model.
//!
//! Owns the spelling of each axis. Pure: it reads no files and starts nothing.

use drafthorse_runtime::units::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Experts kept in memory.
#[derive(Clone, Debug, PartialEq)]
pub enum CacheSize {
    /// Of all experts, above 0 and up to 100.
    Percent(f64),
    /// A size, as it was written.
    Bytes(String),
    /// So many.
    Slots(u64),
}

impl CacheSize {
    fn parse(text: &str) -> Result<CacheSize, String> {
        if let Some(number) = text.strip_suffix('%') {
            let share = number.trim().parse().ok().filter(|share| *share > 0.0 && *share <= 100.0);
            return share
                .map(CacheSize::Percent)
                .ok_or_else(|| format!("cache {text:?}: expected a share above 0% and up to 100%"));
        }
        let size = text.parse::<ByteSize>().map_err(|error| format!("cache {text:?}: {error}"));
        size.map(|_| CacheSize::Bytes(text.to_owned()))
    }

    /// Name in tables.
    pub fn label(&self) -> String {
        match self {
            CacheSize::Percent(share) => format!("{share}%"),
            CacheSize::Bytes(text) => text.clone(),
            CacheSize::Slots(slots) => slots.to_string(),
        }
    }

    /// Slots of a model's cache: never fewer than one token uses, never more than there are experts.
    pub fn slots(&self, bank: &Bank) -> u64 {
        let slots = match self {
            CacheSize::Percent(share) => (share / 100.0 * bank.experts_total as f64).round() as u64,
            CacheSize::Bytes(text) => {
                text.parse::<ByteSize>().map_or(0, ByteSize::bytes) / bank.slot_bytes.max(1)
            }
            CacheSize::Slots(slots) => *slots,
        };
        slots.clamp(bank.slots_min.min(bank.experts_total), bank.experts_total)
    }
}

impl Serialize for CacheSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            CacheSize::Slots(slots) => serializer.serialize_u64(*slots),
            other => serializer.serialize_str(&other.label()),
        }
    }
}

impl<'de> Deserialize<'de> for CacheSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<CacheSize, D::Error> {
        match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(slots) if slots > 0 => Ok(CacheSize::Slots(slots as u64)),
            NumberOrText::Number(slots) => {
                Err(D::Error::custom(format!("cache {slots}: expected slots from 1")))
            }
            NumberOrText::Text(text) => CacheSize::parse(&text).map_err(D::Error::custom),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(i64),
    Text(String),
}

/// A model's experts, as far as cache sizes depend on them; all 0 for a dense model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bank {
    /// Routed experts of all layers.
    pub experts_total: u64,
    /// Bytes of one slot.
    pub slot_bytes: u64,
    /// The fewest slots a cache may have: the experts of one token in one layer.
    pub slots_min: u64,
}

/// What was in memory before a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// The files not in the page cache, no statistics of earlier runs.
    Cold,
    /// The files as the run before left them, and statistics (`--stats-file`) of one run of this prompt; and what
    /// the scheduler learned in one of that drafter, or without a draft, with that cache.
    Warm,
}

impl Start {
    /// Name in tables.
    pub fn label(self) -> &'static str {
        match self {
            Start::Cold => "cold",
            Start::Warm => "warm",
        }
    }
}

/// What `--draft` takes, or a scripted drafter without its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Drafter(pub String);

const SCRIPT: &str = "script:";

impl Drafter {
    /// Whether it is nobody.
    pub fn is_none(&self) -> bool {
        self.0 == "none"
    }

    /// The settings of a scripted drafter (`accept=0.8,us=500`).
    pub fn script(&self) -> Option<&str> {
        self.0.strip_prefix(SCRIPT)
    }

    /// Acceptance a scripted drafter aims at.
    pub fn script_acceptance(&self) -> Option<f64> {
        let settings = self.script()?.split(',');
        settings
            .filter_map(|setting| setting.trim().strip_prefix("accept="))
            .find_map(|text| text.parse().ok())
    }

    /// The drafter as `--draft` takes it; `ids` is the file a scripted one reads.
    pub fn argument(&self, ids: &str) -> String {
        match self.script() {
            Some(settings) => format!("{SCRIPT}{ids},{settings}"),
            None => self.0.clone(),
        }
    }

    /// Name in tables: of a file, its name alone. A list (`suffix,SMALL.gguf`) stays one.
    pub fn label(&self) -> String {
        if self.script().is_some() {
            return self.0.clone();
        }
        let short = |part: &str| {
            let (kind, name) = part.split_at(part.find(':').map_or(0, |colon| colon + 1));
            let name = name.rsplit('/').next().filter(|_| name.ends_with(".gguf")).unwrap_or(name);
            format!("{kind}{name}")
        };
        self.0.split(',').map(short).collect::<Vec<_>>().join(",")
    }

    /// What may be a file of a model: each drafter of a list, without the kind before a colon.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let parts = self.0.split(',').filter(|_| self.script().is_none());
        parts.map(|part| part.split_once(':').map_or(part, |(_, name)| name))
    }
}

impl<'de> Deserialize<'de> for Drafter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Drafter, D::Error> {
        let drafter = Drafter(String::deserialize(deserializer)?);
        let is_bad = |acceptance: Option<f64>| !acceptance.is_some_and(|share| (0.0..=1.0).contains(&share));
        if drafter.0.is_empty() {
            return Err(D::Error::custom("drafters: an empty name"));
        }
        if drafter.script().is_some() && is_bad(drafter.script_acceptance()) {
            return Err(D::Error::custom(format!(
                "drafters: {:?} needs accept= with a share from 0 to 1",
                drafter.0
            )));
        }
        Ok(drafter)
    }
}

/// Drafted tokens a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftLen {
    /// Measured.
    Auto,
    /// Always so many.
    Fixed(u32),
}

impl DraftLen {
    /// As `--draft-len` takes it, and in tables.
    pub fn label(self) -> String {
        match self {
            DraftLen::Auto => "auto".to_owned(),
            DraftLen::Fixed(len) => len.to_string(),
        }
    }
}

impl Serialize for DraftLen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            DraftLen::Auto => serializer.serialize_str("auto"),
            DraftLen::Fixed(len) => serializer.serialize_u32(*len),
        }
    }
}

impl<'de> Deserialize<'de> for DraftLen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<DraftLen, D::Error> {
        let wrong =
            |shown: String| D::Error::custom(format!("draft_lens: {shown}: expected \"auto\" or a number"));
        match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(len) => {
                u32::try_from(len).map(DraftLen::Fixed).map_err(|_| wrong(len.to_string()))
            }
            NumberOrText::Text(text) if text == "auto" => Ok(DraftLen::Auto),
            NumberOrText::Text(text) => Err(wrong(format!("{text:?}"))),
        }
    }
}

/// How drafts are verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Verify(String);

impl Verify {
    /// The default: draft and target share their noise, and the text does not depend on the draft.
    pub fn coupled() -> Verify {
        Verify("coupled".to_owned())
    }

    /// Name in tables.
    pub fn label(&self) -> &str {
        &self.0
    }

    /// What `--verify` is given; None for the default.
    pub fn argument(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|name| *name != "coupled")
    }

    /// Whether a run at this temperature must give the ids of a run without a draft.
    pub fn keeps_text(&self, temperature: f64) -> bool {
        temperature == 0.0 || self.argument().is_none()
    }
}

/// A way of drafting.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// Who guesses.
    pub drafter: Drafter,
    /// How far.
    pub len: DraftLen,
    /// And how it is judged.
    pub verify: Verify,
}

impl Variant {
    /// Every combination, in the order of the lists.
    pub fn all(drafters: &[Drafter], lens: &[DraftLen], verify: &[Verify]) -> Vec<Variant> {
        let mut variants = Vec::new();
        for drafter in drafters {
            for len in lens {
                variants.extend(verify.iter().map(|verify| Variant {
                    drafter: drafter.clone(),
                    len: *len,
                    verify: verify.clone(),
                }));
            }
        }
        variants
    }

    /// Its name in keys and messages.
    pub fn label(&self) -> String {
        let Variant { drafter, len, verify } = self;
        let verify = verify.argument().map(|name| format!(", verify {name}")).unwrap_or_default();
        format!("{}, length {}{verify}", drafter.0, len.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BANK: Bank = Bank { experts_total: 128, slot_bytes: 1 << 20, slots_min: 4 };

    #[test]
    fn a_cache_size_comes_to_slots_that_a_model_can_have() {
        let slots = |size: CacheSize| size.slots(&BANK);
        assert_eq!(slots(CacheSize::Percent(5.0)), 6); // 6.4
        assert_eq!(slots(CacheSize::Percent(20.0)), 26); // 25.6
        assert_eq!(slots(CacheSize::Percent(1.0)), 4, "a token uses four");
        assert_eq!(slots(CacheSize::Percent(100.0)), 128);
        assert_eq!(slots(CacheSize::Bytes("10MiB".into())), 10);
        assert_eq!((slots(CacheSize::Slots(9)), slots(CacheSize::Slots(999))), (9, 128));
        assert_eq!(CacheSize::Percent(40.0).slots(&Bank::default()), 0, "a dense model");
    }

    #[test]
    fn a_scripted_drafter_is_told_its_file() {
        let script = Drafter("script:us=500,accept=0.6".into());
        assert_eq!(script.argument("/x/ids"), "script:/x/ids,us=500,accept=0.6");
        assert_eq!(script.script_acceptance(), Some(0.6));
        let file = Drafter("/models/small.gguf".into());
        assert_eq!((file.argument("/x"), file.label()), ("/models/small.gguf".into(), "small.gguf".into()));
        let list = Drafter("suffix,/models/small.gguf".into());
        assert_eq!(list.label(), "suffix,small.gguf");
        assert_eq!(list.names().collect::<Vec<_>>(), ["suffix", "/models/small.gguf"]);
        let head = Drafter("eagle3:/models/head.gguf".into());
        assert_eq!(
            (head.label().as_str(), head.names().next()),
            ("eagle3:head.gguf", Some("/models/head.gguf"))
        );
        assert_eq!((script.label(), script.names().count()), (script.0.clone(), 0));
    }

    #[test]
    fn only_the_coupled_rule_keeps_sampled_text() {
        let block = Verify("block".into());
        assert!(block.keeps_text(0.0) && !block.keeps_text(0.8) && Verify::coupled().keeps_text(0.8));
        let lens = [DraftLen::Auto, DraftLen::Fixed(2)];
        let variants = Variant::all(&[Drafter("ngram".into())], &lens, &[Verify::coupled(), block]);
        let labels: Vec<String> = variants.iter().map(Variant::label).collect();
        assert_eq!(labels[0], "ngram, length auto");
        assert_eq!(labels[3], "ngram, length 2, verify block");
    }
}
