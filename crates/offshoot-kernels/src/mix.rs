//! Mixes of slices of a weight: each expert's matrix as a sum of shared matrices, times numbers of its own.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex};
use burn::tensor::Shape;

use crate::operation::Kernel;
use crate::slices::{tensor, values};
use crate::vector::{add_up, arch, build_bundles, dot, filled, vectorised};

/// Elements of a section that are mixed at once: those of all slices and of all experts are to stay in a core's second cache.
const CHUNK: usize = 1 << 11;

/// The matrices of some experts as mixes of the same slices, `W_a = sum_r c[a, r] T_r`. A matrix may consist of sections of equal size,
/// one after the other, each with numbers of its own: `c[a, s, r]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Matrices that are made.
    pub experts: usize,
    /// Matrices that they are made of.
    pub slices: usize,
    /// Sections of each.
    pub sections: usize,
}

impl Mix {
    /// # Panics
    /// If there is nothing to mix, or the numbers of elements do not fit.
    pub(crate) fn check(&self, coefficients: usize, slices: usize) {
        assert_eq!(
            coefficients,
            self.experts * self.sections * self.slices,
            "numbers of a mix of {self:?}"
        );
        assert!(
            coefficients > 0 && slices > 0 && slices.is_multiple_of(self.slices * self.sections),
            "{slices} elements are no whole number of sections of {self:?}"
        );
    }

    /// Elements of a section of one matrix.
    fn section(&self, slices: usize) -> usize {
        slices / (self.slices * self.sections)
    }

    /// The parts of a matrix that are mixed at once: section, first element, elements.
    fn chunks(&self, section: usize) -> Vec<(usize, usize, usize)> {
        let within = |s: usize| (0..section).step_by(CHUNK).map(move |at| (s, at));
        (0..self.sections)
            .flat_map(within)
            .map(|(s, at)| (s, s * section + at, CHUNK.min(section - at)))
            .collect()
    }

    /// The matrices, one after the other, of `coefficients` and slices that lie one after the other.
    pub(crate) fn mixed(&self, coefficients: &[f32], slices: &[f32]) -> Vec<f32> {
        self.check(coefficients.len(), slices.len());
        let matrix = slices.len() / self.slices;
        let chunks = self.chunks(self.section(slices.len()));
        let sizes: Vec<[usize; 1]> = (0..self.experts)
            .flat_map(|_| &chunks)
            .map(|&(.., len)| [len])
            .collect();
        let arch = arch();
        let [mixed] = build_bundles(
            &sizes,
            chunks.len(),
            |piece| piece % chunks.len(),
            |chunk, pieces| {
                let (section, at, len) = chunks[chunk];
                let each = pieces.into_iter().enumerate().map(|(expert, [blank])| {
                    let c = &coefficients[(expert * self.sections + section) * self.slices..][..self.slices];
                    let part = |r: usize| &slices[r * matrix + at..][..len];
                    let mixed = vectorised!(arch, {
                        let (first, c0) = (part(0), c[0]);
                        let mixed = filled(blank, |e| c0 * first[e]);
                        for (r, &c) in c.iter().enumerate().skip(1) {
                            add(mixed, c, part(r));
                        }
                        mixed
                    });
                    [mixed]
                });
                each.collect()
            },
        );
        mixed
    }

