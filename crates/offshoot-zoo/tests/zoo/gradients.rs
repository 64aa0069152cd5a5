//! Gradients through views and forward passes: their support, the gains, and central differences in f64.

use std::collections::BTreeMap;

use offshoot_family::{Shape, Vit};
use offshoot_zoo::materialize::{Plan, TensorPlan, compile, materialize};
use offshoot_zoo::tensor::{Device, Tensor, TensorData};
use offshoot_zoo::vit::VitNetwork;
use offshoot_zoo::{Backbone, Network, Weights, backbone};

use crate::forward::run;
use crate::reference::{Input, Reference};
use crate::{all_networks, lively, numbers, shape, small, whole_space};

struct Case {
    weights: Weights,
    child: Box<dyn Backbone>,
    plan: Plan,
}

impl Case {
    fn new(network: &dyn Network, shape: &Shape, seed: u64) -> Self {
        let view = network.child(shape, "").unwrap();
        let child = backbone(&view.child).unwrap();
        let plan = compile(&network.specs(), Some(&child.specs()), &view).unwrap();
        Self {
            weights: lively(&network.specs(), seed),
            child,
            plan,
        }
    }

    /// Gradients, by the name of the leaf, of a fixed random sum of the child's features.
    fn gradients(&self, leaves: &Weights, weights: &Weights, input: &Input<'_>) -> BTreeMap<String, Vec<f32>> {
        let features = run(self.child.as_ref(), weights, input);
        let all = Tensor::cat(vec![features.cls.unsqueeze_dim::<3>(1), features.patches], 1);
        let dims = all.dims();
        let factors = TensorData::new(numbers(42, dims.iter().product()), dims);
        let mut gradients = (all * Tensor::<3>::from_data(factors, &Device::flex()))
            .sum()
            .backward();
        let host = |g: Tensor<1>| g.into_data_as::<f32>().try_to_vec().unwrap();
        leaves
            .gradients(&mut gradients)
            .into_iter()
            .map(|(name, g)| (name, host(g)))
            .collect()
    }

    /// Gradients of the parent's tensors.
    fn of_parent(&self, input: &Input<'_>) -> BTreeMap<String, Vec<f32>> {
        let tracked = self.weights.tracked();
        self.gradients(&tracked, &materialize(&tracked, &self.plan), input)
    }
}

/// The sum of [`Case::gradients`] by the reference, for the child of `size`.
fn sum(reference: &Reference, size: (usize, usize), input: &Input<'_>) -> f64 {
    let features = reference.forward(size, input);
    let factors = numbers(42, features.len());
    features.iter().zip(factors).map(|(v, f)| v * f64::from(f)).sum()
}

/// Where each of the child's elements stands in the parent's tensor.
fn places(entry: &TensorPlan) -> Vec<usize> {
    let positions: Vec<f32> = (0..entry.parent_shape.iter().product::<usize>())
        .map(|i| i as f32)
        .collect();
    TensorPlan {
        gain: 1.0,
        ..entry.clone()
    }
    .on_host(&positions)
    .into_iter()
    .map(|v| v as usize)
    .collect()
}

fn subsets(branch: usize) -> Option<Vec<usize>> {
    (branch % 3 == 1).then(|| vec![2, 0])
}

/// elastic.md 8.2, gradient support.
#[test]
fn outside_the_slices_gradients_are_zero_and_inside_the_gain_times_the_childs() {
    for network in all_networks() {
        let space = whole_space(network.as_ref());
        let (channels, side) = network.image();
        let images = numbers(3, 3 * channels * side * side);
        let grid = network.mask_grid();
        let marks: Vec<bool> = numbers(4, 3 * grid * grid).into_iter().map(|v| v > 0.0).collect();
        let input = Input {
            images: &images,
            batch: 3,
            side,
            masks: Some(&marks),
            subsets: &subsets,
        };
        // The smallest, the largest, and every seventh between them.
        let shapes = (0..space.count() - 1).step_by(7).map(|i| space.at(i));
        for shape in shapes.chain([space.intact()]) {
            supported(network.as_ref(), &shape, &input);
        }
    }
}

