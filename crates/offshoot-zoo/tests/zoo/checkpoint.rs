//! Checkpoint folders: round trips to the bit, export from file to file, sizes, and writing one tensor at a time.

use std::path::Path;

use offshoot_family::{Architecture, Vit};
use offshoot_zoo::checkpoint::{self, Checkpoint, WEIGHTS};
use offshoot_zoo::layout::Program;
use offshoot_zoo::materialize::materialize;
use offshoot_zoo::network::SpaceBounds;
use offshoot_zoo::safetensors::{self, SafetensorsError, SafetensorsFile};
use offshoot_zoo::tensor::Device;
use offshoot_zoo::vit::VitNetwork;
use offshoot_zoo::{Init, Network, TensorSpec, Weight, Weights, open, spec};

use crate::{all_bits, all_networks, bits, lively, preparation, small, whole_space};

fn read(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).unwrap()
}

#[test]
fn saved_weights_come_back_bit_for_bit() {
    let base = tempfile::tempdir().unwrap();
    let vit = Vit {
        channels: 3,
        head_dim: 4,
        norm_eps: 1e-5,
        ..small()
    };
    let network = VitNetwork::new(vit.clone());
    let mut weights = lively(&network.specs(), 1);
    let odd = [
        f32::NAN,
        -0.0,
        f32::from_bits(1),
        f32::INFINITY,
        f32::MAX,
        f32::from_bits(0xffc1_2345),
    ];
    weights.insert(
        "norm.bias",
        Weight::from_values(odd.repeat(2), vec![12], &Device::flex()),
    );
    checkpoint::save(&network, &weights, &preparation(&network), base.path()).unwrap();
    let opened = Checkpoint::open(base.path()).unwrap();
    assert_eq!(all_bits(&opened.weights(&Device::flex()).unwrap()), all_bits(&weights));
    // Exported models resample positions by transformers' rule; every other number comes back.
    let expected = Architecture::Vit(Vit {
        position_offset: 0.0,
        layer_scale: 1e-5,
        classes: 0,
        ..vit
    });
    assert_eq!(opened.network().architecture(), expected);
    assert_eq!(checkpoint::architecture(base.path()).unwrap(), expected);
    assert_eq!(
        opened.hash().unwrap(),
        blake3::hash(&read(base.path(), WEIGHTS)).to_hex().to_string()
    );
    // Saving what was opened writes the same bytes again.
    let again = base.path().join("again");
    checkpoint::save(opened.network(), &weights, &preparation(&network), &again).unwrap();
    assert!(read(base.path(), WEIGHTS) == read(&again, WEIGHTS));
    assert!(read(base.path(), "config.json") == read(&again, "config.json"));
}

/// What a folder says of a network: transformers resamples positions by its own rule, every other number comes back.
fn as_read(architecture: &Architecture) -> Architecture {
    match architecture {
        Architecture::Vit(vit) => Architecture::Vit(Vit {
            position_offset: 0.0,
            ..vit.clone()
        }),
        other => other.clone(),
    }
}

/// What a folder keeps of weights: a tensor that the layout leaves out comes back as it started.
fn as_written(network: &dyn Network, weights: &Weights) -> Weights {
    let layout = network.layout();
    let mut kept = weights.clone();
    for spec in network.specs() {
        if layout.tensors.iter().all(|part| part.tensor != spec.name) {
            assert_eq!((spec.name.as_str(), spec.init), ("mask_token", Init::Constant(0.0)));
            let zeros = vec![0.0; spec.elements()];
            kept.insert(&spec.name, Weight::from_values(zeros, spec.shape(), &Device::flex()));
        }
    }
    kept
}

