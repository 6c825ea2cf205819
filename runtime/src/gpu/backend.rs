//! A GPU as a backend: dense weights, rows, cache and hot experts in its memory.
//!
//! Owns what lies where on the device and turns every operation into launches. Operations are queued; the host
//! waits only where it reads (routing, logits) and before bytes it has lent go back. Every kernel has the
//! bits of the processor's (`kernel_tests`), so that text does not depend on where it was computed. It must not
//! know the order of a layer's operations.

use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use drafthorse_offload::WarmStats;

use super::GpuStats;
use super::driver::{Arg, DevicePtr, Driver, Event, GpuError, Lane};
use super::experts::Experts;
use super::grids::{combine_grid, head_grid, norm_grid};
use super::layout::{Layout, Place};
use super::profile::WorkTime;
use super::queue::Queue;
use super::shapes::{MatmulJob, quantize_grid, quantize_name};
use super::staging::{Pinned, Staging, bytes_of};
use crate::backend::{AttendRows, Backend, ExpertWork, Fill, Norm, Reg, Rotation};
use crate::kernels::{Format, RowLayout, Side, quantized_bytes};
use crate::kv::KvShape;
use crate::layers::{Mla, RopeTable, sized};
use crate::models::{LoadError, RopeLayout};
use crate::weights::{DenseStore, Matrix, Vector};

/// Dense weights, rows and cache on a device.
pub struct GpuBackend {
    pub(super) queue: Queue,
    pub(super) staging: Staging,
    pub(super) layout: Layout,
    pub(super) experts: Option<Experts>,
    dense: Arc<DenseStore>,
    len: usize,
    pub(super) context_len: usize,
    pub(super) kv: KvShape,
    rope: Rope,
    /// Which registers have a quantized copy, of what kind, for how many rows of what width.
    quantized: BTreeMap<Reg, Copied>,
    /// Rows on their way to the device, or back.
    host: Vec<f32>,
    mirror: Pinned,
    read: Option<Event>,
    pinned: Vec<NonNull<u8>>,
}

// SAFETY: the pointers only name host memory that was pinned; they are never followed here.
unsafe impl Send for GpuBackend {}

/// Angles of the pass, on the device.
#[derive(Clone, Copy, Default)]
struct Rope {
    cos: DevicePtr,
    sin: DevicePtr,
    half: u32,
    is_interleaved: bool,
}

/// A quantized copy of a register.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Copied {
    side: Side,
    width: usize,
    rows: usize,
}

/// Activation rows as a format wants them.
#[derive(Clone, Copy)]
pub(super) struct Activations {
    pub(super) at: DevicePtr,
    pub(super) stride_bytes: usize,
}

/// What a backend is made of.
pub struct GpuParts {
    /// The device.
    pub driver: Box<dyn Driver>,
    /// Dense weights, loaded.
    pub dense: Arc<DenseStore>,
    /// What lies where; planned before.
    pub layout: super::LayoutPlan,
    /// Where experts are kept.
    pub experts: Option<super::ExpertsPlan>,
}

impl GpuBackend {
    /// Uploads the dense weights.
    ///
    /// # Errors
    /// No memory, a kernel that is missing, a device that fails.
    pub fn new(parts: GpuParts) -> Result<GpuBackend, GpuError> {
        let GpuParts { driver, dense, layout: plan, experts } = parts;
        let mut queue = Queue::new(driver, &plan.formats())?;
        let layout = Layout::new(queue.driver(), &plan, &dense)?;
        let staging = Staging::new(queue.driver(), plan.staging_bytes())?;
        let mirror = Pinned::new(queue.driver(), plan.mirror_bytes())?;
        // Whatever fails from here on, what is pinned is let go first (`Drop`).
        let mut backend = GpuBackend {
            queue,
            staging,
            experts: None,
            len: 0,
            context_len: plan.context_len,
            kv: plan.kv,
            layout,
            dense,
            rope: Rope::default(),
            quantized: BTreeMap::new(),
            host: Vec::new(),
            mirror,
            read: None,
            pinned: Vec::new(),
        };
        backend.experts = experts.map(|plan| Experts::new(backend.queue.driver(), plan)).transpose()?;
        backend.queue.finish(Lane::Compute)?;
        Ok(backend)
    }

