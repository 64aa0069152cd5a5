//! Views: both executors against index arithmetic written out by hand, and refusals.

use std::collections::BTreeMap;

use offshoot_family::{Architecture, Operator, ResNet, ResNetNorm, Swin, View, Vit};
use offshoot_zoo::layout::LayoutTensor;
use offshoot_zoo::materialize::{Plan, ViewError, compile, materialize};
use offshoot_zoo::resnet::ResNetNetwork;
use offshoot_zoo::tensor::{Device, Linear, Tensor};
use offshoot_zoo::vit::VitNetwork;
use offshoot_zoo::{Dim, Network, TensorSpec, Weight, Weights, open};
use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use crate::{all_bits, bits, lively, shape, small, small_resnet, whole_space};

/// Networks of odd sizes: 1 to 4 heads of 1 to 7 channels, 1 to 4 blocks, patches of 1 to 5 pixels, grey and colour.
fn networks() -> impl Strategy<Value = Vit> {
    let channels = prop_oneof![Just(1usize), Just(3)];
    (
        1..=7usize,
        1..=4usize,
        1..=4usize,
        1..=5usize,
        1..=5usize,
        1..=3usize,
        channels,
    )
        .prop_map(|(head_dim, heads, depth, mlp_ratio, patch, grid, channels)| Vit {
            width: head_dim * heads,
            depth,
            head_dim,
            mlp_ratio,
            patch,
            image: patch * grid,
            channels,
            position_offset: 0.1,
            layer_scale: 1e-5,
            classes: 0,
            norm_eps: 1e-6,
        })
}

/// Residual networks of odd sizes: groups of 1 to 4, 1 to 3 blocks a stage, either norm.
fn residual_networks() -> impl Strategy<Value = ResNet> {
    let norm = prop_oneof![Just(ResNetNorm::Group), Just(ResNetNorm::Batch)];
    let groups = prop_oneof![Just(1usize), Just(2), Just(4)];
    let depths = (1..=2usize, 1..=3usize, 1..=3usize, 1..=2usize).prop_map(|(a, b, c, d)| vec![a, b, c, d]);
    (groups, 1..=3usize, 1..=3usize, depths, norm, 0..=2usize).prop_map(
        |(groups, width, outputs, depths, norm, classes)| ResNet {
            width: groups * width,
            outputs: 4 * groups * outputs,
            depths,
            norm,
            groups,
            classes,
            ..small_resnet()
        },
    )
}

/// Swin transformers of odd sizes: 1 to 3 heads of 1 to 3 channels, 2 to 4 stages of 1 to 3 blocks, windows of 1 to 3.
fn swin_networks() -> impl Strategy<Value = Swin> {
    let heads = (1..=3usize, 1..=3usize);
    (heads, vec(1..=3usize, 2..=4), 1..=3usize, 1..=3usize, 0..=2usize).prop_map(
        |((head_dim, heads), depths, window, mlp_ratio, classes)| Swin {
            width: head_dim * heads,
            head_dim,
            window,
            mlp_ratio,
            patch: 2,
            image: (2 << (depths.len() - 1)) * 3,
            depths,
            channels: 3,
            norm_eps: 1e-5,
            classes,
        },
    )
}

/// Networks of odd sizes of every architecture.
fn any_network() -> impl Strategy<Value = Architecture> {
    prop_oneof![
        networks().prop_map(Architecture::Vit),
        residual_networks().prop_map(Architecture::ResNet),
        swin_networks().prop_map(Architecture::Swin),
    ]
}

