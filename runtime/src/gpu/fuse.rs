//! Operations that wait for the next one, so that both are one launch: a launch costs more than most of them do.
//!
//! Owns what is pending: an addition that a norm may follow, and a norm or an activation whose result a matrix may
//! want quantized. Whoever queues anything else flushes first, so that order is what layers said. It must not know
//! layers.

use std::ops::Range;

use super::backend::{Copied, GpuBackend};
use super::driver::{Arg, DevicePtr};
use super::grids::{norm_grid, silu_grid};
use super::layout::Place;
use super::shapes::side_number;
use crate::backend::Reg;
use crate::kernels::{Side, quantized_bytes};

/// The operation that is not queued yet.
pub(super) enum Pending {
    /// `out += x`, the first `len` values.
    Add { x: Reg, out: Reg, len: usize },
    /// A norm, and what is added to its rows before.
    Norm { norm: Rows, add: Option<Reg> },
    /// `gate = silu(gate) * up`.
    Silu { gate: Reg, up: Reg, rows: usize, width: usize },
}

/// A norm of rows.
pub(super) struct Rows {
    pub(super) x: Reg,
    pub(super) rows: Range<usize>,
    pub(super) stride: usize,
    pub(super) weight: DevicePtr,
    pub(super) width: usize,
    pub(super) eps: f32,
    pub(super) out: Reg,
}

impl GpuBackend {
    /// Leaves an operation for the next one to join, the one before it joined or queued.
    pub(super) fn postpone(&mut self, next: Pending) {
        let next = match (self.pending.take(), next) {
            (Some(Pending::Add { x, out, len }), Pending::Norm { norm, add: None })
                if out == norm.x && norm.stride == norm.width && norm.rows == (0..len / norm.width) =>
            {
                Pending::Norm { norm, add: Some(x) }
            }
            (before, next) => {
                self.pending = before;
                self.flush();
                next
            }
        };
        self.pending = Some(next);
    }

    /// Queues what is pending. Its result is quantized besides, as the register's last result was wanted.
    pub(super) fn flush(&mut self) {
        match self.pending.take() {
            None => {}
            Some(Pending::Add { x, out, len }) => {
                self.touch(out);
                let args = [Arg::Ptr(self.at(x, 0)), Arg::Ptr(self.at(out, 0)), Arg::U32(len as u32)];
                self.queue.over("add_rows", len, &args);
            }
            Some(Pending::Norm { norm, add }) => self.queue_norm(&norm, add),
            Some(Pending::Silu { gate, up, rows, width }) => {
                let (packed, side) = self.packed(gate, rows, width);
                let places = (self.at(gate, 0), self.at(up, 0));
                self.queue_silu(places, (packed, side), (rows, width));
            }
        }
    }

    fn queue_norm(&mut self, norm: &Rows, add: Option<Reg>) {
        let Rows { x, ref rows, stride, weight, width, eps, out } = *norm;
        let count = rows.end - rows.start;
        let (packed, side) =
            if stride == width { self.packed(out, count, width) } else { self.unpacked(out) };
        if add.is_some() {
            self.touch_unless(x, out);
        }
        let args = [
            Arg::Ptr(self.at(x, rows.start * stride)),
            Arg::Ptr(add.map_or(0, |add| self.at(add, 0))),
            Arg::Ptr(weight),
            Arg::Ptr(self.at(out, 0)),
            Arg::Ptr(packed),
            Arg::U32(side_number(side)),
            Arg::U32(width as u32),
            Arg::U32(stride as u32),
            Arg::U32(stride as u32),
            Arg::F32(eps),
        ];
        self.queue.launch("rms_norm", norm_grid(count as u32), &args);
    }

    /// Activations in place, quantized besides where a place and a side are given.
    pub(super) fn queue_silu(
        &mut self,
        (gate, up): (DevicePtr, DevicePtr),
        (packed, side): (DevicePtr, Side),
        (rows, width): (usize, usize),
    ) {
        let args = [
            Arg::Ptr(gate),
            Arg::Ptr(up),
            Arg::Ptr(packed),
            Arg::U32(side_number(side)),
            Arg::U32(width as u32),
            Arg::U32(rows as u32),
        ];
        self.queue.launch("silu_mul", silu_grid(rows as u32, width as u32), &args);
    }

    /// Where rows that are about to be written to `reg` are quantized besides, and how; noted as done.
    fn packed(&mut self, reg: Reg, rows: usize, width: usize) -> (DevicePtr, Side) {
        let side = self.sides.get(&reg).copied().unwrap_or(Side::Float);
        let Place { at, bytes } = self.layout.quantized.get(&reg).copied().unwrap_or_default();
        let group = if side == Side::X256 { 256 } else { 32 };
        let has_room = (rows * quantized_bytes(width)) as u64 <= bytes;
        if side == Side::Float || !width.is_multiple_of(group) || !has_room {
            return self.unpacked(reg);
        }
        self.quantized.insert(reg, Copied { side, width, rows });
        (at, side)
    }

    fn unpacked(&mut self, reg: Reg) -> (DevicePtr, Side) {
        self.touch(reg);
        (0, Side::Float)
    }

    fn touch_unless(&mut self, reg: Reg, other: Reg) {
        if reg != other {
            self.touch(reg);
        }
    }
}
