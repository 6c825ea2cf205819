//! What `tune` tries: the settings of a run, and the lists that are compared with each other.
//!
//! Owns which settings are candidates and in what order of preference. Pure: it must not know engines,
//! files or measurements.

use drafthorse_scheduler::DraftLen;
use serde::{Serialize, Serializer};

/// Fixed draft lengths that are tried.
const DRAFT_LENS: [usize; 4] = [1, 2, 4, 8];
/// Shares of the slots that fit, in percent, that are tried.
const SLOT_PERCENTS: [usize; 3] = [75, 50, 25];

/// Who guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Drafter {
    /// Nobody.
    None,
    /// The n-gram drafter.
    Ngram,
    /// The one that was asked for.
    Given,
}

/// One way of running the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    pub drafter: Drafter,
    #[serde(serialize_with = "as_text")]
    pub draft_len: DraftLen,
    /// Expert slots; `None`: as many as the budget holds.
    pub slots: Option<usize>,
    /// Compute threads; `None`: one per CPU.
    pub threads: Option<usize>,
}

fn as_text<S: Serializer>(draft_len: &DraftLen, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(draft_len)
}

/// What cannot be changed without loading again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineKey {
    /// Whether the given drafter is loaded; without it, nobody and n-grams take turns.
    pub is_given: bool,
    pub slots: Option<usize>,
    pub threads: Option<usize>,
}

impl Setting {
    /// What has to be open for it.
    pub fn engine(&self) -> EngineKey {
        EngineKey { is_given: self.drafter == Drafter::Given, slots: self.slots, threads: self.threads }
    }

    fn plain(self) -> Setting {
        Setting { drafter: Drafter::None, draft_len: DraftLen::Fixed(0), ..self }
    }
}

/// What may be tried: flags fix a setting, everything else is compared.
#[derive(Clone, Copy, Debug)]
pub struct Freedom {
    /// Whether a drafter other than n-grams was asked for.
    pub has_given: bool,
    /// Whether `--draft none` was.
    pub is_plain_only: bool,
    /// The length of `--draft-len`.
    pub draft_len: Option<DraftLen>,
    /// The longest draft `auto` may choose: passes are planned for it.
    pub draft_len_max: usize,
}

/// The default, then nobody, then every drafter with `auto` and with fixed lengths.
pub fn drafting(default: Setting, freedom: &Freedom) -> Vec<Setting> {
    let mut list = vec![default];
    let mut add = |setting: Setting| {
        if !list.contains(&setting) {
            list.push(setting);
        }
    };
    add(default.plain());
    if freedom.is_plain_only || freedom.draft_len == Some(DraftLen::Fixed(0)) {
        return list;
    }
    let fixed = DRAFT_LENS.into_iter().filter(|len| *len <= freedom.draft_len_max).map(DraftLen::Fixed);
    let lens: Vec<DraftLen> = match freedom.draft_len {
        Some(asked) => vec![asked],
        None => std::iter::once(DraftLen::Auto).chain(fixed).collect(),
    };
    let drafters = [Some(Drafter::Ngram), freedom.has_given.then_some(Drafter::Given)];
    for drafter in drafters.into_iter().flatten() {
        lens.iter().for_each(|&draft_len| add(Setting { drafter, draft_len, ..default }));
    }
    list
}

/// `best`, then as many slots as fit, then shares of them, down to `slots_min`.
pub fn cache_sizes(best: Setting, (slots_min, slots_max): (usize, usize)) -> Vec<Setting> {
    let shares = SLOT_PERCENTS.into_iter().map(|percent| slots_max * percent / 100);
    let mut list = vec![best];
    for slots in std::iter::once(None).chain(shares.filter(|slots| *slots >= slots_min).map(Some)) {
        let is_known =
            list.iter().any(|s: &Setting| s.slots.unwrap_or(slots_max) == slots.unwrap_or(slots_max));
        if !is_known {
            list.push(Setting { slots, ..best });
        }
    }
    list
}

/// `best`, then one thread per CPU or for half of them: hyperthreads and small cores may hold others up.
pub fn thread_counts(best: Setting, cpus: usize) -> Vec<Setting> {
    let mut list = vec![best];
    for threads in [cpus, cpus / 2].into_iter().filter(|threads| *threads > 0) {
        if list.iter().all(|s: &Setting| s.threads.unwrap_or(cpus) != threads) {
            let threads = Some(threads).filter(|threads| *threads != cpus);
            list.push(Setting { threads, ..best });
        }
    }
    list
}

