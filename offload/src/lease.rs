//! A lease: the experts of one layer for one window, handed out piece by piece as they arrive.
//!
//! Owns what the window still waits for. Gate and up are announced together, then down, so that
//! computing starts before an expert is whole; a released expert makes room for the next one, so a
//! window may be wider than the cache. It must not know how victims are chosen or how bytes are read.

use std::collections::VecDeque;

use crate::ExpertId;
use crate::cache::ExpertCache;
use crate::error::OffloadError;
use crate::index::PARTS;

/// What of an expert is in memory now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Gate and up: the way in.
    Inner,
    /// Down: the way out. Announced after [`Piece::Inner`], whatever the disk's order was.
    Down,
}

/// A piece that has become usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Expert within the layer of the lease.
    pub expert: u32,
    /// Which matrices.
    pub piece: Piece,
}

/// What the present lease waits for; part of the cache, which feeds it.
#[derive(Default)]
pub(crate) struct Wanted {
    pub(crate) layer: u32,
    /// Experts whose reading has not begun, in the order asked for.
    pub(crate) pending: VecDeque<u32>,
    /// Experts begun or resident of which a piece has not been announced.
    pub(crate) open: usize,
    /// Of those, the ones at the disk.
    pub(crate) loading: usize,
    /// Announced to nobody yet.
    pub(crate) news: Vec<Arrival>,
    pub(crate) failures: VecDeque<OffloadError>,
}

impl Wanted {
    pub(crate) fn new(layer: u32) -> Wanted {
        Wanted { layer, ..Wanted::default() }
    }
}

/// Experts of one layer; those that have arrived stay in memory until they are released or this is
/// dropped. While the caller computes, the reads of the others go on.
pub struct Lease<'a> {
    cache: &'a mut ExpertCache,
    told: Vec<Arrival>,
}

impl<'a> Lease<'a> {
    pub(crate) fn new(cache: &'a mut ExpertCache) -> Lease<'a> {
        Lease { cache, told: Vec::new() }
    }

    /// Pieces that have become usable since the last call: at first those of resident experts. With
    /// `wait`, blocks until there is one; empty then means that everything has been announced.
    ///
    /// # Errors
    /// [`OffloadError::Load`] when an expert could not be read: its slot is free again, the others of
    /// the lease still come, and a later acquire may try again. [`OffloadError::AllSlotsHeld`] when the
    /// window is wider than the cache and nothing has been released.
    pub fn arrivals(&mut self, wait: bool) -> Result<&[Arrival], OffloadError> {
        self.told.clear();
        self.cache.collect(wait, &mut self.told)?;
        Ok(&self.told)
    }

    /// Whether every piece of every expert has been announced (or has failed).
    pub fn is_done(&self) -> bool {
        let wanted = self.cache.wanted();
        wanted.open == 0 && wanted.pending.is_empty() && wanted.news.is_empty() && wanted.failures.is_empty()
    }

    /// Whether experts of the window wait for a slot that others of it hold: what is released may then be overwritten
    /// before the lease ends. Also where they only wait for other reads to end. Once it is not so, it is not so again.
    pub fn wants_room(&self) -> bool {
        !self.cache.wanted().pending.is_empty()
    }

    /// Gate and up of an expert whose [`Piece::Inner`] was announced; exactly the extents' bytes.
    pub fn inner(&self, expert: u32) -> Option<[&[u8]; 2]> {
        Some([self.part(expert, 0)?, self.part(expert, 1)?])
    }

    /// Down of an expert whose [`Piece::Down`] was announced.
    pub fn down(&self, expert: u32) -> Option<&[u8]> {
        self.part(expert, PARTS - 1)
    }

    /// The caller is done with the expert: it may be evicted from now on.
    pub fn release(&mut self, expert: u32) {
        let layer = self.cache.wanted().layer;
        self.cache.release(ExpertId { layer, expert });
    }

    fn part(&self, expert: u32, part: usize) -> Option<&[u8]> {
        let layer = self.cache.wanted().layer;
        self.cache.pinned_part(ExpertId { layer, expert }, part)
    }

    /// As [`ExpertCache::prefetch`], for a layer that comes later in the pass.
    ///
    /// # Errors
    /// A stopped reader.
    pub fn prefetch(&mut self, layer: u32, experts: &[u32]) -> Result<(), OffloadError> {
        self.cache.prefetch(layer, experts)
    }
}