/// The child's tensors by index arithmetic: the first channels between the convolutions of a block, and evenly spaced blocks.
fn residual_by_hand(parent: &ResNet, weights: &Weights, width: usize, depths: &[usize]) -> BTreeMap<String, Vec<f32>> {
    let alpha = parent.width as f64 / width as f64;
    let mut child = BTreeMap::new();
    for (name, weight) in weights.iter() {
        let values = weight.values();
        let Some(place) = name.strip_prefix("stages.") else {
            child.insert(name.to_owned(), values);
            continue;
        };
        let parts: Vec<&str> = place.splitn(4, '.').collect();
        let (stage, block): (usize, usize) = (parts[0].parse().unwrap(), parts[2].parse().unwrap());
        let (of, depth) = (parent.depths[stage], depths[stage]);
        let kept = |j: usize| if depth == 1 { 0 } else { (of - 1) * j / (depth - 1) };
        let Some(to) = (0..depth).find(|&j| kept(j) == block) else {
            continue;
        };
        let (all, some): (usize, usize) = (parent.width << stage, width << stage);
        let channels = |n: usize| -> Vec<usize> { (0..n).collect() };
        let leaf = parts[3];
        let rows = weight.shape()[0];
        let values = match leaf {
            "conv1.weight" => pick(
                &values,
                values.len() / all,
                &channels(some),
                &channels(values.len() / all),
                1.0,
            ),
            // The columns of a 3 x 3 convolution are the inputs, nine numbers each.
            "conv2.weight" => pick(&values, 9 * all, &channels(some), &channels(9 * some), alpha),
            "conv3.weight" => pick(&values, all, &channels(rows), &channels(some), alpha),
            _ if leaf.starts_with("norm1.") || leaf.starts_with("norm2.") => values[..some].to_vec(),
            _ => values,
        };
        child.insert(format!("stages.{stage}.blocks.{to}.{leaf}"), values);
    }
    child
}

/// What a child keeps, as plain indices into the parent.
#[derive(Clone, Debug)]
struct Kept {
    residual: Vec<usize>,
    /// Blocks in the child's order, each with its kept heads and hidden channels.
    blocks: Vec<(usize, Vec<usize>, Vec<usize>)>,
    ratio: usize,
    gain_residual: f64,
    gain_heads: f64,
    gain_ffn: f64,
}

/// Rows and columns of a matrix, in that order, times a factor.
fn pick(matrix: &[f32], of: usize, rows: &[usize], columns: &[usize], gain: f64) -> Vec<f32> {
    rows.iter()
        .flat_map(|r| columns.iter().map(move |c| matrix[r * of + c] * gain as f32))
        .collect()
}

/// The child's tensors by index arithmetic, without specs and plans.
fn by_hand(parent: &Vit, weights: &Weights, kept: &Kept) -> BTreeMap<String, Vec<f32>> {
    let width = parent.width;
    let values = |name: &str| weights.get(name).unwrap().values();
    let all = |n: usize| -> Vec<usize> { (0..n).collect() };
    let mut child = BTreeMap::new();
    for name in [
        "cls_token",
        "mask_token",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
    ] {
        child.insert(name.to_owned(), pick(&values(name), 1, &kept.residual, &[0], 1.0));
    }
    let positions = pick(
        &values("pos_embed"),
        width,
        &all(1 + parent.patches()),
        &kept.residual,
        1.0,
    );
    child.insert("pos_embed".into(), positions);
    let kernel = parent.channels * parent.patch * parent.patch;
    let embed = pick(
        &values("patch_embed.proj.weight"),
        kernel,
        &kept.residual,
        &all(kernel),
        1.0,
    );
    child.insert("patch_embed.proj.weight".into(), embed);
    for (to, (from, heads, ffn)) in kept.blocks.iter().enumerate() {
        let values = |leaf: &str| values(&format!("blocks.{from}.{leaf}"));
        let mut put = |leaf: &str, values| child.insert(format!("blocks.{to}.{leaf}"), values);
        let residual = &kept.residual[..];
        for leaf in [
            "norm1.weight",
            "norm1.bias",
            "norm2.weight",
            "norm2.bias",
            "ls1.gamma",
            "ls2.gamma",
            "attn.proj.bias",
            "mlp.fc2.bias",
        ] {
            put(leaf, pick(&values(leaf), 1, residual, &[0], 1.0));
        }
        let channels: Vec<usize> = heads
            .iter()
            .flat_map(|h| (0..parent.head_dim).map(move |e| h * parent.head_dim + e))
            .collect();
        let qkv: Vec<usize> = (0..3)
            .flat_map(|g| channels.iter().map(move |c| g * width + c))
            .collect();
        put(
            "attn.qkv.weight",
            pick(&values("attn.qkv.weight"), width, &qkv, residual, kept.gain_residual),
        );
        put("attn.qkv.bias", pick(&values("attn.qkv.bias"), 1, &qkv, &[0], 1.0));
        put(
            "attn.proj.weight",
            pick(&values("attn.proj.weight"), width, residual, &channels, kept.gain_heads),
        );
        put(
            "mlp.fc1.weight",
            pick(&values("mlp.fc1.weight"), width, ffn, residual, kept.gain_residual),
        );
        put("mlp.fc1.bias", pick(&values("mlp.fc1.bias"), 1, ffn, &[0], 1.0));
        let hidden = width * parent.mlp_ratio;
        put(
            "mlp.fc2.weight",
            pick(&values("mlp.fc2.weight"), hidden, residual, ffn, kept.gain_ffn),
        );
    }
    child
}