/// Indices in the order of a round: settings of one engine together, and backwards in every second round,
/// so that nobody is always first and the engine that is open is used again.
pub fn round_order(settings: &[Setting], round: usize) -> Vec<usize> {
    let mut engines: Vec<EngineKey> = Vec::new();
    for setting in settings {
        if !engines.contains(&setting.engine()) {
            engines.push(setting.engine());
        }
    }
    let of =
        |key: &EngineKey| (0..settings.len()).filter(|i| settings[*i].engine() == *key).collect::<Vec<_>>();
    let mut order: Vec<usize> = engines.iter().flat_map(of).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// How often the engines of a round differ from one setting to the next, the first included.
pub fn engines(settings: &[Setting]) -> usize {
    let order = round_order(settings, 0);
    let changes = order.windows(2).filter(|pair| settings[pair[0]].engine() != settings[pair[1]].engine());
    changes.count() + usize::from(!order.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Setting =
        Setting { drafter: Drafter::None, draft_len: DraftLen::Fixed(0), slots: None, threads: None };
    const GIVEN: Setting = Setting { drafter: Drafter::Given, draft_len: DraftLen::Auto, ..PLAIN };
    const FREE: Freedom =
        Freedom { has_given: false, is_plain_only: false, draft_len: None, draft_len_max: 8 };

    fn names(list: &[Setting]) -> Vec<String> {
        list.iter().map(|s| format!("{:?} {}", s.drafter, s.draft_len)).collect()
    }

    #[test]
    fn the_default_comes_first_and_nothing_twice() {
        let list = drafting(PLAIN, &FREE);
        assert_eq!(names(&list), ["None 0", "Ngram auto", "Ngram 1", "Ngram 2", "Ngram 4", "Ngram 8"]);
        let list = drafting(GIVEN, &Freedom { has_given: true, ..FREE });
        assert_eq!(names(&list)[..3], ["Given auto", "None 0", "Ngram auto"]);
        assert_eq!(names(&list)[7..], ["Given 1", "Given 2", "Given 4", "Given 8"]);
    }

    #[test]
    fn flags_fix_what_they_say() {
        let of = |freedom| names(&drafting(GIVEN, &freedom));
        let given = Freedom { has_given: true, ..FREE };
        let four = Setting { draft_len: DraftLen::Fixed(4), ..GIVEN };
        let fixed = Freedom { draft_len: Some(four.draft_len), ..given };
        assert_eq!(names(&drafting(four, &fixed)), ["Given 4", "None 0", "Ngram 4"]);
        assert_eq!(of(Freedom { draft_len_max: 3, ..given })[5..], ["Given 1", "Given 2"]);
        let none = Freedom { is_plain_only: true, ..FREE };
        assert_eq!(names(&drafting(PLAIN, &none)), ["None 0"]);
    }

    #[test]
    fn cache_sizes_are_shares_of_what_fits_and_no_size_is_there_twice() {
        let slots = |best, limits| cache_sizes(best, limits).iter().map(|s| s.slots).collect::<Vec<_>>();
        assert_eq!(slots(PLAIN, (4, 100)), [None, Some(75), Some(50), Some(25)]);
        assert_eq!(slots(PLAIN, (30, 100)), [None, Some(75), Some(50)]);
        let half = Setting { slots: Some(50), ..PLAIN };
        assert_eq!(slots(half, (4, 100)), [Some(50), None, Some(75), Some(25)]);
        assert_eq!(slots(Setting { slots: Some(100), ..PLAIN }, (4, 100))[1], Some(75));
        assert_eq!(slots(PLAIN, (1, 1)), [None]);
    }

    #[test]
    fn threads_are_all_cpus_or_half_of_them() {
        let threads = |best, cpus| thread_counts(best, cpus).iter().map(|s| s.threads).collect::<Vec<_>>();
        assert_eq!(threads(PLAIN, 8), [None, Some(4)]);
        assert_eq!(threads(PLAIN, 1), [None]);
        assert_eq!(threads(Setting { threads: Some(4), ..PLAIN }, 8), [Some(4), None]);
        assert_eq!(threads(Setting { threads: Some(3), ..PLAIN }, 8), [Some(3), None, Some(4)]);
    }

    #[test]
    fn rounds_group_engines_and_turn_around() {
        let ngram = Setting { drafter: Drafter::Ngram, ..PLAIN };
        let list = [GIVEN, PLAIN, ngram, Setting { draft_len: DraftLen::Fixed(1), ..GIVEN }];
        assert_eq!(round_order(&list, 0), [0, 3, 1, 2]);
        assert_eq!(round_order(&list, 1), [2, 1, 3, 0]);
        assert_eq!((engines(&list), engines(&list[1..3]), engines(&[])), (2, 1, 0));
        assert_eq!(engines(&cache_sizes(PLAIN, (1, 100))), 4);
    }
}
