//! Loops over long slices: vectorised for the CPU at hand, and split over its cores by one rule.
//!
//! Work is cut into pieces by sizes alone, never by the number of threads, and sums over pieces are taken in their order. So
//! results do not depend on the number of threads. Within a row, sums run in [`LANES`] interleaved parts on every CPU, and every
//! multiply-add is fused, so they do not depend on the width of its vectors either.

use std::cell::{Cell, RefCell};
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use pulp::Arch;
use rayon::prelude::*;

/// Elements of one piece of work.
pub(crate) const PIECE: usize = 1 << 14;
/// Interleaved parts of a sum: one AVX-512 vector.
pub(crate) const LANES: usize = 16;

/// The environment variable that chooses the [`Path`] for a whole process: `avx512`, `avx2` or `plain`.
pub const PATH_VARIABLE: &str = "OFFSHOOT_SIMD";

/// Vector instructions that the kernels of this crate use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// 512-bit vectors (x86-64-v4).
    Avx512,
    /// 256-bit vectors with fused multiply-add (x86-64-v3).
    Avx2,
    /// What the compiler makes for any CPU of this kind.
    Plain,
}

impl Path {
    /// All paths, the widest first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Plain];

    /// The name in [`PATH_VARIABLE`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Plain => "plain",
        }
    }

    /// What this CPU needs to run it; none if it cannot.
    fn arch(self) -> Option<Arch> {
        #[cfg(target_arch = "x86_64")]
        {
            use pulp::x86::{V3, V4};
            match self {
                Self::Avx512 => V4::try_new().map(Arch::V4),
                Self::Avx2 => V3::try_new().map(Arch::V3),
                Self::Plain => Some(Arch::Scalar),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            (self == Self::Plain).then(Arch::new)
        }
    }

    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        self.arch().is_some()
    }

    /// The path that this process asks for by [`PATH_VARIABLE`], or the widest that the CPU has.
    ///
    /// # Errors
    /// In words, if the variable holds no path or one that this CPU does not have.
    pub fn chosen() -> Result<Self, String> {
        let available = || Self::ALL.into_iter().filter(|path| path.is_available());
        let Some(asked) = std::env::var_os(PATH_VARIABLE) else {
            return Ok(available().next().unwrap_or(Self::Plain));
        };
        let found = available().find(|path| asked == path.name());
        found.ok_or_else(|| {
            let names: Vec<&str> = available().map(Self::name).collect();
            format!("{PATH_VARIABLE}={}: this CPU has {}", asked.display(), names.join(", "))
        })
    }
}

thread_local! {
    static FORCED: Cell<Option<Path>> = const { Cell::new(None) };
}

/// Runs `work` with the kernels that it calls from this thread on `path`.
///
/// # Panics
/// If this CPU does not have it.
pub fn with_path<T>(path: Path, work: impl FnOnce() -> T) -> T {
    assert!(path.is_available(), "this CPU has no {}", path.name());
    let before = FORCED.replace(Some(path));
    let result = work();
    FORCED.set(before);
    result
}

/// The vector instructions for a kernel that is called now. Kernels ask once, before they split their work over threads.
pub(crate) fn arch() -> Arch {
    static CHOSEN: OnceLock<Path> = OnceLock::new();
    let path = FORCED.get().unwrap_or_else(|| {
        // A wrong variable is the binary's to report; here the best there is will do.
        *CHOSEN.get_or_init(|| Path::chosen().unwrap_or(Path::Plain))
    });
    path.arch().unwrap_or(Arch::Scalar)
}

/// Captured by value to make a closure one that can only be called once.
pub(crate) struct Once;

/// Runs an expression compiled for the vector instructions of an [`Arch`].
///
/// A closure that could be called again is called through a shim, and a large shim is not inlined into the function that has
/// the instructions switched on; then every fused multiply-add is a call into the C library. This closure has no shim.
macro_rules! vectorised {
    ($arch:expr, $work:expr) => {{
        let once = $crate::vector::Once;
        $arch.dispatch(
            #[inline(always)]
            || {
                let $crate::vector::Once = { once };
                $work
            },
        )
    }};
}
pub(crate) use vectorised;