#[test]
fn a_child_exported_from_file_to_file_is_the_materialized_child_byte_for_byte() {
    let base = tempfile::tempdir().unwrap();
    for (number, network) in all_networks().into_iter().enumerate() {
        let base = base.path().join(number.to_string());
        let weights = lively(&network.specs(), 2);
        let prepared = preparation(network.as_ref());
        checkpoint::save(network.as_ref(), &weights, &prepared, &base.join("parent")).unwrap();
        let parent = Checkpoint::open(&base.join("parent")).unwrap();
        assert_eq!(parent.network().architecture(), as_read(&network.architecture()));
        let read_back = parent.weights(&Device::flex()).unwrap();
        assert_eq!(all_bits(&read_back), all_bits(&as_written(network.as_ref(), &weights)));
        let hash = parent.hash().unwrap();
        let space = whole_space(network.as_ref());
        for shape in space.iter() {
            let view = parent.network().child(&shape, &hash).unwrap();
            let (child, plan) = parent.plan(&view).unwrap();
            let (exported, saved) = (base.join(format!("e{shape}")), base.join(format!("s{shape}")));
            parent
                .export_child(&view, Program::Usual, &prepared, &exported)
                .unwrap();
            let folded = materialize(&weights, &plan);
            checkpoint::save(child.as_ref(), &folded, &prepared, &saved).unwrap();
            for file in [WEIGHTS, "config.json", "preprocessor_config.json"] {
                assert!(read(&exported, file) == read(&saved, file), "{shape}: {file}");
            }
            let opened = Checkpoint::open(&exported).unwrap();
            let own = opened.network().architecture();
            assert_eq!(own, as_read(&view.child));
            let of_shape = open(&own).unwrap().space(SpaceBounds::default()).unwrap().intact();
            for (axis, size) in shape.iter() {
                assert!(
                    of_shape.get(axis).is_none_or(|own| own == size),
                    "{shape}: {axis} of {own:?}"
                );
            }
            let written = as_written(child.as_ref(), &folded);
            assert_eq!(all_bits(&opened.weights(&Device::flex()).unwrap()), all_bits(&written));
            let bytes = std::fs::metadata(exported.join(WEIGHTS)).unwrap().len();
            assert_eq!(child.layout().bytes(), bytes, "{shape}");
            let elements: usize = child
                .layout()
                .shapes()
                .iter()
                .map(|(_, s)| s.iter().product::<usize>())
                .sum();
            let left_out = |spec: &&TensorSpec| child.layout().tensors.iter().all(|t| t.tensor != spec.name);
            let left_out: usize = child.specs().iter().filter(left_out).map(TensorSpec::elements).sum();
            assert_eq!((elements + left_out) as u64, spec::parameters(&child.specs()));
            // Three files and nothing temporary.
            assert_eq!(std::fs::read_dir(&exported).unwrap().count(), 3);
        }
        let whole = base.join(format!("e{}", space.intact()));
        assert!(
            read(&whole, WEIGHTS) == read(&base.join("parent"), WEIGHTS),
            "the full child is the parent"
        );
    }
}

/// Tensors of 2 MiB against a write buffer of 1 MiB: what was handed over before is on disk when the next is asked for.
#[test]
fn the_writer_asks_for_one_tensor_at_a_time() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("big.safetensors");
    let tensors: Vec<(String, Vec<usize>)> = (0..4).map(|i| (format!("t{i}"), vec![1 << 10, 1 << 9])).collect();
    let mut asked = Vec::new();
    safetensors::write(&path, &tensors, |i| {
        let mut entries = std::fs::read_dir(base.path()).unwrap();
        let (first, second) = (entries.next().unwrap().unwrap(), entries.next());
        assert!(
            second.is_none() && !path.exists(),
            "one temporary file and no result yet"
        );
        let on_disk = first.metadata().unwrap().len();
        let handed_over = (i as u64) << 21;
        assert!(
            on_disk + (1 << 20) >= handed_over,
            "{on_disk} bytes on disk of {handed_over}"
        );
        asked.push(i);
        Ok::<_, SafetensorsError>(vec![i as f32; 1 << 19])
    })
    .unwrap();
    assert_eq!(asked, [0, 1, 2, 3]);
    let shapes = || tensors.iter().map(|(name, shape)| (name.as_str(), &shape[..]));
    assert_eq!(
        std::fs::metadata(&path).unwrap().len(),
        safetensors::file_bytes(shapes())
    );
    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.names(), ["t0", "t1", "t2", "t3"]);
    assert!((0..4).all(|i| file.read(&format!("t{i}")).unwrap() == vec![i as f32; 1 << 19]));
}

/// A safetensors file made by hand, byte by byte.
pub(crate) fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

