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

use super::driver::{Arg, DevicePtr, Driver, Event, GpuError, Lane};
use super::experts::Experts;
use super::fuse::{Pending, Rows};
use super::grids::{combine_grid, heads_grid};
use super::in_place::InPlace;
use super::layout::{Layout, Place};
use super::profile::WorkTime;
use super::queue::Queue;
use super::shapes::{
    HeadsJob, MatmulJob, PACKED_ROWS_MAX, PICKS_MAX, heads_jobs, picks, quantize_grid, quantize_name,
};
use super::staging::{Pinned, Staging, bytes_of};
use super::{ExpertsPlan, GpuStats};
use crate::backend::{AttendRows, Backend, ExpertWork, Fill, Norm, Reg, Rotation};
use crate::kernels::{Format, Side, quantized_bytes};
use crate::kv::KvShape;
use crate::layers::{DenseFeedForward, Mla, RopeTable, WindowPlan, feed_forward, sized};
use crate::models::{LoadError, RopeLayout};
use crate::weights::{DenseStore, Matrix, Vector};

/// Dense weights, rows and cache on a device.
pub struct GpuBackend {
    pub(super) queue: Queue,
    pub(super) staging: Staging,
    pub(super) layout: Layout,
    /// Experts in slots of the device's.
    pub(super) experts: Option<Experts>,
    /// Experts in the host's memory.
    pub(super) in_place: Option<InPlace>,
    dense: Arc<DenseStore>,
    len: usize,
    pub(super) context_len: usize,
    pub(super) kv: KvShape,
    rope: Rope,
    /// Which registers have a quantized copy, of what kind, for how many rows of what width.
    pub(super) quantized: BTreeMap<Reg, Copied>,
    /// How the last result of each register was wanted quantized.
    pub(super) sides: BTreeMap<Reg, Side>,
    pub(super) pending: Option<Pending>,
    pub(super) window: Option<Window>,
    /// Rows on their way to the device, or back.
    host: Vec<f32>,
    pub(super) mirror: Pinned,
    /// The device's address of `mirror`, where kernels can write to it.
    pub(super) mirror_at: Option<DevicePtr>,
    pub(super) read: Option<Event>,
    /// Pinned host memory that experts are copied from, or read in.
    pub(super) arena: Option<Arena>,
}

/// Host memory by its first byte and length.
pub(super) struct Arena {
    start: NonNull<u8>,
    len: usize,
}

impl Arena {
    /// `len` bytes from `at` on as a part of this memory, if they are.
    pub(super) fn from(&self, at: *const u8, len: usize) -> Option<*const u8> {
        let skipped = (at as usize).checked_sub(self.start.as_ptr() as usize)?;
        let is_inside = skipped.checked_add(len).is_some_and(|end| end <= self.len);
        is_inside.then(|| self.start.as_ptr().wrapping_add(skipped).cast_const())
    }
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
pub(super) struct Copied {
    pub(super) side: Side,
    pub(super) width: usize,
    pub(super) rows: usize,
}

/// Lists of the present window, on the device. Short ones go with the launches that read them instead: an upload
/// takes longer than most kernels do.
#[derive(Clone, Copy)]
pub(super) struct Window {
    /// Rows by place.
    pub(super) rows: DevicePtr,
    /// Places by pick.
    place: DevicePtr,
    /// Weights by pick.
    weights: DevicePtr,
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
    /// Where experts are; `None` for a dense model.
    pub experts: Option<ExpertsPlan>,
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
            in_place: None,
            len: 0,
            context_len: plan.context_len,
            kv: plan.kv,
            layout,
            dense,
            rope: Rope::default(),
            quantized: BTreeMap::new(),
            sides: BTreeMap::new(),
            pending: None,
            window: None,
            host: Vec::new(),
            mirror,
            mirror_at: None,
            read: None,
            arena: None,
        };
        backend.mirror_at = backend.mirror.mapped(backend.queue.driver())?;
        match experts {
            Some(ExpertsPlan::Slab(plan)) => {
                backend.experts = Some(Experts::new(backend.queue.driver(), *plan)?);
            }
            Some(ExpertsPlan::InPlace) => backend.in_place = Some(InPlace::default()),
            None => {}
        }
        backend.queue.finish(Lane::Compute)?;
        Ok(backend)
    }

    /// Pins the host memory that experts are copied from, or read in; once.
    ///
    /// # Errors
    /// Memory that the system does not let be pinned.
    ///
    /// # Safety
    /// It outlives this backend, and where experts are read in place nobody writes to bytes that a kernel queued before
    /// the last [`Backend::settle`] or routing has to read.
    pub unsafe fn pin(&mut self, (start, len): (NonNull<u8>, usize)) -> Result<(), GpuError> {
        // SAFETY: the caller's promise; it is unpinned when this backend goes.
        unsafe { self.queue.driver().pin(start, len) }?;
        self.arena = Some(Arena { start, len });
        if let Some(in_place) = &mut self.in_place {
            let host = start.as_ptr().cast_const();
            in_place.set_memory(host, len, self.queue.driver().mapped(host, len)?);
        }
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
            self.flush();
            return Activations { at: self.at(reg, 0), stride_bytes: width * size_of::<f32>() };
        }
        self.sides.insert(reg, side);
        self.flush();
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

    fn heads_job(&self, reg: Reg, rotation: &Rotation<'_>) -> HeadsJob {
        let Rotation { heads, len, offset, norm } = *rotation;
        HeadsJob {
            x: self.at(reg, 0),
            norm: norm.map_or(0, |(weight, _)| self.vector(weight)),
            norm_len: norm.map_or(0, |(weight, _)| weight.len()),
            eps: norm.map_or(0.0, |(_, eps)| eps),
            heads,
            len,
            offset,
            ..HeadsJob::default()
        }
    }
}