/// Runs both executors and compares them with `expected`, bit for bit.
fn check(plan: &Plan, weights: &Weights, expected: &BTreeMap<String, Vec<f32>>) {
    let device = materialize(weights, plan);
    assert_eq!(device.len(), expected.len());
    for entry in plan {
        let host = entry.on_host(&weights.get(&entry.parent).unwrap().values());
        let on_device = device.get(&entry.name).unwrap();
        assert_eq!(on_device.shape(), entry.shape);
        assert!(bits(&host) == bits(&expected[&entry.name]), "host: {}", entry.name);
        assert!(
            bits(&on_device.values()) == bits(&expected[&entry.name]),
            "device: {}",
            entry.name
        );
    }
}

fn select(indices: &[usize]) -> Operator {
    Operator::Select {
        indices: indices.to_vec(),
    }
}

/// `n` of the numbers below `of`, in no order, from random keys.
fn some(keys: &[u32], n: usize, of: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..of).collect();
    order.sort_by_key(|&i| (keys[i % keys.len()].wrapping_mul(2 * i as u32 + 1), i));
    order.truncate(n);
    order
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_child_is_the_prefix_slices_times_alpha(vit in networks(), seed in any::<u64>()) {
        let network = VitNetwork::new(vit.clone());
        let weights = lively(&network.specs(), seed);
        for shape in whole_space(&network).iter() {
            let (width, depth) = (shape.get("width").unwrap(), shape.get("depth").unwrap());
            let view = network.child(&shape, "p").unwrap();
            let child = open(&view.child).unwrap();
            let plan = compile(&network.specs(), Some(&child.specs()), &view).unwrap();
            let alpha = vit.width as f64 / width as f64;
            let block = |j: usize| {
                let from = if depth == 1 { 0 } else { ((vit.depth - 1) * j) / (depth - 1) };
                (from, (0..width / vit.head_dim).collect(), (0..width * vit.mlp_ratio).collect())
            };
            let kept = Kept {
                residual: (0..width).collect(),
                blocks: (0..depth).map(block).collect(),
                ratio: vit.mlp_ratio,
                gain_residual: alpha,
                gain_heads: alpha,
                gain_ffn: alpha,
            };
            check(&plan, &weights, &by_hand(&vit, &weights, &kept));
            prop_assert!(materialize(&weights, &plan).mismatch(&child.specs()).is_none());
        }
    }

    #[test]
    fn every_child_of_a_resnet_is_the_prefix_slices_times_alpha(net in residual_networks(), seed in any::<u64>()) {
        let network = ResNetNetwork::new(net.clone());
        let weights = lively(&network.specs(), seed);
        for shape in whole_space(&network).iter() {
            let view = network.child(&shape, "p").unwrap();
            let child = open(&view.child).unwrap();
            let plan = compile(&network.specs(), Some(&child.specs()), &view).unwrap();
            let depth = |stage: usize| shape.get(&format!("depth{}", stage + 1)).unwrap_or(net.depths[stage]);
            let depths: Vec<usize> = (0..4).map(depth).collect();
            check(&plan, &weights, &residual_by_hand(&net, &weights, shape.get("width").unwrap(), &depths));
            prop_assert!(materialize(&weights, &plan).mismatch(&child.specs()).is_none());
        }
    }

    #[test]
    fn selections_with_holes_in_any_order_are_what_they_say(
        vit in networks(),
        seed in any::<u64>(),
        keys in vec(any::<u32>(), 64),
        part in (1..=4usize, 1..=4usize, 1..=5usize),
        gains in (-3.0..3.0f64, 0.01..5.0f64, 0.5..2.0f64),
    ) {
        let network = VitNetwork::new(vit.clone());
        let weights = lively(&network.specs(), seed);
        let heads = part.0.min(vit.heads());
        let width = heads * vit.head_dim;
        let ratio = part.2.min(vit.mlp_ratio);
        let blocks = some(&keys[7..], part.1.min(vit.depth), vit.depth);
        let kept = Kept {
            residual: some(&keys, width, vit.width),
            blocks: blocks
                .iter()
                .map(|&b| {
                    let keys = &keys[b + 1..];
                    (b, some(keys, heads, vit.heads()), some(keys, width * ratio, vit.width * vit.mlp_ratio))
                })
                .collect(),
            ratio,
            gain_residual: gains.0,
            gain_heads: gains.1,
            gain_ffn: gains.2,
        };
        let mut axes = BTreeMap::from([("residual".to_owned(), select(&kept.residual))]);
        let mut factors = BTreeMap::from([("residual".to_owned(), gains.0)]);
        for (b, heads, ffn) in &kept.blocks {
            axes.insert(format!("blocks.{b}.heads"), select(heads));
            axes.insert(format!("blocks.{b}.ffn"), select(ffn));
            factors.insert(format!("blocks.{b}.heads"), gains.1);
            factors.insert(format!("blocks.{b}.ffn"), gains.2);
        }
        let child = Vit { width, depth: blocks.len(), mlp_ratio: kept.ratio, ..vit.clone() };
        let specs = VitNetwork::new(child.clone()).specs();
        let view = View { parent: "p".into(), child: Architecture::Vit(child), axes, blocks, gains: factors };
        let view: View = serde_json::from_str(&serde_json::to_string(&view).unwrap()).unwrap();
        let plan = compile(&network.specs(), Some(&specs), &view).unwrap();
        check(&plan, &weights, &by_hand(&vit, &weights, &kept));
    }

    #[test]
    fn the_full_view_is_the_parent_bit_for_bit(architecture in any_network(), seed in any::<u64>()) {
        let network = open(&architecture).unwrap();
        let specs = network.specs();
        let mut weights = lively(&specs, seed);
        // Numbers that arithmetic would change.
        let odd = [f32::NAN, -0.0, f32::from_bits(1), f32::NEG_INFINITY, f32::from_bits(0x7fa0_1234), f32::MAX];
        for spec in &specs {
            let values = weights.get(&spec.name).unwrap().values();
            let values = values.into_iter().enumerate().map(|(i, v)| if i % 3 == 0 { odd[i / 3 % 6] } else { v });
            let weight = Weight::from_values(values.collect(), spec.shape(), &Device::flex());
            weights.insert(&spec.name, weight);
        }
        let view = network.child(&whole_space(network.as_ref()).intact(), "p").unwrap();
        prop_assert!(view.axes.is_empty() && view.gains.is_empty());
        prop_assert_eq!(&view.child, &architecture);
        // The same in many words.
        let mut spelled = view.clone();
        for (i, dim) in specs.iter().flat_map(|spec| &spec.dims).enumerate() {
            let (Some(axis), entries) = (&dim.axis, dim.entries()) else { continue };
            let operator = match i % 3 {
                0 => select(&(0..entries).collect::<Vec<_>>()),
                1 => Operator::Prefix { size: entries },
                _ => Operator::All,
            };
            spelled.axes.insert(axis.clone(), operator);
            spelled.gains.insert(axis.clone(), 1.0);
        }
        for view in [view, spelled] {
            let plan = compile(&specs, Some(&specs), &view).unwrap();
            prop_assert!(plan.iter().all(|entry| entry.is_identity()));
            prop_assert_eq!(all_bits(&materialize(&weights, &plan)), all_bits(&weights));
            for entry in &plan {
                let values = weights.get(&entry.parent).unwrap().values();
                prop_assert_eq!(bits(&entry.on_host(&values)), bits(&values));
            }
        }
    }
}

