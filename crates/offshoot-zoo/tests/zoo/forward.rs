//! Forward passes of children against a second implementation that runs the sub-network inside the parent.

use offshoot_family::{Shape, Vit};
use offshoot_zoo::materialize::{compile, materialize};
use offshoot_zoo::network::{KeepAll, Subset};
use offshoot_zoo::tensor::{Bool, Device, Tensor, TensorData};
use offshoot_zoo::vit::VitNetwork;
use offshoot_zoo::{Backbone, DropPath, Features, Network, Weights, backbone};

use crate::reference::{Input, Reference};
use crate::{all_networks, lively, numbers, shape, small, whole_space};

/// Each branch on the images that `0` gives it.
pub(crate) struct Given<'a>(pub(crate) &'a dyn Fn(usize) -> Option<Vec<usize>>);

impl DropPath for Given<'_> {
    fn subset(&mut self, branch: usize, batch: usize) -> Option<Subset> {
        (self.0)(branch).map(|images| Subset {
            scale: batch as f64 / images.len() as f64,
            images,
        })
    }
}

pub(crate) fn run(network: &dyn Backbone, weights: &Weights, input: &Input<'_>) -> Features {
    let device = Device::flex();
    let (channels, _) = network.image();
    let dims = [input.batch, channels, input.side, input.side];
    let images = Tensor::<4>::from_data(TensorData::new(input.images.to_vec(), dims), &device);
    let masks = input.masks.map(|masks| {
        let dims = [input.batch, masks.len() / input.batch];
        Tensor::<2, Bool>::from_data(TensorData::new(masks.to_vec(), dims), &device)
    });
    network.forward(weights, images, masks, &mut Given(input.subsets))
}

/// The features in the order of the reference: class token and patches, image by image.
pub(crate) fn tokens(features: Features) -> Vec<f32> {
    let all = Tensor::cat(vec![features.cls.unsqueeze_dim::<3>(1), features.patches], 1);
    all.into_data_as::<f32>().try_to_vec().unwrap()
}

pub(crate) fn child_of(network: &dyn Network, weights: &Weights, shape: &Shape) -> (Box<dyn Backbone>, Weights) {
    let view = network.child(shape, "").unwrap();
    let child = backbone(&view.child).unwrap();
    let plan = compile(&network.specs(), Some(&child.specs()), &view).unwrap();
    (child, materialize(weights, &plan))
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

pub(crate) fn close(what: &str, ours: &[f32], expected: &[f64]) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let error = norm(ours.iter().zip(expected).map(|(a, b)| f64::from(*a) - b)) / norm(expected.iter().copied());
    assert!(error <= 1e-5, "{what}: relative error {error:e}");
}

fn masks(batch: usize, patches: usize) -> Vec<bool> {
    numbers(77, batch * patches).into_iter().map(|v| v > 0.2).collect()
}

fn nobody(_: usize) -> Option<Vec<usize>> {
    None
}

/// elastic.md 8.2, fold equivalence.
#[test]
fn folded_gains_equal_scaled_inputs_at_every_corner() {
    let odd = Vit {
        width: 20,
        head_dim: 5,
        mlp_ratio: 3,
        patch: 3,
        image: 12,
        channels: 3,
        depth: 5,
        ..small()
    };
    let grey = Vit {
        width: 24,
        head_dim: 6,
        ..small()
    };
    let plain = Vit {
        position_offset: 0.0,
        layer_scale: 1e-5,
        classes: 0,
        ..grey.clone()
    };
    for (seed, vit) in [(1, grey), (2, odd), (3, plain)] {
        let network = VitNetwork::new(vit.clone());
        let weights = lively(&network.specs(), seed);
        let reference = Reference::new(&vit, &weights);
        for width in [vit.head_dim, 2 * vit.head_dim, vit.width] {
            for depth in [1, 2, 3, vit.depth] {
                let (child, folded) = child_of(&network, &weights, &shape(width, depth));
                // The native grid, a smaller one, and a larger one than the positions were learned for.
                for side in [vit.image, vit.image - vit.patch, vit.image + 2 * vit.patch] {
                    let patches = (side / vit.patch).pow(2);
                    let images = numbers(seed + 100, 3 * vit.channels * side * side);
                    let marks = masks(3, patches);
                    for masks in [None, Some(&marks[..])] {
                        let input = Input {
                            images: &images,
                            batch: 3,
                            side,
                            masks,
                            subsets: &nobody,
                        };
                        let ours = tokens(run(child.as_ref(), &folded, &input));
                        let what = format!("{width}x{depth} at {side} pixels, masks {}", masks.is_some());
                        close(&what, &ours, &reference.forward((width, depth), &input));
                    }
                }
            }
        }
    }
}

