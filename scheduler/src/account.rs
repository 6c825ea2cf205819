//! The account from which drafted passes are paid.
//!
//! Owns [`Account`]: seconds that drafting may lose. What comes in over time is a share of the time spent, so what is
//! lost stays a share of it, whatever was predicted. It must not know plans, or what seconds were spent on.

/// Seconds that drafting may still lose against plain passes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Account {
    balance_s: f64,
    lent_s: f64,
}

impl Account {
    /// Seconds that may be lost now.
    pub(crate) fn balance(&self) -> f64 {
        self.balance_s
    }

    /// Seconds that were lent and have not come in since.
    pub(crate) fn lent(&self) -> f64 {
        self.lent_s
    }

    /// Begins with `seconds`.
    pub(crate) fn open(&mut self, seconds: f64) {
        self.balance_s = seconds;
    }

    /// Time has passed that allows for the loss of `seconds`. What was lent of them has been spent.
    pub(crate) fn earn(&mut self, seconds: f64) {
        let repaid_s = self.lent_s.min(seconds);
        self.lent_s -= repaid_s;
        self.balance_s += seconds - repaid_s;
    }

    /// What was lent above `seconds` need not come in any more.
    pub(crate) fn forgive_above(&mut self, seconds: f64) {
        self.lent_s = self.lent_s.min(seconds);
    }

    /// A drafted pass gained `seconds`, or lost them (negative).
    pub(crate) fn book(&mut self, seconds: f64) {
        self.balance_s += seconds;
    }

    /// Gains above `seconds` are not saved up for later losses.
    pub(crate) fn keep_at_most(&mut self, seconds: f64) {
        self.balance_s = self.balance_s.min(seconds);
    }

    /// Lends of what will be earned later until the balance is `seconds`.
    pub(crate) fn lend_up_to(&mut self, seconds: f64) {
        self.lent_s += (seconds - self.balance_s).max(0.0);
        self.balance_s = self.balance_s.max(seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lent_is_repaid_by_time_alone() {
        let mut account = Account::default();
        account.open(1.0);
        account.book(-1.5);
        account.lend_up_to(0.25);
        assert_eq!((account.balance(), account.lent()), (0.25, 0.75));
        account.earn(0.5);
        account.book(2.0);
        assert_eq!((account.balance(), account.lent()), (2.25, 0.25), "a gain repays nothing");
        account.earn(0.5);
        assert_eq!((account.balance(), account.lent()), (2.5, 0.0));
        account.lend_up_to(1.0);
        assert_eq!(account.lent(), 0.0, "it held that much");
        account.keep_at_most(1.0);
        assert_eq!(account.balance(), 1.0);
        account.lend_up_to(3.0);
        account.forgive_above(0.5);
        assert_eq!((account.balance(), account.lent()), (3.0, 0.5));
    }
}
