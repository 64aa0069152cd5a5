//! Which code runs which architecture: the one place that tells architectures apart.

use offshoot_family::{Architecture, ResNet, ResNetNorm, StrideOn, Swin, Vit};

use crate::network::{Network, NetworkError, SpaceBounds};
use crate::resnet::ResNetNetwork;
use crate::swin::SwinNetwork;
use crate::vit::VitNetwork;

/// The network of an architecture.
///
/// # Errors
/// If its numbers do not make one.
pub fn open(architecture: &Architecture) -> Result<Box<dyn Network>, NetworkError> {
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
        other => Err(NetworkError::Space(format!(
            "this version has no network for {other:?}"
        ))),
    }
}

/// Families that can be trained.
pub const FAMILIES: [&str; 3] = ["vit", "swin", "resnet"];

/// POA's intact network of a family and the bounds of its space (elastic.md sections 2.2 to 2.4); none if there is no such
/// family. Image side and channels are left to the data.
pub fn paper(family: &str) -> Option<(Architecture, SpaceBounds)> {
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
            Some((Architecture::Vit(vit), bounds(384, &[12])))
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
            Some((Architecture::Swin(swin), bounds(96, &[2, 2, 6, 2])))
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
            Some((Architecture::ResNet(net), bounds(64, &[3, 4, 6, 3])))
        }
        _ => None,
    }
}
