//! A view compiled to one copy per tensor, its two executors, on the device and from file to file, and its adjoint.
//!
//! Both executors do the same arithmetic on the same numbers, so both give the same bytes. A view is linear in the parent's tensors
//! but for the coefficients of a mix, so what takes a child's gradients to the parent's is its adjoint, [`pull_back`].

use std::collections::{BTreeMap, BTreeSet};

use offshoot_family::{Operator, View};

use crate::projected::EXPERTS;
use crate::spec::{Dim, Mixing, TensorSpec};
use crate::tensor::kernels::{self, Cut, Mix};
use crate::tensor::{Tensor, TensorData};
use crate::weights::{Weight, Weights};

/// How one of the child's tensors is copied out of the parent's.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorPlan {
    /// The child's name for it.
    pub name: String,
    /// The parent's name for it.
    pub parent: String,
    /// What it is mixed by, where the parent has slices of it.
    pub mixed: Option<MixPlan>,
    /// Shape in the parent; of slices, that of one.
    pub parent_shape: Vec<usize>,
    /// Shape in the child.
    pub shape: Vec<usize>,
    /// For each dimension the kept runs `[start, end)` in order.
    pub runs: Vec<Vec<(usize, usize)>>,
    /// Factor on every element.
    pub gain: f32,
}

/// How one of the child's tensors is mixed of the parent's slices: `W = sum_r c_r T_r` with `c = (p E) M` (specialize.md 5.1), where `p`
/// are the view's weights of experts, one-hot for one of them.
#[derive(Clone, Debug, PartialEq)]
pub struct MixPlan {
    /// The parent's name for the codes `E`, `[experts, m]`.
    pub codes: String,
    /// The parent's name for the factors `M`, `[sections, m, slices]`.
    pub factors: String,
    /// `p`: a weight for each expert.
    pub weights: Vec<f32>,
    /// Slices of the matrix.
    pub slices: usize,
    /// Sections of its rows that have coefficients of their own.
    pub sections: usize,
}

/// A whole view, compiled.
pub type Plan = Vec<TensorPlan>;

/// Why a view cannot be applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// An operator does not fit its axis.
    #[error("view: axis `{axis}` has {entries} entries; {operator:?} does not fit")]
    Operator {
        /// The axis instance.
        axis: String,
        /// Entries in the parent.
        entries: usize,
        /// The operator.
        operator: Operator,
    },
    /// An operator or a gain is for an axis that the parent does not have.
    #[error("view: the parent has no axis `{0}`")]
    Axis(String),
    /// A kept block does not exist.
    #[error("view: the parent has no block {0}")]
    Block(usize),
    /// The operators do not give the tensors that the child's architecture asks for.
    #[error("view: tensor `{name}`: the operators give {given:?}, the child's architecture asks for {asked}")]
    Child {
        /// The child's tensor.
        name: String,
        /// What comes out.
        given: Vec<usize>,
        /// What its architecture says.
        asked: String,
    },
}

