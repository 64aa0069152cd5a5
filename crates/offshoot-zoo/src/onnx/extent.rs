//! Sizes of dimensions, fixed or open, and what operations make of the shapes of their operands.

/// Size of one dimension. The size of the batch is open, and of sequences their length is too; all sequences of a batch are
/// equally long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// So many.
    Fixed(usize),
    /// So many for each example of the batch.
    Batch(usize),
    /// So many for each token of one sequence.
    Length(usize),
    /// So many for each token of each sequence of the batch.
    Rows(usize),
}

use Extent::{Batch, Fixed, Length, Rows};

impl Extent {
    /// The number, and whether it is one for each example and one for each token.
    fn parts(self) -> (usize, bool, bool) {
        match self {
            Fixed(n) => (n, false, false),
            Batch(n) => (n, true, false),
            Length(n) => (n, false, true),
            Rows(n) => (n, true, true),
        }
    }

    /// Whether the size is known only when the model runs.
    pub(super) fn is_open(self) -> bool {
        !matches!(self, Fixed(_))
    }
}

/// All dimensions as one.
pub(super) fn product(shape: &[Extent]) -> Extent {
    let all = shape.iter().fold((1, false, false), |(size, batch, length), extent| {
        let (n, each, token) = extent.parts();
        assert!(!(batch && each), "{shape:?} has the batch more than once");
        assert!(!(length && token), "{shape:?} has the length more than once");
        (size * n, batch || each, length || token)
    });
    match all {
        (size, false, false) => Fixed(size),
        (size, true, false) => Batch(size),
        (size, false, true) => Length(size),
        (size, true, true) => Rows(size),
    }
}

/// The shape of an elementwise operation.
pub(super) fn broadcast(a: &[Extent], b: &[Extent]) -> Vec<Extent> {
    let rank = a.len().max(b.len());
    let at = |shape: &[Extent], i: usize| {
        let missing = rank - shape.len();
        if i < missing { Fixed(1) } else { shape[i - missing] }
    };
    let one = |i| match (at(a, i), at(b, i)) {
        (x, y) if x == y => x,
        (Fixed(1), y) => y,
        (x, Fixed(1)) => x,
        _ => panic!("{a:?} and {b:?} do not go together"),
    };
    (0..rank).map(one).collect()
}