#[test]
fn the_written_bytes_are_the_format() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("w.safetensors");
    let tensors = vec![
        ("b".to_owned(), vec![2]),
        ("a".to_owned(), vec![1, 1]),
        ("none".to_owned(), vec![0, 3]),
    ];
    let values = [vec![1.0, -0.5], vec![f32::INFINITY], vec![]];
    safetensors::write(&path, &tensors, |i| Ok::<_, SafetensorsError>(values[i].clone())).unwrap();
    let mut header = concat!(
        r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"#,
        r#""a":{"dtype":"F32","shape":[1,1],"data_offsets":[8,12]},"#,
        r#""none":{"dtype":"F32","shape":[0,3],"data_offsets":[12,12]}}"#
    )
    .to_owned();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let data = [0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf, 0, 0, 0x80, 0x7f];
    assert_eq!(std::fs::read(&path).unwrap(), raw(&header, &data));
    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!((file.metadata("format"), file.metadata("other")), (Some("pt"), None));
    assert_eq!((file.shape("a"), file.shape("c")), (Some(&[1, 1][..]), None));
    assert!(file.read("none").unwrap().is_empty());
}

/// The types that imported checkpoints come in, each with numbers that are exact in it.
#[test]
fn half_and_double_precision_are_read_as_numbers() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("t.safetensors");
    let header = concat!(
        r#"{"half":{"dtype":"F16","shape":[3],"data_offsets":[0,6]},"#,
        r#""brain":{"dtype":"BF16","shape":[2],"data_offsets":[6,10]},"#,
        r#""double":{"dtype":"F64","shape":[2],"data_offsets":[10,26]},"#,
        r#""bytes":{"dtype":"U8","shape":[2],"data_offsets":[26,28]}}"#
    );
    // 1, -2, 2^-24 (the smallest); -1, 3.140625; 0.5, 1e300.
    let mut data = vec![0x00, 0x3c, 0x00, 0xc0, 0x01, 0x00, 0x80, 0xbf, 0x49, 0x40];
    data.extend(0.5f64.to_le_bytes());
    data.extend(1e300f64.to_le_bytes());
    data.extend([7, 255]);
    std::fs::write(&path, raw(header, &data)).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.read("half").unwrap(), [1.0, -2.0, 2f32.powi(-24)]);
    assert_eq!(bits(&file.read("brain").unwrap()), bits(&[-1.0, 3.140625]));
    assert_eq!(file.read("double").unwrap(), [0.5, f32::INFINITY]);
    assert_eq!(file.read_bytes("bytes").unwrap(), [7, 255]);
    let error = file.read("bytes").unwrap_err();
    assert!(
        matches!(&error, SafetensorsError::Dtype { name, .. } if name == "bytes"),
        "{error}"
    );
    assert!(
        error.to_string().contains(path.to_str().unwrap()) && error.to_string().contains("U8"),
        "{error}"
    );
    assert!(matches!(file.read("other"), Err(SafetensorsError::Missing { .. })));
}

/// An imported half-precision checkpoint opens, and its export is full precision of the same numbers.
#[test]
fn a_half_precision_parent_is_exported_in_full_precision() {
    let base = tempfile::tempdir().unwrap();
    let vit = Vit {
        width: 3,
        depth: 1,
        image: 2,
        ..small()
    };
    let network = VitNetwork::new(vit.clone());
    let layout = network.layout();
    let mut header = Vec::new();
    let (mut data, mut end) = (Vec::new(), 0);
    for (name, shape) in layout.shapes() {
        let n: usize = shape.iter().product();
        header.push(format!(
            r#""{name}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{end},{}]}}"#,
            end + 2 * n
        ));
        end += 2 * n;
        // 1, 1.5, 2, 3, ... in bfloat16.
        data.extend((0..n).flat_map(|i| (0x3f80u16 + 0x40 * (i as u16 % 5)).to_le_bytes()));
    }
    let parent = base.path().join("parent");
    checkpoint::save(&network, &lively(&network.specs(), 1), &preparation(&network), &parent).unwrap();
    std::fs::write(parent.join(WEIGHTS), raw(&format!("{{{}}}", header.join(",")), &data)).unwrap();
    let opened = Checkpoint::open(&parent).unwrap();
    let view = opened.network().child(&crate::shape(3, 1), "").unwrap();
    opened
        .export_child(
            &view,
            Program::Usual,
            &preparation(&network),
            &base.path().join("child"),
        )
        .unwrap();
    let child = Checkpoint::open(&base.path().join("child"))
        .unwrap()
        .weights(&Device::flex())
        .unwrap();
    assert_eq!(child.get("norm.bias").unwrap().values(), [1.0, 1.5, 2.0]);
    // The rows of query, key and value stand one below the other.
    let qkv = child.get("blocks.0.attn.qkv.bias").unwrap().values();
    assert_eq!(qkv, [1.0, 1.5, 2.0, 1.0, 1.5, 2.0, 1.0, 1.5, 2.0]);
}