    /// Pins host memory that experts are copied from.
    ///
    /// # Errors
    /// Memory that the system does not let be pinned.
    ///
    /// # Safety
    /// It outlives this backend.
    pub unsafe fn pin(&mut self, (start, len): (NonNull<u8>, usize)) -> Result<(), GpuError> {
        // SAFETY: the caller's promise; it is unpinned when this backend goes.
        unsafe { self.queue.driver().pin(start, len) }?;
        self.pinned.push(start);
        Ok(())
    }

    /// Counters so far.
    pub fn stats(&self) -> GpuStats {
        self.experts.as_ref().map_or_else(GpuStats::default, Experts::stats)
    }

    pub(super) fn at(&self, reg: Reg, value: usize) -> DevicePtr {
        self.layout.regs[&reg].at + (value * size_of::<f32>()) as u64
    }

    /// The register is about to be written.
    pub(super) fn touch(&mut self, reg: Reg) {
        self.quantized.remove(&reg);
    }

    pub(super) fn stage(&mut self, bytes: &[u8]) -> DevicePtr {
        let staging = &mut self.staging;
        self.queue.run(|driver| staging.put(driver, bytes))
    }

    fn vector(&self, vector: &Vector) -> DevicePtr {
        self.layout.vectors[vector.id()]
    }

    /// Rows `0..rows` of `reg` for a format of this side, quantized if they have to be and are not yet.
    pub(super) fn activations(&mut self, reg: Reg, side: Side, rows: usize, width: usize) -> Activations {
        if side == Side::Float {
            return Activations { at: self.at(reg, 0), stride_bytes: width * size_of::<f32>() };
        }
        let place = self.layout.quantized[&reg];
        let held = self.quantized.get(&reg).copied();
        let fits = |held: Copied| held.side == side && held.width == width && held.rows >= rows;
        if !held.is_some_and(fits) {
            self.quantize(self.at(reg, 0), (place, 0), side, (rows, width, width));
            self.quantized.insert(reg, Copied { side, width, rows });
        }
        Activations { at: place.at, stride_bytes: quantized_bytes(width) }
    }

    /// Quantizes `rows` rows of `width` values, `stride` apart, to a place on the device from its row `first` on.
    pub(super) fn quantize(
        &mut self,
        x: DevicePtr,
        (to, first): (Place, usize),
        side: Side,
        (rows, width, stride): (usize, usize, usize),
    ) {
        debug_assert!(((first + rows) * quantized_bytes(width)) as u64 <= to.bytes, "the copy has room");
        let Some(name) = quantize_name(side) else { return };
        let args = [
            Arg::Ptr(x),
            Arg::Ptr(to.at + (first * quantized_bytes(width)) as u64),
            Arg::U32(width as u32),
            Arg::U32(stride as u32),
            Arg::U32(rows as u32),
        ];
        self.queue.launch(name, quantize_grid(rows as u32, width as u32), &args);
    }

    /// `out[m, n]` of whole rows: `out` is a register or anything else on the device.
    pub(super) fn products(
        &mut self,
        x: (Reg, usize),
        products: &[(Format, DevicePtr, usize, DevicePtr)],
        cols: usize,
    ) {
        let (reg, rows) = x;
        let is_first = |index: usize| products[..index].iter().all(|other| other.0 != products[index].0);
        for format in (0..products.len()).filter(|index| is_first(*index)).map(|index| products[index].0) {
            let x = self.activations(reg, format.side(), rows, cols);
            let of_format = products.iter().filter(|product| product.0 == format);
            let jobs: Vec<MatmulJob> = of_format
                .map(|(_, w, n, out)| MatmulJob {
                    w: *w,
                    x: x.at,
                    rows: 0,
                    out: *out,
                    n: *n as u32,
                    count: rows as u32,
                    x_first: 0,
                    x_step: 1,
                    x_stride: x.stride_bytes as u32,
                    out_stride: *n as u32,
                })
                .collect();
            self.queue.matmul(format, cols, &jobs);
        }
    }