/// Runs `work`, which calls many operations one after the other, on one of the threads that they split their work over. From
/// there they share it out without first having to wake that thread, which takes longer than a small operation.
pub fn on_workers<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// A value that may not have been written yet.
pub(crate) type Unwritten = MaybeUninit<f32>;
/// Memory that nothing was written to yet.
pub(crate) type Blank = [Unwritten];

/// `blank` with zeros written to it.
pub(crate) fn zeroed(blank: &mut Blank) -> &mut [f32] {
    blank.fill(MaybeUninit::new(0.0));
    // SAFETY: every element was just written.
    #[allow(
        unsafe_code,
        reason = "the standard library has no stable call for a slice that was written"
    )]
    unsafe {
        &mut *(std::ptr::from_mut(blank) as *mut [f32])
    }
}

/// `blank` with `values` written to it.
pub(crate) fn copied<'a>(blank: &'a mut Blank, values: &[f32]) -> &'a mut [f32] {
    assert_eq!(blank.len(), values.len());
    filled(blank, |i| values[i])
}

/// `blank` with `value(i)` written to each place `i`.
#[inline(always)]
pub(crate) fn filled(blank: &mut Blank, value: impl Fn(usize) -> f32) -> &mut [f32] {
    for (i, to) in blank.iter_mut().enumerate() {
        to.write(value(i));
    }
    // SAFETY: every element was just written.
    #[allow(
        unsafe_code,
        reason = "the standard library has no stable call for a slice that was written"
    )]
    unsafe {
        &mut *(std::ptr::from_mut(blank) as *mut [f32])
    }
}

/// `blank` with each row of `width` values, and what is left of one, written by `work`, which gets the row's number and its blank
/// memory and returns that memory written to.
pub(crate) fn in_rows<F>(blank: &mut Blank, width: usize, mut work: F) -> &mut [f32]
where
    F: for<'a> FnMut(usize, &'a mut Blank) -> &'a mut [f32],
{
    for (r, row) in blank.chunks_mut(width.max(1)).enumerate() {
        checked(row, |row| work(r, row));
    }
    // SAFETY: each of the rows, which together are all of it, came back as written.
    #[allow(unsafe_code, reason = "memory cannot know that it was written")]
    unsafe {
        &mut *(std::ptr::from_mut(blank) as *mut [f32])
    }
}

/// Fails unless `work` returns the memory that it was given.
fn checked(blank: &mut Blank, work: impl for<'a> FnOnce(&'a mut Blank) -> &'a mut [f32]) {
    let asked = (blank.as_ptr() as usize, blank.len());
    let written = work(blank);
    let written = (written.as_ptr() as usize, written.len());
    assert!(written == asked, "another piece came back");
}

/// Buffers made in pieces: `sizes` are those of each piece in each buffer. `work` gets a piece's number and its blank memory in
/// each buffer, and returns that memory written to. A buffer that is overwritten anyway is never cleared first.
pub(crate) fn build_pieces<const N: usize, F>(sizes: &[[usize; N]], work: F) -> [Vec<f32>; N]
where
    F: for<'a> Fn(usize, [&'a mut Blank; N]) -> [&'a mut [f32]; N] + Sync,
{
    build_bundles(
        sizes,
        sizes.len(),
        |i| i,
        |i, mut pieces| {
            let piece = pieces.pop().expect("each piece is a bundle");
            vec![work(i, piece)]
        },
    )
}

/// Memory of some pieces, each with a part in every buffer, before and after it was written to.
pub(crate) type Pieces<'a, T, const N: usize> = Vec<[&'a mut [T]; N]>;

