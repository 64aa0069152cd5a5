//! One POA step against the properties of elastic.md 8.2: identity, zero logits, gradient support, masks and symmetries.

use std::collections::BTreeMap;

use offshoot_family::{Shape, Vit};
use offshoot_methods::elastic::heads::Heads;
use offshoot_methods::elastic::step::{Batch, Elastic, LossRecipe, Objective};
use offshoot_zoo::materialize::{Plan, compile};
use offshoot_zoo::network::KeepAll;
use offshoot_zoo::tensor::Device;
use offshoot_zoo::vit::VitNetwork;
use offshoot_zoo::{Backbone, Network, TensorSpec, Weight, Weights, backbone};

/// A small network with heads, and weights under which every tensor matters.
struct Model {
    vit: Vit,
    network: VitNetwork,
    heads: Heads,
    specs: Vec<TensorSpec>,
    student: Weights,
    teacher: Weights,
}

/// The child of one step.
struct Child {
    network: Box<dyn Backbone>,
    plan: Plan,
}

/// Numbers without pattern in -1..1: splitmix64 over `seed`.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..n)
        .map(|_| ((next() >> 40) as f32 / (1u64 << 23) as f32) - 1.0)
        .collect()
}

fn lively(specs: &[TensorSpec], seed: u64) -> Weights {
    let mut weights = Weights::new();
    for (i, spec) in specs.iter().enumerate() {
        let shape = spec.shape();
        let reads: usize = shape.iter().skip(1).product();
        let one = ["norm1.weight", "norm2.weight", "norm.weight", "gamma", "weight_g"];
        let shift = if one.iter().any(|end| spec.name.ends_with(end)) {
            1.0
        } else {
            0.0
        };
        let scale = if reads > 1 { 1.7 / (reads as f32).sqrt() } else { 0.3 };
        let values = numbers(1000 * seed + i as u64, spec.elements())
            .into_iter()
            .map(|v| v * scale + shift)
            .collect();
        weights.insert(&spec.name, Weight::from_values(values, shape, &Device::flex()));
    }
    weights
}

impl Model {
    fn new(head_dim: usize, heads: usize, depth: usize, prototypes: &[usize]) -> Self {
        let vit = Vit {
            width: head_dim * heads,
            depth,
            head_dim,
            mlp_ratio: 2,
            patch: 2,
            image: 6,
            channels: 1,
            position_offset: 0.1,
            layer_scale: 1e-5,
            classes: 0,
            norm_eps: 1e-6,
        };
        let network = VitNetwork::new(vit.clone());
        let heads = Heads {
            feature: network.feature(),
            hidden: 7,
            bottleneck: 5,
            prototypes: prototypes.to_vec(),
        };
        let specs = [network.specs(), heads.specs()].concat();
        let (student, teacher) = (lively(&specs, 1), lively(&specs, 2));
        Self {
            vit,
            network,
            heads,
            specs,
            student,
            teacher,
        }
    }

    /// The usual one: 3 heads of 4 channels, 3 blocks, 2 projection heads.
    fn usual() -> Self {
        Self::new(4, 3, 3, &[9, 14])
    }

    /// The same with every logit 0.
    fn silent(mut self) -> Self {
        for weights in [&mut self.student, &mut self.teacher] {
            for (i, k) in self.heads.prototypes.iter().enumerate() {
                let zeros = Weight::from_values(vec![0.0; *k], vec![*k], &Device::flex());
                weights.insert(format!("heads.{i}.last_layer.weight_g"), zeros);
            }
        }
        self
    }

    fn child(&self, width: usize, depth: usize) -> Child {
        let view = self
            .network
            .child(&Shape::new([("width", width), ("depth", depth)]), "")
            .unwrap();
        let network = backbone(&view.child).unwrap();
        let mut plan = compile(&self.network.specs(), Some(&network.specs()), &view).unwrap();
        plan.extend(compile(&self.heads.specs(), None, &view).unwrap());
        Child { network, plan }
    }

    fn full(&self) -> Child {
        self.child(self.vit.width, self.vit.depth)
    }

