//! The crate's one error enum: what can go wrong between an expert's extents and its bytes.
//!
//! Failures of single reads are [`ReadError`] (they know file and offset); the cache wraps one in
//! [`OffloadError::Load`], which adds the expert and the part. Nothing here knows exit codes.

use std::path::PathBuf;

use crate::ExpertId;
use crate::reader::{READERS, ReadError};

/// Everything the crate can refuse or fail at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OffloadError {
    /// The model has no routed expert, or one of its layers has none.
    #[error("expert index: {what}")]
    EmptyIndex {
        /// Which part of the index is empty.
        what: String,
    },
    /// An extent is empty, or its end does not fit the address space.
    #[error("expert index: {id}, {part}: offset {offset} + length {len} is not a valid extent")]
    BadExtent {
        /// The expert.
        id: ExpertId,
        /// `gate`, `up` or `down`.
        part: &'static str,
        /// First byte in the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Two experts of one layer disagree about the length of a part.
    #[error("expert index: {id}, {part}: {got} bytes where expert 0 of the layer has {wanted}")]
    PartLength {
        /// The expert that differs.
        id: ExpertId,
        /// `gate`, `up` or `down`.
        part: &'static str,
        /// Bytes of expert 0.
        wanted: u64,
        /// Bytes of this expert.
        got: u64,
    },
    /// The table of checksums does not name every expert of the index once.
    #[error("expert index: {got} checksum entries for {what}, which has {wanted}")]
    ChecksumTable {
        /// Which part of the index.
        what: String,
        /// Entries it asks for.
        wanted: usize,
        /// Entries given.
        got: usize,
    },
    /// The cache was asked for without a single slot.
    #[error("the expert cache needs at least one slot")]
    NoSlots,
    /// Slots times slot size does not fit the address space.
    #[error("{slots} expert slots of {slot_bytes} bytes do not fit the address space")]
    ArenaTooLarge {
        /// Slots asked for.
        slots: usize,
        /// Bytes of one.
        slot_bytes: usize,
    },
    /// The system refused the memory for the arena.
    #[error("cannot map {bytes} bytes for expert slots: {source}")]
    Arena {
        /// Bytes asked for.
        bytes: usize,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A layer number outside the index.
    #[error("MoE layer {layer} does not exist: the model has {layers}")]
    NoSuchLayer {
        /// Layer asked for.
        layer: u32,
        /// Layers there are.
        layers: usize,
    },
    /// An expert number outside its layer.
    #[error("{id} does not exist: the layer has {experts}")]
    NoSuchExpert {
        /// Expert asked for.
        id: ExpertId,
        /// Experts in the layer.
        experts: usize,
    },
    /// One acquire names an expert twice.
    #[error("{id} was asked for twice in one acquire")]
    DuplicateExpert {
        /// The expert.
        id: ExpertId,
    },
    /// A window is wider than the cache, and whoever computes it has released nothing.
    #[error("MoE layer {layer}: all {slots} slots are held, and more experts are wanted")]
    AllSlotsHeld {
        /// The layer.
        layer: u32,
        /// Slots there are.
        slots: usize,
    },
    /// Experts and selection counts of one acquire do not pair up.
    #[error("{experts} experts came with {counts} selection counts")]
    CountsLength {
        /// Experts asked for.
        experts: usize,
        /// Counts given.
        counts: usize,
    },
    /// Reading one part of an expert failed; the slot is free again and a retry may succeed.
    #[error("{id}, {part}: {source}")]
    Load {
        /// The expert.
        id: ExpertId,
        /// `gate`, `up` or `down`.
        part: &'static str,
        /// What the reader said: file, offset, wanted, got.
        source: ReadError,
    },
    /// A model file could not be opened for reading experts.
    #[error("{}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A reader was asked for by a name that none has.
    #[error("there is no reader {name:?}: the readers are {}", names())]
    NoSuchReader {
        /// The name asked for.
        name: String,
    },
    /// A text that describes no disk.
    #[error("{text:?}: {problem}; write a rate and a latency, such as 3.5GiB/s,80us")]
    DiskSpec {
        /// The text.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The kernel refuses io_uring, or has stopped serving it.
    #[error("io_uring: {source}")]
    Ring {
        /// The system's answer.
        source: std::io::Error,
    },
    /// A reader thread could not be started.
    #[error("cannot start a reader thread: {source}")]
    Thread {
        /// The system's answer.
        source: std::io::Error,
    },
    /// The reader's threads are gone, so nothing in flight will arrive.
    #[error("reader {reader} has stopped")]
    ReaderStopped {
        /// The reader's name.
        reader: &'static str,
    },
    /// `wait` was called with nothing in flight.
    #[error("reader {reader}: wait with nothing in flight")]
    NothingInFlight {
        /// The reader's name.
        reader: &'static str,
    },
    /// A routing trace is malformed or does not fit the format.
    #[error("routing trace: {what}")]
    Trace {
        /// What is wrong, with the numbers.
        what: String,
    },
    /// A file of selection statistics is damaged or belongs to another model.
    #[error("selection statistics {}: {what}", path.display())]
    WarmStats {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file of selection statistics could not be read or written.
    #[error("selection statistics {}: {source}", path.display())]
    WarmStatsIo {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A routing trace could not be read or written.
    #[error("routing trace: {source}")]
    TraceIo {
        /// The system's answer.
        #[from]
        source: std::io::Error,
    },
}

fn names() -> String {
    READERS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}