/// Buffers made as by [`build_pieces`], but in `bundles` of pieces that need not lie side by side: `work` gets the number of one,
/// and its pieces in their order.
pub(crate) fn build_bundles<const N: usize, F>(
    sizes: &[[usize; N]],
    bundles: usize,
    bundle_of: impl Fn(usize) -> usize,
    work: F,
) -> [Vec<f32>; N]
where
    F: for<'a> Fn(usize, Pieces<'a, Unwritten, N>) -> Pieces<'a, f32, N> + Sync,
{
    build_by(sizes, bundles, bundle_of, |all| match bundles {
        1 => all
            .into_iter()
            .for_each(|bundle| bundle.write(|pieces| work(0, pieces))),
        _ => all
            .into_par_iter()
            .enumerate()
            .for_each(|(i, bundle)| bundle.write(|pieces| work(i, pieces))),
    })
}

/// [`build_bundles`] one bundle after the other, on the caller's thread.
pub(crate) fn build_in_turn<const N: usize, F>(
    sizes: &[[usize; N]],
    bundles: usize,
    bundle_of: impl Fn(usize) -> usize,
    mut work: F,
) -> [Vec<f32>; N]
where
    F: for<'a> FnMut(usize, Pieces<'a, Unwritten, N>) -> Pieces<'a, f32, N>,
{
    build_by(sizes, bundles, bundle_of, |all| {
        for (i, bundle) in all.into_iter().enumerate() {
            bundle.write(|pieces| work(i, pieces));
        }
    })
}

/// Pieces that one call writes to, and the number of bundles that were written.
struct Bundle<'a, const N: usize> {
    pieces: Pieces<'a, Unwritten, N>,
    written: &'a AtomicUsize,
}