/// One child of [`outside_the_slices_gradients_are_zero_and_inside_the_gain_times_the_childs`].
fn supported(network: &dyn Network, shape: &Shape, input: &Input<'_>) {
    let case = Case::new(network, shape, 20);
    let of_parent = case.of_parent(input);
    let folded = materialize(&case.weights, &case.plan).tracked();
    let of_child = case.gradients(&folded, &folded, input);
    let mut expected: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
    for entry in &case.plan {
        let mut full = vec![0.0; entry.parent_shape.iter().product()];
        // What is frozen has none, nor has a classifier that no feature goes through.
        for (place, gradient) in places(entry)
            .into_iter()
            .zip(of_child.get(&entry.name).into_iter().flatten())
        {
            full[place] = entry.gain * gradient;
        }
        expected.insert(&entry.parent, full);
    }
    for spec in network.specs() {
        let name = spec.name.as_str();
        let zero = vec![0.0; spec.elements()];
        let ours = of_parent.get(name).unwrap_or(&zero);
        match expected.get(name) {
            None => assert!(ours.iter().all(|v| *v == 0.0), "{shape}: skipped {name}"),
            Some(expected) => {
                assert!(ours == expected, "{shape}: {name}");
                let untouched = spec.frozen || name.starts_with("head.");
                assert_eq!(ours.iter().all(|v| *v == 0.0), untouched, "{shape}: gradient of {name}");
                assert!(
                    !(spec.frozen && of_parent.contains_key(name)),
                    "{shape}: {name} is frozen"
                );
            }
        }
    }
}

/// The tensor library's gradients of attention, feed-forward, norms, LayerScale, positions and tokens.
#[test]
fn gradients_are_central_differences() {
    let odd = Vit {
        width: 10,
        head_dim: 5,
        mlp_ratio: 3,
        patch: 3,
        image: 9,
        channels: 3,
        depth: 3,
        ..small()
    };
    let none = |_: usize| None;
    type Subsets<'a> = &'a dyn Fn(usize) -> Option<Vec<usize>>;
    /// Parent, size of the child, side of the images, whether some patches are masked, and stochastic depth.
    type Setting<'a> = (Vit, (usize, usize), usize, bool, Subsets<'a>);
    // Native grid with masks and stochastic depth; resampled positions without.
    let cases: [Setting<'_>; 4] = [
        (small(), (6, 2), 6, true, &subsets),
        (small(), (12, 2), 4, false, &none),
        (odd.clone(), (5, 2), 6, true, &none),
        (odd, (10, 1), 12, false, &subsets),
    ];
    for (number, (vit, size, side, masked, subsets)) in cases.into_iter().enumerate() {
        let case = Case::new(
            &VitNetwork::new(vit.clone()),
            &shape(size.0, size.1),
            30 + number as u64,
        );
        let images = numbers(31, 3 * vit.channels * side * side);
        let patches = (side / vit.patch).pow(2);
        let marks: Vec<bool> = numbers(32, 3 * patches).into_iter().map(|v| v > 0.3).collect();
        let input = Input {
            images: &images,
            batch: 3,
            side,
            masks: masked.then_some(&marks[..]),
            subsets,
        };
        let ours = case.of_parent(&input);
        let mut reference = Reference::new(&vit, &case.weights);
        for entry in &case.plan {
            let Some(gradient) = ours.get(&entry.parent) else {
                assert!(entry.name == "mask_token" && !masked, "{} has no gradient", entry.name);
                continue;
            };
            let scale = gradient.iter().fold(0f32, |a, v| a.max(v.abs()));
            let places = places(entry);
            for k in 0..5.min(places.len()) {
                let place = places[(k * 7919 + 13) % places.len()];
                let mut at = |step: f64| {
                    let slot = &mut reference.weights.get_mut(&entry.parent).unwrap()[place];
                    let before = *slot;
                    *slot += step;
                    let sum = sum(&reference, size, &input);
                    reference.weights.get_mut(&entry.parent).unwrap()[place] = before;
                    sum
                };
                let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
                let error = (f64::from(gradient[place]) - difference).abs();
                // A key's bias moves all scores of a row alike: its gradient is rounding noise around zero.
                let tolerance = 1e-4 * f64::from(scale) + 1e-5;
                let (name, g) = (&entry.parent, gradient[place]);
                assert!(
                    error <= tolerance,
                    "case {number}, {name}[{place}]: {g} against {difference}"
                );
            }
        }
    }
}