    /// The gradients of coefficients and slices, for `gradient` of the matrices.
    fn gradients(&self, coefficients: &[f32], slices: &[f32], gradient: &[f32]) -> (Vec<f32>, Vec<f32>) {
        self.check(coefficients.len(), slices.len());
        let matrix = slices.len() / self.slices;
        let chunks = self.chunks(self.section(slices.len()));
        let sizes: Vec<[usize; 2]> = (0..self.slices)
            .flat_map(|_| &chunks)
            .map(|&(.., len)| [len, self.experts])
            .collect();
        let arch = arch();
        let [of_slices, parts] = build_bundles(
            &sizes,
            chunks.len(),
            |piece| piece % chunks.len(),
            |chunk, pieces| {
                let (section, at, len) = chunks[chunk];
                let each = pieces.into_iter().enumerate().map(|(r, [blank, sums])| {
                    let of = |expert: usize| &gradient[expert * matrix + at..][..len];
                    let c = |expert: usize| coefficients[(expert * self.sections + section) * self.slices + r];
                    let slice = &slices[r * matrix + at..][..len];
                    let found = vectorised!(arch, {
                        let (first, c0) = (of(0), c(0));
                        let found = filled(blank, |e| c0 * first[e]);
                        for expert in 1..self.experts {
                            add(found, c(expert), of(expert));
                        }
                        found
                    });
                    let sums = vectorised!(arch, filled(sums, |expert| dot(of(expert), slice)));
                    [found, sums]
                });
                each.collect()
            },
        );
        // A sum over the chunks of each section, in their order; the parts of a slice lie one after the other.
        let per_section = chunks.len() / self.sections;
        let mut of_coefficients = vec![0.0; coefficients.len()];
        for (place, parts) in parts.chunks_exact(per_section * self.experts).enumerate() {
            let (r, section) = (place / self.sections, place % self.sections);
            for (expert, sum) in add_up(parts, self.experts).into_iter().enumerate() {
                of_coefficients[(expert * self.sections + section) * self.slices + r] = sum;
            }
        }
        (of_coefficients, of_slices)
    }

    /// Sections first, so that each is a product of matrices: `[sections, rows, elements]` of flat `[rows, sections, elements]`.
    fn by_section<B: Backend>(&self, flat: FloatTensor<B>, rows: usize, elements: usize) -> FloatTensor<B> {
        let whole = B::float_reshape(flat, Shape::new([rows, self.sections, elements]));
        B::float_swap_dims(whole, 0, 1)
    }

    fn flat<B: Backend>(&self, by_section: FloatTensor<B>, rows: usize, elements: usize) -> FloatTensor<B> {
        let whole = B::float_swap_dims(by_section, 0, 1);
        B::float_reshape(whole, Shape::new([rows * self.sections * elements]))
    }
}

#[inline(always)]
fn add(sum: &mut [f32], factor: f32, values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum = factor.mul_add(*value, *sum);
    }
}

impl Kernel for Mix {
    fn forward(self, tensors: Vec<FloatTensor<Flex>>) -> FloatTensor<Flex> {
        let mixed = self.mixed(values(&tensors[0]), values(&tensors[1]));
        let n = mixed.len();
        tensor(mixed, [n])
    }

    fn backward(
        self,
        tensors: Vec<FloatTensor<Flex>>,
        gradient: FloatTensor<Flex>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<Flex>>> {
        let (coefficients, slices) = self.gradients(values(&tensors[0]), values(&tensors[1]), values(&gradient));
        [coefficients, slices]
            .into_iter()
            .map(|found| {
                let n = found.len();
                Some(tensor(found, [n]))
            })
            .collect()
    }

    fn plain<B: Backend>(self, tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        let mut tensors = tensors.into_iter();
        let [coefficients, slices] = std::array::from_fn(|_| tensors.next().expect("coefficients and slices"));
        let section = self.section(elements::<B>(&slices));
        let c = self.by_section::<B>(coefficients, self.experts, self.slices);
        let t = self.by_section::<B>(slices, self.slices, section);
        self.flat::<B>(B::float_matmul(c, t), self.experts, section)
    }

    fn plain_backward<B: Backend>(
        self,
        tensors: Vec<FloatTensor<B>>,
        gradient: FloatTensor<B>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<B>>> {
        let mut tensors = tensors.into_iter();
        let [coefficients, slices] = std::array::from_fn(|_| tensors.next().expect("coefficients and slices"));
        let section = self.section(elements::<B>(&slices));
        let c = self.by_section::<B>(coefficients, self.experts, self.slices);
        let t = self.by_section::<B>(slices, self.slices, section);
        let g = self.by_section::<B>(gradient, self.experts, section);
        let of_slices = B::float_matmul(B::float_swap_dims(c, 1, 2), g.clone());
        let of_coefficients = B::float_matmul(g, B::float_swap_dims(t, 1, 2));
        vec![
            Some(self.flat::<B>(of_coefficients, self.experts, self.slices)),
            Some(self.flat::<B>(of_slices, self.slices, section)),
        ]
    }
}

fn elements<B: Backend>(tensor: &FloatTensor<B>) -> usize {
    use burn::backend::TensorMetadata;
    tensor.shape().num_elements()
}