/// Compiles `view` for the tensors `parent`. With `child`, the specs of the child's network, `parent` are all tensors of a
/// network, names are the child's, and every axis and shape is checked; without, `parent` may be part of one (such as heads),
/// names stay and only blocks that the view keeps are copied.
///
/// # Errors
/// If an operator, an axis, a block or a resulting shape does not fit.
pub fn compile(parent: &[TensorSpec], child: Option<&[TensorSpec]>, view: &View) -> Result<Plan, ViewError> {
    if child.is_some() {
        let known: BTreeSet<&String> = parent
            .iter()
            .flat_map(|s| &s.dims)
            .filter_map(|d| d.axis.as_ref())
            .collect();
        if let Some(axis) = view
            .axes
            .keys()
            .chain(view.gains.keys())
            .find(|axis| !known.contains(axis))
        {
            return Err(ViewError::Axis(axis.clone()));
        }
        // What is mixed has another shape than its axis: the codes', which no child has.
        let coefficients = parent.iter().filter(|s| s.mixing == Mixing::Coefficients);
        for dim in coefficients.flat_map(|s| &s.dims) {
            dim_runs(dim, view, true)?;
        }
    }
    let mut plan = Vec::new();
    let blocks = parent.iter().filter_map(|s| s.block).max().map_or(0, |b| b + 1);
    let of_children = || parent.iter().filter(|s| s.mixing != Mixing::Coefficients);
    for spec in of_children().filter(|s| s.block.is_none()) {
        plan.push(tensor_plan(spec, view)?);
    }
    for &block in view.blocks.iter().filter(|_| blocks > 0) {
        if block >= blocks {
            return Err(ViewError::Block(block));
        }
        for spec in of_children().filter(|s| s.block == Some(block)) {
            plan.push(tensor_plan(spec, view)?);
        }
    }
    let Some(child) = child else { return Ok(plan) };
    // Outside the blocks first and then block by block, on both sides.
    let mut ordered: Vec<&TensorSpec> = child.iter().collect();
    ordered.sort_by_key(|s| s.block.map_or(0, |b| b + 1));
    for (i, entry) in plan.iter_mut().enumerate() {
        let asked = ordered.get(i).copied();
        if asked.map(TensorSpec::shape).as_ref() != Some(&entry.shape) {
            let asked = asked.map_or("no such tensor".into(), |s| format!("`{}` of {:?}", s.name, s.shape()));
            return Err(ViewError::Child {
                name: entry.parent.clone(),
                given: entry.shape.clone(),
                asked,
            });
        }
        entry.name.clone_from(&ordered[i].name);
    }
    match ordered.get(plan.len()) {
        Some(spec) => Err(ViewError::Child {
            name: spec.name.clone(),
            given: vec![],
            asked: format!("{:?}", spec.shape()),
        }),
        None => Ok(plan),
    }
}

fn tensor_plan(spec: &TensorSpec, view: &View) -> Result<TensorPlan, ViewError> {
    let (mixed, dims) = match &spec.mixing {
        Mixing::Slices {
            codes,
            factors,
            sections,
        } => {
            let mixed = MixPlan {
                codes: codes.clone(),
                factors: factors.clone(),
                weights: weights_of_experts(view)?,
                slices: spec.dims[0].size,
                sections: *sections,
            };
            (Some(mixed), &spec.dims[1..])
        }
        Mixing::None | Mixing::Coefficients => (None, &spec.dims[..]),
    };
    let runs: Vec<Vec<(usize, usize)>> = dims
        .iter()
        .map(|dim| dim_runs(dim, view, false))
        .collect::<Result<_, _>>()?;
    let read = |dim: &Dim| {
        dim.axis
            .as_ref()
            .filter(|_| dim.reads)
            .and_then(|axis| view.gains.get(axis))
    };
    let gain: f64 = dims.iter().filter_map(read).product();
    Ok(TensorPlan {
        name: spec.name.clone(),
        parent: spec.name.clone(),
        mixed,
        parent_shape: dims.iter().map(|dim| dim.size).collect(),
        shape: runs.iter().map(|runs| runs.iter().map(|(a, b)| b - a).sum()).collect(),
        runs,
        gain: gain as f32,
    })
}

/// The weights that `view` gives the parent's experts.
fn weights_of_experts(view: &View) -> Result<Vec<f32>, ViewError> {
    let operator = view.axes.get(EXPERTS).cloned().unwrap_or(Operator::All);
    match operator {
        Operator::Mix { weights } => Ok(weights),
        operator => Err(ViewError::Operator {
            axis: EXPERTS.into(),
            entries: 1,
            operator,
        }),
    }
}