    /// Copies floats to the host and waits for them.
    fn download(&mut self, from: DevicePtr, len: usize) -> Result<&[f32], GpuError> {
        let bytes = len * size_of::<f32>();
        assert!(bytes <= self.mirror.bytes().len(), "invariant: the mirror holds any register");
        self.queue.check()?;
        let to = self.mirror.bytes().as_mut_ptr();
        let last = self.read;
        let driver = self.queue.driver();
        // SAFETY: the mirror is large enough and nobody reads it before the event; the source is a register.
        unsafe { driver.download(Lane::Compute, to, from, bytes) }?;
        let event = driver.record(Lane::Compute, last)?;
        driver.wait(event)?;
        self.read = Some(event);
        Ok(self.mirror.floats(len))
    }

    fn store(
        &mut self,
        reg: Reg,
        cache: DevicePtr,
        at: &AttendRows,
        (heads, dim): (usize, usize),
        row: RowLayout,
    ) {
        let args = [
            Arg::Ptr(self.at(reg, 0)),
            Arg::Ptr(cache),
            Arg::U32(heads as u32),
            Arg::U32(dim as u32),
            Arg::U32(self.context_len as u32),
            Arg::U32(at.start as u32),
            Arg::U32(row.quantized as u32),
            Arg::U32(row.halves as u32),
        ];
        self.queue.launch("store_rows", head_grid(at.rows as u32, heads as u32), &args);
    }
}

impl Drop for GpuBackend {
    fn drop(&mut self) {
        // Nobody can be told any more; a device that has failed has nothing in flight.
        let _ = self.queue.finish(Lane::Copy);
        let _ = self.queue.finish(Lane::Compute);
        let driver = self.queue.driver();
        let _ = self.staging.unpin(driver);
        let _ = self.mirror.unpin(driver);
        for start in &self.pinned {
            let _ = driver.unpin(*start);
        }
    }
}

impl Backend for GpuBackend {
    fn dense(&self) -> &DenseStore {
        &self.dense
    }

    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn commit(&mut self, rows: usize) {
        self.len = (self.len + rows).min(self.context_len);
    }

    fn gpu_stats(&self) -> Option<GpuStats> {
        Some(self.stats())
    }

    fn take_gpu_times(&mut self) -> Vec<WorkTime> {
        self.queue.driver().take_times()
    }

    fn drop_experts(&mut self) {
        self.experts.iter_mut().for_each(Experts::clear);
    }

    fn warm_stats(&self) -> Option<WarmStats> {
        self.experts.as_ref().and_then(Experts::warm_stats)
    }

    fn begin(&mut self, table: RopeTable) {
        let (cos, sin) = table.angles();
        let places = self.layout.angles.map(|place| place.at);
        // They are read in every block, so they do not lie in the ring, which may come round before the last.
        for (at, angles) in places.into_iter().zip([cos, sin]) {
            // SAFETY: the place holds the angles of the widest pass; pageable memory is copied at the call.
            self.queue.run(|driver| unsafe {
                driver.upload(Lane::Compute, at, angles.as_ptr().cast(), size_of_val(angles))
            });
        }
        self.rope = Rope {
            cos: places[0],
            sin: places[1],
            half: table.half() as u32,
            is_interleaved: table.layout() == RopeLayout::Interleaved,
        };
    }

