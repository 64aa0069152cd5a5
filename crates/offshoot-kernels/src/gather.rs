//! Rows of a matrix in another order, some of them several times and some not at all: windows and their shifts, merged patches,
//! enlarged maps, tokens that were picked.

use std::sync::{Arc, OnceLock};

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, Flex, TensorMetadata};
use burn::tensor::{IndexingUpdateOp, Shape, TensorData};

use crate::operation::Kernel;
use crate::slices::{only, tensor, values};
use crate::vector::{Blank, build, copied, in_rows, rows_of, zeroed};

/// Which row of a matrix becomes each row of the result, and the way back. It is cheap to clone, and clones share the way back,
/// which is found when a gradient first needs it: make it once for all steps.
#[derive(Clone, Debug)]
pub struct Rows(Arc<Both>);

#[derive(Debug)]
struct Both {
    /// The row of the matrix for each row of the result; zeros where there is none.
    sources: Arc<[Option<u32>]>,
    results: OnceLock<Results>,
}

/// The rows of the result that each row of the matrix went to, in ascending order.
#[derive(Debug)]
struct Results {
    /// Where those of each row of the matrix begin in `places`, and where the last end.
    starts: Vec<usize>,
    places: Vec<u32>,
}

impl Results {
    fn new(sources: &[Option<u32>]) -> Self {
        let used = sources.iter().flatten().max().map_or(0, |&last| last as usize + 1);
        let mut starts = vec![0; used + 1];
        for source in sources.iter().flatten() {
            starts[*source as usize + 1] += 1;
        }
        for row in 0..used {
            starts[row + 1] += starts[row];
        }
        let mut next = starts.clone();
        let mut places = vec![0; starts[used]];
        for (place, source) in sources.iter().enumerate() {
            if let Some(source) = source {
                let next = &mut next[*source as usize];
                places[*next] = place as u32;
                *next += 1;
            }
        }
        Self { starts, places }
    }

    fn of(&self, row: usize) -> &[u32] {
        match self.starts.get(row..row + 2) {
            Some(&[first, last]) => &self.places[first..last],
            _ => &[],
        }
    }
}

impl Rows {
    /// Rows of the result.
    pub fn len(&self) -> usize {
        self.0.sources.len()
    }

    /// Whether the result has no rows.
    pub fn is_empty(&self) -> bool {
        self.0.sources.is_empty()
    }

    fn results(&self) -> &Results {
        self.0.results.get_or_init(|| Results::new(&self.0.sources))
    }
}

impl<T: Into<Arc<[Option<u32>]>>> From<T> for Rows {
    fn from(sources: T) -> Self {
        Self(Arc::new(Both {
            sources: sources.into(),
            results: OnceLock::new(),
        }))
    }
}

/// [`gather_rows`](crate::gather_rows()) as an operation.
#[derive(Clone, Debug)]
pub struct Gather {
    rows: Rows,
    /// Rows of the matrix.
    height: usize,
    /// Numbers of each.
    width: usize,
}

impl Gather {
    /// # Panics
    /// If a row lies outside a matrix of `[height, width]`, or if there are more rows than a u32 can number.
    pub(crate) fn new(rows: Rows, [height, width]: [usize; 2]) -> Self {
        assert!(u32::try_from(rows.len()).is_ok(), "{} rows of a result", rows.len());
        let outside = rows
            .0
            .sources
            .iter()
            .flatten()
            .find(|&&source| source as usize >= height);
        if let Some(source) = outside {
            panic!("row {source} of a matrix with {height} rows");
        }
        Self { rows, height, width }
    }

    /// The sources as indices, 0 where there is none, and where that is as `[rows, width]`.
    fn indices<B: Backend>(&self, like: &FloatTensor<B>) -> (IntTensor<B>, BoolTensor<B>) {
        let device = like.device();
        let sources = &self.rows.0.sources;
        let index: Vec<i64> = sources.iter().map(|source| i64::from(source.unwrap_or(0))).collect();
        let none: Vec<bool> = sources.iter().map(Option::is_none).collect();
        let none = B::bool_from_data(TensorData::new(none, [sources.len(), 1]), &device);
        (
            B::int_from_data(TensorData::new(index, [sources.len()]), &device),
            B::bool_expand(none, Shape::new([sources.len(), self.width])),
        )
    }

    /// Zeros of `[rows, width]`.
    fn zeros<B: Backend>(&self, rows: usize, like: &FloatTensor<B>) -> FloatTensor<B> {
        B::float_zeros(Shape::new([rows, self.width]), &like.device(), like.dtype().into())
    }
}

impl Kernel for Gather {
    fn forward(self, tensors: Vec<FloatTensor<Flex>>) -> FloatTensor<Flex> {
        let (x, width) = (values(&tensors[0]), self.width);
        let sources = &self.rows.0.sources;
        let piece = rows_of(width);
        let y = build(sources.len() * width, piece * width, |i, blank| {
            in_rows(blank, width, |r, blank| match sources[i * piece + r] {
                Some(source) => copied(blank, &x[source as usize * width..][..width]),
                None => zeroed(blank),
            })
        });
        tensor(y, [sources.len(), width])
    }

    fn backward(
        self,
        _: Vec<FloatTensor<Flex>>,
        gradient: FloatTensor<Flex>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<Flex>>> {
        let (dy, width) = (values(&gradient), self.width);
        let results = self.rows.results();
        let piece = rows_of(width);
        let row = |place: u32| &dy[place as usize * width..][..width];
        fn sum<'o, 'd>(places: &[u32], row: impl Fn(u32) -> &'d [f32], blank: &'o mut Blank) -> &'o mut [f32] {
            let Some((first, others)) = places.split_first() else {
                return zeroed(blank);
            };
            let sum = copied(blank, row(*first));
            for place in others {
                sum.iter_mut().zip(row(*place)).for_each(|(sum, d)| *sum += d);
            }
            sum
        }
        let dx = build(self.height * width, piece * width, |i, blank| {
            in_rows(blank, width, |r, blank| sum(results.of(i * piece + r), row, blank))
        });
        vec![Some(tensor(dx, [self.height, width]))]
    }

    fn plain<B: Backend>(self, tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        let x = only(tensors);
        if self.height * self.width * self.rows.len() == 0 {
            return self.zeros::<B>(self.rows.len(), &x);
        }
        let (index, none) = self.indices::<B>(&x);
        B::float_mask_fill(B::float_select(x, 0, index), none, 0.0f32.into())
    }

    fn plain_backward<B: Backend>(
        self,
        _: Vec<FloatTensor<B>>,
        gradient: FloatTensor<B>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<B>>> {
        let zeros = self.zeros::<B>(self.height, &gradient);
        if self.height * self.width * self.rows.len() == 0 {
            return vec![Some(zeros)];
        }
        let (index, none) = self.indices::<B>(&gradient);
        let gradient = B::float_mask_fill(gradient, none, 0.0f32.into());
        let dx = B::float_select_assign(zeros, 0, index, gradient, IndexingUpdateOp::Add);
        vec![Some(dx)]
    }

    /// The gradient needs nothing but the size.
    fn kept(&self, _: usize) -> usize {
        0
    }
}
