//! Routed experts that kernels read where they lie in the host's memory, as on a device that shares it.
//!
//! Owns where the expert cache's memory is for the device, and until when kernels read it: nothing is copied, no slot
//! is the device's. A slot of the cache may be filled anew at once when a window begins, since its routing was read
//! from the compute lane behind everything before it; within a window only once the kernels are done. It must not
//! know how experts got there.

use super::backend::GpuBackend;
use super::driver::{DevicePtr, Event, GpuError, Lane};
use super::expert_kernels::ExpertAt;
use super::experts::{PART_ALIGN, READ_BEYOND};
use crate::backend::{ExpertWork, down_bytes, inner_bytes};

/// Experts in the host's memory.
#[derive(Default)]
pub struct InPlace {
    /// The host's memory of experts: where it begins for the host, how long it is, where it begins for the device.
    memory: Option<(usize, usize, DevicePtr)>,
    /// Kernels were queued that read experts, and nobody has waited for them.
    is_read: bool,
    /// Behind them; nobody waits for it any more.
    read: Option<Event>,
}

impl InPlace {
    /// Experts are in these `len` bytes from now on, which the device has at `device`.
    pub fn set_memory(&mut self, host: *const u8, len: usize, device: DevicePtr) {
        self.memory = Some((host as usize, len, device));
    }

    /// The device's address of a matrix, if kernels can read it there.
    fn matrix_at(&self, bytes: &[u8]) -> Option<DevicePtr> {
        let (host, len, device) = self.memory?;
        let skipped = (bytes.as_ptr() as usize).checked_sub(host)?;
        let end = skipped.checked_add(bytes.len())?.checked_add(READ_BEYOND)?;
        let at = device.checked_add(skipped as u64)?;
        (end <= len && at.is_multiple_of(PART_ALIGN as u64)).then_some(at)
    }

    fn expert_at(&self, work: &ExpertWork<'_, '_>, expert: u32) -> Result<ExpertAt, GpuError> {
        let [gate, up] = inner_bytes(work.lease, expert);
        let parts = [gate, up, down_bytes(work.lease, expert)].map(|part| self.matrix_at(part));
        match parts {
            [Some(gate), Some(up), Some(down)] => Ok((expert, [gate, up, down])),
            _ => {
                let layer = work.weights.layer;
                let reason = format!("expert {expert} of MoE layer {layer} is not where kernels can read it");
                Err(GpuError::Failed { action: "read experts where they lie", reason })
            }
        }
    }
}

impl GpuBackend {
    /// Computes what is due of a window, whole experts at a time.
    pub(super) fn compute_in_place(&mut self, work: &ExpertWork<'_, '_>) {
        let Some(own) = self.in_place.as_mut().filter(|_| !work.down.is_empty()) else { return };
        debug_assert!(
            work.shared.is_none() && work.claimed.is_empty(),
            "`route` has queued it; nothing is ours"
        );
        let places: Result<Vec<_>, _> = work.down.iter().map(|expert| own.expert_at(work, *expert)).collect();
        own.is_read = true;
        match places {
            Ok(at) => self.run_experts(work, &at),
            Err(error) => self.queue.run(|_| Err(error)),
        }
    }

    /// Blocks until no kernel reads experts of the host's any more.
    pub(super) fn settle_reads(&mut self) -> Result<(), GpuError> {
        let Some(own) = self.in_place.as_mut().filter(|own| own.is_read) else { return Ok(()) };
        own.is_read = false;
        let driver = self.queue.driver();
        let behind = driver.record(Lane::Compute, own.read)?;
        own.read = Some(behind);
        driver.wait(behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_read_where_the_device_has_it_and_only_where_kernels_may_begin_and_end() {
        let memory = vec![0u8; 4096 + PART_ALIGN];
        let begin = memory.as_ptr().align_offset(PART_ALIGN);
        let own = {
            let mut own = InPlace::default();
            own.set_memory(memory[begin..].as_ptr(), 4096, 1 << 40);
            own
        };
        let at = |from: usize, len: usize| own.matrix_at(&memory[begin + from..][..len]);
        assert_eq!(at(0, 100), Some(1 << 40));
        assert_eq!(at(1024, 3072 - READ_BEYOND), Some((1 << 40) + 1024));
        assert_eq!(at(1024, 3072), None, "kernels would read beyond it");
        assert_eq!(at(1032, 100), None, "no kernel begins there");
        assert_eq!(own.matrix_at(&[0; 64]), None, "it is not in that memory");
        assert_eq!(InPlace::default().matrix_at(&memory), None);
    }
}