/// elastic.md 8.2: the rows of W are (.1 .2 .3 .4) and (-.5 .6 -.7 .8), b is (.05, -.05), x is (1, -2).
#[test]
fn the_toy_elastic_linear_gives_the_oracle() {
    let device = Device::flex();
    let specs = [
        TensorSpec::new("weight", vec![Dim::fixed(2), Dim::reads("residual", 4)]),
        TensorSpec::new("bias", vec![Dim::fixed(2)]),
    ];
    let view = View {
        parent: String::new(),
        child: Architecture::Vit(small()),
        axes: BTreeMap::from([("residual".into(), Operator::Prefix { size: 2 })]),
        blocks: vec![],
        gains: BTreeMap::from([("residual".into(), 2.0)]),
    };
    let mut weights = Weights::new();
    let matrix = vec![0.1, 0.2, 0.3, 0.4, -0.5, 0.6, -0.7, 0.8];
    weights.insert("weight", Weight::from_values(matrix, vec![2, 4], &device));
    weights.insert("bias", Weight::from_values(vec![0.05, -0.05], vec![2], &device));
    let child = materialize(&weights, &compile(&specs, None, &view).unwrap());
    let x = Tensor::<2>::from_data([[1.0, -2.0]], &device);
    let y: Vec<f32> = Linear::new(child.tensor("weight"))
        .bias(child.tensor("bias"))
        .forward(x)
        .into_data()
        .try_to_vec()
        .expect("two numbers");
    assert!((y[0] + 0.55).abs() < 1e-6 && (y[1] + 3.45).abs() < 1e-6, "{y:?}");
}

