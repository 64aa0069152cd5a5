//! Projected networks: experts of one decoder's numbers whose feed-forward matrices are mixes of shared slices.
//!
//! A projected network has no forward pass of its own: an expert is a view of it, and what is made of the view is a plain decoder.

use std::collections::BTreeMap;

use offshoot_family::{Architecture, Operator, Projected, Shape, Space, View};

use crate::decoder::DecoderNetwork;
use crate::layout::{Layout, projected_layout};
use crate::network::{Network, NetworkError, SpaceBounds};
use crate::spec::{Dim, Init, Mixing, TensorSpec};

/// Axis of the experts, whose entries are their codes.
pub const EXPERTS: &str = "experts";
/// Name of the codes, `[experts, m]`.
pub const CODES: &str = "codes";

/// A projected network's tensors and experts (SLM-pn, arXiv 2402.01093 v2 section 5.1).
#[derive(Clone, Debug)]
pub struct ProjectedNetwork {
    projected: Projected,
    decoder: DecoderNetwork,
}

impl ProjectedNetwork {
    /// The network of checked numbers.
    pub fn new(projected: Projected) -> Self {
        Self {
            decoder: DecoderNetwork::new(projected.decoder.clone()),
            projected,
        }
    }

    /// The numbers.
    pub fn projected(&self) -> &Projected {
        &self.projected
    }

    /// What every expert is.
    pub fn decoder(&self) -> &DecoderNetwork {
        &self.decoder
    }

    /// The view of one expert; `parent` is the content hash of this network's weights.
    ///
    /// # Errors
    /// If there is no such expert.
    pub fn expert(&self, number: usize, parent: &str) -> Result<View, NetworkError> {
        if number >= self.projected.experts {
            return Err(NetworkError::Shape(format!("expert {number}")));
        }
        let weights = (0..self.projected.experts).map(|i| if i == number { 1.0 } else { 0.0 });
        Ok(self.blend(weights.collect(), parent))
    }

    /// The view of a blend of experts by their codes, each with a weight of its own: with the histogram of a domain over the experts'
    /// clusters the code is that domain's mean (specialize.md 8.2).
    pub fn blend(&self, weights: Vec<f32>, parent: &str) -> View {
        View {
            parent: parent.into(),
            child: self.decoder.architecture(),
            axes: BTreeMap::from([(EXPERTS.to_owned(), Operator::Mix { weights })]),
            blocks: (0..self.projected.decoder.depth).collect(),
            gains: BTreeMap::new(),
        }
    }

    /// What of a block's tensors `spec` is replaced by: slices and factors of a feed-forward matrix. None where it is shared.
    fn replaced(&self, spec: &TensorSpec) -> Option<[TensorSpec; 2]> {
        let p = &self.projected;
        let block = spec.block.filter(|block| p.blocks.contains(block))?;
        let matrix = spec.name.strip_suffix(".weight")?;
        let leaf = matrix.strip_prefix(&format!("blocks.{block}.mlp."))?;
        // Gate and up are two matrices of the method, which lie in one here.
        let sections = if leaf == "gate_up" { 2 } else { 1 };
        let factors = format!("{matrix}.mix");
        let slices = TensorSpec {
            name: format!("{matrix}.slices"),
            dims: [Dim::fixed(p.slices)].into_iter().chain(spec.dims.clone()).collect(),
            mixing: Mixing::Slices {
                codes: CODES.into(),
                factors: factors.clone(),
                sections,
            },
            ..spec.clone()
        };
        // With codes of length one a mix has the variance of a dense matrix (specialize.md 5.3).
        let dims = [sections, p.codes, p.slices].map(Dim::fixed).to_vec();
        let factors = TensorSpec {
            block: spec.block,
            layer: spec.layer,
            mixing: Mixing::Coefficients,
            ..TensorSpec::new(factors, dims).init(Init::Normal((p.slices as f32).sqrt().recip()))
        };
        Some([slices, factors])
    }
}

impl Network for ProjectedNetwork {
    fn architecture(&self) -> Architecture {
        Architecture::Projected(self.projected.clone())
    }

    /// The experts' tensors in order, with slices and factors in place of each projected matrix, and the codes behind them.
    fn specs(&self) -> Vec<TensorSpec> {
        let p = &self.projected;
        let mut specs = Vec::new();
        for spec in self.decoder.specs() {
            match self.replaced(&spec) {
                Some(both) => specs.extend(both),
                None => specs.push(spec),
            }
        }
        let dims = vec![Dim::writes(EXPERTS, p.experts), Dim::fixed(p.codes)];
        specs.push(TensorSpec {
            mixing: Mixing::Coefficients,
            ..TensorSpec::new(CODES, dims).init(Init::Normal((p.codes as f32).sqrt().recip()))
        });
        specs
    }

    fn width_step(&self) -> usize {
        self.decoder.width_step()
    }

    fn layers(&self) -> usize {
        self.decoder.layers()
    }

    /// Experts are not shapes: all of them have the intact decoder's.
    fn space(&self, bounds: SpaceBounds) -> Result<Space, NetworkError> {
        if bounds != SpaceBounds::default() {
            return Err(NetworkError::Space(
                "experts of a projected network are not cut: leave the bounds out".into(),
            ));
        }
        self.decoder.space(bounds)
    }

    /// The first expert, in the one shape that there is.
    fn child(&self, shape: &Shape, parent: &str) -> Result<View, NetworkError> {
        if *shape != self.space(SpaceBounds::default())?.intact() {
            return Err(NetworkError::Shape(shape.id()));
        }
        self.expert(0, parent)
    }

    fn familiar_name(&self) -> Option<&'static str> {
        None
    }

    /// Those of one expert.
    fn example_macs(&self) -> u64 {
        self.decoder.example_macs()
    }

    fn layout(&self) -> Layout {
        projected_layout(&self.projected, &self.specs())
    }
}