/// elastic.md 8.2, identity.
#[test]
fn the_full_size_child_runs_like_the_parent_bit_for_bit() {
    for network in all_networks() {
        let weights = lively(&network.specs(), 4);
        let (child, folded) = child_of(network.as_ref(), &weights, &whole_space(network.as_ref()).intact());
        let (channels, side) = network.image();
        let images = numbers(5, 2 * channels * side * side);
        let marks = masks(2, network.mask_grid().pow(2));
        let input = Input {
            images: &images,
            batch: 2,
            side,
            masks: Some(&marks),
            subsets: &nobody,
        };
        let (ours, plain) = (
            tokens(run(child.as_ref(), &folded, &input)),
            tokens(run(network.as_ref(), &weights, &input)),
        );
        assert_eq!(crate::bits(&ours), crate::bits(&plain));
        assert!(ours.iter().all(|v| v.is_finite()) && ours.iter().any(|v| *v != 0.0));
    }
}

#[test]
fn one_image_does_not_see_another() {
    let network = VitNetwork::new(small());
    let weights = lively(&network.specs(), 6);
    let images = numbers(7, 3 * 36);
    let input = |images| Input {
        images,
        batch: 3,
        side: 6,
        masks: None,
        subsets: &nobody,
    };
    let one = tokens(run(&network, &weights, &input(&images)));
    let mut changed = images.clone();
    changed[36..72].iter_mut().for_each(|v| *v += 1.0);
    let other = tokens(run(&network, &weights, &input(&changed)));
    let image = 10 * 12;
    assert_eq!(one[..image], other[..image]);
    assert_ne!(one[image..2 * image], other[image..2 * image]);
    assert_eq!(one[2 * image..], other[2 * image..]);
}

/// A masked patch is the mask token wherever its pixels come from.
#[test]
fn masked_pixels_do_not_matter() {
    let network = VitNetwork::new(small());
    let weights = lively(&network.specs(), 8);
    let images = numbers(9, 36);
    let mut marks = [false; 9];
    marks[4] = true;
    let mut changed = images.clone();
    for (y, x) in [(2, 2), (2, 3), (3, 2), (3, 3)] {
        changed[y * 6 + x] = 9.0;
    }
    let run = |images, masks| {
        tokens(run(
            &network,
            &weights,
            &Input {
                images,
                batch: 1,
                side: 6,
                masks,
                subsets: &nobody,
            },
        ))
    };
    assert_eq!(run(&images, Some(&marks[..])), run(&changed, Some(&marks[..])));
    assert_ne!(run(&images, None), run(&changed, None));
    assert_ne!(run(&images, None), run(&images, Some(&marks[..])));
}

/// elastic.md 2.2 and 8.2: a branch runs on a subset, and its output counts `batch / subset` there.
#[test]
fn drop_path_scales_a_subset_and_skips_the_rest() {
    let vit = Vit { depth: 2, ..small() };
    let network = VitNetwork::new(vit.clone());
    let weights = lively(&network.specs(), 10);
    let reference = Reference::new(&vit, &weights);
    let images = numbers(11, 5 * 36);
    let some = |branch: usize| match branch {
        0 => Some(vec![3, 0]),
        1 => Some(vec![4]),
        2 => None,
        _ => Some(vec![2, 4, 1, 0]),
    };
    let input = Input {
        images: &images,
        batch: 5,
        side: 6,
        masks: None,
        subsets: &some,
    };
    let ours = tokens(run(&network, &weights, &input));
    close("subsets", &ours, &reference.forward((12, 2), &input));
    // All images in any order are no subset: the scale is 1.
    let everybody = |_: usize| Some(vec![4, 2, 0, 1, 3]);
    let input = |subsets| Input {
        images: &images,
        batch: 5,
        side: 6,
        masks: None,
        subsets,
    };
    let all = tokens(run(&network, &weights, &input(&everybody)));
    close("everybody", &all, &reference.forward((12, 2), &input(&nobody)));
    // Image 0 of one block whose two branches leave it out is its embedding, normalised.
    let (one, folded) = child_of(&network, &weights, &shape(12, 1));
    let others = |_: usize| Some(vec![1, 2]);
    let dropped = tokens(run(one.as_ref(), &folded, &input(&others)));
    let bare = Reference::new(&vit, &weights).forward((12, 0), &input(&nobody));
    close("a dropped image", &dropped[..120], &bare[..120]);
    assert!(KeepAll.subset(0, 5).is_none());
}