/// elastic.md 8.2 and pitfall 2: the ViT-S slice of ViT-L.
#[test]
fn a_vit_s_slice_of_vit_l_has_the_tabled_shapes() {
    let parent = VitNetwork::new(Vit {
        width: 1024,
        depth: 24,
        head_dim: 64,
        mlp_ratio: 4,
        patch: 16,
        image: 224,
        channels: 3,
        ..small()
    });
    let view = parent.child(&shape(384, 12), "").unwrap();
    let child = open(&view.child).unwrap();
    let plan = compile(&parent.specs(), Some(&child.specs()), &view).unwrap();
    let entry = |name: &str| plan.iter().find(|e| e.name == name).unwrap();
    let qkv = entry("blocks.11.attn.qkv.weight");
    assert_eq!(
        (qkv.parent.as_str(), &qkv.shape[..]),
        ("blocks.23.attn.qkv.weight", &[1152, 384][..])
    );
    assert_eq!(qkv.runs, [vec![(0, 384), (1024, 1408), (2048, 2432)], vec![(0, 384)]]);
    assert!((qkv.gain - 8.0 / 3.0).abs() < 1e-6);
    assert_eq!(entry("blocks.1.attn.proj.weight").shape, [384, 384]);
    assert_eq!(entry("blocks.1.attn.proj.weight").parent, "blocks.2.attn.proj.weight");
    assert_eq!(entry("blocks.0.mlp.fc1.weight").shape, [1536, 384]);
    assert_eq!(entry("blocks.0.mlp.fc2.weight").shape, [384, 1536]);
    assert_eq!(
        (&entry("pos_embed").shape[..], entry("pos_embed").gain),
        (&[197, 384][..], 1.0)
    );
    assert_eq!(entry("patch_embed.proj.weight").shape, [384, 3, 16, 16]);
    assert_eq!(entry("patch_embed.proj.weight").gain, 1.0);
    let layout = child.layout();
    let part = |name: &str| -> &LayoutTensor { layout.tensors.iter().find(|t| t.name == name).unwrap() };
    assert_eq!(part("embeddings.position_embeddings").shape, [1, 197, 384]);
    assert_eq!(part("embeddings.cls_token").shape, [1, 1, 384]);
    assert_eq!(part("embeddings.mask_token").shape, [1, 384]);
    let value = part("encoder.layer.11.attention.attention.value.weight");
    assert_eq!(
        (&value.shape[..], value.rows),
        (&[384, 384][..], Some((768, 1152, 1152)))
    );
    assert_eq!(
        plan.iter().map(|e| e.shape.iter().product::<usize>()).sum::<usize>(),
        21_675_264
    );
}