    /// Loss terms by name, and the gradients of their total.
    fn step(&self, child: &Child, loss: &LossRecipe, batch: &Batch) -> (BTreeMap<String, f64>, Gradients) {
        let elastic = Elastic {
            network: child.network.as_ref(),
            plan: &child.plan,
        };
        self.step_with(Some(&elastic), loss, batch)
    }

    /// The same for any elastic student, or none.
    fn step_with(
        &self,
        elastic: Option<&Elastic>,
        loss: &LossRecipe,
        batch: &Batch,
    ) -> (BTreeMap<String, f64>, Gradients) {
        let tracked = self.student.tracked();
        let objective = Objective {
            network: &self.network,
            heads: &self.heads,
            loss,
        };
        let terms = objective.losses(&tracked, &self.teacher, elastic, batch, 0.05, &mut |_| {
            Box::new(KeepAll)
        });
        let values = terms.values().into_iter().collect();
        let gradients = tracked.gradients(&mut terms.total.backward());
        let host = |(name, g): (String, offshoot_zoo::tensor::Tensor<1>)| {
            (name, g.into_data_as::<f32>().try_to_vec().unwrap())
        };
        (values, gradients.into_iter().map(host).collect())
    }

    /// Loss terms alone.
    fn terms(&self, child: &Child, loss: &LossRecipe, batch: &Batch) -> BTreeMap<String, f64> {
        self.step(child, loss, batch).0
    }

    /// Mean of ln K over the heads.
    fn mean_ln_k(&self) -> f64 {
        let k = &self.heads.prototypes;
        k.iter().map(|k| (*k as f64).ln()).sum::<f64>() / k.len() as f64
    }
}

type Gradients = BTreeMap<String, Vec<f32>>;

fn loss(lambda: f64, koleo_weight: f64) -> LossRecipe {
    LossRecipe {
        lambda,
        koleo_weight,
        ..LossRecipe::default()
    }
}

/// Crops of `images` images with `views` local ones; `masks` by the global crop and patch.
fn batch(images: usize, views: usize, mask: impl Fn(usize, usize) -> bool) -> Batch {
    let masks: Vec<u8> = (0..2 * images * 9).map(|i| u8::from(mask(i / 9, i % 9))).collect();
    let globals = (numbers(50, 2 * images * 36), [1, 6, 6]);
    let locals = (numbers(51, views * images * 16), [1, 4, 4]);
    Batch::new(images, globals, locals, Some(&masks), &Device::flex())
}

fn some(crop: usize, patch: usize) -> bool {
    crop.is_multiple_of(2) && patch % 4 < 1 + crop % 3
}

fn nothing(_: usize, _: usize) -> bool {
    false
}

fn everywhere(_: usize, patch: usize) -> bool {
    patch.is_multiple_of(2)
}