impl<'a, const N: usize> Bundle<'a, N> {
    /// Has `work` write to the pieces.
    ///
    /// # Panics
    /// Unless it returns the memory that it was given.
    fn write(self, work: impl FnOnce(Pieces<'a, Unwritten, N>) -> Pieces<'a, f32, N>) {
        let place = |piece: &[&mut Blank; N]| piece.each_ref().map(|blank| (blank.as_ptr() as usize, blank.len()));
        let asked: Vec<_> = self.pieces.iter().map(place).collect();
        let written = work(self.pieces).into_iter();
        let written = written.map(|piece| piece.map(|values| (values.as_ptr() as usize, values.len())));
        assert!(written.eq(asked), "another piece came back");
        self.written.fetch_add(1, Ordering::Relaxed);
    }
}

/// Buffers in bundles of pieces, each of which `run` writes.
fn build_by<const N: usize>(
    sizes: &[[usize; N]],
    bundles: usize,
    bundle_of: impl Fn(usize) -> usize,
    run: impl FnOnce(Vec<Bundle<'_, N>>),
) -> [Vec<f32>; N] {
    let lens: [usize; N] = std::array::from_fn(|b| sizes.iter().map(|piece| piece[b]).sum());
    let mut buffers: [Vec<f32>; N] = lens.map(Vec::with_capacity);
    let mut lens_left = lens.iter();
    let mut rests = buffers.each_mut().map(|buffer| {
        let len = *lens_left.next().expect("one a buffer");
        &mut buffer.spare_capacity_mut()[..len]
    });
    let written = AtomicUsize::new(0);
    let empty = |_| Bundle {
        pieces: Vec::new(),
        written: &written,
    };
    let mut all: Vec<Bundle<'_, N>> = (0..bundles).map(empty).collect();
    for (i, piece) in sizes.iter().enumerate() {
        let mut sizes = piece.iter();
        all[bundle_of(i)].pieces.push(rests.each_mut().map(|rest| {
            let (part, after) = std::mem::take(rest).split_at_mut(*sizes.next().expect("one a buffer"));
            *rest = after;
            part
        }));
    }
    run(all);
    assert_eq!(written.into_inner(), bundles, "bundles that were written");
    for (buffer, len) in buffers.iter_mut().zip(lens) {
        // SAFETY: each of the pieces, which together are the first `len` elements, came back as written.
        #[allow(unsafe_code, reason = "a vector cannot know that its spare memory was written")]
        unsafe {
            buffer.set_len(len);
        }
    }
    buffers
}

/// One buffer of `len` values, made as by [`build_pieces`] in pieces of `piece`.
pub(crate) fn build<F>(len: usize, piece: usize, work: F) -> Vec<f32>
where
    F: for<'a> Fn(usize, &'a mut Blank) -> &'a mut [f32] + Sync,
{
    let piece = piece.max(1);
    let sizes: Vec<[usize; 1]> = (0..len.div_ceil(piece)).map(|i| [piece.min(len - i * piece)]).collect();
    let [values] = build_pieces(&sizes, |i, [blank]| [work(i, blank)]);
    values
}

thread_local! {
    /// Of calls within calls, the outermost one's last.
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `work` with `len` values of this thread's own memory, which keeps its size from call to call and holds anything. Calls
/// within `work` get memory of their own.
pub(crate) fn with_scratch<T>(len: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut values = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if values.len() < len {
        values.resize(len, 0.0);
    }
    let result = work(&mut values[..len]);
    SCRATCH.with_borrow_mut(|all| all.push(values));
    result
}

/// Runs `work` on the pieces of `output` and the pieces of `input` beside them.
pub(crate) fn map(input: &[f32], work: impl Fn(&[f32], &mut [f32]) + Sync) -> Vec<f32> {
    let arch = arch();
    build(input.len(), PIECE, |i, blank| {
        let input = &input[i * PIECE..][..blank.len()];
        let output = zeroed(blank);
        vectorised!(arch, work(input, output));
        output
    })
}

/// Runs `work` on the pieces of `values`, with the place where each begins.
pub(crate) fn update(values: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
    let arch = arch();
    let run = |i: usize, piece: &mut [f32]| {
        vectorised!(arch, work(i * PIECE, piece));
    };
    if values.len() <= PIECE {
        run(0, values);
    } else {
        values
            .par_chunks_mut(PIECE)
            .enumerate()
            .for_each(|(i, piece)| run(i, piece));
    }
}

/// Runs `work` on all threads on the rows of `values`, each of `width`: some at a time, with the number of the first of them.
pub(crate) fn update_rows(values: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if width == 0 {
        return;
    }
    let rows = rows_of(width);
    let pieces = values.par_chunks_mut(rows * width).enumerate();
    pieces.for_each(|(i, values)| work(i * rows, values));
}

/// Rows of `width` that make about one piece.
pub(crate) fn rows_of(width: usize) -> usize {
    (PIECE / width.max(1)).max(1)
}

/// Adds up `parts` of `width` values each, in their order.
pub(crate) fn add_up(parts: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    for part in parts.chunks_exact(width.max(1)) {
        for (sum, value) in sums.iter_mut().zip(part) {
            *sum += value;
        }
    }
    sums
}

/// Terms that are summed in lanes before they are added to the rest, so that long sums keep their digits.
pub(crate) const RUN: usize = 64 * LANES;
/// Lanes of four vectors, so that one addition need not wait for the one before.
const WIDE: usize = 4 * LANES;

/// The sum of `term(x, y)` over the elements of two slices, in runs of interleaved parts.
#[inline(always)]
pub(crate) fn sum_pairs(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let n = a.len().min(b.len());
    let mut sum = 0.0;
    for (a, b) in a[..n].chunks(RUN).zip(b[..n].chunks(RUN)) {
        let mut wide = [0.0f32; WIDE];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<WIDE>(), b.as_chunks::<WIDE>());
        for (a, b) in a.iter().zip(b) {
            for l in 0..WIDE {
                wide[l] += term(a[l], b[l]);
            }
        }
        for ((lane, &x), &y) in wide.iter_mut().zip(a_rest).zip(b_rest) {
            *lane += term(x, y);
        }
        sum += total(&wide);
    }
    sum
}

/// The sum of `term(x)` over the elements of a slice.
#[inline(always)]
pub(crate) fn sum_of(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    sum_pairs(
        values,
        values,
        #[inline(always)]
        |x, _| term(x),
    )
}

/// Sum of the lanes, by halves.
#[inline(always)]
fn total(lanes: &[f32; WIDE]) -> f32 {
    let mut lanes = *lanes;
    let mut half = WIDE / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Sum of products.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_pairs(
        a,
        b,
        #[inline(always)]
        |x, y| x * y,
    )
}

/// The largest value that is not NaN; negative infinity of nothing. What is then taken above it keeps its NaNs.
#[inline(always)]
pub(crate) fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; WIDE];
    let (whole, rest) = values.as_chunks::<WIDE>();
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x > *lane { x } else { *lane };
    }
    for chunk in whole {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    let mut half = WIDE / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] = if lanes[l + half] > lanes[l] {
                lanes[l + half]
            } else {
                lanes[l]
            };
        }
        half /= 2;
    }
    lanes[0]
}

