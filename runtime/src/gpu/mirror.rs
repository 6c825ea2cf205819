//! What the host reads of a device: copied to pinned memory, or written there by the kernel itself.
//!
//! Owns the order of writing, event and reading: one result is under way at a time, and the host has read it before the
//! next is queued. It must not know what results mean.

use super::backend::GpuBackend;
use super::driver::{DevicePtr, GpuError, Lane};
use crate::backend::Reg;
use crate::weights::Matrix;

/// Results of so many values kernels write to the host's memory themselves: routers of narrow passes, for which a copy
/// takes longer than the product does.
const MAILED_MAX: usize = 4096;

impl GpuBackend {
    /// Copies floats to the host and waits for them.
    pub(super) fn download(&mut self, from: DevicePtr, len: usize) -> Result<&[f32], GpuError> {
        self.begin_download(from, len)?;
        self.end_download(len)
    }

    /// Queues the product of whole rows with a matrix whose results the host is about to read, copy included; returns how
    /// many they are.
    pub(super) fn queue_read(&mut self, x: (Reg, usize), w: &Matrix) -> Result<usize, GpuError> {
        let len = x.1 * w.rows;
        assert!(
            len * size_of::<f32>() <= self.mirror.bytes().len(),
            "invariant: the mirror holds any product"
        );
        let mailbox = self.mirror_at.filter(|_| len <= MAILED_MAX);
        let to = mailbox.unwrap_or(self.layout.product.at);
        let product = (w.format, self.layout.matrices[w.id()], w.rows, to);
        self.products(x, &[product], w.cols);
        if mailbox.is_some() {
            self.mark_read()?
        } else {
            self.begin_download(to, len)?
        }
        Ok(len)
    }

    /// A point behind everything queued so far, whose results the host waits for.
    fn mark_read(&mut self) -> Result<(), GpuError> {
        self.queue.check()?;
        self.read = Some(self.queue.driver().record(Lane::Compute, self.read)?);
        Ok(())
    }

    /// Queues a copy of floats to the host.
    fn begin_download(&mut self, from: DevicePtr, len: usize) -> Result<(), GpuError> {
        let bytes = len * size_of::<f32>();
        assert!(bytes <= self.mirror.bytes().len(), "invariant: the mirror holds any register");
        self.queue.check()?;
        let to = self.mirror.bytes().as_mut_ptr();
        // SAFETY: the mirror is large enough and nobody reads it before the event; the source is a register.
        unsafe { self.queue.driver().download(Lane::Compute, to, from, bytes) }?;
        self.mark_read()
    }

    /// Waits for what was copied, or marked, last.
    pub(super) fn end_download(&mut self, len: usize) -> Result<&[f32], GpuError> {
        self.queue.check()?;
        let read = self.read.expect("invariant: something was marked");
        self.queue.driver().wait(read)?;
        Ok(self.mirror.floats(len))
    }
}