/// The runs of positions that `view` keeps of one dimension: the operator's runs of entries, in every section, widened to the
/// positions of an entry. Only an axis that `mixes` may be mixed, and keeps no run.
fn dim_runs(dim: &Dim, view: &View, mixes: bool) -> Result<Vec<(usize, usize)>, ViewError> {
    let operator = dim
        .axis
        .as_ref()
        .and_then(|axis| view.axes.get(axis).map(|op| (axis, op)));
    let Some((axis, operator)) = operator else {
        return Ok(vec![(0, dim.size)]);
    };
    let entries = dim.entries();
    if !operator.fits(entries) || mixes != matches!(operator, Operator::Mix { .. }) {
        return Err(ViewError::Operator {
            axis: axis.clone(),
            entries,
            operator: operator.clone(),
        });
    }
    let mut joined: Vec<(usize, usize)> = Vec::new();
    let mut first = 0;
    for entry in &dim.sections {
        for (start, end) in operator.runs(entries) {
            let run = (first + start * entry, first + end * entry);
            match joined.last_mut() {
                Some(last) if last.1 == run.0 => last.1 = run.1,
                _ => joined.push(run),
            }
        }
        first += entries * entry;
    }
    Ok(joined)
}

impl TensorPlan {
    /// Whether the child's tensor is the parent's, bit for bit, or the mix of its slices as it is.
    pub fn is_identity(&self) -> bool {
        self.gain == 1.0 && self.shape == self.parent_shape && self.runs.iter().all(|r| r.len() == 1)
    }

    /// The child's tensor from the parent's, or from the mix of its slices, on the device and differentiable: the gradient of an
    /// element that was kept is `gain` times the child's, of all others zero.
    pub fn on_device(&self, parent: &Weight) -> Weight {
        assert_eq!(parent.shape(), self.parent_shape, "tensor `{}`", self.parent);
        if self.is_identity() {
            return parent.clone();
        }
        Weight::new(kernels::cut(self.cut(), parent.flat().clone()), self.shape.clone())
    }

    /// Which rows and columns are kept of the parent's tensor as a matrix.
    fn cut(&self) -> Cut {
        // Two leading dimensions and the rest: no axis is ever cut beyond the second.
        assert!(
            self.runs.iter().skip(2).all(|r| r.len() == 1),
            "tensor `{}` is cut beyond dimension 1",
            self.parent
        );
        let inner: usize = self.parent_shape.iter().skip(2).product();
        let widened = |runs: &Vec<(usize, usize)>, by: usize| runs.iter().map(|&(a, b)| (a * by, b * by)).collect();
        Cut {
            size: (self.parent_shape[0], self.parent_shape.iter().skip(1).product()),
            rows: self.runs[0].clone(),
            columns: self
                .runs
                .get(1)
                .map_or_else(|| vec![(0, 1)], |runs| widened(runs, inner)),
            gain: self.gain,
        }
    }

    /// The child's elements from the parent's, or from the mix of its slices, row-major, on the host.
    pub fn on_host(&self, parent: &[f32]) -> Vec<f32> {
        assert_eq!(
            parent.len(),
            self.parent_shape.iter().product::<usize>(),
            "tensor `{}`",
            self.parent
        );
        let mut kept = parent.to_vec();
        // From the last dimension to the first: each pass keeps runs of one dimension of what is left.
        let mut inner = 1;
        for dim in (0..self.runs.len()).rev() {
            let (full, runs) = (self.parent_shape[dim], &self.runs[dim]);
            if runs[..] != [(0, full)] {
                let rows = kept.chunks(full * inner);
                kept = rows
                    .flat_map(|row| runs.iter().flat_map(|&(a, b)| &row[a * inner..b * inner]))
                    .copied()
                    .collect();
            }
            inner *= self.shape[dim];
        }
        if self.gain != 1.0 {
            kept.iter_mut().for_each(|v| *v *= self.gain);
        }
        kept
    }
}

impl MixPlan {
    fn form(&self, experts: usize) -> Mix {
        Mix {
            experts,
            slices: self.slices,
            sections: self.sections,
        }
    }

    /// The code of the blend of experts, `p E`.
    fn code(&self, codes: &[f32]) -> Vec<f64> {
        let m = codes.len() / self.weights.len();
        let mut code = vec![0.0; m];
        for (weight, row) in self.weights.iter().zip(codes.chunks_exact(m.max(1))) {
            for (sum, value) in code.iter_mut().zip(row) {
                *sum += f64::from(*weight) * f64::from(*value);
            }
        }
        code
    }

