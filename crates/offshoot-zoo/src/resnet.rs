//! The residual network of bottleneck blocks: four stages, GroupNorm or a BatchNorm whose statistics are given, a mask token.
//!
//! The layout is timm's `resnet`, or transformers' `ResNetModel` where the first convolution of a stage strides; the elastic space
//! and its slices follow POA appendix A.2: only the channels between a block's convolutions and the number of blocks are cut, so
//! that the outputs of all children have the parent's channels. A child is a plain ResNet of its own numbers.
//!
//! Between the stem and the last map, images lie in memory channel by channel, `[channels, batch, height, width]`, as the
//! convolutions want them.

use std::collections::BTreeMap;

use burn::tensor::ops::MaxPoolOptions;
use offshoot_family::{Architecture, Operator, ResNet, ResNetNorm, Shape, Space, StrideOn, View};

use crate::block;
use crate::layout::{Layout, resnet_layout, timm_layout};
use crate::network::{
    Backbone, DropPath, Features, Network, NetworkError, SpaceBounds, StochasticDepth, depths_of, kept_in_stages,
};
use crate::onnx;
use crate::spec::{Dim, Init, TensorSpec};
use crate::tensor::{Bool, GroupNorm, Tensor, activation, convolution, group_norm, module};
use crate::weights::Weights;

/// A residual network's forward pass and space.
#[derive(Clone, Debug)]
pub struct ResNetNetwork {
    net: ResNet,
}

/// One block of the network: where it stands, and the channels that go in.
#[derive(Clone, Copy, Debug)]
struct Bottleneck {
    /// Counted through all stages.
    id: usize,
    stage: usize,
    /// Counted within its stage.
    place: usize,
    inputs: usize,
}

impl Bottleneck {
    fn name(&self) -> String {
        format!("stages.{}.blocks.{}", self.stage, self.place)
    }

    /// The factor by which the block makes its map smaller, on a side.
    fn stride(&self) -> usize {
        if self.stage > 0 && self.place == 0 { 2 } else { 1 }
    }
}

impl ResNetNetwork {
    /// The network of checked numbers.
    pub fn new(net: ResNet) -> Self {
        Self { net }
    }

    fn blocks(&self) -> Vec<Bottleneck> {
        let mut blocks = Vec::new();
        let mut inputs = self.net.stem;
        for (stage, &depth) in self.net.depths.iter().enumerate() {
            for place in 0..depth {
                let id = blocks.len();
                blocks.push(Bottleneck {
                    id,
                    stage,
                    place,
                    inputs,
                });
                inputs = self.net.stage_outputs(stage);
            }
        }
        blocks
    }

    fn has_shortcut(&self, block: Bottleneck) -> bool {
        block.place == 0 && self.net.has_shortcut(block.stage)
    }

    /// Strides of a block's first and second convolution.
    fn strides(&self, block: Bottleneck) -> (usize, usize) {
        match self.net.stride_on {
            StrideOn::First => (block.stride(), 1),
            StrideOn::Second => (1, block.stride()),
        }
    }

    /// Scale and shift of every channel of `[c, b, h, w]`, over groups of channels of one image (Wu and He 2018) or with the
    /// statistics that are given; then the residual, if there is one, and ReLU if asked for.
    fn norm(&self, weights: &Weights, name: &str, x: Tensor<4>, residual: Option<Tensor<4>>, relu: bool) -> Tensor<4> {
        let vector = |leaf: &str| weights.tensor::<1>(&format!("{name}.{leaf}"));
        let (scale, shift) = (vector("weight"), vector("bias"));
        let epsilon = self.net.norm_eps;
        if self.net.norm == ResNetNorm::Group {
            let groups = self.net.groups;
            let form = GroupNorm { groups, epsilon, relu };
            return group_norm(form, x, scale, shift, residual);
        }
        let channels = x.dims()[0];
        let shaped = |v: Tensor<1>| v.reshape([channels, 1, 1, 1]);
        let scale = scale / vector("variance").detach().add_scalar(epsilon).sqrt();
        let shift = shift - vector("mean").detach() * scale.clone();
        let y = x * shaped(scale) + shaped(shift);
        let y = match residual {
            Some(residual) => y + residual,
            None => y,
        };
        if relu { activation::relu(y) } else { y }
    }