    fn fill(&mut self, reg: Reg, len: usize, with: &mut Fill<'_>) -> Result<(), LoadError> {
        with(&self.dense, sized(&mut self.host, len))?;
        self.touch(reg);
        let (to, host) = (self.at(reg, 0), &self.host[..len]);
        // SAFETY: the register holds it; pageable memory is copied at the call.
        self.queue.run(|driver| unsafe {
            driver.upload(Lane::Compute, to, host.as_ptr().cast(), size_of_val(host))
        });
        Ok(())
    }

    fn values(&mut self, reg: Reg, range: Range<usize>) -> Result<&[f32], GpuError> {
        self.download(self.at(reg, range.start), range.len())
    }

    fn norm(&mut self, norm: Norm<'_>) {
        let Norm { x, rows, stride, weight, eps, out } = norm;
        self.touch(out);
        let args = [
            Arg::Ptr(self.at(x, rows.start * stride)),
            Arg::Ptr(self.vector(weight)),
            Arg::Ptr(self.at(out, 0)),
            Arg::U32(weight.len() as u32),
            Arg::U32(stride as u32),
            Arg::U32(stride as u32),
            Arg::F32(eps),
        ];
        self.queue.launch("rms_norm", norm_grid((rows.end - rows.start) as u32), &args);
    }

    fn add(&mut self, x: Reg, out: Reg, len: usize) {
        self.touch(out);
        let args = [Arg::Ptr(self.at(x, 0)), Arg::Ptr(self.at(out, 0)), Arg::U32(len as u32)];
        self.queue.over("add_rows", len, &args);
    }

    fn sum(&mut self, a: Reg, b: Reg, out: Reg, len: usize) {
        self.touch(out);
        let [a, b, out] = [a, b, out].map(|reg| Arg::Ptr(self.at(reg, 0)));
        self.queue.over("sum_rows", len, &[a, b, out, Arg::U32(len as u32)]);
    }

    fn add_bias(&mut self, bias: &Vector, out: Reg, rows: usize) {
        self.touch(out);
        let len = rows * bias.len();
        let args = [
            Arg::Ptr(self.vector(bias)),
            Arg::Ptr(self.at(out, 0)),
            Arg::U32(bias.len() as u32),
            Arg::U32(len as u32),
        ];
        self.queue.over("add_bias", len, &args);
    }

    fn matmul(&mut self, x: Reg, rows: usize, products: &[(&Matrix, Reg)]) {
        let Some((first, _)) = products.first() else { return };
        let products: Vec<_> = products
            .iter()
            .map(|(w, out)| (w.format, self.layout.matrices[w.id()], w.rows, self.at(*out, 0), *out))
            .collect();
        let launches: Vec<_> =
            products.iter().map(|(format, w, n, out, _)| (*format, *w, *n, *out)).collect();
        self.products((x, rows), &launches, first.cols);
        products.iter().for_each(|product| self.touch(product.4));
    }

    fn product(&mut self, x: Reg, rows: usize, w: &Matrix, out: &mut [f32]) -> Result<(), GpuError> {
        let whole = self.layout.product;
        let at_once = (whole.bytes as usize / size_of::<f32>() / w.rows).max(1);
        let product = (w.format, self.layout.matrices[w.id()], w.rows, whole.at);
        if rows <= at_once {
            self.products((x, rows), &[product], w.cols);
            out.copy_from_slice(self.download(whole.at, rows * w.rows)?);
            return Ok(());
        }
        let x = self.activations(x, w.format.side(), rows, w.cols);
        for (index, out) in out.chunks_mut(at_once * w.rows).enumerate() {
            let count = (out.len() / w.rows) as u32;
            let job = MatmulJob {
                w: product.1,
                x: x.at,
                rows: 0,
                out: whole.at,
                n: w.rows as u32,
                count,
                x_first: (index * at_once) as u32,
                x_step: 1,
                x_stride: x.stride_bytes as u32,
                out_stride: w.rows as u32,
            };
            self.queue.matmul(w.format, w.cols, &[job]);
            out.copy_from_slice(self.download(whole.at, out.len())?);
        }
        Ok(())
    }