fn close(what: &str, ours: f64, expected: f64, tolerance: f64) {
    assert!(
        (ours - expected).abs() <= tolerance,
        "{what}: {ours} against {expected}"
    );
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// elastic.md 8.2, identity: the elastic student at full size is the intact one, for odd head sizes and 1 to 4 heads.
#[test]
fn at_full_size_both_students_have_the_same_terms_and_lambda_drops_out() {
    for (head_dim, heads, depth, prototypes) in [
        (4, 3, 3, &[9, 14][..]),
        (5, 1, 1, &[6]),
        (3, 2, 2, &[8, 5, 11]),
        (7, 4, 2, &[12, 7, 20, 9]),
        (1, 4, 2, &[3]),
    ] {
        let model = Model::new(head_dim, heads, depth, prototypes);
        let (full, batch) = (model.full(), batch(3, 2, some));
        let mut cross_view = Vec::new();
        for lambda in [0.0, 0.3, 0.8, 1.0] {
            let terms = model.terms(&full, &loss(lambda, 0.1), &batch);
            let (mut cross, mut same) = (0.0, 0.0);
            for i in 0..prototypes.len() {
                for term in ["local", "global", "patch"] {
                    let (a, b) = (
                        terms[&format!("head{i}.intact.{term}")],
                        terms[&format!("head{i}.elastic.{term}")],
                    );
                    assert!(a == b && a.is_finite() && a > 0.0, "head {i} {term}: {a} and {b}");
                    cross += a;
                }
                same += terms[&format!("head{i}.same_view.local")] + terms[&format!("head{i}.same_view.global")];
            }
            let n = prototypes.len() as f64;
            let expected = cross / n + (1.0 - lambda) * same / n + terms["koleo"];
            close("total", terms["total"], expected, 1e-5 * expected.abs());
            cross_view.push(terms["total"] - terms["koleo"] - (1.0 - lambda) * same / n);
        }
        cross_view
            .iter()
            .for_each(|v| close("cross-view part", *v, cross_view[0], 1e-5 * cross_view[0]));
    }
}

/// elastic.md 8.2: at full size the same-view term is the entropy of the intact student's own probabilities.
#[test]
fn at_full_size_the_same_view_term_is_an_entropy() {
    let model = Model::usual();
    let batch = batch(3, 2, some);
    let terms = model.terms(&model.full(), &loss(0.8, 0.1), &batch);
    let features = |images, masks| model.network.forward(&model.student, images, masks, &mut KeepAll).cls;
    let (globals, locals) = (batch.globals.clone(), batch.locals.clone().unwrap());
    for (term, cls) in [
        ("global", features(globals, batch.masks.clone())),
        ("local", features(locals, None)),
    ] {
        for (i, k) in model.heads.prototypes.iter().enumerate() {
            let logits = model.heads.logits(&model.student, i, cls.clone());
            let logits: Vec<f32> = logits.into_data_as::<f32>().try_to_vec().unwrap();
            let entropy = |row: &[f32]| {
                let z: Vec<f64> = row.iter().map(|v| f64::from(*v) / 0.1).collect();
                let log_sum = z.iter().map(|v| v.exp()).sum::<f64>().ln();
                z.iter().map(|v| (v - log_sum).exp() * (log_sum - v)).sum::<f64>()
            };
            let rows = logits.chunks(*k);
            let mean = rows.clone().map(entropy).sum::<f64>() / rows.len() as f64;
            assert!(mean > 0.1 && mean < (*k as f64).ln() - 0.1, "{mean} tells something");
            close(
                &format!("head {i} {term}"),
                terms[&format!("head{i}.same_view.{term}")],
                mean,
                1e-5 * mean,
            );
        }
    }
}

/// elastic.md 8.2, loss at zero logits with the paper's prototypes: 1.4 mean ln K before iBOT; 2.4 after, where every global
/// crop is masked. The masked-patch term counts unmasked crops too: half of them give half of it.
#[test]
fn zero_logits_give_the_papers_totals() {
    let model = Model::new(2, 2, 1, &[8192, 16384, 32768, 65536]).silent();
    let child = model.child(2, 1);
    let masked = |crops: usize| batch(2, 8, move |crop, patch| crop < crops && patch % 3 == crop % 3);
    for (crops, expected) in [(0, 14.070888), (4, 24.121522), (2, 1.9 * 10.050634)] {
        let terms = model.terms(&child, &loss(0.8, 0.1), &masked(crops));
        let (what, total) = (format!("{crops} masked crops"), terms["total"] - terms["koleo"]);
        close(&what, total, expected, 1e-4);
        for (i, ln_k) in [9.010913, 9.704061, 10.397208, 11.090355].into_iter().enumerate() {
            for student in ["intact", "elastic"] {
                let term = |term: &str| terms[&format!("head{i}.{student}.{term}")];
                // 16 and 2 of 18 pairs.
                close("local", term("local"), ln_k * 16.0 / 18.0, 3e-5);
                close("global", term("global"), ln_k * 2.0 / 18.0, 2e-5);
                close("patch", term("patch"), ln_k * crops as f64 / 4.0, 3e-5);
            }
            for term in ["global", "local"] {
                let value = terms[&format!("head{i}.same_view.{term}")];
                close("same view", value, ln_k, 3e-5);
            }
        }
    }
}

/// For any number of local crops the cross-view terms average the pairs of views; without local crops only the two pairs of
/// global ones are left, and one same-view term.
#[test]
fn zero_logits_are_normalised_by_the_pairs_of_views() {
    let model = Model::usual().silent();
    let mean = model.mean_ln_k();
    for views in [0, 1, 2, 5] {
        for images in [1, 2, 5] {
            let batch = batch(images, views, everywhere);
            assert_eq!(
                (batch.images, batch.views, batch.locals.is_some()),
                (images, views, views > 0)
            );
            let terms = model.terms(&model.child(8, 2), &loss(0.8, 0.1), &batch);
            let same = if views > 0 { 2.0 } else { 1.0 };
            close(
                &format!("{images} images, {views} views"),
                terms["total"] - terms["koleo"],
                mean * (2.0 + 0.2 * same),
                2e-5,
            );
            let pairs = (2 * views + 2) as f64;
            close(
                "local",
                terms["head1.elastic.local"],
                14f64.ln() * 2.0 * views as f64 / pairs,
                1e-5,
            );
            close("global", terms["head1.elastic.global"], 14f64.ln() * 2.0 / pairs, 1e-5);
        }
    }
}

/// elastic.md section 3, `L_patch`: each masked crop counts alike, however many of its patches are masked.
#[test]
fn masked_crops_weigh_alike() {
    let model = Model::usual();
    let child = model.child(8, 2);
    for (what, mask) in [("one and all", 0usize), ("one each", 1), ("all", 9)] {
        let patches = move |crop: usize, patch: usize| match (mask, crop) {
            (0, 0) => patch == 4,
            (0, 1) => true,
            (0, _) => false,
            (n, _) => patch < n,
        };
        let (terms, gradients) = model.step(&child, &loss(0.8, 0.1), &batch(2, 1, patches));
        assert!(terms.values().all(|v| v.is_finite()), "{what}: {terms:?}");
        assert!(gradients.values().flatten().all(|v| v.is_finite()), "{what}");
        assert!(gradients["mask_token"].iter().any(|v| *v != 0.0), "{what}");
    }
    // One masked crop of four, with one and with all patches: the same at zero logits.
    let silent = Model::usual().silent();
    for n in [1, 3, 9] {
        let terms = silent.terms(
            &child,
            &loss(0.8, 0.1),
            &batch(2, 1, move |crop, patch| crop == 3 && patch < n),
        );
        close("one of four crops", terms["head0.intact.patch"], 9f64.ln() / 4.0, 1e-6);
    }
}

/// A batch whose masks are all zero is one without masks, bit for bit, and the mask token has no gradient.
#[test]
fn empty_masks_are_no_masks() {
    let model = Model::usual();
    let child = model.child(8, 2);
    let zeros = batch(3, 2, nothing);
    let none = Batch::new(
        3,
        (numbers(50, 216), [1, 6, 6]),
        (numbers(51, 96), [1, 4, 4]),
        None,
        &Device::flex(),
    );
    assert!(zeros.masks.is_none());
    let (ours, gradients) = model.step(&child, &loss(0.8, 0.1), &zeros);
    assert_eq!(
        (&ours, &gradients),
        (&model.step(&child, &loss(0.8, 0.1), &none).0, &gradients)
    );
    assert!(ours["head0.intact.patch"] == 0.0 && ours["head1.elastic.patch"] == 0.0);
    assert!(gradients.get("mask_token").is_none_or(|g| g.iter().all(|v| *v == 0.0)));
}

/// One image has no neighbour: KoLeo is 0, and the rest of the step goes on.
#[test]
fn one_image_has_no_koleo() {
    let model = Model::usual();
    let child = model.child(4, 2);
    let (terms, gradients) = model.step(&child, &loss(0.8, 0.1), &batch(1, 2, some));
    assert_eq!(terms["koleo"], 0.0);
    assert!(
        terms.values().all(|v| v.is_finite()) && terms["total"] > 0.0,
        "{terms:?}"
    );
    assert!(gradients.values().flatten().all(|v| v.is_finite()));
    let (without, _) = model.step(&child, &loss(0.8, 0.0), &batch(1, 2, some));
    assert_eq!(terms["total"], without["total"]);
}

fn check_sum(what: &str, ours: &Gradients, parts: &[(f64, &Gradients)]) {
    for (name, ours) in ours {
        let sum = |i: usize| {
            parts
                .iter()
                .map(|(f, g)| g.get(name).map_or(0.0, |g| f * f64::from(g[i])))
                .sum::<f64>()
        };
        let error = norm(ours.iter().enumerate().map(|(i, v)| f64::from(*v) - sum(i)));
        let scale: f64 = parts
            .iter()
            .filter_map(|(f, g)| Some(f.abs() * norm(g.get(name)?.iter().map(|v| f64::from(*v)))))
            .sum();
        assert!(
            error <= 1e-5 * scale + 1e-7,
            "{what}, {name}: off by {error:e} of {scale:e}"
        );
    }
}

/// elastic.md 8.2: the joint backward is the sum of separate ones. The loss is linear in lambda and in the weight of KoLeo.
#[test]
fn the_joint_backward_is_the_sum_of_separate_ones() {
    let model = Model::usual();
    let batch = batch(3, 2, some);
    for child in [model.child(8, 2), model.child(4, 3), model.full()] {
        let gradients = |lambda, koleo| model.step(&child, &loss(lambda, koleo), &batch).1;
        let (intact, elastic) = (gradients(1.0, 0.0), gradients(0.0, 0.0));
        check_sum(
            "without KoLeo",
            &gradients(0.8, 0.0),
            &[(0.8, &intact), (0.2, &elastic)],
        );
        check_sum(
            "other share",
            &gradients(0.25, 0.0),
            &[(0.25, &intact), (0.75, &elastic)],
        );
        // KoLeo alone is the difference that its weight makes.
        let with = gradients(1.0, 2.0);
        check_sum(
            "with KoLeo",
            &gradients(0.8, 0.5),
            &[(0.55, &intact), (0.2, &elastic), (0.25, &with)],
        );
    }
}

/// elastic.md 8.2, gradient support, of the whole step: the loss of the elastic student alone is felt only inside its slices.
/// The intact student's probabilities, which it learns from, are no way around.
#[test]
fn the_elastic_students_loss_is_felt_only_inside_its_slices() {
    let model = Model::usual();
    let (vit, batch) = (&model.vit, batch(3, 2, some));
    for (width, depth) in [(4, 1), (8, 2), (4, 3), (12, 2), (8, 3)] {
        let (_, gradients) = model.step(&model.child(width, depth), &loss(0.0, 0.0), &batch);
        let kept: Vec<usize> = if depth == 1 {
            vec![0]
        } else {
            (0..depth).map(|j| 2 * j / (depth - 1)).collect()
        };
        for spec in &model.specs {
            let shape = spec.shape();
            let none = vec![0.0; spec.elements()];
            let gradient = gradients.get(&spec.name).unwrap_or(&none);
            let columns: usize = shape.iter().skip(1).product();
            let leaf = spec
                .name
                .rsplit_once("attn.")
                .or(spec.name.rsplit_once("mlp."))
                .map_or("", |(_, leaf)| leaf);
            // Row and column limits by hand: what elastic.md 2.1, 2.2 and 2.5 keep of each tensor.
            let inside = |at: usize| {
                let (row, column) = (at / columns, at % columns);
                match (spec.name.split('.').next().unwrap(), leaf) {
                    ("heads", "0.weight") => column < width,
                    ("heads", _) => true,
                    (_, "qkv.weight") => row % vit.width < width && column < width,
                    (_, "qkv.bias") => row % vit.width < width,
                    (_, "fc1.weight") => row < 2 * width && column < width,
                    (_, "fc1.bias") => row < 2 * width,
                    (_, "fc2.weight") => row < width && column < 2 * width,
                    (_, "proj.weight") => row < width && column < width,
                    ("pos_embed", _) => column < width,
                    _ => row < width,
                }
            };
            let skipped = spec.block.is_some_and(|b| !kept.contains(&b));
            let outside = gradient.iter().enumerate().filter(|(at, _)| skipped || !inside(*at));
            for (at, value) in outside {
                assert!(*value == 0.0, "{width}x{depth}: {}[{at}] is {value}", spec.name);
            }
            assert_eq!(
                gradient.iter().any(|v| *v != 0.0),
                !skipped,
                "{width}x{depth}: {}",
                spec.name
            );
        }
    }
}

/// The intact student's loss reaches every tensor, whatever the elastic one is cut to.
#[test]
fn the_intact_students_loss_is_felt_everywhere() {
    let model = Model::usual();
    let (_, gradients) = model.step(&model.child(4, 1), &loss(1.0, 0.0), &batch(3, 2, some));
    for spec in &model.specs {
        assert!(gradients[&spec.name].iter().any(|v| *v != 0.0), "{}", spec.name);
    }
}

/// No image is special and neither is a crop: images in another order, or the two global crops exchanged, change no term.
#[test]
fn the_order_of_images_and_crops_does_not_matter() {
    let order = [2, 0, 3, 1];
    for (head_dim, heads) in [(5, 2), (3, 3), (1, 4), (6, 1)] {
        let model = Model::new(head_dim, heads, 2, &[10, 6]);
        let child = model.child(head_dim, 2);
        let (globals, locals) = (numbers(60, 8 * 36), numbers(61, 12 * 16));
        let masks: Vec<u8> = numbers(62, 8 * 9).into_iter().map(|v| u8::from(v > 0.4)).collect();
        // `crops` global or local crops in the order `crop`, each with its images in the order `image`.
        fn moved<T: Copy>(values: &[T], crops: &[usize], images: &[usize; 4]) -> Vec<T> {
            let one = values.len() / (4 * crops.len());
            let each = crops.iter().flat_map(|c| images.iter().map(move |i| 4 * c + i));
            each.flat_map(|at| &values[at * one..(at + 1) * one]).copied().collect()
        }
        let terms = |crops: [usize; 2], images: [usize; 4]| {
            let globals = (moved(&globals, &crops, &images), [1, 6, 6]);
            let locals = (moved(&locals, &[0, 1, 2], &images), [1, 4, 4]);
            let masks = moved(&masks, &crops, &images);
            let batch = Batch::new(4, globals, locals, Some(&masks), &Device::flex());
            model.terms(&child, &loss(0.8, 0.1), &batch)
        };
        let plain = terms([0, 1], [0, 1, 2, 3]);
        for (what, other) in [("images", terms([0, 1], order)), ("crops", terms([1, 0], [0, 1, 2, 3]))] {
            for (name, value) in &plain {
                close(
                    &format!("{what}: {name}"),
                    other[name],
                    *value,
                    2e-5 * value.abs().max(1.0),
                );
            }
        }
        // An order that the masks or the local crops do not share is another batch.
        let globals = (moved(&globals, &[0, 1], &order), [1, 6, 6]);
        let batch = Batch::new(4, globals, (locals.clone(), [1, 4, 4]), Some(&masks), &Device::flex());
        let torn = model.terms(&child, &loss(0.8, 0.1), &batch);
        assert!((torn["head0.intact.local"] - plain["head0.intact.local"]).abs() > 1e-4);
        assert!((torn["head0.intact.patch"] - plain["head0.intact.patch"]).abs() > 1e-4);
    }
}

/// The total is the weighted sum of the named terms.
#[test]
fn the_total_is_the_weighted_sum_of_its_terms() {
    let model = Model::new(3, 4, 3, &[7, 9, 11]);
    let recipe = LossRecipe {
        lambda: 0.7,
        ibot_weight: 0.4,
        koleo_weight: 0.3,
        ..LossRecipe::default()
    };
    let terms = model.terms(&model.child(6, 2), &recipe, &batch(4, 3, some));
    assert_eq!(terms.len(), 3 * 8 + 2);
    let mut total = terms["koleo"];
    for i in 0..3 {
        for (student, share) in [("intact", 0.7), ("elastic", 0.3)] {
            for (term, weight) in [("local", 1.0), ("global", 1.0), ("patch", 0.4)] {
                total += share * weight * terms[&format!("head{i}.{student}.{term}")] / 3.0;
            }
        }
        for term in ["global", "local"] {
            total += 0.3 * terms[&format!("head{i}.same_view.{term}")] / 3.0;
        }
    }
    close("total", terms["total"], total, 1e-5 * total);
}

/// Without an elastic student a step is the intact student's part of the usual one, at full weight.
#[test]
fn a_network_alone_has_the_intact_students_part_of_the_loss() {
    let model = Model::usual();
    let batch = batch(3, 2, some);
    let (alone, gradients) = model.step_with(None, &loss(0.8, 0.1), &batch);
    let beside = model.terms(&model.child(4, 2), &loss(0.8, 0.1), &batch);
    let mut total = alone["koleo"];
    for i in 0..2 {
        for term in ["local", "global", "patch"] {
            let name = format!("head{i}.intact.{term}");
            assert!(alone[&name] == beside[&name] && alone[&name] > 0.0, "{name}");
            total += alone[&name] / 2.0;
        }
    }
    assert_eq!(alone.len(), 2 * 3 + 2, "no other term: {:?}", alone.keys());
    close("total", alone["total"], total, 1e-6 * total);
    // KoLeo of two equal students is twice that of one.
    let twice = model.terms(&model.full(), &loss(0.8, 0.1), &batch)["koleo"];
    close("KoLeo", alone["koleo"], twice / 2.0, 1e-6 * twice.abs());
    assert_ne!(alone["koleo"], 0.0);
    // An elastic student of no weight that is the intact one moves nothing: the same gradients, with KoLeo counted once.
    let (_, weightless) = model.step(&model.full(), &loss(1.0, 0.05), &batch);
    for (name, ours) in &gradients {
        let largest = ours.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        for (a, b) in ours.iter().zip(&weightless[name]) {
            assert!((a - b).abs() <= 1e-5 * largest.max(1e-3), "{name}: {a} and {b}");
        }
    }
}

/// Without the same-view terms the rest of the loss is as it was.
#[test]
fn turning_the_same_view_terms_off_takes_away_them_alone() {
    let model = Model::usual();
    let (child, batch) = (model.child(8, 2), batch(3, 2, some));
    let with = model.terms(&child, &loss(0.7, 0.1), &batch);
    let off = LossRecipe {
        same_view: false,
        ..loss(0.7, 0.1)
    };
    let without = model.terms(&child, &off, &batch);
    let mut difference = 0.0;
    for (name, value) in &with {
        if name.contains("same_view") {
            assert!(!without.contains_key(name) && *value > 0.0);
            difference += 0.3 * value / 2.0;
        } else if name != "total" {
            assert_eq!(without[name], *value, "{name}");
        }
    }
    assert_eq!(without.len(), with.len() - 4);
    close(
        "total",
        without["total"],
        with["total"] - difference,
        1e-5 * with["total"],
    );
}

/// Work is cut by sizes alone. The model is large enough for every operation to be cut into several pieces.
#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let model = Model::new(16, 6, 3, &[700, 1500]);
    let (child, batch) = (model.child(64, 2), batch(40, 4, some));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (values, gradients) = pool.install(|| model.step(&child, &loss(0.8, 0.1), &batch));
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let gradients: Vec<_> = gradients.into_iter().map(|(name, g)| (name, bits(g))).collect();
        let values: Vec<_> = values.into_iter().map(|(name, v)| (name, v.to_bits())).collect();
        (values, gradients)
    };
    let one = run(1);
    for threads in [2, 3, 5] {
        assert!(run(threads) == one, "{threads} threads differ from one");
    }
}
