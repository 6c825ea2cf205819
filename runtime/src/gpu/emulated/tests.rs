//! The emulated card itself: order within a lane and across lanes, lateness, failure, broken accesses.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;

const SCHEDULES: [Schedule; 6] = [
    Schedule::Eager,
    Schedule::Lazy,
    Schedule::Random(1),
    Schedule::Random(2),
    Schedule::Random(3),
    Schedule::Random(4),
];

fn card(schedule: Schedule) -> EmulatedDriver {
    let options = EmulatedOptions {
        memory_bytes: 1 << 20,
        is_unified: false,
        reads_host: true,
        schedule,
        failing: None,
    };
    EmulatedDriver::new(options).unwrap()
}

fn floats(driver: &mut EmulatedDriver, values: &[f32]) -> DevicePtr {
    let at = driver.alloc("floats", 4 * values.len() as u64).unwrap();
    // SAFETY: the memory was allocated; pageable memory is copied at once.
    unsafe { driver.upload(Lane::Compute, at, values.as_ptr().cast(), 4 * values.len()) }.unwrap();
    at
}

/// Queues `out += x` over all floats.
fn add(driver: &mut EmulatedDriver, x: DevicePtr, out: DevicePtr, len: usize) -> Result<(), GpuError> {
    let kernel = driver.kernel("add_rows")?;
    let grid = Grid { blocks: [len.div_ceil(256) as u32, 1, 1], threads: 256, shared_bytes: 0 };
    // SAFETY: the tests pass arrays of `len` floats, except where the driver is to notice.
    unsafe { driver.launch(kernel, grid, &[Arg::Ptr(x), Arg::Ptr(out), Arg::U32(len as u32)]) }
}

fn read(driver: &mut EmulatedDriver, lane: Lane, at: DevicePtr, len: usize) -> Vec<f32> {
    let mut values = vec![0f32; len];
    // SAFETY: the values stay where they are until the wait is over.
    unsafe { driver.download(lane, values.as_mut_ptr().cast(), at, 4 * len) }.unwrap();
    let event = driver.record(lane, None).unwrap();
    driver.wait(event).unwrap();
    values
}

#[test]
fn work_of_a_lane_runs_in_order() {
    for schedule in SCHEDULES {
        let mut driver = card(schedule);
        let one = floats(&mut driver, &[1.0; 300]);
        let out = floats(&mut driver, &[5.0; 300]);
        add(&mut driver, one, out, 300).unwrap();
        // SAFETY: both are allocated.
        unsafe { driver.zero(Lane::Compute, out, 1200) }.unwrap();
        add(&mut driver, one, out, 300).unwrap();
        add(&mut driver, one, out, 300).unwrap();
        assert_eq!(read(&mut driver, Lane::Compute, out, 300), [2.0; 300], "{schedule:?}");
    }
}

#[test]
fn an_order_makes_a_lane_wait_for_the_other_and_nothing_else_does() {
    let staging = vec![7f32; 64];
    let run = |schedule, is_ordered| {
        let mut driver = card(schedule);
        // SAFETY: `staging` outlives the driver.
        unsafe { driver.pin(NonNull::new(staging.as_ptr().cast_mut().cast()).unwrap(), 256) }.unwrap();
        let (x, out) = (floats(&mut driver, &[1.0; 64]), floats(&mut driver, &[0.0; 64]));
        let is_there = driver.record(Lane::Compute, None).unwrap();
        driver.order(Lane::Copy, is_there).unwrap();
        // SAFETY: both ranges stay.
        unsafe { driver.upload(Lane::Copy, x, staging.as_ptr().cast(), 256) }.unwrap();
        let copied = driver.record(Lane::Copy, None).unwrap();
        if is_ordered {
            driver.order(Lane::Compute, copied).unwrap();
        }
        add(&mut driver, x, out, 64).unwrap();
        read(&mut driver, Lane::Compute, out, 64)
    };
    for schedule in SCHEDULES {
        assert_eq!(run(schedule, true), [7.0; 64], "{schedule:?}");
    }
    assert_eq!(run(Schedule::Lazy, false), [1.0; 64], "the copy comes too late");
    assert_eq!(run(Schedule::Eager, false), [7.0; 64]);
    let seeds = (0..20).map(|seed| run(Schedule::Random(seed), false)[0]);
    let seen: Vec<f32> = seeds.collect();
    assert!(seen.contains(&1.0) && seen.contains(&7.0), "{seen:?}");
}