/// Bits of 1.5 * 2^23: adding it to a small number rounds that to a whole one in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `exp(x)` for `x <= 0`, to about 1e-7 relative; 0 below -87, NaN of NaN. Without branches, so that loops over it become
/// vectors.
#[inline(always)]
pub(crate) fn exp_negative(x: f32) -> f32 {
    let clamped = if x < -87.0 { -87.0 } else { x };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, so that n * ln 2 is exact in the first.
    let r = n.mul_add(-0.693_145_75, clamped);
    let r = n.mul_add(-1.428_606_8e-6, r);
    let p = r.mul_add(1.388_888_9e-3, 8.333_334e-3);
    let p = p.mul_add(r, 4.166_666_8e-2);
    let p = p.mul_add(r, 1.666_666_7e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    // 2^n by its exponent bits; the low bits of `shifted` hold n.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { p * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = 0.0f64;
        while x > -86.9 {
            let (ours, exact) = (f64::from(exp_negative(x as f32)), f64::from(x as f32).exp());
            assert!(
                (ours - exact).abs() <= 2.5e-7 * exact,
                "exp({x}): {ours:e} against {exact:e}"
            );
            x -= 0.001_37;
        }
        assert_eq!(exp_negative(-100.0), 0.0);
        assert_eq!(exp_negative(f32::NEG_INFINITY), 0.0);
        assert!(exp_negative(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_take_every_element_once() {
        for n in [0, 1, 15, 16, 17, 31, 64, 100, 1024, 1100] {
            let values: Vec<f32> = (0..n).map(|i| i as f32 + 1.0).collect();
            let sum = (n * (n + 1) / 2) as f32;
            assert_eq!(sum_of(&values, |x| x), sum);
            assert_eq!(dot(&values, &vec![2.0; n]), 2.0 * sum);
            assert_eq!(largest(&values), if n == 0 { f32::NEG_INFINITY } else { n as f32 });
            for at in 0..n {
                let mut values = values.clone();
                values[at] = f32::NAN;
                let others = if at + 1 == n { n - 1 } else { n };
                assert_eq!(largest(&values), if n == 1 { f32::NEG_INFINITY } else { others as f32 });
            }
        }
    }

    #[test]
    fn pieces_are_all_built() {
        for (n, piece) in [(0, 3), (1, 3), (3, 3), (10, 3), (64, 16)] {
            let values = build(n, piece, |i, blank| {
                let values = zeroed(blank);
                for (k, v) in values.iter_mut().enumerate() {
                    *v = (i * piece + k) as f32;
                }
                values
            });
            assert_eq!(values, (0..n).map(|k| k as f32).collect::<Vec<_>>());
        }
    }

    #[test]
    #[should_panic(expected = "another piece")]
    fn a_piece_that_is_not_the_whole_is_refused() {
        build(4, 8, |_, blank| &mut zeroed(blank)[..2]);
    }
}