    /// One block on `[c, b, h, w]`.
    fn bottleneck(&self, weights: &Weights, block: Bottleneck, x: Tensor<4>) -> Tensor<4> {
        let name = block.name();
        let kernel = |leaf: &str| weights.tensor::<4>(&format!("{name}.{leaf}.weight"));
        let norm = |leaf: &str, x, residual, relu| self.norm(weights, &format!("{name}.{leaf}"), x, residual, relu);
        let (first, second) = self.strides(block);
        let shortcut = if self.has_shortcut(block) {
            let across = convolution(x.clone(), kernel("shortcut.conv"), None, block.stride(), 0);
            norm("shortcut.norm", across, None, false)
        } else {
            x.clone()
        };
        let x = norm("norm1", convolution(x, kernel("conv1"), None, first, 0), None, true);
        let x = norm("norm2", convolution(x, kernel("conv2"), None, second, 1), None, true);
        norm(
            "norm3",
            convolution(x, kernel("conv3"), None, 1, 0),
            Some(shortcut),
            true,
        )
    }

    /// `[b, channels, s, s]` images to the `[stem, b, s / 4, s / 4]` map that the stages start from, with the mask token where
    /// `masks` say so.
    fn stem(&self, weights: &Weights, images: Tensor<4>, masks: Option<Tensor<2, Bool>>) -> Tensor<4> {
        let [batch, _, height, side] = images.dims();
        assert!(
            height == side && side % self.net.stride() == 0,
            "images of {height} x {side} pixels for a last stage of stride {}",
            self.net.stride()
        );
        let x = convolution(images.swap_dims(0, 1), weights.tensor("stem.conv.weight"), None, 2, 3);
        let x = self.norm(weights, "stem.norm", x, None, true);
        let pool = MaxPoolOptions::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]);
        let x = module::max_pool2d(x, pool);
        let Some(masks) = masks else { return x };
        let (stem, map, grid) = (self.net.stem, side / 4, 2 * side / self.net.stride());
        let masks = block::upsample_marks(masks, grid, map / grid)
            .reshape([1, batch, map, map])
            .expand([stem, batch, map, map]);
        let token = weights.tensor::<1>("mask_token").reshape([stem, 1, 1, 1]);
        x.mask_where(masks, token.expand([stem, batch, map, map]))
    }

    /// Specs of one block.
    fn block_specs(&self, block: Bottleneck) -> Vec<TensorSpec> {
        let Bottleneck { id, stage, inputs, .. } = block;
        let (width, outputs) = (self.net.stage_width(stage), self.net.stage_outputs(stage));
        let axes = [format!("blocks.{id}.mid1"), format!("blocks.{id}.mid2")];
        let writes = |mid: usize| Dim::writes(&axes[mid], width);
        let reads = |mid: usize| Dim::reads(&axes[mid], width);
        let fixed = Dim::fixed;
        let mut specs = vec![kernel("conv1", [writes(0), fixed(inputs)], 1)];
        specs.extend(self.norm_specs("norm1", &writes(0)));
        specs.push(kernel("conv2", [writes(1), reads(0)], 3));
        specs.extend(self.norm_specs("norm2", &writes(1)));
        specs.push(kernel("conv3", [fixed(outputs), reads(1)], 1));
        specs.extend(self.norm_specs("norm3", &fixed(outputs)));
        if self.has_shortcut(block) {
            specs.push(kernel("shortcut.conv", [fixed(outputs), fixed(inputs)], 1));
            specs.extend(self.norm_specs("shortcut.norm", &fixed(outputs)));
        }
        specs
            .into_iter()
            .map(|spec| TensorSpec {
                name: format!("{}.{}", block.name(), spec.name),
                block: Some(id),
                layer: Some(id + 1),
                ..spec
            })
            .collect()
    }

    /// Specs of one norm over `channels`. None of them is decayed; POA's code decays the weights of the norms in shortcuts, by an
    /// accident of their names (elastic.md 4.3), and this does not.
    fn norm_specs(&self, name: &str, channels: &Dim) -> Vec<TensorSpec> {
        let vector = |leaf: &str, value| {
            TensorSpec::new(format!("{name}.{leaf}"), vec![channels.clone()])
                .init(Init::Constant(value))
                .undecayed()
        };
        let mut specs = vec![vector("weight", 1.0), vector("bias", 0.0)];
        if self.net.norm == ResNetNorm::Batch {
            specs.extend([vector("mean", 0.0).frozen(), vector("variance", 1.0).frozen()]);
        }
        specs
    }

    /// Outputs and inputs of each convolution, the side of its window, and the side of its output for images of `image` pixels.
    fn convolutions(&self, image: usize) -> Vec<[u64; 4]> {
        let mut side = image / 4;
        let mut found = vec![[self.net.stem, self.net.channels, 7, image / 2]];
        for block in self.blocks() {
            let (width, outputs) = (self.net.stage_width(block.stage), self.net.stage_outputs(block.stage));
            let after = side / block.stride();
            let first = side / self.strides(block).0;
            found.extend([
                [width, block.inputs, 1, first],
                [width, width, 3, after],
                [outputs, width, 1, after],
            ]);
            if self.has_shortcut(block) {
                found.push([outputs, block.inputs, 1, after]);
            }
            side = after;
        }
        found.into_iter().map(|c| c.map(|n| n as u64)).collect()
    }
}

