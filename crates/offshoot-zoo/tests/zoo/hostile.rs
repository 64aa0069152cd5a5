//! Bad files: each is an error that names the file, never a panic and never a large allocation; a failed write leaves what
//! was there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use offshoot_family::Vit;
use offshoot_zoo::checkpoint::{self, Checkpoint, CheckpointError, WEIGHTS};
use offshoot_zoo::layout::Program;
use offshoot_zoo::materialize::ViewError;
use offshoot_zoo::safetensors::{self, SafetensorsError, SafetensorsFile};
use offshoot_zoo::tensor::Device;
use offshoot_zoo::vit::VitNetwork;
use offshoot_zoo::{Network, open};
use serde_json::{Value, json};

use crate::checkpoint::raw;
use crate::{lively, numbers, preparation, shape, small};

/// Runs `f` and checks that the address space did not grow by a gibibyte meanwhile, which no honest file here needs.
pub(crate) fn frugal<T>(f: impl FnOnce() -> T) -> T {
    // "VmPeak:  123456 kB"; nowhere but on Linux.
    let peak = || -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        status
            .lines()
            .find(|l| l.starts_with("VmPeak"))?
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()
    };
    let before = peak();
    let result = f();
    if let (Some(before), Some(after)) = (before, peak()) {
        assert!(
            after - before < 1 << 20,
            "the address space grew by {} kB",
            after - before
        );
    }
    result
}

fn save_small(folder: &Path, vit: &Vit) {
    let network = VitNetwork::new(vit.clone());
    checkpoint::save(&network, &lively(&network.specs(), 1), &preparation(&network), folder).unwrap();
}

fn refused(path: &Path, bytes: &[u8], what: &str) -> String {
    std::fs::write(path, bytes).unwrap();
    let error = frugal(|| SafetensorsFile::open(path)).map(|_| ()).expect_err(what);
    assert!(matches!(error, SafetensorsError::Invalid { .. }), "{what}: {error}");
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()), "{what}: {text}");
    text
}

const TWO: &str = concat!(
    r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"#,
    r#""b":{"dtype":"F32","shape":[1,3],"data_offsets":[8,20]}}"#
);

#[test]
fn truncated_and_padded_files_are_refused_at_every_length() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("x.safetensors");
    let whole = raw(TWO, &[1; 20]);
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(SafetensorsFile::open(&path).unwrap().names(), ["a", "b"]);
    for length in 0..whole.len() {
        refused(&path, &whole[..length], &format!("the first {length} bytes"));
    }
    let text = refused(&path, &whole[..whole.len() - 1], "one byte short");
    assert!(
        text.contains("promises 20 bytes") && text.contains("holds 19"),
        "{text}"
    );
    refused(&path, &[&whole[..], &[0]].concat(), "one byte more");
}

#[test]
fn impossible_header_sizes_are_refused_before_anything_is_allocated() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("x.safetensors");
    let whole = raw(TWO, &[1; 20]);
    let inside = whole.len() as u64 - 8;
    for size in [
        inside + 1,
        100_000_001,
        1 << 32,
        1 << 40,
        i64::MAX as u64,
        u64::MAX - 7,
        u64::MAX,
    ] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&size.to_le_bytes());
        assert!(refused(&path, &bytes, &size.to_string()).contains(&size.to_string()));
    }
    // A header that is as large as the file, and one of nothing.
    for size in [inside, TWO.len() as u64 - 1, 1, 0] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&size.to_le_bytes());
        refused(&path, &bytes, &size.to_string());
    }
    // A sparse file that is long enough for the claim: the limit of the format still holds.
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 38).unwrap();
    std::io::Write::write_all(&mut &file, &(1u64 << 37).to_le_bytes()).unwrap();
    drop(file);
    assert!(frugal(|| SafetensorsFile::open(&path)).is_err());
}

