//! GGUF: files by the format's own package are read to the bit, what is written comes back, and bad files are refused.

mod hostile;
mod model;
mod round_trip;
mod tokenizer;

use std::path::{Path, PathBuf};

use offshoot_zoo::gguf::{Array, GgufError, GgufFile, Strings, TensorType, Value};
use offshoot_zoo::safetensors::SafetensorsFile;

use crate::bits;

/// A file that `interop/fixtures.py` wrote.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/gguf")
        .join(name)
}

#[test]
fn tensors_of_every_type_that_is_read_are_those_of_the_formats_own_package_to_the_bit() {
    let file = GgufFile::open(&fixture("types.gguf")).unwrap();
    let expected = SafetensorsFile::open(&fixture("expected.safetensors")).unwrap();
    assert_eq!(expected.names().len(), TensorType::READ.len() + 1);
    for name in expected.names() {
        file.check(&name).unwrap();
        let values = file.read(&name).unwrap();
        assert_eq!(bits(&values), bits(&expected.read(&name).unwrap()), "{name}");
        if name != "odd" {
            assert_eq!(file.shape(&name), Some(&[3, 512][..]), "{name}");
            assert_eq!(file.kind(&name).unwrap().name().to_lowercase(), name);
        }
    }
}

#[test]
fn a_type_that_is_not_read_is_named_with_those_that_are() {
    let file = GgufFile::open(&fixture("types.gguf")).unwrap();
    assert_eq!(file.shape("i32"), Some(&[2, 3][..]));
    for (name, kind) in [("iq4_nl", "IQ4_NL"), ("i32", "I32")] {
        let error = file.read(name).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, GgufError::Kind { .. }), "{text}");
        assert!(error.hint().is_some());
        assert!(
            text.ends_with(&format!(
                "types.gguf: tensor `{name}` is {kind}; F32, F16, BF16, F64, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K \
                 and Q6_K are read as numbers"
            )),
            "{text}"
        );
        assert_eq!(file.check(name).unwrap_err().to_string(), text);
    }
    let error = file.read("absent").unwrap_err();
    assert!(matches!(error, GgufError::Missing { .. }), "{error}");
}

#[test]
fn values_of_every_type_are_those_that_the_package_wrote() {
    let file = GgufFile::open(&fixture("types.gguf")).unwrap();
    assert_eq!(file.version(), 3);
    let values: Vec<(&str, Value)> = vec![
        ("general.architecture", "llama".into()),
        ("general.alignment", 64u32.into()),
        ("of.uint8", u8::MAX.into()),
        ("of.uint16", u16::MAX.into()),
        ("of.uint32", u32::MAX.into()),
        ("of.uint64", u64::MAX.into()),
        ("of.int8", i8::MIN.into()),
        ("of.int16", i16::MIN.into()),
        ("of.int32", i32::MIN.into()),
        ("of.int64", i64::MIN.into()),
        ("several.uint8", vec![u8::MAX, 0, 1].into()),
        ("several.uint16", vec![u16::MAX, 0, 1].into()),
        ("several.uint32", vec![u32::MAX, 0, 1].into()),
        ("several.uint64", vec![u64::MAX, 0, 1].into()),
        ("several.int8", vec![i8::MIN, 0, 1].into()),
        ("several.int16", vec![i16::MIN, 0, 1].into()),
        ("several.int32", vec![i32::MIN, 0, 1].into()),
        ("several.int64", vec![i64::MIN, 0, 1].into()),
        ("of.float32", (-1.5e-3f32).into()),
        ("of.float64", 1e300f64.into()),
        ("of.bool", true.into()),
        ("of.string", "naïve 日本".into()),
        ("several.float32", vec![0.5f32, -2.0].into()),
        ("several.float64", vec![1e300f64, -0.25].into()),
        ("several.bool", Array::Bool(vec![true, false, true]).into()),
        ("several.string", Strings::from_iter(["▁a", "b c", "\n"]).into()),
    ];
    assert_eq!(file.metadata().len(), values.len());
    for (key, value) in values {
        assert_eq!(file.metadata().get(key), Some(&value), "{key}");
    }
}