#[test]
fn operators_blocks_and_shapes_that_do_not_fit_are_refused() {
    let vit = small();
    let network = VitNetwork::new(vit.clone());
    let specs = network.specs();
    let good = network.child(&shape(6, 2), "p").unwrap();
    let child = open(&good.child).unwrap().specs();
    assert!(compile(&specs, Some(&child), &good).is_ok());
    let with = |axis: &str, operator: Operator| {
        let mut view = good.clone();
        view.axes.insert(axis.into(), operator);
        compile(&specs, Some(&child), &view).unwrap_err()
    };
    for (axis, of, operator) in [
        ("residual", 12, Operator::Prefix { size: 0 }),
        ("residual", 12, Operator::Prefix { size: 13 }),
        ("residual", 12, select(&[])),
        ("residual", 12, select(&[0, 1, 2, 3, 4, 12])),
        ("blocks.3.heads", 4, select(&[0, 4])),
        ("blocks.0.ffn", 24, Operator::Prefix { size: usize::MAX }),
        ("blocks.0.ffn", 24, select(&[usize::MAX])),
    ] {
        match with(axis, operator.clone()) {
            ViewError::Operator {
                axis: named,
                entries,
                operator: refused,
            } => {
                assert_eq!((named.as_str(), entries, refused), (axis, of, operator));
            }
            other => panic!("{axis} {operator:?}: {other}"),
        }
    }
    let blocks = |blocks: &[usize]| {
        let view = View {
            blocks: blocks.to_vec(),
            ..good.clone()
        };
        compile(&specs, Some(&child), &view).unwrap_err()
    };
    assert!(matches!(blocks(&[0, 4]), ViewError::Block(4)));
    assert!(matches!(blocks(&[usize::MAX, 0]), ViewError::Block(usize::MAX)));
    // Too few and too many blocks for the child.
    match blocks(&[0]) {
        ViewError::Child { name, given, .. } => assert!(name.starts_with("blocks.1.") && given.is_empty(), "{name}"),
        other => panic!("{other}"),
    }
    assert!(matches!(blocks(&[0, 3, 3]), ViewError::Child { .. }));
    // Heads that do not add up to the child's width, a residual axis that is not the child's.
    match with("blocks.3.heads", Operator::Prefix { size: 3 }) {
        ViewError::Child { name, given, asked } => {
            assert_eq!((name.as_str(), &given[..]), ("blocks.3.attn.qkv.weight", &[27, 6][..]));
            assert!(asked.contains("[18, 6]"), "{asked}");
        }
        other => panic!("{other}"),
    }
    assert!(matches!(
        with("residual", Operator::Prefix { size: 5 }),
        ViewError::Child { .. }
    ));
}

/// A misspelt axis would otherwise leave a child without its selection or its gain, silently.
#[test]
fn an_axis_that_the_parent_does_not_have_is_refused() {
    let network = VitNetwork::new(small());
    let specs = network.specs();
    let good = network.child(&shape(12, 4), "p").unwrap();
    for name in ["residul", "blocks.4.heads", "blocks.0", ""] {
        let mut view = good.clone();
        view.axes.insert(name.into(), Operator::All);
        let error = compile(&specs, Some(&specs), &view).unwrap_err();
        assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
        let mut view = good.clone();
        view.gains.insert(name.into(), 2.0);
        let error = compile(&specs, Some(&specs), &view).unwrap_err();
        assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
    }
}

#[test]
fn shapes_that_the_parent_cannot_give_are_refused() {
    let network = VitNetwork::new(small());
    for (width, depth) in [(0, 1), (12, 0), (15, 4), (12, 5), (7, 2), (usize::MAX, 1)] {
        assert!(network.child(&shape(width, depth), "p").is_err(), "{width}x{depth}");
    }
    assert!(
        network
            .child(&offshoot_family::Shape::new([("width", 6)]), "p")
            .is_err()
    );
}
