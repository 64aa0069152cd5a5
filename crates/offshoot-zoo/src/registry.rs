//! Which code runs which architecture: the one place that tells architectures apart.

use offshoot_family::{Architecture, ResNet, ResNetNorm, StrideOn, Swin, Vit};

use crate::decoder::DecoderNetwork;
use crate::network::{Backbone, Network, NetworkError, SpaceBounds};
use crate::projected::ProjectedNetwork;
use crate::resnet::ResNetNetwork;
use crate::swin::SwinNetwork;
use crate::vit::VitNetwork;

/// The network of an architecture.
///
/// # Errors
/// If its numbers do not make one.
pub fn open(architecture: &Architecture) -> Result<Box<dyn Network>, NetworkError> {
    match architecture {
        Architecture::Decoder(decoder) => {
            decoder.check()?;
            Ok(Box::new(DecoderNetwork::new(decoder.clone())))
        }
        Architecture::Projected(projected) => {
            projected.check()?;
            Ok(Box::new(ProjectedNetwork::new(projected.clone())))
        }
        images => Ok(backbone(images)?),
    }
}

/// The network of images of an architecture.
///
/// # Errors
/// If its numbers do not make one, or it takes no images.
pub fn backbone(architecture: &Architecture) -> Result<Box<dyn Backbone>, NetworkError> {
    match architecture {
        Architecture::Vit(vit) => {
            vit.check()?;
            Ok(Box::new(VitNetwork::new(vit.clone())))
        }
        Architecture::Swin(swin) => {
            swin.check()?;
            Ok(Box::new(SwinNetwork::new(swin.clone())))
        }
        Architecture::ResNet(net) => {
            net.check()?;
            Ok(Box::new(ResNetNetwork::new(net.clone())))
        }
        other => Err(NetworkError::Kind {
            found: other.summary(),
            wanted: "images",
        }),
    }
}

/// Families of networks of images that can be trained.
pub const FAMILIES: [&str; 3] = ["vit", "swin", "resnet"];

/// What POA's run of a family is made of.
#[derive(Clone, Debug)]
pub struct Paper {
    /// The intact network; image side and channels are left to the data.
    pub parent: Architecture,
    /// Bounds of its space.
    pub bounds: SpaceBounds,
    /// How much oftener the smallest size of an axis is drawn than the largest.
    pub sampling_scale: f64,
    /// Stochastic depth of the last block.
    pub drop_path: f64,
}

/// POA's run of a family (elastic.md sections 2.2 to 2.4 and 4.1); none if there is no such family.
pub fn paper(family: &str) -> Option<Paper> {
    let paper = |parent, bounds, sampling_scale, drop_path| {
        Some(Paper {
            parent,
            bounds,
            sampling_scale,
            drop_path,
        })
    };
    let bounds = |min_width, min_depths: &[usize]| SpaceBounds {
        min_width,
        min_depths: min_depths.to_vec(),
        ..SpaceBounds::default()
    };
    match family {
        "vit" => {
            let vit = Vit {
                width: 1024,
                depth: 24,
                head_dim: 64,
                mlp_ratio: 4,
                patch: 16,
                image: 0,
                channels: 0,
                position_offset: 0.1,
                norm_eps: 1e-6,
                layer_scale: 1e-5,
                classes: 0,
            };
            paper(Architecture::Vit(vit), bounds(384, &[12]), 3.0, 0.2)
        }
        "swin" => {
            let swin = Swin {
                width: 128,
                depths: vec![2, 2, 18, 2],
                head_dim: 16,
                window: 7,
                mlp_ratio: 4,
                patch: 4,
                image: 0,
                channels: 0,
                norm_eps: 1e-5,
                classes: 0,
            };
            paper(Architecture::Swin(swin), bounds(96, &[2, 2, 6, 2]), 2.0, 0.2)
        }
        "resnet" => {
            let net = ResNet {
                width: 128,
                outputs: 256,
                stem: 64,
                depths: vec![3, 8, 36, 3],
                norm: ResNetNorm::Group,
                groups: 32,
                stride_on: StrideOn::Second,
                image: 0,
                channels: 0,
                norm_eps: 1e-5,
                classes: 0,
            };
            paper(Architecture::ResNet(net), bounds(64, &[3, 4, 6, 3]), 2.0, 0.0)
        }
        _ => None,
    }
}

/// Bounds of a space down to half of a network: half of its width, in whole steps, and half of the blocks of every stage of four
/// or more, as the paper's spaces leave short stages whole.
///
/// # Errors
/// If the architecture's numbers make no network.
pub fn half(architecture: &Architecture) -> Result<SpaceBounds, NetworkError> {
    let step = open(architecture)?.width_step();
    let (width, depths) = match architecture {
        Architecture::Vit(vit) => (vit.width, vec![vit.depth]),
        Architecture::Swin(swin) => (swin.width, swin.depths.clone()),
        // One that only transformers has cannot be narrower.
        Architecture::ResNet(net) if net.stride_on == StrideOn::First || net.stem != 64 => (0, net.depths.clone()),
        Architecture::ResNet(net) => (net.width, net.depths.clone()),
        Architecture::Decoder(decoder) => (decoder.width, vec![decoder.depth]),
        Architecture::Projected(projected) => (projected.decoder.width, vec![projected.decoder.depth]),
        _ => (0, Vec::new()),
    };
    let blocks = |depth: usize| if depth < 4 { depth } else { depth.div_ceil(2) };
    Ok(SpaceBounds {
        min_width: width.div_ceil(2).next_multiple_of(step),
        min_depths: depths.into_iter().map(blocks).collect(),
        ..SpaceBounds::default()
    })
}
