//! A network's tensors by name, on a device.

use std::collections::BTreeMap;

use crate::spec::TensorSpec;
use crate::tensor::{Device, Gradients, Tensor, TensorData};

/// One tensor of any rank. It is kept flat, so that optimizer, averages and files treat all ranks alike; reshaping a flat
/// tensor copies nothing.
#[derive(Clone, Debug)]
pub struct Weight {
    flat: Tensor<1>,
    shape: Vec<usize>,
}

impl Weight {
    /// A weight from its elements in row-major order.
    ///
    /// # Panics
    /// If the number of elements is not the product of `shape`.
    pub fn new(flat: Tensor<1>, shape: Vec<usize>) -> Self {
        assert_eq!(
            flat.dims()[0],
            shape.iter().product::<usize>(),
            "elements of a weight of shape {shape:?}"
        );
        Self { flat, shape }
    }

    /// A weight from host values in row-major order.
    pub fn from_values(values: Vec<f32>, shape: Vec<usize>, device: &Device) -> Self {
        let n = values.len();
        Self::new(Tensor::from_data(TensorData::new(values, [n]), device), shape)
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its elements in row-major order.
    pub fn flat(&self) -> &Tensor<1> {
        &self.flat
    }

    /// The weight as a tensor of rank `D`: leading ones are added, and all trailing dimensions beyond `D` are joined.
    pub fn tensor<const D: usize>(&self) -> Tensor<D> {
        self.flat.clone().reshape(fit_rank::<D>(&self.shape))
    }

    /// Host copy of the elements.
    pub fn values(&self) -> Vec<f32> {
        self.flat
            .clone()
            .without_autodiff()
            .into_data_as::<f32>()
            .try_to_vec()
            .expect("f32 elements were asked for")
    }
}

/// `shape` with ones in front, or with its last dimensions joined, to make rank `D`.
fn fit_rank<const D: usize>(shape: &[usize]) -> [usize; D] {
    let mut fitted = [1; D];
    if shape.len() <= D {
        fitted[D - shape.len()..].copy_from_slice(shape);
    } else {
        fitted[..D - 1].copy_from_slice(&shape[..D - 1]);
        fitted[D - 1] = shape[D - 1..].iter().product();
    }
    fitted
}

/// All tensors of a network by name, in name order, on one device.
#[derive(Clone, Debug, Default)]
pub struct Weights(BTreeMap<String, Weight>);

impl Weights {
    /// No tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces one.
    pub fn insert(&mut self, name: impl Into<String>, weight: Weight) {
        self.0.insert(name.into(), weight);
    }

    /// The weight called `name`.
    pub fn get(&self, name: &str) -> Option<&Weight> {
        self.0.get(name)
    }

    /// The weight called `name` as a tensor of rank `D`.
    ///
    /// # Panics
    /// If there is none: weights are checked against their network's specs when they are made or loaded.
    pub fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        match self.0.get(name) {
            Some(weight) => weight.tensor(),
            None => panic!("no weight `{name}`; weights must be checked against the network's specs"),
        }
    }

    /// Replaces the elements of the weights called `names` by `f` of them. They are handed over, so that an update may reuse
    /// their memory.
    ///
    /// # Panics
    /// If there is none of a name, or `f` changes the number of tensors or of their elements.
    pub fn modify(&mut self, names: &[impl AsRef<str>], f: impl FnOnce(Vec<Tensor<1>>) -> Vec<Tensor<1>>) {
        let mut take = |name: &str| {
            self.0
                .remove_entry(name)
                .unwrap_or_else(|| panic!("no weight `{name}`"))
        };
        let taken: Vec<(String, Weight)> = names.iter().map(|name| take(name.as_ref())).collect();
        let (named, old): (Vec<_>, Vec<_>) = taken.into_iter().map(|(name, w)| ((name, w.shape), w.flat)).unzip();
        let new = f(old);
        assert_eq!(new.len(), named.len(), "modified weights");
        let back = named
            .into_iter()
            .zip(new)
            .map(|((name, shape), flat)| (name, Weight::new(flat, shape)));
        self.0.extend(back);
    }

    /// Names and weights in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Weight)> {
        self.0.iter().map(|(name, weight)| (name.as_str(), weight))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tensors of these names.
    #[must_use]
    pub fn only(&self, wanted: impl Fn(&str) -> bool) -> Self {
        let kept = self.0.iter().filter(|(name, _)| wanted(name));
        Self(kept.map(|(name, weight)| (name.clone(), weight.clone())).collect())
    }

    /// The tensors of `self` and `other` together.
    #[must_use]
    pub fn joined(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// The same tensors on the autodiff device, each a leaf that collects its gradient.
    #[must_use]
    pub fn tracked(&self) -> Self {
        self.map(|w| Weight {
            flat: w.flat.clone().autodiff().require_grad(),
            shape: w.shape.clone(),
        })
    }

    /// The same tensors without any gradient tracking.
    #[must_use]
    pub fn untracked(&self) -> Self {
        self.map(|w| Weight {
            flat: w.flat.clone().without_autodiff(),
            shape: w.shape.clone(),
        })
    }

    /// Takes the gradients of [`tracked`](Self::tracked) leaves out of `gradients`; a leaf that the loss does not reach has none.
    pub fn gradients(&self, gradients: &mut Gradients) -> BTreeMap<String, Tensor<1>> {
        let grad = |(name, w): (&String, &Weight)| Some((name.clone(), w.flat.grad_remove(gradients)?));
        self.0.iter().filter_map(grad).collect()
    }

    /// Each weight through `f`.
    #[must_use]
    pub fn map(&self, mut f: impl FnMut(&Weight) -> Weight) -> Self {
        Self(self.0.iter().map(|(name, w)| (name.clone(), f(w))).collect())
    }

    /// The first difference between these weights and what `specs` ask for, in words; none if they agree.
    pub fn mismatch(&self, specs: &[TensorSpec]) -> Option<String> {
        for spec in specs {
            match self.0.get(&spec.name) {
                None => return Some(format!("tensor `{}` is missing", spec.name)),
                Some(w) if w.shape != spec.shape() => {
                    return Some(format!(
                        "tensor `{}` is {:?}, not {:?}",
                        spec.name,
                        w.shape,
                        spec.shape()
                    ));
                }
                Some(_) => {}
            }
        }
        let known = |name: &String| specs.iter().any(|s| s.name == *name);
        self.0
            .keys()
            .find(|name| !known(name))
            .map(|name| format!("tensor `{name}` does not belong here"))
    }
}
