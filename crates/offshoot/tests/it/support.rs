//! A workbench for the tests: made-up images, a recipe that trains in a second, and the binary.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use offshoot_family::Catalog;
use serde_json::Value;
use tempfile::TempDir;

/// Images that [`Workbench::images`] writes.
pub(crate) const IMAGES: usize = 120;
/// Their classes.
pub(crate) const CLASSES: usize = 3;
/// Their side in pixels.
pub(crate) const SIDE: usize = 16;

/// Nine children of a parent that trains at a few hundred steps a second.
pub(crate) const RECIPE: &str = r#"
method = "elastic"
seed = 7

[data]
path = "images"
labels = true
val = 0.3
test = 0.25
max_damaged = 0.05
workers = 1

[parent]
width = 24
depth = 3
head_dim = 8
patch = 4

[space]
min_width = 8
min_depth = 1

[crops]
globals = { px = 8, scale = [0.4, 1.0], count = 2 }
locals = { px = 4, scale = [0.1, 0.4], count = 2 }
blur = "off"
solarize_p = 0.0

[masks]
ratio = [0.1, 0.5]
min_block = 1

[heads]
hidden = 16
bottleneck = 8
prototypes = [8, 12]

[optim]
lr = 2e-3
warmup_epochs = 0.5
freeze_last_layer_epochs = 0.25
teacher_temperature_warmup_epochs = 1
ibot_start_epochs = 0.5
momentum = 0.98
final_momentum = 1.0
stretch = 1.0
drop_path = 0.1

[train]
batch = 4
epochs = 2
steps_per_epoch = 15
log_every = 2
checkpoint_every = 4
keep = 2
probe_every = 10
"#;

/// A folder of its own for one test, gone when the test is.
pub(crate) struct Workbench(TempDir);

impl Workbench {
    /// Images in one folder a class, and the recipe.
    pub(crate) fn new() -> Self {
        let bench = Self::bare();
        bench.images("images");
        bench.write("recipe.toml", RECIPE);
        bench
    }

    /// Nothing but the folder.
    pub(crate) fn bare() -> Self {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(place).unwrap();
        Self(tempfile::Builder::new().prefix("offshoot-").tempdir_in(place).unwrap())
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file, with the folders it needs.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Writes all made-up images below the folder `name`, one folder a class.
    pub(crate) fn images(&self, name: &str) {
        for number in 0..IMAGES {
            self.write(
                &format!("{name}/class-{}/{number:03}.pgm", number % CLASSES),
                pgm(number),
            );
        }
    }

    /// The binary, to be run in this folder.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    /// Runs the binary with these words, without waiting for it.
    pub(crate) fn start(&self, words: &str) -> Child {
        let mut command = self.command(&words.split_whitespace().collect::<Vec<_>>());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs the binary with these words.
    pub(crate) fn run(&self, words: &str) -> Done {
        Done::of(
            words,
            self.command(&words.split_whitespace().collect::<Vec<_>>())
                .output()
                .unwrap(),
        )
    }

    /// Trains the recipe, with further words, into the folder `run`.
    pub(crate) fn trained(&self, more: &str) -> PathBuf {
        self.run(&format!("pretrain recipe.toml --out run {more}")).succeeds();
        self.path("run")
    }

    /// The catalog of the folder `run`.
    pub(crate) fn catalog(&self) -> Catalog {
        Catalog::open(&self.path("run")).unwrap()
    }
}

/// How the binary ended and what it said.
pub(crate) struct Done {
    words: String,
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    pub(crate) fn of(words: &str, output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text is UTF-8");
        Self {
            words: words.into(),
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// It ended well.
    #[track_caller]
    pub(crate) fn succeeds(self) -> Self {
        self.ends_with(0)
    }

    /// It ended with this exit code.
    #[track_caller]
    pub(crate) fn ends_with(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "offshoot {}\n{}\n{}",
            self.words,
            self.out,
            self.err
        );
        self
    }

    /// It refused the user's input, naming every one of `parts`, and did not end in a panic.
    #[track_caller]
    pub(crate) fn refuses(self, parts: &[&str]) -> Self {
        let done = self.ends_with(1);
        assert!(!done.err.contains("panicked"), "offshoot {}\n{}", done.words, done.err);
        done.says(parts)
    }

    /// As [`refuses`](Self::refuses), with a hint in which `hints` are named.
    #[track_caller]
    pub(crate) fn refuses_with_hint(self, parts: &[&str], hints: &[&str]) -> Self {
        let done = self.refuses(parts);
        let hint = done
            .err
            .split_once("hint:")
            .unwrap_or_else(|| panic!("offshoot {}: no hint\n{}", done.words, done.err))
            .1;
        for part in hints {
            assert!(
                hint.contains(part),
                "offshoot {}: `{part}` is not in the hint\n{}",
                done.words,
                done.err
            );
        }
        done
    }

    /// Standard error names every one of `parts`.
    #[track_caller]
    pub(crate) fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(
                self.err.contains(part),
                "offshoot {}: `{part}` is not in\n{}",
                self.words,
                self.err
            );
        }
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("offshoot {}: {e}\n{}", self.words, self.out))
    }
}

/// A made-up grey image: stripes whose direction and width tell its class, with a phase, a contrast and noise of its own.
pub(crate) fn pixels(number: usize) -> Vec<u8> {
    let mut random = Random(number as u64 + 1);
    let class = number % CLASSES;
    let (phase, contrast) = (random.share() * 6.3, 60.0 + 50.0 * random.share());
    let (across, down) = [(1.3, 0.0), (0.0, 0.9), (0.5, 0.5)][class];
    let mut pixels = Vec::with_capacity(SIDE * SIDE);
    for y in 0..SIDE {
        for x in 0..SIDE {
            let wave = (across * x as f64 + down * y as f64 + phase).sin();
            pixels.push((128.0 + contrast * wave + 12.0 * (random.share() - 0.5)) as u8);
        }
    }
    pixels
}

/// Image `number` as a PGM file.
pub(crate) fn pgm(number: usize) -> Vec<u8> {
    [format!("P5\n{SIDE} {SIDE}\n255\n").into_bytes(), pixels(number)].concat()
}

/// All images and labels as two IDX files.
pub(crate) fn idx() -> (Vec<u8>, Vec<u8>) {
    let number = |n: usize| (n as u32).to_be_bytes();
    let mut images = [[0, 0, 8, 3], number(IMAGES), number(SIDE), number(SIDE)].concat();
    let mut labels = [[0, 0, 8, 1], number(IMAGES)].concat();
    for image in 0..IMAGES {
        images.extend(pixels(image));
        labels.push((image % CLASSES) as u8);
    }
    (images, labels)
}

/// Numbers that look random and are the same everywhere (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Every file below `folder` by its path in it.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(place) = open.pop() {
        for entry in fs::read_dir(&place).unwrap_or_else(|e| panic!("{}: {e}", place.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Names of what lies in `folder`.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Copies a folder with all that is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    for (name, content) in files(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}
