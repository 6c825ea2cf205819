//! Where an expert that is not on the device is computed: on the host's threads, or on the device once it has
//! been copied there.
//!
//! Owns the measured rates of both lanes and the rule (ALGORITHMS.md H.8): the dearest first, each to the lane that
//! is done with it first. It must not act.

/// Where an expert is to be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// On the host's threads, from where it lies.
    Host,
    /// On the device, after a copy.
    Device,
}

/// Rows of one expert from which on the host is not asked: its time grows with them, the device's hardly.
const HOST_ROWS_MAX: u32 = 16;
/// What a further row of an expert costs the host, in the time of the first.
const ROW_COST: f64 = 0.25;
/// Bytes per second that are assumed until they are measured: of a laptop's memory and link.
const HOST_BYTES_PER_S: f64 = 15e9;
const LINK_BYTES_PER_S: f64 = 10e9;
/// What a measurement counts against those before it.
const WEIGHT: f64 = 0.1;

/// Bytes per second of either lane.
#[derive(Clone, Debug)]
pub struct Rates {
    host: f64,
    link: f64,
}

impl Rates {
    /// Nothing is measured yet.
    pub fn new() -> Rates {
        Rates { host: HOST_BYTES_PER_S, link: LINK_BYTES_PER_S }
    }

    /// The host took so long over experts of so many bytes.
    pub fn learn_host(&mut self, bytes: f64, seconds: f64) {
        learn(&mut self.host, bytes, seconds);
    }

    /// The link took so long over a copy.
    pub fn learn_link(&mut self, bytes: f64, seconds: f64) {
        learn(&mut self.link, bytes, seconds);
    }

    /// Where experts of `bytes` each go, in the order given; `counts` says how many rows want each.
    pub fn choose(&self, bytes: f64, counts: &[u32]) -> Vec<Choice> {
        let host_s = |count: u32| bytes / self.host * (1.0 + ROW_COST * f64::from(count.max(1) - 1));
        let copy_s = bytes / self.link;
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.sort_by(|a, b| counts[*b].cmp(&counts[*a]).then(a.cmp(b)));
        let mut choices = vec![Choice::Device; counts.len()];
        let (mut host_done, mut link_done) = (0.0, 0.0);
        for index in order {
            let on_host = host_done + host_s(counts[index]);
            if counts[index] < HOST_ROWS_MAX && on_host < link_done + copy_s {
                host_done = on_host;
                choices[index] = Choice::Host;
            } else {
                link_done += copy_s;
            }
        }
        choices
    }
}

fn learn(rate: &mut f64, bytes: f64, seconds: f64) {
    if bytes > 0.0 && seconds > 0.0 && (bytes / seconds).is_finite() {
        *rate += WEIGHT * (bytes / seconds - *rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(host: f64, link: f64) -> Rates {
        Rates { host, link }
    }

    fn on_host(choices: &[Choice]) -> usize {
        choices.iter().filter(|choice| **choice == Choice::Host).count()
    }

    #[test]
    fn both_lanes_work_in_proportion_to_their_rates() {
        assert_eq!(on_host(&rates(1e9, 1e9).choose(1e6, &[1; 8])), 4);
        assert_eq!(on_host(&rates(3e9, 1e9).choose(1e6, &[1; 8])), 6);
        assert_eq!(on_host(&rates(1e9, 30e9).choose(1e6, &[1; 8])), 0);
        assert_eq!(on_host(&rates(30e9, 1e9).choose(1e6, &[1; 8])), 8);
    }

    #[test]
    fn an_expert_of_many_rows_is_the_devices() {
        let choices = rates(30e9, 1e9).choose(1e6, &[40, 1, HOST_ROWS_MAX, 2]);
        assert_eq!(choices, [Choice::Device, Choice::Host, Choice::Device, Choice::Host]);
    }

    #[test]
    fn rates_follow_what_is_measured_and_ignore_what_cannot_be() {
        let mut rates = rates(1e9, 1e9);
        (0..100).for_each(|_| rates.learn_host(4e6, 1e-3));
        rates.learn_link(1e6, 0.0);
        rates.learn_link(0.0, 1.0);
        assert!((rates.host / 4e9 - 1.0).abs() < 1e-3 && rates.link == 1e9, "{rates:?}");
    }
}