    fn silu_mul(&mut self, gate: Reg, up: Reg, len: usize) {
        self.touch(gate);
        let args = [Arg::Ptr(self.at(gate, 0)), Arg::Ptr(self.at(up, 0)), Arg::U32(len as u32)];
        self.queue.over("silu_mul", len, &args);
    }

    fn rotate(&mut self, rotation: Rotation<'_>) {
        let Rotation { reg, rows, heads, len, offset, norm } = rotation;
        self.touch(reg);
        let Rope { cos, sin, half, is_interleaved } = self.rope;
        let args = [
            Arg::Ptr(self.at(reg, 0)),
            Arg::Ptr(cos),
            Arg::Ptr(sin),
            Arg::U32(heads as u32),
            Arg::U32(len as u32),
            Arg::U32(len as u32),
            Arg::U32(offset as u32),
            Arg::U32(half),
            Arg::U32(is_interleaved.into()),
            Arg::Ptr(norm.map_or(0, |(weight, _)| self.vector(weight))),
            Arg::F32(norm.map_or(0.0, |(_, eps)| eps)),
        ];
        self.queue.launch("rotate", head_grid(rows as u32, heads as u32), &args);
    }

    fn cache_heads(&mut self, at: &AttendRows) {
        let (keys, values) = (self.layout.keys[at.block], self.layout.values[at.block]);
        let (key, value) = (self.kv.key, self.kv.value.expect("invariant: heads have values of their own"));
        self.store(Reg::K, keys, at, (at.kv_heads, at.key_dim), key);
        self.store(Reg::V, values, at, (at.kv_heads, at.value_dim), value);
    }

    fn cache_latent(&mut self, at: &AttendRows) {
        self.store(Reg::K, self.layout.keys[at.block], at, (1, at.key_dim), self.kv.key);
    }

    fn attend(&mut self, at: &AttendRows) {
        let scale = 1.0 / (at.key_dim as f32).sqrt();
        let (keys, values) = (self.layout.keys[at.block], self.layout.values[at.block]);
        let value = self.kv.value.expect("invariant: heads have values of their own");
        self.touch(Reg::Heads);
        self.attend_rows(at, (self.at(Reg::Q, 0), keys, scale), (values, value, self.at(Reg::Heads, 0)));
    }

    fn attend_latent(&mut self, layer: &Mla, at: &AttendRows) {
        self.attend_latent_rows(layer, at);
    }

    fn holds(&self, layer: u32, expert: u32) -> bool {
        self.experts.as_ref().is_some_and(|experts| experts.holds(layer, expert))
    }

    fn claim(&mut self, layer: u32, experts: &[u32], counts: &[u32]) -> Vec<u32> {
        self.experts.as_mut().map_or_else(Vec::new, |own| own.claim(layer, experts, counts))
    }

    fn experts(&mut self, work: &ExpertWork<'_, '_>) {
        self.compute_experts(work);
    }

    fn settle(&mut self) -> Result<(), GpuError> {
        self.settle_copies()
    }

    fn clear_branch(&mut self, len: usize) {
        self.touch(Reg::Branch);
        let at = self.at(Reg::Branch, 0);
        // SAFETY: the register holds it.
        self.queue.run(|driver| unsafe { driver.zero(Lane::Compute, at, len * size_of::<f32>()) });
    }

    fn combine(&mut self, places: &[u32], weights: &[f32], used: usize, width: usize) {
        self.touch(Reg::Branch);
        let (place, weight) = (self.stage(bytes_of(places)), self.stage(bytes_of(weights)));
        let args = [
            Arg::Ptr(self.at(Reg::Routed, 0)),
            Arg::Ptr(place),
            Arg::Ptr(weight),
            Arg::Ptr(self.at(Reg::Branch, 0)),
            Arg::U32(width as u32),
            Arg::U32(used as u32),
        ];
        self.queue.launch("combine", combine_grid((places.len() / used) as u32, width as u32), &args);
    }
}
