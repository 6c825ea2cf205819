//! The matrix products of all formats.

use super::super::driver::Grid;
use super::super::shapes::{
    MATMUL_JOBS_MAX, MATMUL_ROWS, MatmulJob, matmul_grid, matmul_jobs, matmul_name, thin_matmul_grid,
    thin_matmul_name,
};
use super::super::tables;
use super::{Arg, Card, DevicePtr};
use crate::kernels::{Format, Input, MatrixRef, Side, matmul_serial, noise, quantized, random_weights};

/// Activation rows there are.
const ROWS: usize = 11;

/// What memory holds where nothing was written.
const UNTOUCHED: u32 = 0x5a5a_5a5a;

fn widths(format: Format) -> &'static [usize] {
    match format.side() {
        Side::Float => &[1, 15, 33, 256, 544, 1030, 2048],
        Side::X32 => &[32, 96, 256, 512, 544, 1280],
        Side::X256 => &[256, 512, 1280],
    }
}

/// A job of a test: its matrix, the activation rows, what it leaves free between output rows.
struct Case {
    n: usize,
    weights: Vec<u8>,
    rows: Rows,
    gap: usize,
}

enum Rows {
    Steps {
        first: u32,
        step: u32,
        count: u32,
    },
    List(Vec<u32>),
    /// With the job itself.
    Packed(Vec<u32>),
}

impl Rows {
    fn all(&self) -> Vec<u32> {
        match self {
            Rows::Steps { first, step, count } => (0..*count).map(|i| first + i * step).collect(),
            Rows::List(rows) | Rows::Packed(rows) => rows.clone(),
        }
    }
}

/// Several jobs of different sizes for one launch each.
fn launches(format: Format, cols: usize) -> Vec<Vec<Case>> {
    let case = |n: usize, rows, gap| {
        let weights = random_weights(format, n * cols, 7 + n as u64);
        Case { n, weights, rows, gap }
    };
    let steps = |first, step, count| Rows::Steps { first, step, count };
    vec![
        vec![
            case(21, steps(0, 1, ROWS as u32), 0),
            case(16, steps(1, 1, 2), 3),
            case(1, steps(4, 1, 0), 0),
            case(5, steps(10, 1, 1), 2),
            case(17, steps(3, 1, 6), 0),
        ],
        vec![case(16, steps(1, 3, 3), 3), case(7, steps(2, 3, 1), 0)],
        vec![case(33, Rows::List(vec![10, 0, 3, 3, 7, 2, 8]), 1), case(16, Rows::List(vec![5, 1]), 0)],
        vec![
            case(18, Rows::Packed(vec![9, 0, 4, 4, 10, 1, 2, 8]), 0),
            case(3, Rows::Packed(vec![6]), 0),
            case(20, Rows::Packed(vec![10, 3]), 1),
        ],
    ]
}

/// Activation rows in the card's memory with a gap behind each; also the bytes from row to row.
fn upload_activations(card: &mut Card, side: Side, x: &[f32], cols: usize) -> (DevicePtr, u32) {
    let rows = quantized(side, x, cols);
    let row_bytes = rows.len() / ROWS;
    // Floats may stand anywhere, so that not all are read two at a time.
    let gap = if side == Side::Float { 4 * (cols % 3) } else { 64 };
    let apart: Vec<u8> = rows.chunks(row_bytes).flat_map(|row| [row, &vec![0xff; gap]].concat()).collect();
    (card.upload(&apart), (row_bytes + gap) as u32)
}

/// Bits of `out` with its gaps, as the CPU has them.
fn expected(format: Format, cols: usize, case: &Case, x: &[f32]) -> Vec<u32> {
    let w = MatrixRef { format, rows: case.n, cols, bytes: &case.weights };
    let mut out = vec![0f32; ROWS * case.n];
    matmul_serial(w, &Input::new(x, cols), &mut out);
    assert!(out.iter().all(|value| value.is_finite()), "{format:?}");
    let row = |row: u32| {
        let products = &out[row as usize * case.n..][..case.n];
        products.iter().map(|value| value.to_bits()).chain(std::iter::repeat_n(UNTOUCHED, case.gap))
    };
    case.rows.all().into_iter().flat_map(row).collect()
}