impl Drop for GpuBackend {
    fn drop(&mut self) {
        self.queue.drain(Lane::Copy);
        self.queue.drain(Lane::Compute);
        let driver = self.queue.driver();
        let _ = self.staging.unpin(driver);
        let _ = self.mirror.unpin(driver);
        if let Some(Arena { start, .. }) = &self.arena {
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
        self.flush();
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
        self.flush();
        self.touch(reg);
        let (to, host) = (self.at(reg, 0), &self.host[..len]);
        // SAFETY: the register holds it; pageable memory is copied at the call.
        self.queue.run(|driver| unsafe {
            driver.upload(Lane::Compute, to, host.as_ptr().cast(), size_of_val(host))
        });
        Ok(())
    }

    fn values(&mut self, reg: Reg, range: Range<usize>) -> Result<&[f32], GpuError> {
        self.flush();
        self.download(self.at(reg, range.start), range.len())
    }

    fn norm(&mut self, norm: Norm<'_>) {
        let Norm { x, rows, stride, weight, eps, out } = norm;
        let (width, weight) = (weight.len(), self.vector(weight));
        self.postpone(Pending::Norm { norm: Rows { x, rows, stride, weight, width, eps, out }, add: None });
    }

    fn add(&mut self, x: Reg, out: Reg, len: usize) {
        self.postpone(Pending::Add { x, out, len });
    }

    fn sum(&mut self, a: Reg, b: Reg, out: Reg, len: usize) {
        self.flush();
        self.touch(out);
        let [a, b, out] = [a, b, out].map(|reg| Arg::Ptr(self.at(reg, 0)));
        self.queue.over("sum_rows", len, &[a, b, out, Arg::U32(len as u32)]);
    }

    fn add_bias(&mut self, bias: &Vector, out: Reg, rows: usize) {
        self.flush();
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
        if rows <= at_once {
            let len = self.queue_read((x, rows), w)?;
            out.copy_from_slice(self.end_download(len)?);
            return Ok(());
        }
        let x = self.activations(x, w.format.side(), rows, w.cols);
        for (index, out) in out.chunks_mut(at_once * w.rows).enumerate() {
            let count = (out.len() / w.rows) as u32;
            let job = MatmulJob {
                w: self.layout.matrices[w.id()],
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

    fn route(
        &mut self,
        rows: usize,
        router: &Matrix,
        shared: Option<&DenseFeedForward>,
        logits: &mut [f32],
    ) -> Result<bool, GpuError> {
        let len = self.queue_read((Reg::Normed, rows), router)?;
        shared.iter().for_each(|shared| feed_forward(self, rows, shared));
        logits.copy_from_slice(self.end_download(len)?);
        Ok(shared.is_some())
    }

    fn silu_mul(&mut self, gate: Reg, up: Reg, rows: usize, width: usize) {
        self.postpone(Pending::Silu { gate, up, rows, width });
    }

    fn place_heads(&mut self, at: &AttendRows, queries: Rotation<'_>, keys: Rotation<'_>) {
        self.flush();
        [Reg::Q, Reg::K, Reg::V].into_iter().for_each(|reg| self.touch(reg));
        let mut q = self.heads_job(Reg::Q, &queries);
        let key = self.kv.key;
        let cache = self.layout.keys[at.block];
        let k =
            HeadsJob { cache, quantized: key.quantized, halves: key.halves, ..self.heads_job(Reg::K, &keys) };
        let mut v = HeadsJob::default();
        if let Some(value) = self.kv.value {
            (v.x, v.cache) = (self.at(Reg::V, 0), self.layout.values[at.block]);
            (v.heads, v.len, v.offset) = (at.kv_heads, at.value_dim, at.value_dim);
            (v.quantized, v.halves) = (value.quantized, value.halves);
        } else {
            // Behind the absorbed part that `attend_latent` computes.
            (q.to, q.to_stride, q.to_at) = (self.layout.query.at, at.key_dim, at.value_dim);
        }
        let Rope { cos, sin, half, is_interleaved } = self.rope;
        let jobs = heads_jobs([q, k, v]);
        let args = [
            Arg::Struct(&jobs),
            Arg::Ptr(cos),
            Arg::Ptr(sin),
            Arg::U32(half),
            Arg::U32(is_interleaved.into()),
            Arg::U32(self.context_len as u32),
            Arg::U32(at.start as u32),
            Arg::U32(at.rows as u32),
        ];
        let heads = q.heads.max(k.heads).max(v.heads);
        self.queue.launch("place_heads", heads_grid(at.rows as u32, heads as u32), &args);
    }

    fn attend(&mut self, at: &AttendRows) {
        self.flush();
        let scale = 1.0 / (at.key_dim as f32).sqrt();
        let (keys, values) = (self.layout.keys[at.block], self.layout.values[at.block]);
        let value = self.kv.value.expect("invariant: heads have values of their own");
        self.touch(Reg::Heads);
        self.attend_rows(at, (self.at(Reg::Q, 0), keys, scale), (values, value, self.at(Reg::Heads, 0)));
    }

    fn attend_latent(&mut self, layer: &Mla, at: &AttendRows) {
        self.flush();
        self.attend_latent_rows(layer, at);
    }

    fn holds(&self, layer: u32, expert: u32) -> bool {
        self.experts.as_ref().is_some_and(|experts| experts.holds(layer, expert))
    }

    fn claim(&mut self, layer: u32, plan: &WindowPlan, weights: &[f32]) -> Vec<u32> {
        let counts = plan.counts(&plan.experts);
        let is_short = weights.len() <= PICKS_MAX
            && counts.iter().all(|count| *count as usize <= PACKED_ROWS_MAX)
            && plan.rows.iter().all(|row| *row < 256);
        self.window = (!is_short).then(|| {
            let lists = [bytes_of(&plan.rows), bytes_of(&plan.place), bytes_of(weights)].concat();
            let list_bytes = size_of_val(weights) as u64;
            let rows = self.stage(&lists);
            Window { rows, place: rows + list_bytes, weights: rows + 2 * list_bytes }
        });
        self.experts.as_mut().map_or_else(Vec::new, |own| own.claim(layer, &plan.experts, &counts))
    }

    fn experts(&mut self, work: &ExpertWork<'_, '_>) {
        self.flush();
        self.compute_experts(work);
        self.compute_in_place(work);
        // The device is busy with the window now.
        self.experts.iter_mut().for_each(Experts::learn);
    }

    fn settle(&mut self, wants_room: bool) -> Result<(), GpuError> {
        self.settle_copies()?;
        if wants_room { self.settle_reads() } else { Ok(()) }
    }

    fn clear_branch(&mut self, len: usize) {
        self.flush();
        self.touch(Reg::Branch);
        let at = self.at(Reg::Branch, 0);
        // SAFETY: the register holds it.
        self.queue.run(|driver| unsafe { driver.zero(Lane::Compute, at, len * size_of::<f32>()) });
    }

    fn combine(&mut self, plan: &WindowPlan, weights: &[f32], used: usize, width: usize) {
        self.flush();
        self.touch(Reg::Branch);
        let grid = combine_grid((plan.place.len() / used) as u32, width as u32);
        let [routed, branch] = [Reg::Routed, Reg::Branch].map(|reg| Arg::Ptr(self.at(reg, 0)));
        let [width, used] = [width, used].map(|n| Arg::U32(n as u32));
        match self.window {
            Some(Window { place, weights, .. }) => {
                let args = [routed, Arg::Ptr(place), Arg::Ptr(weights), branch, width, used];
                self.queue.launch("combine", grid, &args);
            }
            None => {
                let picks = picks(&plan.place, weights);
                self.queue.launch("combine_few", grid, &[routed, Arg::Struct(&picks), branch, width, used]);
            }
        }
    }
}
