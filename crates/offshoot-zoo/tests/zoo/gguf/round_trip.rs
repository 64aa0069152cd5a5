//! What is written comes back: values, shapes and numbers; a failed write leaves what was there.

use std::path::Path;

use half::f16;
use offshoot_zoo::gguf::{Array, GgufError, GgufFile, Metadata, Strings, Tensor, TensorType, Value, file_bytes, write};
use offshoot_zoo::safetensors::SafetensorsFile;
use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::fixture;
use crate::{bits, numbers};

fn tensor(name: &str, shape: &[usize], kind: TensorType) -> Tensor {
    Tensor {
        name: name.into(),
        shape: shape.to_vec(),
        kind,
    }
}

fn written(path: &Path, metadata: &Metadata, tensors: &[(Tensor, Vec<f32>)]) -> Result<(), GgufError> {
    let infos: Vec<_> = tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
    write(path, metadata, &infos, |i| Ok::<_, GgufError>(tensors[i].1.clone()))
}

fn array() -> impl Strategy<Value = Array> {
    let plain = prop_oneof![
        vec(any::<u8>(), 0..5).prop_map(Array::U8),
        vec(any::<i8>(), 0..5).prop_map(Array::I8),
        vec(any::<u16>(), 0..5).prop_map(Array::U16),
        vec(any::<i16>(), 0..5).prop_map(Array::I16),
        vec(any::<u32>(), 0..5).prop_map(Array::U32),
        vec(any::<i32>(), 0..5).prop_map(Array::I32),
        vec(any::<u64>(), 0..5).prop_map(Array::U64),
        vec(any::<i64>(), 0..5).prop_map(Array::I64),
        vec(-1e30f32..1e30, 0..5).prop_map(Array::F32),
        vec(-1e300f64..1e300, 0..5).prop_map(Array::F64),
        vec(any::<bool>(), 0..5).prop_map(Array::Bool),
        vec(any::<String>(), 0..5).prop_map(|texts| Array::Text(Strings::from_iter(texts))),
    ];
    plain.prop_recursive(4, 20, 4, |inner| vec(inner, 0..4).prop_map(Array::Nested))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e30f32..1e30).prop_map(Value::F32),
        (-1e300f64..1e300).prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        any::<String>().prop_map(Value::Text),
        array().prop_map(Value::Array),
    ]
}