#[test]
fn pinned_memory_is_read_when_the_copy_runs_and_other_memory_when_it_is_queued() {
    for is_pinned in [true, false] {
        let mut staging = vec![1f32; 8];
        let place = NonNull::new(staging.as_mut_ptr().cast::<u8>()).unwrap();
        let mut driver = card(Schedule::Lazy);
        if is_pinned {
            // SAFETY: `staging` is unpinned below.
            unsafe { driver.pin(place, 32) }.unwrap();
        }
        let at = driver.alloc("floats", 32).unwrap();
        // SAFETY: the source changes too early, which is what the test is about; it is there all the time.
        unsafe {
            driver.upload(Lane::Copy, at, place.as_ptr(), 32).unwrap();
            place.as_ptr().cast::<f32>().write(2.0);
        }
        let first = read(&mut driver, Lane::Copy, at, 8)[0];
        assert_eq!(first, if is_pinned { 2.0 } else { 1.0 });
        assert_eq!(driver.unpin(place).is_ok(), is_pinned);
    }
}

#[test]
fn kernels_read_pinned_memory_where_it_lies_when_they_run_and_other_memory_has_no_address() {
    for schedule in SCHEDULES {
        let mut host = vec![3f32; 128];
        let place = NonNull::new(host.as_mut_ptr().cast::<u8>()).unwrap();
        let mut driver = card(schedule);
        assert!(driver.info().unwrap().reads_host);
        assert!(driver.mapped(place.as_ptr(), 512).is_err(), "it is not pinned");
        // SAFETY: `host` is unpinned below.
        unsafe { driver.pin(place, 512) }.unwrap();
        let whole = driver.mapped(place.as_ptr(), 512).unwrap();
        let x = driver.mapped(place.as_ptr().wrapping_add(256), 256).unwrap();
        assert_eq!(x, whole + 256);
        assert!(driver.mapped(place.as_ptr().wrapping_add(256), 257).is_err(), "some of it is not pinned");
        let out = floats(&mut driver, &[1.0; 64]);
        add(&mut driver, x, out, 64).unwrap();
        // SAFETY: the value changes too early under some schedules, which is what the test is about; it is there.
        unsafe { place.as_ptr().cast::<f32>().wrapping_add(64).write(5.0) };
        let sums = read(&mut driver, Lane::Compute, out, 64);
        assert_eq!(sums[1..], [4.0; 63], "{schedule:?}");
        match schedule {
            Schedule::Eager => assert_eq!(sums[0], 4.0, "it was read at once"),
            Schedule::Lazy => assert_eq!(sums[0], 6.0, "it was read late"),
            Schedule::Random(_) => assert!(sums[0] == 4.0 || sums[0] == 6.0, "{}", sums[0]),
        }
        driver.unpin(place).unwrap();
        assert!(driver.mapped(place.as_ptr(), 512).is_err(), "it is not pinned any more");
    }
}

#[test]
fn a_copy_that_nobody_waits_for_does_not_run_under_the_lazy_schedule() {
    let mut driver = card(Schedule::Lazy);
    let at = floats(&mut driver, &[3.0; 4]);
    let mut values = [0f32; 4];
    // SAFETY: `values` outlives the driver's work.
    unsafe { driver.download(Lane::Compute, values.as_mut_ptr().cast(), at, 16) }.unwrap();
    let event = driver.record(Lane::Compute, None).unwrap();
    assert_eq!(values, [0.0; 4]);
    assert!(driver.seconds_between(event, event).is_err());
    let polls = (0..).take_while(|_| !driver.is_done(event).unwrap()).count();
    assert_eq!((polls, values), (3, [3.0; 4]), "each question runs one entry");
    assert!(driver.seconds_between(event, event).unwrap() >= 0.0);
}

#[test]
fn an_event_that_is_recorded_anew_stands_for_the_later_point_but_old_orders_stay() {
    let mut driver = card(Schedule::Lazy);
    let (x, out) = (floats(&mut driver, &[1.0; 4]), floats(&mut driver, &[0.0; 4]));
    let event = driver.record(Lane::Compute, None).unwrap();
    driver.order(Lane::Copy, event).unwrap();
    add(&mut driver, x, out, 4).unwrap();
    let again = driver.record(Lane::Compute, Some(event)).unwrap();
    assert_eq!(again, event);
    assert_eq!(read(&mut driver, Lane::Copy, out, 4), [0.0; 4], "the old point was enough");
    assert!(!driver.is_done(event).unwrap());
    driver.wait(event).unwrap();
    assert_eq!(read(&mut driver, Lane::Copy, out, 4), [1.0; 4]);
}

#[test]
fn memory_is_counted_aligned_and_not_a_number_at_first() {
    let mut driver = card(Schedule::Eager);
    let at = driver.alloc("a part", 1000).unwrap();
    assert_eq!((at % 256, driver.info().unwrap().free_bytes), (0, (1 << 20) - 1024));
    assert!(read(&mut driver, Lane::Compute, at, 250).iter().all(|value| value.is_nan()));
    let rest = (1 << 20) - 1024;
    let error = driver.alloc("too much", rest + 1).unwrap_err();
    assert!(matches!(error, GpuError::Memory { what: "too much", .. }), "{error}");
    assert!(driver.alloc("absurdly much", u64::MAX).is_err());
    driver.alloc("the rest", rest).unwrap();
}

