//! The emulated card's memory, and host memory that is pinned for it.
//!
//! Owns allocations with their guards (bytes around each that no kernel may touch) and the ranges that copies may
//! use. It must not know lanes or kernels.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;

use super::super::driver::{DevicePtr, GpuError};

/// Bytes before and behind an allocation that must stay as they are; a multiple of [`ALIGN`].
const GUARD_BYTES: usize = 256;
const GUARD: u8 = 0xa5;
/// What fresh memory holds: as floats, not a number.
const FRESH: u8 = 0xff;
const ALIGN: usize = 256;

struct Allocation {
    what: &'static str,
    bytes: usize,
}

impl Allocation {
    fn layout(&self) -> Layout {
        let bytes = self.bytes + 2 * GUARD_BYTES;
        Layout::from_size_align(bytes, ALIGN).expect("invariant: the size was laid out before")
    }
}

/// Device memory.
pub struct Memory {
    capacity: u64,
    used: u64,
    allocations: BTreeMap<DevicePtr, Allocation>,
}

impl Memory {
    /// Nothing is allocated of `capacity` bytes.
    pub fn new(capacity: u64) -> Memory {
        Memory { capacity, used: 0, allocations: BTreeMap::new() }
    }

    /// Bytes in all.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes nobody uses.
    pub fn free(&self) -> u64 {
        self.capacity - self.used
    }

    /// Memory for `what`; it counts in whole units of 256 bytes.
    pub fn alloc(&mut self, what: &'static str, bytes: u64) -> Result<DevicePtr, GpuError> {
        let none = || GpuError::Memory { what, bytes };
        let rounded = bytes.checked_next_multiple_of(ALIGN as u64).ok_or_else(none)?;
        if rounded > self.free() {
            return Err(none());
        }
        let len = usize::try_from(bytes).map_err(|_| none())?;
        let padded = len.checked_add(2 * GUARD_BYTES).ok_or_else(none)?;
        let layout = Layout::from_size_align(padded, ALIGN).map_err(|_| none())?;
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc(layout) };
        if base.is_null() {
            return Err(none());
        }
        // SAFETY: `padded` bytes are allocated there.
        unsafe {
            base.write_bytes(GUARD, padded);
            base.add(GUARD_BYTES).write_bytes(FRESH, len);
        }
        let at = base.expose_provenance() as DevicePtr + GUARD_BYTES as u64;
        self.used += rounded;
        self.allocations.insert(at, Allocation { what, bytes: len });
        Ok(at)
    }

    /// The place of `len` bytes at `at`, if they lie within one allocation.
    pub fn range(&self, at: DevicePtr, len: usize) -> Option<*mut u8> {
        let (start, allocation) = self.allocations.range(..=at).next_back()?;
        let offset = usize::try_from(at - start).ok()?;
        let end = offset.checked_add(len)?;
        (end <= allocation.bytes).then(|| std::ptr::with_exposed_provenance_mut(at as usize))
    }

    /// What was written to beyond its end or before its beginning.
    pub fn overrun(&self) -> Option<&'static str> {
        let is_broken = |(at, allocation): (&DevicePtr, &Allocation)| {
            let end = *at as usize + allocation.bytes;
            [*at as usize - GUARD_BYTES, end].into_iter().any(|guard| {
                let guard = std::ptr::with_exposed_provenance::<[u8; GUARD_BYTES]>(guard);
                // SAFETY: guards lie on both sides of the allocation; bytes have any address.
                unsafe { *guard != [GUARD; GUARD_BYTES] }
            })
        };
        let broken = self.allocations.iter().find(|entry| is_broken(*entry));
        broken.map(|(_, allocation)| allocation.what)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for (at, allocation) in &self.allocations {
            let base = std::ptr::with_exposed_provenance_mut(*at as usize - GUARD_BYTES);
            // SAFETY: it was allocated with this layout, and nobody has the address any more.
            unsafe { dealloc(base, allocation.layout()) };
        }
    }
}

/// Host memory that was pinned: lengths by address.
#[derive(Default)]
pub struct Pinned {
    ranges: BTreeMap<usize, usize>,
}

impl Pinned {
    /// Pins a range; false if part of it is pinned.
    pub fn insert(&mut self, at: usize, len: usize) -> bool {
        let end = at + len;
        let before = self.ranges.range(..end).next_back();
        let is_free = len > 0 && before.is_none_or(|(start, len)| start + len <= at);
        if is_free {
            self.ranges.insert(at, len);
        }
        is_free
    }

    /// Lets the range that begins at `at` go; false if there is none.
    pub fn remove(&mut self, at: usize) -> bool {
        self.ranges.remove(&at).is_some()
    }

    /// Whether all of the range is pinned.
    pub fn holds(&self, at: usize, len: usize) -> bool {
        let before = self.ranges.range(..=at).next_back();
        before.is_some_and(|(start, pinned)| at + len <= start + pinned)
    }
}