    /// The coefficients of all sections, `[sections, slices]`.
    fn coefficients(&self, codes: &[f32], factors: &[f32]) -> Vec<f32> {
        let code = self.code(codes);
        let mut coefficients = vec![0.0f64; self.sections * self.slices];
        let sections = factors.chunks_exact(code.len() * self.slices);
        for (of_section, factors) in coefficients.chunks_exact_mut(self.slices).zip(sections) {
            for (number, row) in code.iter().zip(factors.chunks_exact(self.slices)) {
                for (sum, factor) in of_section.iter_mut().zip(row) {
                    *sum += number * f64::from(*factor);
                }
            }
        }
        coefficients.into_iter().map(|c| c as f32).collect()
    }

    /// The mix on the host: `tensor` gives elements of the parent's tensors by name, `slices` is the name of the slices.
    ///
    /// # Errors
    /// What `tensor` says.
    pub fn on_host<E>(&self, slices: &str, mut tensor: impl FnMut(&str) -> Result<Vec<f32>, E>) -> Result<Vec<f32>, E> {
        let coefficients = self.coefficients(&tensor(&self.codes)?, &tensor(&self.factors)?);
        Ok(kernels::mixed_on_host(self.form(1), &coefficients, &tensor(slices)?))
    }
}

/// The same entry of the plans of several children, whose slices are mixed in one pass.
struct Mixed<'a> {
    plans: Vec<&'a MixPlan>,
    slices: &'a Tensor<1>,
    codes: Vec<f32>,
    factors: Vec<f32>,
}

impl<'a> Mixed<'a> {
    fn new(parent: &'a Weights, slices: &str, plans: Vec<&'a MixPlan>) -> Self {
        let first = plans[0];
        let host = |name: &str| found(parent, name).values();
        Self {
            slices: found(parent, slices).flat(),
            codes: host(&first.codes),
            factors: host(&first.factors),
            plans,
        }
    }

    fn form(&self) -> Mix {
        self.plans[0].form(self.plans.len())
    }

    fn coefficients(&self) -> Tensor<1> {
        let each = self
            .plans
            .iter()
            .flat_map(|plan| plan.coefficients(&self.codes, &self.factors));
        vector(each.collect(), self.slices)
    }

    /// The matrices, flat.
    fn matrices(&self) -> Vec<Tensor<1>> {
        let all = kernels::mix(self.form(), self.coefficients(), self.slices.clone());
        let matrix = all.dims()[0] / self.plans.len();
        (0..self.plans.len())
            .map(|i| all.clone().narrow(0, i * matrix, matrix))
            .collect()
    }

    /// Gradients of slices, factors and codes for those of the matrices (specialize.md 5.4).
    fn gradients(&self, of_matrices: Vec<Tensor<1>>) -> [Tensor<1>; 3] {
        let gradient = Tensor::cat(of_matrices, 0);
        let [of_coefficients, of_slices] =
            kernels::mix_gradients(self.form(), self.coefficients(), self.slices.clone(), gradient);
        let of_coefficients = of_coefficients
            .into_data_as::<f32>()
            .try_to_vec::<f32>()
            .expect("f32 elements were asked for");
        let (mut of_factors, mut of_codes) = (vec![0.0f64; self.factors.len()], vec![0.0f64; self.codes.len()]);
        let slices = self.plans[0].slices;
        for (plan, of_expert) in self
            .plans
            .iter()
            .zip(of_coefficients.chunks_exact(slices * self.plans[0].sections))
        {
            let code = plan.code(&self.codes);
            let mut of_code = vec![0.0f64; code.len()];
            for (section, gradient) in of_expert.chunks_exact(slices).enumerate() {
                for (q, number) in code.iter().enumerate() {
                    let row = (section * code.len() + q) * slices;
                    for (r, gradient) in gradient.iter().enumerate() {
                        of_factors[row + r] += number * f64::from(*gradient);
                        of_code[q] += f64::from(self.factors[row + r]) * f64::from(*gradient);
                    }
                }
            }
            let rows = of_codes.chunks_exact_mut(code.len());
            for (weight, row) in plan.weights.iter().zip(rows) {
                for (sum, gradient) in row.iter_mut().zip(&of_code) {
                    *sum += f64::from(*weight) * gradient;
                }
            }
        }
        let narrow = |values: Vec<f64>| vector(values.into_iter().map(|v| v as f32).collect(), self.slices);
        [of_slices, narrow(of_factors), narrow(of_codes)]
    }
}