#[test]
fn headers_that_lie_are_refused() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("x.safetensors");
    let tensor = |dtype: &str, shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let one = |dtype: &str, shape: &str, start, end| format!(r#"{{"a":{}}}"#, tensor(dtype, shape, start, end));
    let two = |names: [&str; 2], first: [u64; 2], second: [u64; 2]| {
        let [first, second] = [first, second].map(|[start, end]| tensor("F32", "[2]", start, end));
        format!(r#"{{"{}":{first},"{}":{second}}}"#, names[0], names[1])
    };
    let names = ["a", "b"];
    let cases: Vec<(&str, String, usize)> = vec![
        ("not JSON", "hello, world".into(), 0),
        ("half of a JSON", r#"{"a":{"dtype":"F32""#.into(), 0),
        ("no object", "[1,2,3]".into(), 0),
        ("a number", "7".into(), 0),
        ("null", "null".into(), 0),
        ("deep", "[".repeat(100_000), 0),
        ("deep inside", format!(r#"{{"a":{}"#, r#"{"a":"#.repeat(50_000)), 0),
        ("a tensor that is none", r#"{"a":3}"#.into(), 0),
        ("two values", format!("{TWO}{TWO}"), 20),
        ("overlap", two(names, [0, 8], [4, 12]), 12),
        ("the same place twice", two(names, [0, 8], [0, 8]), 8),
        ("a gap", two(names, [0, 8], [12, 20]), 20),
        ("a gap in front", one("F32", "[2]", 4, 12), 12),
        ("bytes behind", one("F32", "[2]", 0, 8), 12),
        ("outside the file", one("F32", "[2]", 0, 8), 4),
        ("far outside the file", one("F32", "[1099511627776]", 0, 1 << 42), 4),
        ("end before start", two(names, [0, 8], [8, 0]), 8),
        (
            "offsets at the end of the numbers",
            one("F32", "[2]", u64::MAX - 7, u64::MAX),
            8,
        ),
        (
            "offsets that overflow with the header",
            one("U8", &format!("[{}]", u64::MAX), 0, u64::MAX),
            8,
        ),
        ("a shape that overflows", one("F32", "[4294967296,4294967296]", 0, 0), 0),
        (
            "a shape that overflows in bytes",
            one("F32", "[9223372036854775807]", 0, 8),
            8,
        ),
        (
            "a shape beyond the numbers",
            one("F32", "[18446744073709551616]", 0, 8),
            8,
        ),
        ("more elements than bytes", one("F32", "[3]", 0, 8), 8),
        ("fewer elements than bytes", one("F32", "[1]", 0, 8), 8),
        ("a negative size", one("F32", "[-2]", 0, 8), 8),
        ("a fraction", one("F32", "[2.0]", 0, 8), 8),
        ("a type unknown", one("F33", "[2]", 0, 8), 8),
        ("a name twice", two(["a", "a"], [0, 8], [8, 16]), 16),
        ("a name twice, the second in place", two(["a", "a"], [8, 16], [0, 8]), 8),
        ("a name twice, alike", two(["a", "a"], [0, 8], [0, 8]), 8),
        ("a name twice, once escaped", two(["a", "\\u0061"], [0, 8], [0, 8]), 8),
    ];
    for (what, header, data) in cases {
        refused(&path, &raw(&header, &vec![0; data]), what);
    }
    let mut bytes = raw(TWO, &[0; 20]);
    bytes[10] = 0xff;
    refused(&path, &bytes, "not UTF-8");
    // A tensor of nothing is in order, and so is a file of nothing.
    std::fs::write(&path, raw(&one("F32", "[0,4]", 0, 0), &[])).unwrap();
    assert!(SafetensorsFile::open(&path).unwrap().read("a").unwrap().is_empty());
    std::fs::write(&path, raw("{}", &[])).unwrap();
    assert!(SafetensorsFile::open(&path).unwrap().names().is_empty());
    for wrong in [base.path().join("none"), base.path().to_owned()] {
        let error = SafetensorsFile::open(&wrong).map(|_| ()).unwrap_err();
        assert!(matches!(error, SafetensorsError::Io { .. }), "{error}");
        assert!(error.to_string().contains(wrong.to_str().unwrap()), "{error}");
    }
}

/// Whatever a few changed bytes make of a file: an error, or tensors that can be read.
#[test]
fn changed_bytes_never_panic() {
    let base = tempfile::tempdir().unwrap();
    let (path, folder) = (base.path().join("x.safetensors"), base.path().join("c"));
    let whole = raw(TWO, &[1; 20]);
    let picks = numbers(5, 4 * 600);
    let pick = |i: usize, n: usize| ((picks[i] + 1.0) * 0.5 * n as f32) as usize % n;
    for i in (0..4 * 600).step_by(4) {
        let mut bytes = whole.clone();
        bytes[8 + pick(i, TWO.len())] = b"0123456789\"{}[],:-e.aF\xff "[pick(i + 1, 24)];
        bytes[pick(i + 2, whole.len())] ^= 1 << pick(i + 3, 8);
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(file) = frugal(|| SafetensorsFile::open(&path)) {
            for name in file.names() {
                let _ = file.read(&name);
            }
        }
    }
    save_small(&folder, &Vit { depth: 1, ..small() });
    let config = std::fs::read(folder.join("config.json")).unwrap();
    for i in (0..4 * 300).step_by(4) {
        let mut bytes = config.clone();
        bytes[pick(i, config.len())] = b"0123456789\"{}[],:-e.\xff"[pick(i + 1, 21)];
        bytes[pick(i + 2, config.len())] ^= 1 << pick(i + 3, 8);
        std::fs::write(folder.join("config.json"), &bytes).unwrap();
        if let Ok(checkpoint) = frugal(|| Checkpoint::open(&folder)) {
            assert_eq!(
                checkpoint
                    .weights(&Device::flex())
                    .unwrap()
                    .mismatch(&checkpoint.network().specs()),
                None
            );
        }
    }
}

/// Opens a folder whose `config.json` is `text` beside honest weights; gives the error, which must name the file.
fn config_refused(folder: &Path, text: &[u8]) -> CheckpointError {
    std::fs::write(folder.join("config.json"), text).unwrap();
    let what = String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned();
    let error = frugal(|| Checkpoint::open(folder)).map(|_| ()).expect_err(&what);
    assert!(error.to_string().contains(folder.to_str().unwrap()), "{error}");
    error
}

#[test]
fn bad_configurations_are_refused_without_allocating() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    save_small(folder, &small());
    let good: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let sizes = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "mlp_ratio",
        "image_size",
        "patch_size",
        "num_channels",
    ];
    let big = [
        1 << 20,
        (1 << 20) + 1,
        1 << 31,
        1 << 32,
        1 << 53,
        i64::MAX as u64,
        u64::MAX,
    ];
    for key in sizes {
        let with = |value: Value| {
            let mut config = good.clone();
            config[key] = value;
            config_refused(folder, config.to_string().as_bytes())
        };
        for value in [
            json!(0),
            json!(-1),
            json!(i64::MIN),
            json!(2.5),
            json!(1e300),
            json!("12"),
            json!([4]),
        ] {
            let shown = value.to_string();
            let error = with(value);
            assert!(
                matches!(error, CheckpointError::Config { .. }),
                "{key} = {shown}: {error}"
            );
        }
        for value in big {
            let error = with(json!(value));
            let expected = matches!(error, CheckpointError::Config { .. } | CheckpointError::Mismatch { .. });
            assert!(expected, "{key} = {value}: {error}");
        }
        // transformers' own default stands for a number that is missing or null: another model than these weights.
        let mut without = good.clone();
        without.as_object_mut().unwrap().remove(key);
        let mut null = good.clone();
        null[key] = Value::Null;
        for config in [without, null] {
            let error = frugal(|| {
                std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
                Checkpoint::open(folder).map(|_| ())
            });
            match (key, error) {
                // No tensor's shape tells the number of heads.
                ("num_attention_heads", opened) => assert!(opened.is_ok()),
                (_, Err(error)) => assert!(error.to_string().contains(folder.to_str().unwrap()), "{key}: {error}"),
                (_, Ok(())) => panic!("a model without {key} was opened"),
            }
        }
    }
    // All of them huge at once: every shape would overflow.
    let mut config = good.clone();
    for key in sizes {
        config[key] = json!(if key == "num_channels" { 3 } else { 1 << 20 });
    }
    config_refused(folder, config.to_string().as_bytes());
    for (key, value) in [
        ("layer_norm_eps", json!(0)),
        ("layer_norm_eps", json!(-1e-6)),
        ("layer_norm_eps", json!(1e300)),
        ("layer_norm_eps", json!("small")),
        ("hidden_act", json!("relu")),
        ("use_swiglu_ffn", json!(true)),
        ("qkv_bias", json!(false)),
        ("model_type", json!("bert")),
        ("model_type", json!(3)),
    ] {
        let mut config = good.clone();
        config[key] = value;
        let error = config_refused(folder, config.to_string().as_bytes());
        assert!(matches!(error, CheckpointError::Config { .. }), "{key}: {error}");
        let told = error.to_string();
        assert!(told.contains(key) || told.contains("norm_eps"), "{key}: {told}");
    }
    let empty = config_refused(folder, b"{}").to_string();
    assert!(empty.contains("config.json") && empty.contains("model_type"), "{empty}");
    for text in [
        &b""[..],
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b"PK\x03\x04",
        "[".repeat(200_000).as_bytes(),
    ] {
        assert!(matches!(config_refused(folder, text), CheckpointError::Config { .. }));
    }
    // More than 4 MiB of blanks around good JSON are too much; just under it is not.
    let text = good.to_string();
    let padded = |n: usize| [text.as_bytes(), &vec![b' '; n - text.len()]].concat();
    let error = config_refused(folder, &padded((1 << 22) + 1));
    assert!(error.to_string().contains("4 MiB"), "{error}");
    std::fs::write(folder.join("config.json"), padded(1 << 22)).unwrap();
    assert!(Checkpoint::open(folder).is_ok());
}

#[test]
fn weights_of_another_configuration_are_refused_by_name() {
    let base = tempfile::tempdir().unwrap();
    let (one, other) = (base.path().join("one"), base.path().join("other"));
    let mixed = |vit: Vit| {
        save_small(&one, &small());
        save_small(&other, &vit);
        std::fs::copy(other.join(WEIGHTS), one.join(WEIGHTS)).unwrap();
        let error = Checkpoint::open(&one).map(|_| ()).unwrap_err();
        assert!(matches!(error, CheckpointError::Mismatch { .. }), "{error}");
        assert!(error.hint().unwrap().contains("different models"));
        assert!(
            error.to_string().contains(one.join(WEIGHTS).to_str().unwrap()),
            "{error}"
        );
        error.to_string()
    };
    let wider = mixed(Vit { width: 15, ..small() });
    assert!(
        wider.contains("`embeddings.cls_token` is [1, 1, 15], the configuration asks for [1, 1, 12]"),
        "{wider}"
    );
    assert!(wider.contains("more"), "{wider}");
    let deeper = mixed(Vit { depth: 5, ..small() });
    assert!(
        deeper.contains("`encoder.layer.4.") && deeper.contains("is not part of it"),
        "{deeper}"
    );
    let flatter = mixed(Vit { depth: 3, ..small() });
    assert!(
        flatter.contains("`encoder.layer.3.") && flatter.contains("is missing"),
        "{flatter}"
    );
    let grid = mixed(Vit { image: 8, ..small() });
    assert!(
        grid.contains("`embeddings.position_embeddings` is [1, 17, 12]"),
        "{grid}"
    );
    std::fs::remove_file(one.join(WEIGHTS)).unwrap();
    let missing = Checkpoint::open(&one).map(|_| ()).unwrap_err();
    assert!(missing.to_string().contains(WEIGHTS), "{missing}");
    std::fs::remove_file(one.join("config.json")).unwrap();
    let missing = Checkpoint::open(&one).map(|_| ()).unwrap_err();
    assert!(
        missing.to_string().contains("config.json") && missing.hint().is_some(),
        "{missing}"
    );
}

/// Right names and shapes, wrong type: found when it is read, and nothing is exported.
#[test]
fn weights_that_are_no_numbers_are_refused_and_leave_no_export() {
    let base = tempfile::tempdir().unwrap();
    let (parent, child) = (base.path().join("parent"), base.path().join("child"));
    save_small(&parent, &small());
    let layout = VitNetwork::new(small()).layout();
    let mut end = 0;
    let infos: Vec<String> = layout
        .shapes()
        .into_iter()
        .map(|(name, shape)| {
            let start = end;
            // One tensor of bytes deep inside, all others empty of meaning but of the right type.
            let (dtype, size) = if name.contains("layer.3.mlp.fc2.weight") {
                ("I8", 1)
            } else {
                ("F32", 4)
            };
            end += size * shape.iter().product::<usize>();
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    std::fs::write(
        parent.join(WEIGHTS),
        raw(&format!("{{{}}}", infos.join(",")), &vec![0; end]),
    )
    .unwrap();
    let opened = Checkpoint::open(&parent).unwrap();
    let view = opened.network().child(&shape(6, 2), "").unwrap();
    let errors = [
        opened.weights(&Device::flex()).map(|_| ()).unwrap_err(),
        opened
            .export_child(&view, Program::Usual, &preparation(&VitNetwork::new(small())), &child)
            .unwrap_err(),
    ];
    for error in errors {
        let told = error.to_string();
        assert!(
            told.contains("encoder.layer.3.mlp.fc2.weight") && told.contains("I8"),
            "{told}"
        );
        assert!(told.contains(parent.to_str().unwrap()), "{told}");
    }
    assert_eq!(std::fs::read_dir(&child).unwrap().count(), 0);
}

/// A view is a file too: one that asks for more than the parent has is refused before anything is made of it.
#[test]
fn views_of_impossible_children_are_refused_without_allocating() {
    let base = tempfile::tempdir().unwrap();
    save_small(base.path(), &small());
    let parent = Checkpoint::open(base.path()).unwrap();
    let view = parent.network().child(&shape(6, 2), "p").unwrap();
    let good = serde_json::to_value(&view).unwrap();
    for (key, value) in [
        ("depth", 1 << 20),
        ("depth", usize::MAX),
        ("width", 3 << 18),
        ("mlp_ratio", 1 << 20),
        ("patch", 1 << 20),
        ("image", 1 << 20),
        ("head_dim", 0),
        ("channels", 2),
        ("depth", 0),
    ] {
        let mut changed = good.clone();
        changed["child"][key] = json!(value);
        let view = serde_json::from_value(changed).unwrap();
        let error = frugal(|| parent.plan(&view)).map(|_| ()).unwrap_err();
        let expected = matches!(error, CheckpointError::View(_) | CheckpointError::Network(_));
        assert!(expected, "{key} = {value}: {error}");
    }
    let mut changed = good.clone();
    changed["axes"]["residual"] = json!({ "op": "prefix", "size": 1u64 << 50 });
    let view = serde_json::from_value(changed).unwrap();
    let error = parent.plan(&view).map(|_| ()).unwrap_err();
    assert!(
        matches!(error, CheckpointError::View(ViewError::Operator { .. })),
        "{error}"
    );
    for bad in [
        json!({ "op": "rotate" }),
        json!({ "op": "prefix", "size": -1 }),
        json!(3),
    ] {
        let mut changed = good.clone();
        changed["axes"]["residual"] = bad;
        assert!(serde_json::from_value::<offshoot_family::View>(changed).is_err());
    }
    assert!(open(&view.child).is_ok());
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect()
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("w.safetensors");
    let tensors: Vec<(String, Vec<usize>)> = (0..3).map(|i| (format!("t{i}"), vec![1 << 19])).collect();
    let fine = |i: usize| Ok::<_, SafetensorsError>(vec![i as f32; 1 << 19]);
    let broken = |i: usize| match i {
        2 => Err(SafetensorsError::Missing {
            path: "elsewhere".into(),
            name: "t2".into(),
        }),
        _ => fine(i),
    };
    // With nothing there before, nothing is there after.
    let error = safetensors::write(&path, &tensors, broken).unwrap_err();
    assert!(
        matches!(error, SafetensorsError::Missing { .. }),
        "the callback's own error: {error}"
    );
    assert!(entries(base.path()).is_empty());
    // With an old file there, it stays, whether the callback fails or breaks its promise.
    safetensors::write(&path, &tensors, fine).unwrap();
    let old = std::fs::read(&path).unwrap();
    assert!(safetensors::write(&path, &tensors, broken).is_err());
    let short = catch_unwind(AssertUnwindSafe(|| {
        let _ = safetensors::write(&path, &tensors, |_| Ok::<_, SafetensorsError>(vec![0.0; 7]));
    }));
    assert!(short.is_err());
    assert_eq!(entries(base.path()), std::slice::from_ref(&path));
    assert!(std::fs::read(&path).unwrap() == old);
    // A folder that cannot be: below a file.
    let below = path.join("x/w.safetensors");
    let error = safetensors::write(&below, &tensors, fine).unwrap_err();
    assert!(
        matches!(error, SafetensorsError::Io { .. }) && error.to_string().contains("x/w.safetensors"),
        "{error}"
    );
    // A target that cannot be replaced: a folder with something in it.
    let taken = base.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("precious"), "x").unwrap();
    assert!(safetensors::write(&taken, &tensors, fine).is_err());
    assert_eq!(std::fs::read(taken.join("precious")).unwrap(), b"x");
    assert_eq!(entries(base.path()).len(), 2);
}

#[cfg(unix)]
#[test]
fn a_folder_without_write_permission_is_an_error_and_stays_as_it_was() {
    use std::os::unix::fs::PermissionsExt;
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("locked");
    save_small(&folder, &small());
    let old = std::fs::read(folder.join(WEIGHTS)).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o555)).unwrap();
    // A superuser writes anyway.
    let denied = std::fs::write(folder.join("probe"), "").is_err();
    let network = VitNetwork::new(small());
    let result = checkpoint::save(
        &network,
        &lively(&network.specs(), 2),
        &preparation(&VitNetwork::new(small())),
        &folder,
    );
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    if denied {
        let error = result.unwrap_err();
        assert!(error.to_string().contains(WEIGHTS), "{error}");
        assert!(std::fs::read(folder.join(WEIGHTS)).unwrap() == old);
        assert_eq!(entries(&folder).len(), 3);
    } else {
        result.unwrap();
    }
}

/// Views are checked before a folder is made.
#[test]
fn an_export_of_a_view_that_does_not_fit_makes_nothing() {
    let base = tempfile::tempdir().unwrap();
    let (parent, child) = (base.path().join("parent"), base.path().join("child"));
    save_small(&parent, &small());
    let opened = Checkpoint::open(&parent).unwrap();
    let mut view = opened.network().child(&shape(6, 2), "p").unwrap();
    view.blocks = vec![0, 9];
    let error = opened
        .export_child(&view, Program::Usual, &preparation(&VitNetwork::new(small())), &child)
        .unwrap_err();
    assert!(matches!(error, CheckpointError::View(ViewError::Block(9))), "{error}");
    assert!(!child.exists());
}
