//! placeholder until merged
/// Mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefetchMode {
    /// a
    Auto,
    /// b
    On,
    /// c
    Off,
}
