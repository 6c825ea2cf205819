//! Tests of the driver on whatever `libcuda.so.1` the loader finds: a card's, or `scripts/fixtures/fake_cuda.c`, which
//! `scripts/cuda-check.sh` puts in its place. Where no card can be used, they hold what a user is told, and skip the
//! rest with that as the reason.

use std::ptr::NonNull;

use super::{CudaDriver, place_arg};
use crate::gpu::{
    Arg, DevicePtr, Driver, Event, GpuError, Grid, KernelId, Lane, measure_link, measure_uploads,
};

/// What one copy of an expert of gpu-check's mixture takes.
const EXPERT_BYTES: usize = 1_777_664;

/// The card, if one can be used.
fn card() -> Option<CudaDriver> {
    match CudaDriver::open(0) {
        Ok(card) => Some(card),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

fn pin(card: &mut CudaDriver, host: &mut [u8]) -> NonNull<u8> {
    let place = NonNull::from(&mut *host).cast();
    unsafe { card.pin(place, host.len()) }.expect("memory is pinned");
    place
}

fn read(card: &mut CudaDriver, from: DevicePtr, len: usize) -> Vec<u8> {
    let mut host = vec![0; len];
    unsafe { card.download(Lane::Compute, host.as_mut_ptr(), from, len) }.expect("a download is queued");
    let done = card.record(Lane::Compute, None).expect("an event is recorded");
    card.wait(done).expect("the download ends");
    host
}

/// With `CUDA_TEST_REASON` set, the reason has to have it.
#[test]
fn opening_gives_a_card_or_one_line_that_says_why_not() {
    let wanted = std::env::var("CUDA_TEST_REASON").ok();
    match CudaDriver::open(0) {
        Ok(mut card) => {
            assert_eq!(wanted, None, "no card was expected");
            let info = card.info().expect("a card states its memory");
            assert!(!info.name.is_empty() && info.free_bytes <= info.total_bytes && info.total_bytes > 0);
        }
        Err(GpuError::Unavailable { reason }) => {
            assert!(!reason.contains('\n') && !reason.is_empty());
            assert!(reason.contains(&wanted.unwrap_or_default()), "{reason}");
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_card_that_does_not_exist_is_refused_with_the_count_of_those_that_do() {
    let Some(_card) = card() else { return };
    let error = CudaDriver::open(4000).err().expect("nobody has 4001 cards");
    assert!(error.to_string().contains("no card 4000"), "{error}");
}

#[test]
fn bytes_come_back_as_they_went_from_pinned_memory_and_from_other() {
    let Some(mut card) = card() else { return };
    let mut bytes: Vec<u8> = (0..1_000_003u32).map(|i| (i * i >> 3) as u8).collect();
    let len = bytes.len();
    let at = card.alloc("a test", 2 * len as u64).expect("there is memory");
    assert_eq!(at % 256, 0);
    unsafe { card.upload(Lane::Compute, at, bytes.as_ptr(), len) }.expect("an upload is queued");
    let place = pin(&mut card, &mut bytes);
    unsafe { card.upload(Lane::Copy, at + len as u64, bytes.as_ptr(), len) }.expect("an upload is queued");
    let copied = card.record(Lane::Copy, None).expect("an event is recorded");
    card.order(Lane::Compute, copied).expect("lanes are ordered");
    let back = read(&mut card, at, 2 * len);
    card.unpin(place).expect("memory is unpinned");
    assert!(back[..len] == bytes[..] && back[len..] == bytes[..]);
}

#[test]
fn a_kernel_reads_pinned_memory_where_it_lies_at_the_cards_address_of_it() {
    let Some(mut card) = card() else { return };
    let info = card.info().expect("a card states what it is");
    println!("unified: {}, reads the host's memory: {}", info.is_unified, info.reads_host);
    if let Ok(wanted) = std::env::var("CUDA_TEST_UNIFIED") {
        assert_eq!(info.is_unified.to_string(), wanted);
    }
    let mut host: Vec<f32> = (0..2000).map(|i| i as f32).collect();
    let at = host.as_mut_ptr().cast::<u8>();
    assert!(card.mapped(at, 8000).is_err(), "it is not pinned");
    let place = NonNull::new(at).expect("a vector is somewhere");
    unsafe { card.pin(place, 8000) }.expect("memory is pinned");
    if !info.reads_host {
        assert!(card.mapped(at, 8000).is_err());
        return;
    }
    let whole = card.mapped(at, 8000).expect("it is pinned");
    let half = card.mapped(at.wrapping_add(4000), 4000).expect("it is pinned");
    assert_eq!(half, whole + 4000);
    assert!(card.mapped(at.wrapping_add(4000), 4001).is_err(), "some of it is not pinned");
    let sum = card.alloc("sum", 4000).expect("there is memory");
    unsafe { card.zero(Lane::Compute, sum, 4000) }.expect("zeroing is queued");
    let kernel = card.kernel("add_rows").expect("the kernel is there");
    let grid = Grid { blocks: [4, 1, 1], threads: 256, shared_bytes: 0 };
    let args = [Arg::Ptr(half), Arg::Ptr(sum), Arg::U32(1000)];
    unsafe { card.launch(kernel, grid, &args) }.expect("a launch is queued");
    let back = read(&mut card, sum, 4000);
    card.unpin(place).expect("memory is unpinned");
    let wanted: Vec<u8> = host[1000..].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert!(back == wanted);
}

#[test]
fn zeroing_clears_what_it_was_given_and_no_more() {
    let Some(mut card) = card() else { return };
    let at = card.alloc("a test", 300).expect("there is memory");
    unsafe { card.upload(Lane::Compute, at, [7; 300].as_ptr(), 300) }.expect("an upload is queued");
    unsafe { card.zero(Lane::Compute, at + 100, 100) }.expect("zeroing is queued");
    let wanted = [vec![7u8; 100], vec![0; 100], vec![7; 100]].concat();
    assert_eq!(read(&mut card, at, 300), wanted);
}

#[test]
fn a_kernel_gets_its_arguments_in_order() {
    let Some(mut card) = card() else { return };
    let (x, sum): (Vec<f32>, Vec<f32>) = (0..1000).map(|i| (i as f32, 0.5 * i as f32)).unzip();
    let (from, to) = (card.alloc("x", 4000).expect("memory"), card.alloc("sum", 4000).expect("memory"));
    unsafe { card.upload(Lane::Compute, from, x.as_ptr().cast(), 4000) }.expect("an upload is queued");
    unsafe { card.upload(Lane::Compute, to, sum.as_ptr().cast(), 4000) }.expect("an upload is queued");
    let kernel = card.kernel("add_rows").expect("the kernel is there");
    assert_eq!(card.kernel("add_rows").expect("the kernel is there"), kernel);
    let grid = Grid { blocks: [4, 1, 1], threads: 256, shared_bytes: 0 };
    // All but the last: a length that was misread shows.
    let args = [Arg::Ptr(from), Arg::Ptr(to), Arg::U32(999)];
    unsafe { card.launch(kernel, grid, &args) }.expect("a launch is queued");
    let back = read(&mut card, to, 4000);
    let back: Vec<f32> = back.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let wanted = (0..1000).map(|i| if i < 999 { 1.5 * i as f32 } else { 0.5 * i as f32 });
    assert!(back.iter().copied().eq(wanted));
}

#[test]
fn an_argument_lies_in_the_first_bytes_of_its_slot_and_a_struct_where_it_was() {
    let words = [1, 2];
    for (arg, wanted) in [
        (Arg::Ptr(0x1122_3344_5566_7788), 0x1122_3344_5566_7788),
        (Arg::U32(0x99aa_bbcc), 0x99aa_bbcc),
        (Arg::F32(1.0), 0x3f80_0000),
    ] {
        let mut slot = 0;
        let place = place_arg(&mut slot, &arg).cast::<u64>();
        assert_eq!(place, std::ptr::from_mut(&mut slot));
        assert_eq!(slot, wanted);
    }
    assert_eq!(place_arg(&mut 0, &Arg::Struct(&words)).cast_const(), words.as_ptr().cast());
}

#[test]
fn events_are_reached_in_turn_and_time_never_runs_backwards() {
    let Some(mut card) = card() else { return };
    let at = card.alloc("a test", 1 << 20).expect("there is memory");
    let begun = card.record(Lane::Compute, None).expect("an event is recorded");
    unsafe { card.zero(Lane::Compute, at, 1 << 20) }.expect("zeroing is queued");
    let ended = card.record(Lane::Compute, None).expect("an event is recorded");
    card.wait(ended).expect("the work ends");
    assert!(card.is_done(begun).expect("an event answers") && card.is_done(ended).expect("an event answers"));
    assert!(card.seconds_between(begun, ended).expect("both were reached") >= 0.0);
    assert_eq!(card.record(Lane::Copy, Some(begun)).expect("an event is recorded anew"), begun);
    card.wait(begun).expect("nothing is in its way");
}

#[test]
fn what_does_not_exist_is_refused_by_name() {
    let Some(mut card) = card() else { return };
    assert!(matches!(card.kernel("no_such"), Err(GpuError::NoKernel { name }) if name == "no_such"));
    assert!(matches!(card.kernel("a\0b"), Err(GpuError::NoKernel { .. })));
    assert!(matches!(card.alloc("too much", 1 << 60), Err(GpuError::Memory { what: "too much", .. })));
    assert!(card.wait(Event(99)).is_err() && card.is_done(Event(99)).is_err());
    let grid = Grid { blocks: [1; 3], threads: 1, shared_bytes: 0 };
    assert!(unsafe { card.launch(KernelId(99), grid, &[]) }.is_err());
    assert!(card.unpin(NonNull::dangling()).is_err());
}

#[test]
fn another_thread_can_take_the_card_over_and_drop_it() {
    let Some(mut card) = card() else { return };
    let at = card.alloc("a test", 64).expect("there is memory");
    unsafe { card.upload(Lane::Compute, at, [3; 64].as_ptr(), 64) }.expect("an upload is queued");
    let back = std::thread::spawn(move || read(&mut card, at, 64)).join().expect("the thread ends well");
    assert_eq!(back, [3; 64]);
}

/// `scripts/gpu-check.sh` reads the line: the most that copies can reach on this machine.
#[test]
#[ignore = "measures; scripts/gpu-check.sh runs it"]
fn link_peak() {
    let Some(mut card) = card() else { return };
    let rates = measure_link(&mut card, 64 << 20, 20).expect("the link is measured");
    assert!(rates.upload_bytes_per_s > 0.0 && rates.download_bytes_per_s > 0.0);
    println!("link_peak {}", serde_json::to_string(&rates).expect("numbers are JSON"));
    for at_once in [1, 4] {
        let rate = measure_uploads(&mut card, EXPERT_BYTES, at_once, 50).expect("the link is measured");
        println!(
            "link_small {{\"copy_bytes\": {EXPERT_BYTES}, \"at_once\": {at_once}, \"upload_bytes_per_s\": {rate}}}"
        );
    }
}