/// Spec of a convolution without bias. It starts normal with variance 2 over the fan out (He et al. 2015), as in torchvision and
/// timm.
fn kernel(name: &str, [out, into]: [Dim; 2], side: usize) -> TensorSpec {
    let fan_out = (out.size * side * side) as f32;
    let dims = vec![out, into, Dim::fixed(side), Dim::fixed(side)];
    TensorSpec::new(format!("{name}.weight"), dims).init(Init::Normal((2.0 / fan_out).sqrt()))
}

impl Network for ResNetNetwork {
    fn architecture(&self) -> Architecture {
        Architecture::ResNet(self.net.clone())
    }

    fn specs(&self) -> Vec<TensorSpec> {
        let stem = Dim::fixed(self.net.stem);
        let mut specs = vec![kernel("stem.conv", [stem.clone(), Dim::fixed(self.net.channels)], 7)];
        specs.extend(self.norm_specs("stem.norm", &stem));
        specs.push(TensorSpec::new("mask_token", vec![stem]));
        for spec in &mut specs {
            spec.layer = Some(0);
        }
        specs.extend(self.blocks().into_iter().flat_map(|block| self.block_specs(block)));
        specs.extend(block::head_specs(self.net.classes, self.feature()));
        specs
    }

    fn as_backbone(&self) -> Option<&dyn Backbone> {
        Some(self)
    }

    fn width_step(&self) -> usize {
        match self.net.norm {
            ResNetNorm::Group => self.net.groups,
            // BatchNorm itself asks for nothing: as many numbers as fill a vector, if they divide the width.
            ResNetNorm::Batch => 1 << self.net.width.trailing_zeros().min(3),
        }
    }

    /// The depths of the stages are ranked by their sum, and the width does not weigh.
    fn sampling_groups(&self, space: &Space) -> Vec<Vec<usize>> {
        let depths = |&axis: &usize| space.axes[axis].name != "width";
        let depths: Vec<usize> = (0..space.axes.len()).filter(depths).collect();
        if depths.is_empty() { Vec::new() } else { vec![depths] }
    }

    fn layers(&self) -> usize {
        self.net.depths.iter().sum()
    }

