//! How fast the link between host and GPU is, as the GPU's own clock says. Knows nothing of what is copied.

use std::ptr::NonNull;

use serde::Serialize;

use super::driver::{Driver, Event, GpuError, Lane};

/// Rates of long copies between pinned memory and the GPU's, each alone on the link, in bytes a second.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LinkRates {
    /// Host to device: the fastest of the copies.
    pub upload_bytes_per_s: f64,
    /// Device to host: the fastest of the copies.
    pub download_bytes_per_s: f64,
    /// Bytes of each copy.
    pub copy_bytes: u64,
}

/// Times `copies` >= 1 copies of `bytes` >= 1 each way, after one that warms up. They go through the copy lane.
/// The buffers stay with the driver on its side; the host's is let go.
///
/// # Errors
/// What the driver says; [`GpuError::Failed`] too where the bytes that came back are not those that went.
pub fn measure_link(driver: &mut dyn Driver, bytes: usize, copies: usize) -> Result<LinkRates, GpuError> {
    let device = driver.alloc("measuring the link", bytes as u64)?;
    let mut host: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
    let place = NonNull::from(&mut host[..]).cast::<u8>();
    // SAFETY: unpinned below, before the vector goes, whatever the measurement says.
    unsafe { driver.pin(place, bytes)? };
    let measured = time_both(driver, device, place, bytes, copies);
    driver.unpin(place)?;
    let rates = measured?;
    if host.iter().enumerate().any(|(i, &byte)| byte != (i % 251) as u8) {
        let reason = "other bytes came back than went".to_owned();
        return Err(GpuError::Failed { action: "copy to and from itself", reason });
    }
    Ok(rates)
}

/// Bytes a second of `at_once` >= 1 copies of `bytes` >= 1 to the device, queued one behind another on an idle lane, between
/// events as experts are timed: the median of `rounds` >= 1, after one that warms up.
///
/// # Errors
/// What the driver says.
pub fn measure_uploads(
    driver: &mut dyn Driver,
    bytes: usize,
    at_once: usize,
    rounds: usize,
) -> Result<f64, GpuError> {
    let device = driver.alloc("measuring the link", bytes as u64)?;
    let mut host = vec![1u8; bytes];
    let place = NonNull::from(&mut host[..]).cast::<u8>();
    // SAFETY: unpinned below, before the vector goes, whatever the measurement says.
    unsafe { driver.pin(place, bytes)? };
    let copy = |driver: &mut dyn Driver| {
        // SAFETY: the buffer is pinned and outlives the copy, which is waited for.
        unsafe { driver.upload(Lane::Copy, device, place.as_ptr(), bytes) }
    };
    let mut events = [None; 2];
    let measured = (0..=rounds)
        .map(|_| timed(driver, &mut events, |driver| (0..at_once).try_for_each(|_| copy(driver))));
    let measured: Result<Vec<f64>, GpuError> = measured.collect();
    driver.unpin(place)?;
    let mut seconds = measured?.split_off(1);
    seconds.sort_by(f64::total_cmp);
    Ok((at_once * bytes) as f64 / seconds[seconds.len() / 2])
}

/// Seconds of work in the copy lane, between two events, which are recorded anew each time.
fn timed(
    driver: &mut dyn Driver,
    events: &mut [Option<Event>; 2],
    work: impl FnOnce(&mut dyn Driver) -> Result<(), GpuError>,
) -> Result<f64, GpuError> {
    let begun = driver.record(Lane::Copy, events[0])?;
    work(driver)?;
    let ended = driver.record(Lane::Copy, events[1])?;
    *events = [Some(begun), Some(ended)];
    driver.wait(ended)?;
    driver.seconds_between(begun, ended)
}

fn time_both(
    driver: &mut dyn Driver,
    device: u64,
    host: NonNull<u8>,
    bytes: usize,
    copies: usize,
) -> Result<LinkRates, GpuError> {
    // SAFETY: the buffer is pinned and outlives the copies, which `fastest` waits for.
    let upload =
        fastest(driver, copies, |driver| unsafe { driver.upload(Lane::Copy, device, host.as_ptr(), bytes) })?;
    // What comes back is then what came from the device, not what was there before.
    // SAFETY: nothing is queued any more, and the buffer has `bytes` bytes.
    unsafe { host.as_ptr().write_bytes(0, bytes) };
    // SAFETY: as above.
    let download = fastest(driver, copies, |driver| unsafe {
        driver.download(Lane::Copy, host.as_ptr(), device, bytes)
    })?;
    let rate = |seconds: f64| bytes as f64 / seconds;
    Ok(LinkRates {
        upload_bytes_per_s: rate(upload),
        download_bytes_per_s: rate(download),
        copy_bytes: bytes as u64,
    })
}

/// Seconds of the fastest of `copies` copies, each between two events; one more goes ahead.
fn fastest(
    driver: &mut dyn Driver,
    copies: usize,
    mut copy: impl FnMut(&mut dyn Driver) -> Result<(), GpuError>,
) -> Result<f64, GpuError> {
    copy(driver)?;
    let mut best = f64::INFINITY;
    let mut events = [None; 2];
    for _ in 0..copies {
        best = best.min(timed(driver, &mut events, &mut copy)?);
    }
    Ok(best)
}