fn shape() -> impl Strategy<Value = (Vec<usize>, TensorType)> {
    prop_oneof![
        (vec(1usize..5, 1..5), Just(TensorType::F32)),
        (vec(1usize..5, 1..5), Just(TensorType::F16)),
        (vec(1usize..4, 0..3), 1usize..4).prop_map(|(mut shape, blocks)| {
            shape.push(32 * blocks);
            (shape, TensorType::Q8_0)
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn values_and_tensors_come_back_as_they_were_written(
        values in vec(("[a-z.]{1,20}", value()), 0..8),
        tensors in vec(shape(), 0..6),
        alignment in prop_oneof![Just(None), (0u32..8).prop_map(|n| Some(1u32 << n))],
        seed in any::<u64>(),
    ) {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("x.gguf");
        let mut metadata = Metadata::new();
        if let Some(bytes) = alignment {
            metadata.set("general.alignment", bytes);
        }
        for (key, value) in values {
            metadata.set(&key, value);
        }
        let tensors: Vec<_> = tensors.iter().enumerate().map(|(i, (shape, kind))| {
            let values = numbers(seed.wrapping_add(i as u64), shape.iter().product());
            (tensor(&format!("t.{i}"), shape, *kind), values)
        }).collect();
        written(&path, &metadata, &tensors).unwrap();
        let infos: Vec<_> = tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
        prop_assert_eq!(std::fs::metadata(&path).unwrap().len(), file_bytes(&metadata, &infos).unwrap());
        let file = GgufFile::open(&path).unwrap();
        prop_assert_eq!(file.metadata(), &metadata);
        prop_assert_eq!(file.names().len(), tensors.len());
        for (tensor, values) in &tensors {
            prop_assert_eq!(file.shape(&tensor.name), Some(&tensor.shape[..]));
            prop_assert_eq!(file.kind(&tensor.name), Some(tensor.kind));
            let read = file.read(&tensor.name).unwrap();
            let wanted: Vec<f32> = match tensor.kind {
                TensorType::F16 => values.iter().map(|&v| f16::from_f32(v).to_f32()).collect(),
                _ => values.clone(),
            };
            if tensor.kind == TensorType::Q8_0 {
                // Half a step of the largest number in 127 steps, and the rounding of the step itself.
                for (block, given) in read.chunks(32).zip(values.chunks(32)) {
                    let largest = given.iter().fold(0f32, |l, v| l.max(v.abs()));
                    let off = block.iter().zip(given).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                    prop_assert_eq!(off <= largest / 254.0 + largest / 1500.0, true, "{} of {}", off, largest);
                }
            } else {
                prop_assert_eq!(bits(&read), bits(&wanted));
            }
        }
    }
}

#[test]
fn q8_blocks_are_those_of_the_formats_own_package_to_the_bit() {
    let expected = SafetensorsFile::open(&fixture("expected.safetensors")).unwrap();
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("x.gguf");
    for (kind, name) in [(TensorType::Q8_0, "q8_0"), (TensorType::F16, "f16")] {
        let values = expected.read("f32").unwrap();
        written(&path, &Metadata::new(), &[(tensor(name, &[3, 512], kind), values)]).unwrap();
        let read = GgufFile::open(&path).unwrap().read(name).unwrap();
        assert_eq!(bits(&read), bits(&expected.read(name).unwrap()), "{name}");
    }
}

#[test]
fn what_the_format_has_no_place_for_is_refused_and_nothing_is_written() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("x.gguf");
    std::fs::write(&path, "what stood here").unwrap();
    let f32s = |name: &str, shape: &[usize]| (tensor(name, shape, TensorType::F32), vec![0.0; shape.iter().product()]);
    let mut uneven = Metadata::new();
    uneven.set("general.alignment", 24u32);
    let mut unnamed = Metadata::new();
    unnamed.set("", 1u32);
    let plain = Metadata::new();
    let cases = [
        (&plain, vec![f32s(&"n".repeat(64), &[1])], "64 bytes"),
        (&plain, vec![f32s("", &[1])], "0 bytes"),
        (&plain, vec![f32s("t", &[1]), f32s("t", &[1])], "comes twice"),
        (&plain, vec![f32s("t", &[1, 0])], "shape [1, 0]"),
        (&plain, vec![f32s("t", &[])], "shape []"),
        (&plain, vec![f32s("t", &[1; 5])], "shape [1, 1, 1, 1, 1]"),
        (
            &plain,
            vec![(tensor("t", &[2, 48], TensorType::Q8_0), vec![0.0; 96])],
            "a multiple of 32",
        ),
        (
            &plain,
            vec![(tensor("t", &[256], TensorType::Q6K), vec![0.0; 256])],
            "F32, F16 and Q8_0 are written",
        ),
        (&uneven, vec![], "no power of two"),
        (&unnamed, vec![], "the name of a value"),
    ];
    for (metadata, tensors, reason) in cases {
        let error = written(&path, metadata, &tensors).unwrap_err();
        assert!(matches!(error, GgufError::Unwritable { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    let hot = |value: f32, kind| {
        let mut values = vec![0.5; 64];
        values[40] = value;
        written(&path, &plain, &[(tensor("hot", &[2, 32], kind), values)])
    };
    for (value, kind) in [
        (1e5, TensorType::F16),
        (-1e30, TensorType::Q8_0),
        (f32::NAN, TensorType::Q8_0),
        (f32::INFINITY, TensorType::Q8_0),
    ] {
        let error = hot(value, kind).unwrap_err();
        assert!(matches!(error, GgufError::Range { .. }), "{error}");
        assert!(error.hint().is_some());
    }
    let failed = write(&path, &plain, &[tensor("t", &[1], TensorType::F32)], |_| {
        Err(GgufError::Missing {
            path: path.clone(),
            name: "t".into(),
        })
    });
    assert!(matches!(failed, Err(GgufError::Missing { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "what stood here");
    assert_eq!(
        std::fs::read_dir(base.path()).unwrap().count(),
        1,
        "nothing half written"
    );
    // Infinity is a number of 16 bits.
    hot(f32::INFINITY, TensorType::F16).unwrap();
}