#[test]
fn what_no_card_would_do_is_an_error() {
    let mut driver = card(Schedule::Eager);
    let error = driver.kernel("no_such_kernel").unwrap_err();
    assert!(matches!(error, GpuError::NoKernel { .. }), "{error}");
    let kernel = driver.kernel("add_rows").unwrap();
    let grid = Grid { blocks: [1; 3], threads: 256, shared_bytes: 0 };
    let wrong: [(Grid, &[Arg<'_>]); 5] = [
        (grid, &[Arg::Ptr(0), Arg::Ptr(0)]),
        (grid, &[Arg::Ptr(0), Arg::Ptr(0), Arg::F32(0.0)]),
        (grid, &[Arg::Ptr(0), Arg::Struct(&[0]), Arg::U32(0)]),
        (Grid { threads: 1025, ..grid }, &[Arg::Ptr(0), Arg::Ptr(0), Arg::U32(0)]),
        (Grid { blocks: [1, 65536, 1], ..grid }, &[Arg::Ptr(0), Arg::Ptr(0), Arg::U32(0)]),
    ];
    for (grid, args) in wrong {
        let mut driver = card(Schedule::Eager);
        assert_eq!(driver.kernel("add_rows").unwrap(), kernel);
        // SAFETY: the launch is refused.
        assert!(unsafe { driver.launch(kernel, grid, args) }.is_err(), "{grid:?} {args:?}");
    }
    let at = driver.alloc("four", 16).unwrap();
    let mut four = [0f32; 5];
    // SAFETY: the copy is refused.
    let error = unsafe { driver.download(Lane::Compute, four.as_mut_ptr().cast(), at, 20) }.unwrap_err();
    assert!(error.to_string().contains("no memory has 20 bytes"), "{error}");
}

#[test]
fn a_kernel_that_writes_beyond_its_memory_is_noticed() {
    let mut driver = card(Schedule::Eager);
    let (x, out) = (floats(&mut driver, &[1.0; 80]), floats(&mut driver, &[1.0; 70]));
    add(&mut driver, x, out, 70).unwrap();
    let error = add(&mut driver, x, out, 71).unwrap_err();
    assert!(error.to_string().contains("add_rows wrote beyond the floats"), "{error}");
}

#[test]
fn the_operation_that_is_to_fail_does_and_so_does_everything_after_it() {
    for schedule in SCHEDULES {
        let options = EmulatedOptions {
            memory_bytes: 1 << 20,
            is_unified: false,
            reads_host: true,
            schedule,
            failing: Some(1),
        };
        let mut driver = EmulatedDriver::new(options).unwrap();
        let x = floats(&mut driver, &[1.0; 8]);
        let queued = add(&mut driver, x, x, 8);
        if schedule == Schedule::Eager {
            assert!(queued.is_err());
        }
        let wait = |driver: &mut EmulatedDriver| {
            let event = driver.record(Lane::Compute, None)?;
            driver.wait(event)
        };
        let error = wait(&mut driver).unwrap_err();
        assert!(error.to_string().contains("operation 1 was to fail"), "{error}");
        assert!(driver.alloc("more", 1).is_err() && driver.info().is_err());
    }
}

#[test]
fn a_barrier_that_a_thread_does_not_come_to_is_an_error_and_the_next_launch_is_none_the_worse() {
    let meet = |missing| {
        let mut driver = card(Schedule::Eager);
        let met = floats(&mut driver, &[0.0; 96]);
        let kernel = driver.kernel("emulator_meet")?;
        let grid = Grid { blocks: [3, 1, 1], threads: 96, shared_bytes: 0 };
        // SAFETY: a word for each thread is allocated.
        unsafe { driver.launch(kernel, grid, &[Arg::Ptr(met), Arg::U32(missing)]) }?;
        let bits: Vec<u32> =
            read(&mut driver, Lane::Compute, met, 96).iter().map(|met| met.to_bits()).collect();
        Ok::<_, GpuError>(bits)
    };
    for missing in [0, 50, 95] {
        let error = meet(missing).unwrap_err();
        assert!(error.to_string().contains("emulator_meet: threads of a block wait"), "{error}");
        assert_eq!(meet(96).unwrap(), [1; 96]);
    }
}

#[test]
fn an_address_that_a_card_would_not_take_is_an_error_that_names_the_line() {
    let mut driver = card(Schedule::Eager);
    let (x, out) = (floats(&mut driver, &[1.0; 9]), floats(&mut driver, &[1.0; 8]));
    add(&mut driver, x + 4, out, 8).unwrap();
    let error = add(&mut driver, x + 2, out, 8).unwrap_err();
    assert!(error.to_string().contains("not aligned at src/gpu/kernels/vector.cuh:"), "{error}");
}