/// A tensor of these elements on the device of another.
fn vector(values: Vec<f32>, beside: &Tensor<1>) -> Tensor<1> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), &beside.device())
}

fn found<'a>(parent: &'a Weights, name: &str) -> &'a Weight {
    let weight = parent.get(name);
    weight.unwrap_or_else(|| panic!("the parent has no tensor `{name}`"))
}

/// The child's weights from the parent's, on the device. They are differentiable where nothing is mixed; mixes are untracked, and what
/// takes gradients through them is [`pull_back`].
pub fn materialize(parent: &Weights, plan: &[TensorPlan]) -> Weights {
    let child = materialize_all(parent, &[plan]).pop();
    child.unwrap_or_default()
}

/// The weights of several children of one parent. Slices that they mix are read once for all of them.
///
/// # Panics
/// If the plans are not of the same tensors.
pub fn materialize_all(parent: &Weights, plans: &[&[TensorPlan]]) -> Vec<Weights> {
    let mut children = vec![Weights::new(); plans.len()];
    let entries = plans.first().map_or(0, |plan| plan.len());
    for at in 0..entries {
        let same: Vec<&TensorPlan> = plans.iter().map(|plan| &plan[at]).collect();
        let mixes: Vec<&MixPlan> = same.iter().filter_map(|entry| entry.mixed.as_ref()).collect();
        if mixes.is_empty() {
            for (child, entry) in children.iter_mut().zip(same) {
                child.insert(&entry.name, entry.on_device(found(parent, &entry.parent)));
            }
            continue;
        }
        let matrices = Mixed::new(parent, &same[0].parent, mixes).matrices();
        for ((child, entry), matrix) in children.iter_mut().zip(same).zip(matrices) {
            let whole = Weight::new(matrix, entry.parent_shape.clone());
            child.insert(&entry.name, entry.on_device(&whole));
        }
    }
    children
}

/// Gradients of the parent's tensors from those of children, by name and flat: the adjoint of [`materialize_all`]. A tensor that no
/// gradient reaches has none.
///
/// # Panics
/// If the plans are not of the same tensors.
pub fn pull_back(
    parent: &Weights,
    plans: &[&[TensorPlan]],
    mut children: Vec<BTreeMap<String, Tensor<1>>>,
) -> BTreeMap<String, Tensor<1>> {
    let mut gradients = BTreeMap::new();
    let mut add = |name: &str, gradient: Tensor<1>| {
        let whole = match gradients.remove(name) {
            Some(old) => old + gradient,
            None => gradient,
        };
        gradients.insert(name.to_owned(), whole);
    };
    let entries = plans.first().map_or(0, |plan| plan.len());
    for at in 0..entries {
        let mut mixes = Vec::new();
        for (plan, child) in plans.iter().zip(&mut children) {
            let entry = &plan[at];
            let Some(mut gradient) = child.remove(&entry.name) else {
                continue;
            };
            if !entry.is_identity() {
                gradient = kernels::cut_gradient(entry.cut(), gradient);
            }
            match &entry.mixed {
                None => add(&entry.parent, gradient),
                Some(mix) => mixes.push((mix, gradient)),
            }
        }
        let Some((first, _)) = mixes.first() else { continue };
        let (codes, factors) = (first.codes.clone(), first.factors.clone());
        let (mixes, of_matrices): (Vec<&MixPlan>, Vec<_>) = mixes.into_iter().unzip();
        let slices = &plans[0][at].parent;
        let found = Mixed::new(parent, slices, mixes).gradients(of_matrices);
        for (name, gradient) in [slices, &factors, &codes].into_iter().zip(found) {
            add(name, gradient);
        }
    }
    gradients
}