    fn space(&self, bounds: SpaceBounds) -> Result<Space, NetworkError> {
        let width = bounds.width(self.net.width, self.width_step(), "steps of")?;
        let timm = self.net.stride_on == StrideOn::Second && self.net.stem == 64;
        if !timm && width.sizes.len() > 1 {
            return Err(NetworkError::Space(format!(
                "min_width {} must be the parent's {}: a network that strides in the first convolution, or has another stem than 64 \
                 channels, is transformers' ResNetModel, which has no other width; its depths can be cut",
                bounds.min_width, self.net.width
            )));
        }
        let mut axes = vec![width];
        axes.extend(bounds.stages(&self.net.depths)?);
        Ok(Space { axes })
    }

    fn child(&self, shape: &Shape, parent: &str) -> Result<View, NetworkError> {
        let bad = || NetworkError::Shape(shape.id());
        let width = shape.get("width").ok_or_else(bad)?;
        let depths = depths_of(shape, &self.net.depths).ok_or_else(bad)?;
        let step = self.width_step();
        if width == 0 || width > self.net.width || !(width == self.net.width || width.is_multiple_of(step)) {
            return Err(bad());
        }
        let child = ResNet {
            width,
            depths,
            ..self.net.clone()
        };
        child.check().map_err(|_| bad())?;
        let kept = kept_in_stages(&self.net.depths, &child.depths);
        let mut axes = BTreeMap::new();
        let mut gains = BTreeMap::new();
        if width < self.net.width {
            let alpha = self.net.width as f64 / width as f64;
            let blocks = self.blocks();
            for &id in &kept {
                let size = child.stage_width(blocks[id].stage);
                for axis in [format!("blocks.{id}.mid1"), format!("blocks.{id}.mid2")] {
                    axes.insert(axis.clone(), Operator::Prefix { size });
                    gains.insert(axis, alpha);
                }
            }
        }
        Ok(View {
            parent: parent.into(),
            child: Architecture::ResNet(child),
            axes,
            blocks: kept,
            gains,
        })
    }

    fn familiar_name(&self) -> Option<&'static str> {
        if (self.net.outputs, self.net.stem) != (256, 64) {
            return None;
        }
        match (self.net.width, &self.net.depths[..]) {
            (64, [3, 4, 6, 3]) => Some("resnet50"),
            (64, [3, 4, 23, 3]) => Some("resnet101"),
            (64, [3, 8, 36, 3]) => Some("resnet152"),
            (128, [3, 4, 6, 3]) => Some("wide-resnet50-2"),
            (128, [3, 4, 23, 3]) => Some("wide-resnet101-2"),
            _ => None,
        }
    }

    fn layout(&self) -> Layout {
        resnet_layout(&self.net)
    }

    fn timm_layout(&self) -> Option<Layout> {
        timm_layout(&self.net)
    }

    fn example_macs(&self) -> u64 {
        self.macs(self.image().1)
    }
}

impl Backbone for ResNetNetwork {
    fn feature(&self) -> Dim {
        Dim::fixed(self.net.feature_width())
    }

    fn image(&self) -> (usize, usize) {
        (self.net.channels, self.net.image)
    }

    fn mask_grid(&self) -> usize {
        2 * self.net.image / self.net.stride()
    }

    fn stride(&self) -> usize {
        self.net.stride()
    }

    fn stochastic_depth(&self) -> StochasticDepth {
        StochasticDepth::None
    }

    fn forward(
        &self,
        weights: &Weights,
        images: Tensor<4>,
        masks: Option<Tensor<2, Bool>>,
        _: &mut dyn DropPath,
    ) -> Features {
        let mut x = self.stem(weights, images, masks);
        for block in self.blocks() {
            x = self.bottleneck(weights, block, x);
        }
        let [channels, batch, side, _] = x.dims();
        let map = x.reshape([channels, batch, side * side]).permute([1, 2, 0]);
        let cls = map.clone().mean_dim(1).squeeze_dim::<2>(1);
        Features {
            logits: block::logits(weights, self.net.classes, &cls),
            cls,
            // Every cell stands for the four patches of the mask's grid that it covers.
            patches: block::upsample_tokens(map, side, 2),
        }
    }

