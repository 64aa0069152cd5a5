//! A view compiled to one copy per tensor, and its two executors: on the device, and from file to file.
//!
//! Both do the same arithmetic on the same numbers, so both give the same bytes.

use std::collections::BTreeSet;

use offshoot_family::{Operator, View};

use crate::spec::{Dim, TensorSpec};
use crate::tensor::kernels::{Cut, cut as cut_out};
use crate::weights::{Weight, Weights};

/// How one of the child's tensors is copied out of the parent's.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorPlan {
    /// The child's name for it.
    pub name: String,
    /// The parent's name for it.
    pub parent: String,
    /// Shape in the parent.
    pub parent_shape: Vec<usize>,
    /// Shape in the child.
    pub shape: Vec<usize>,
    /// For each dimension the kept runs `[start, end)` in order.
    pub runs: Vec<Vec<(usize, usize)>>,
    /// Factor on every element.
    pub gain: f32,
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
    }
    let mut plan = Vec::new();
    let blocks = parent.iter().filter_map(|s| s.block).max().map_or(0, |b| b + 1);
    for spec in parent.iter().filter(|s| s.block.is_none()) {
        plan.push(tensor_plan(spec, view)?);
    }
    for &block in view.blocks.iter().filter(|_| blocks > 0) {
        if block >= blocks {
            return Err(ViewError::Block(block));
        }
        for spec in parent.iter().filter(|s| s.block == Some(block)) {
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
    let runs: Vec<Vec<(usize, usize)>> = spec
        .dims
        .iter()
        .map(|dim| dim_runs(dim, view))
        .collect::<Result<_, _>>()?;
    let read = |dim: &Dim| {
        dim.axis
            .as_ref()
            .filter(|_| dim.reads)
            .and_then(|axis| view.gains.get(axis))
    };
    let gain: f64 = spec.dims.iter().filter_map(read).product();
    Ok(TensorPlan {
        name: spec.name.clone(),
        parent: spec.name.clone(),
        parent_shape: spec.shape(),
        shape: runs.iter().map(|runs| runs.iter().map(|(a, b)| b - a).sum()).collect(),
        runs,
        gain: gain as f32,
    })
}

/// The runs of positions that `view` keeps of one dimension: the operator's runs of entries, in every section, widened to the
/// positions of an entry.
fn dim_runs(dim: &Dim, view: &View) -> Result<Vec<(usize, usize)>, ViewError> {
    let operator = dim
        .axis
        .as_ref()
        .and_then(|axis| view.axes.get(axis).map(|op| (axis, op)));
    let Some((axis, operator)) = operator else {
        return Ok(vec![(0, dim.size)]);
    };
    let entries = dim.entries();
    if !operator.fits(entries) {
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
    /// Whether the child's tensor is the parent's, bit for bit.
    pub fn is_identity(&self) -> bool {
        self.gain == 1.0 && self.shape == self.parent_shape && self.runs.iter().all(|r| r.len() == 1)
    }

    /// The child's tensor from the parent's, on the device and differentiable: the gradient of an element that was kept is
    /// `gain` times the child's, of all others zero.
    pub fn on_device(&self, parent: &Weight) -> Weight {
        assert_eq!(parent.shape(), self.parent_shape, "tensor `{}`", self.parent);
        if self.is_identity() {
            return parent.clone();
        }
        // Two leading dimensions and the rest: no axis is ever cut beyond the second.
        assert!(
            self.runs.iter().skip(2).all(|r| r.len() == 1),
            "tensor `{}` is cut beyond dimension 1",
            self.parent
        );
        let inner: usize = self.parent_shape.iter().skip(2).product();
        let widened = |runs: &Vec<(usize, usize)>, by: usize| runs.iter().map(|&(a, b)| (a * by, b * by)).collect();
        let cut = Cut {
            size: (self.parent_shape[0], self.parent_shape.iter().skip(1).product()),
            rows: self.runs[0].clone(),
            columns: self
                .runs
                .get(1)
                .map_or_else(|| vec![(0, 1)], |runs| widened(runs, inner)),
            gain: self.gain,
        };
        Weight::new(cut_out(cut, parent.flat().clone()), self.shape.clone())
    }

    /// The child's elements from the parent's, row-major, on the host.
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

/// The child's weights from the parent's, on the device and differentiable.
pub fn materialize(parent: &Weights, plan: &[TensorPlan]) -> Weights {
    let mut child = Weights::new();
    for entry in plan {
        let weight = parent.get(&entry.parent);
        let weight = weight.unwrap_or_else(|| panic!("the parent has no tensor `{}`", entry.parent));
        child.insert(&entry.name, entry.on_device(weight));
    }
    child
}