fn check(format: Format, cols: usize) {
    let mut card = Card::new();
    let tables = card.upload(&tables());
    let x = noise(ROWS * cols, 3);
    let (x_at, x_stride) = upload_activations(&mut card, format.side(), &x, cols);
    let launches: Vec<(Vec<Case>, Vec<Vec<u32>>)> = launches(format, cols)
        .into_iter()
        .map(|cases| {
            let expected = cases.iter().map(|case| expected(format, cols, case, &x)).collect();
            (cases, expected)
        })
        .collect();
    let by_rows = |rows| {
        let grid = move |jobs: &[MatmulJob]| matmul_grid(rows, jobs);
        (matmul_name(format, rows), Box::new(grid) as Box<dyn Fn(&[MatmulJob]) -> Grid>)
    };
    let mut ways: Vec<_> = MATMUL_ROWS.map(by_rows).into_iter().collect();
    if thin_matmul_grid(format, cols, &[]).is_some() {
        let grid = move |jobs: &[MatmulJob]| thin_matmul_grid(format, cols, jobs).unwrap();
        ways.push((thin_matmul_name(format), Box::new(grid)));
    }
    for ((kernel, grid), (cases, expected)) in
        ways.iter().flat_map(|way| launches.iter().map(move |launch| (way, launch)))
    {
        let jobs: Vec<MatmulJob> =
            cases.iter().map(|case| upload_job(&mut card, case, x_at, x_stride)).collect();
        let words = matmul_jobs(&jobs);
        let args = [Arg::Struct(&words), Arg::U32(cols as u32), Arg::Ptr(tables)];
        card.run(kernel, grid(&jobs), &args);
        for (job, (of_job, expected)) in jobs.iter().zip(expected).enumerate() {
            let got = card.read_bits(of_job.out, expected.len());
            let wrong = got.iter().zip(expected).position(|(got, expected)| got != expected);
            let values = wrong.map(|at| (at, f32::from_bits(got[at]), f32::from_bits(expected[at])));
            assert!(wrong.is_none(), "{kernel}, {cols} columns, job {job} of {}: {values:?}", jobs.len());
        }
    }
}

fn upload_job(card: &mut Card, case: &Case, x: DevicePtr, x_stride: u32) -> MatmulJob {
    let count = case.rows.all().len();
    let out_stride = case.n + case.gap;
    let mut job = MatmulJob {
        w: card.upload(&case.weights),
        x,
        x_stride,
        n: case.n as u32,
        count: count as u32,
        out: card.upload(&vec![0x5a; 4 * count * out_stride]),
        out_stride: out_stride as u32,
        ..MatmulJob::default()
    };
    match &case.rows {
        Rows::Steps { first, step, .. } => (job.x_first, job.x_step) = (*first, *step),
        Rows::Packed(rows) => job = job.of_rows(rows),
        Rows::List(rows) => {
            job.rows = card.upload(&rows.iter().flat_map(|row| row.to_le_bytes()).collect::<Vec<u8>>());
        }
    }
    job
}

#[test]
fn every_format_has_the_bits_of_the_cpu_for_any_number_of_rows() {
    for format in Format::all() {
        for &cols in widths(format) {
            check(format, cols);
        }
    }
}

#[test]
fn as_many_jobs_as_a_launch_takes_are_all_done() {
    let (format, cols, n) = (Format::Q4K, 256, 3);
    let mut card = Card::new();
    let tables = card.upload(&tables());
    let x = noise(ROWS * cols, 5);
    let (x_at, x_stride) = upload_activations(&mut card, format.side(), &x, cols);
    let cases: Vec<Case> = (0..MATMUL_JOBS_MAX)
        .map(|job| {
            let weights = random_weights(format, n * cols, job as u64);
            Case { n, weights, rows: Rows::Packed(vec![job as u32 % ROWS as u32]), gap: 0 }
        })
        .collect();
    let jobs: Vec<MatmulJob> = cases.iter().map(|case| upload_job(&mut card, case, x_at, x_stride)).collect();
    let words = matmul_jobs(&jobs);
    let args = [Arg::Struct(&words), Arg::U32(cols as u32), Arg::Ptr(tables)];
    card.run(&matmul_name(format, 4), matmul_grid(4, &jobs), &args);
    for (job, case) in jobs.iter().zip(&cases) {
        let wanted = expected(format, cols, case, &x);
        assert_eq!(card.read_bits(job.out, wanted.len()), wanted);
    }
}