    fn macs(&self, image: usize) -> u64 {
        let convolutions = self.convolutions(image);
        let all = convolutions
            .iter()
            .map(|[out, into, window, side]| out * into * window * window * side * side);
        all.sum::<u64>() + (self.net.classes * self.net.feature_width()) as u64
    }

    fn activations(&self, image: usize) -> u64 {
        let outputs = self.convolutions(image);
        let outputs = outputs.iter().map(|[out, _, _, side]| out * side * side);
        // What goes into every norm, and what comes out of it, which the next convolution reads; the map after pooling.
        let pooled = (self.net.stem * (image / 4).pow(2)) as u64;
        outputs.sum::<u64>() * 2 + pooled
    }

    fn graph(&self, graph: &mut onnx::Graph, pixels: onnx::Value) -> onnx::Outputs {
        use onnx::Extent::{Batch, Fixed};
        let sliding = |stride, padding| onnx::Sliding { stride, padding };
        let x = graph.convolution(pixels, "stem.conv", sliding(2, 3));
        let x = self.graph_norm(graph, x, "stem.norm");
        let x = graph.relu(x);
        let mut x = graph.max_pool(x, 3, sliding(2, 1));
        for block in self.blocks() {
            let leaf = |leaf: &str| format!("{}.{leaf}", block.name());
            graph.at(block.name());
            let (first, second) = self.strides(block);
            let mut shortcut = x;
            if self.has_shortcut(block) {
                let across = graph.convolution(x, &leaf("shortcut.conv"), sliding(block.stride(), 0));
                shortcut = self.graph_norm(graph, across, &leaf("shortcut.norm"));
            }
            for (number, slides) in [(1, sliding(first, 0)), (2, sliding(second, 1))] {
                x = graph.convolution(x, &leaf(&format!("conv{number}")), slides);
                x = self.graph_norm(graph, x, &leaf(&format!("norm{number}")));
                x = graph.relu(x);
            }
            x = graph.convolution(x, &leaf("conv3"), sliding(1, 0));
            x = self.graph_norm(graph, x, &leaf("norm3"));
            x = graph.add(x, shortcut);
            x = graph.relu(x);
        }
        graph.at("");
        let (channels, side) = (self.net.feature_width(), self.net.image / self.net.stride());
        let map = graph.reshape(x, &[Batch(1), Fixed(channels), Fixed(side * side)]);
        let cls = graph.mean(map, &[2]);
        let map = graph.transpose(map, &[0, 2, 1]);
        onnx::Outputs {
            cls,
            patches: graph.gather(map, 1, &block::doubled(side)),
            logits: (self.net.classes > 0).then(|| graph.linear(cls, "head")),
        }
    }
}

impl ResNetNetwork {
    /// The norm called `name` as ONNX nodes.
    fn graph_norm(&self, graph: &mut onnx::Graph, x: onnx::Value, name: &str) -> onnx::Value {
        match self.net.norm {
            ResNetNorm::Group => graph.group_norm(x, name, self.net.groups, self.net.norm_eps),
            ResNetNorm::Batch => graph.batch_norm(x, name, self.net.norm_eps),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::kept_blocks;
    use crate::registry::{open, paper};
    use crate::spec::parameters;

    fn paper_net() -> (ResNet, SpaceBounds) {
        let paper = paper("resnet").unwrap();
        let (architecture, bounds) = (paper.parent, paper.bounds);
        match architecture.with_input(3, 224) {
            Architecture::ResNet(net) => (net, bounds),
            other => panic!("{other:?}"),
        }
    }

    fn net(width: usize, depths: [usize; 4]) -> ResNetNetwork {
        ResNetNetwork::new(ResNet {
            width,
            depths: depths.to_vec(),
            ..paper_net().0
        })
    }

    fn shape(width: usize, second: usize, third: usize) -> Shape {
        Shape::new([("width", width), ("depth2", second), ("depth3", third)])
    }

    /// elastic.md section 5, exact.
    #[test]
    fn parameter_counts_of_resnet_50_101_152_and_the_intact_network() {
        for (width, depths, count, name) in [
            (64, [3, 4, 6, 3], 23_508_096, Some("resnet50")),
            (64, [3, 4, 23, 3], 42_500_224, Some("resnet101")),
            (64, [3, 8, 36, 3], 58_143_872, Some("resnet152")),
            (128, [3, 8, 36, 3], 172_609_408, None),
        ] {
            let network = net(width, depths);
            assert_eq!(parameters(&network.specs()), count);
            assert_eq!(network.familiar_name(), name);
        }
    }

    /// elastic.md sections 2.4 and 8.2.
    #[test]
    fn the_paper_space_has_465_children_with_the_tabled_gains() {
        let (intact, bounds) = paper_net();
        let parent = ResNetNetwork::new(intact);
        let space = parent.space(bounds).unwrap();
        assert_eq!(space.count(), 465);
        assert_eq!(space.axes[0].sizes, [64, 96, 128]);
        let names: Vec<&str> = space.axes.iter().map(|axis| axis.name.as_str()).collect();
        assert_eq!(names, ["width", "depth2", "depth3"]);
        assert_eq!(parent.sampling_groups(&space), [[1, 2]]);
        for (width, alpha) in [(64, Some(2.0)), (96, Some(1.333333)), (128, None)] {
            let view = parent.child(&shape(width, 4, 6), "").unwrap();
            let blocks = [0, 1, 2, 3, 5, 7, 10, 11, 18, 25, 32, 39, 46, 47, 48, 49];
            assert_eq!(view.blocks, blocks);
            let gain = |axis: &str| view.gains.get(axis).copied();
            for axis in ["blocks.0.mid1", "blocks.7.mid2", "blocks.49.mid1"] {
                assert!(
                    gain(axis)
                        .zip(alpha)
                        .is_none_or(|(found, alpha)| (found - alpha).abs() < 1e-6)
                );
                assert_eq!(gain(axis).is_some(), alpha.is_some());
            }
            let size = |block: usize| view.axes.get(&format!("blocks.{block}.mid1"));
            let expected = |stage: usize| alpha.map(|_| Operator::Prefix { size: width << stage });
            for (block, stage) in [(2, 0), (3, 1), (46, 2), (47, 3)] {
                assert_eq!(size(block).cloned(), expected(stage));
            }
            assert!(view.axes.keys().all(|axis| axis.contains(".mid")));
        }
        for bad in [
            shape(80, 4, 6),
            shape(160, 4, 6),
            shape(64, 9, 6),
            shape(64, 4, 37),
            shape(0, 4, 6),
        ] {
            assert!(parent.child(&bad, "").is_err(), "{bad}");
        }
        let narrow = SpaceBounds {
            min_width: 70,
            ..SpaceBounds::default()
        };
        assert!(parent.space(narrow).is_err());
    }

    /// elastic.md section 2.4, the depths of the second and third stage.
    #[test]
    fn the_depth_rule_keeps_the_tabled_blocks() {
        let kept = |depth| kept_blocks(8, depth);
        assert_eq!(kept(4), [0, 2, 4, 7]);
        assert_eq!(kept(5), [0, 1, 3, 5, 7]);
        assert_eq!(kept(6), [0, 1, 2, 4, 5, 7]);
        assert_eq!(kept(7), [0, 1, 2, 3, 4, 5, 7]);
        assert_eq!(kept_blocks(36, 6), [0, 7, 14, 21, 28, 35]);
        assert_eq!(
            kept_blocks(36, 23),
            [
                0, 1, 3, 4, 6, 7, 9, 11, 12, 14, 15, 17, 19, 20, 22, 23, 25, 27, 28, 30, 31, 33, 35
            ]
        );
    }

    /// elastic.md sections 4.3 and 8.2: the stem is 50 layers below the last of 3 + 8 + 36 + 3 blocks, at 0.95 a layer.
    #[test]
    fn layers_and_decay_are_the_papers() {
        let mut network = net(128, [3, 8, 36, 3]);
        network.net.classes = 10;
        let specs = network.specs();
        let factor = |name: &str| {
            let spec = specs.iter().find(|spec| spec.name == name).unwrap();
            0.95f64.powi(spec.layer.map_or(0, |layer| network.layers() - layer) as i32)
        };
        for name in ["stem.conv.weight", "stem.norm.bias", "mask_token"] {
            assert!((factor(name) - 0.0769450).abs() < 1e-7, "{name}");
        }
        assert!((factor("stages.0.blocks.0.shortcut.conv.weight") - 0.95f64.powi(49)).abs() < 1e-12);
        assert_eq!(factor("stages.3.blocks.2.conv3.weight"), 1.0);
        assert_eq!(factor("head.weight"), 1.0);
        for spec in &specs {
            let decayed = spec.name == "mask_token" || spec.name == "head.weight" || spec.dims.len() == 4;
            assert_eq!(spec.decay, decayed, "{}", spec.name);
            assert!(!spec.patch_embed && !spec.frozen);
        }
    }

    #[test]
    fn statistics_of_a_batch_norm_are_frozen() {
        let mut network = net(64, [3, 4, 6, 3]);
        network.net.norm = ResNetNorm::Batch;
        for spec in network.specs() {
            let statistics = spec.name.ends_with(".mean") || spec.name.ends_with(".variance");
            assert_eq!(spec.frozen, statistics, "{}", spec.name);
            assert!(!(spec.frozen && spec.decay));
        }
    }

    /// torchvision gives 4.089 and 7.801 billion multiply-adds for its ResNet-50 and -101 of 1000 classes, and 11.514 for -152.
    #[test]
    fn multiply_adds_are_torchvisions() {
        for (depths, billions) in [([3, 4, 6, 3], 4.089), ([3, 4, 23, 3], 7.801), ([3, 8, 36, 3], 11.514)] {
            let mut network = net(64, depths);
            network.net.classes = 1000;
            let found = network.macs(224) as f64 / 1e9;
            assert!((found - billions).abs() < 1e-3, "{found}");
        }
    }

    #[test]
    fn networks_that_no_program_opens_are_refused() {
        let good = paper_net().0;
        assert!(open(&Architecture::ResNet(good.clone())).is_ok());
        let first = ResNet {
            width: 64,
            norm: ResNetNorm::Batch,
            stride_on: StrideOn::First,
            ..good.clone()
        };
        assert!(open(&Architecture::ResNet(first.clone())).is_ok());
        let refused = |net: ResNet, names: &str| {
            let error = open(&Architecture::ResNet(net))
                .err()
                .expect("it is refused")
                .to_string();
            assert!(error.starts_with(names), "{error}");
        };
        refused(
            ResNet {
                stride_on: StrideOn::First,
                ..good.clone()
            },
            "stride_on",
        );
        refused(
            ResNet {
                width: 80,
                ..good.clone()
            },
            "width",
        );
        refused(
            ResNet {
                stem: 32,
                ..good.clone()
            },
            "stem",
        );
        refused(
            ResNet {
                image: 100,
                ..good.clone()
            },
            "image",
        );
        refused(
            ResNet {
                depths: vec![3, 4, 6],
                ..good
            },
            "depths",
        );
        refused(
            ResNet {
                width: 128,
                ..first.clone()
            },
            "width",
        );
        refused(
            ResNet {
                norm_eps: 1e-3,
                ..first.clone()
            },
            "norm_eps",
        );
        // Its depths can be cut, its width cannot.
        let network = ResNetNetwork::new(first);
        let bounds = SpaceBounds {
            min_width: 32,
            ..SpaceBounds::default()
        };
        assert!(network.space(bounds).unwrap_err().to_string().contains("ResNetModel"));
        assert!(network.child(&shape(32, 4, 6), "").is_err());
        assert!(network.child(&shape(64, 4, 6), "").is_ok());
    }
}
