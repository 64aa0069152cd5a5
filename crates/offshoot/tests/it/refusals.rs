//! What a run refuses: arguments, recipes, folders, data and checkpoints that cannot be used, each with the way out.

use std::fs;

use offshoot_data::{SplitShares, split};
use offshoot_family::Split;

use crate::support::{IMAGES, RECIPE, Workbench, files, names};

/// A run of three steps.
const SHORT: &str = "train.epochs=1 train.steps_per_epoch=3";

#[test]
fn arguments() {
    let bench = Workbench::new();
    bench.run("").refuses(&[]);
    bench.run("pretain").refuses(&["pretain"]);
    bench
        .run("pretrain recipe.toml --out run --bananas")
        .refuses(&["--bananas"]);
    bench
        .run("pretrain")
        .refuses_with_hint(&["recipe"], &["offshoot pretrain"]);
    bench
        .run("pretrain recipe.toml")
        .refuses_with_hint(&[], &["--out", "--dry-run"]);
    bench.run("pretrain --resume run --overwrite").refuses(&["--resume"]);
    bench.run("eval").refuses(&[]);
    bench.run("export run -o out").refuses(&["--all"]);
    bench.run("export run -o out --all --child 8x1").refuses(&["--all"]);
    bench
        .run("pick run")
        .refuses_with_hint(&["budget"], &["--params", "--bytes", "--macs", "--ms"]);
    bench
        .run("pick run --params many")
        .refuses_with_hint(&["many"], &["5M"]);
    bench
        .run("pick run --bytes 5parsecs")
        .refuses_with_hint(&["5parsecs"], &["20MB"]);
    bench.run("pick run --ms -3").refuses(&[]);
    bench
        .run("eval latency run --threads 1000000")
        .refuses(&["--threads", "1024"]);
    for command in ["man -o recipe.toml", "report run -o recipe.toml/x.html"] {
        bench.run(command).refuses(&[]);
    }
    bench
        .run("man -o recipe.toml/pages")
        .refuses_with_hint(&["recipe.toml/pages"], &["folder"]);
    for command in [
        "family",
        "eval knn",
        "pick --params 1M",
        "export --all -o out",
        "report",
    ] {
        bench.run(&format!("{command} nowhere")).refuses(&["nowhere"]);
    }
    assert_eq!(
        names(&bench.path("")),
        ["images", "recipe.toml"],
        "a refusal makes nothing"
    );
}

#[test]
fn recipes() {
    let bench = Workbench::new();
    let refused = |content: &str, parts: &[&str]| {
        bench.write("odd.toml", content);
        bench.run("pretrain odd.toml --out run").refuses(parts)
    };
    bench.write("odd.toml", RECIPE.replace("\nlr = ", "\nlrr = "));
    bench
        .run("pretrain odd.toml --out run")
        .refuses_with_hint(&["odd.toml:", "optim.lrr"], &["optim.lr"]);
    refused(
        &RECIPE.replace("batch = 4", "batch = \"four\""),
        &["odd.toml:", "train.batch"],
    );
    refused(&RECIPE.replace("keep = 2", "keep = "), &["odd.toml:"]);
    refused(&RECIPE.replace("\"elastic\"", "\"evolve\""), &["method", "evolve"]);
    bench.write("odd.toml", [0xff, 0xfe, 0, 1]);
    bench.run("pretrain odd.toml --out run").refuses(&["odd.toml"]);
    bench.run("pretrain missing.toml --out run").refuses(&["missing.toml"]);
    bench.run("pretrain images --out run").refuses(&["images"]);
    bench
        .run("pretrain recipe.toml optim.learning_rate=1 --out run")
        .refuses_with_hint(&["optim.learning_rate"], &["optim.lr"]);
    bench
        .run("pretrain recipe.toml train.bath=1 --out run")
        .refuses_with_hint(&["train.bath"], &["train.batch"]);
    bench
        .run("pretrain recipe.toml banana --out run")
        .refuses_with_hint(&["banana"], &["="]);
    bench
        .run("pretrain recipe.toml data.path= --out run")
        .refuses_with_hint(&[], &["data.path"]);
    bench
        .run("pretrain recipe.toml data.path=absent --out run")
        .refuses_with_hint(&["absent"], &["path"]);
    bench
        .run("pretrain recipe.toml --out run --device cuda")
        .refuses_with_hint(&["cuda"], &["--device cpu"])
        .says(&["--features cuda"]);
    bench
        .run("pretrain recipe.toml --out run --device abacus")
        .refuses_with_hint(&["abacus", "cuda", "vulkan"], &["--device cpu"]);
    assert!(!bench.path("run/recipe.toml").exists() && !bench.path("run/checkpoints").exists());
    // Nothing of all this is in the way of the run itself.
    bench.trained(SHORT);
}

/// Numbers that make no run: each is refused by the name of its key, before anything is trained.
#[test]
fn numbers_that_make_no_run() {
    let bench = Workbench::new();
    let mut wrong = Vec::new();
    for (setting, parts) in [
        ("crops.globals.px=10", &["crops.globals.px", "8 and 12"][..]),
        ("crops.locals.px=2", &["crops.locals.px", "4 and 8"]),
        ("crops.locals.px=0", &["crops.locals.px"]),
        ("crops.globals.count=3", &["crops.globals.count"]),
        ("parent.width=20", &["width", "8"]),
        ("parent.head_dim=0", &["head_dim"]),
        ("parent.patch=0", &["patch"]),
        ("parent.depth=0", &["depth"]),
        ("parent.mlp_ratio=0", &["mlp_ratio"]),
        ("parent.family=mlp", &["parent.family", "vit"]),
        ("space.min_width=32", &["min_width"]),
        ("space.min_depth=9", &["min_depth"]),
        ("space.sampling_scale=0", &["sampling scale"]),
        ("space.sampling_scale=nan", &["sampling scale"]),
        ("heads.prototypes=[]", &["heads.prototypes"]),
        ("heads.prototypes=[8,0]", &["heads.prototypes"]),
        ("train.batch=0", &["train.batch"]),
        ("train.batch=-1", &["train.batch"]),
        ("train.batch=1000000", &[]),
        ("train.batch=100000000000", &["batch"]),
        ("train.epochs=0", &["batch"]),
        ("heads.hidden=100000000", &["memory"]),
        ("heads.prototypes=[4000000000]", &["memory"]),
        ("data.val=1.5", &["val"]),
        ("data.val=-0.1", &["val"]),
        ("data.val=0", &["data.val"]),
        ("data.max_damaged=2", &["max_damaged"]),
        ("data.workers=1000000", &["workers"]),
        ("data.channels=2", &["channels"]),
        ("data.mean=[0.5,0.5]", &["mean"]),
        ("data.std=[0.0]", &["std"]),
        ("masks.ratio=[0.5,0.1]", &["ratio"]),
        ("masks.probability=2", &["probability"]),
        ("crops.globals.scale=[1.0,0.4]", &["scale"]),
        ("loss.lambda=-1", &["loss.lambda"]),
        ("loss.student_temperature=0", &["loss.student_temperature"]),
        ("optim.momentum=1.5", &["optim.momentum"]),
        ("optim.drop_path=1", &["optim.drop_path"]),
        ("optim.stretch=0", &["optim.stretch"]),
        ("optim.clip=nan", &["optim.clip"]),
        ("seed=-1", &["seed"]),
        ("train=7", &["train"]),
    ] {
        let done = bench.run(&format!("pretrain recipe.toml --out run {SHORT} {setting}"));
        let named = parts.iter().all(|part| done.err.contains(part));
        if done.code != Some(1) || !named || done.err.contains("panicked") {
            wrong.push(format!("{setting}: {:?} {}", done.code, done.err));
        }
        if bench.path("run/recipe.toml").exists() {
            wrong.push(format!("{setting}: a run was begun"));
            fs::remove_dir_all(bench.path("run")).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Unusual and fine, or refused: never a mistake of ours, whatever the numbers.
#[test]
fn odd_numbers_are_no_mistake_of_ours() {
    let bench = Workbench::new();
    for setting in [
        "train.log_every=0",
        "train.checkpoint_every=0",
        "train.keep=0",
        "train.probe_every=0",
        "train.steps_per_epoch=0",
        "train.steps_per_epoch=18446744073709551615",
        "train.batch=200",
        "crops.locals.count=0",
        "crops.globals.px=4",
        "data.resize=0",
        "data.resize=4",
        "data.resize=100000",
        "data.channels=3",
        "probe.queries=0",
        "probe.queries=1",
        "probe.references=1",
        "masks.min_block=0",
        "masks.min_block=1000",
        "masks.max_block=0",
        "optim.lr=nan",
        "optim.lr=-1",
        "optim.lr=1e30",
        "optim.warmup_epochs=-1",
        "optim.warmup_epochs=1e300",
        "optim.epsilon=0",
        "optim.beta1=1",
        "optim.weight_decay=inf",
        "optim.teacher_temperature=1e-30",
        "loss.lambda=0",
        "loss.koleo_weight=nan",
        "space.width_step=0",
        "space.width_step=7",
        "space.depth_step=100",
        "seed=9223372036854775807",
        "data.val=0.9999 data.test=0",
    ] {
        let done = bench.run(&format!("pretrain recipe.toml --out run --overwrite {SHORT} {setting}"));
        assert!(
            matches!(done.code, Some(0 | 1)),
            "{setting}: {:?}\n{}",
            done.code,
            done.err
        );
    }
}

#[test]
fn folders() {
    let bench = Workbench::new();
    let run = bench.trained(SHORT);
    let before = files(&run);
    bench
        .run(&format!("pretrain recipe.toml --out run {SHORT}"))
        .refuses_with_hint(&["run"], &["--resume", "--overwrite"]);
    let done = bench.run("pretrain --resume run").succeeds();
    assert!(done.out.contains("finished"), "{}", done.out);
    assert!(files(&run) == before, "what is finished stays as it is");

    bench.write("run/notes.txt", "mine");
    bench.write("run/notes/more.txt", "mine, too");
    bench
        .run(&format!("pretrain recipe.toml --out run --overwrite {SHORT} seed=5"))
        .succeeds();
    let after = files(&run);
    assert_eq!(
        (after["notes.txt"].as_slice(), after["notes/more.txt"].as_slice()),
        (&b"mine"[..], &b"mine, too"[..])
    );
    assert!(after["parent/model.safetensors"] != before["parent/model.safetensors"]);
    assert_eq!(
        after.keys().filter(|n| n.starts_with("events.")).count(),
        1,
        "nothing of the old run is left"
    );

    bench.write("thesis/chapter.tex", "mine");
    for overwrite in ["", "--overwrite"] {
        let words = format!("pretrain recipe.toml --out thesis {overwrite}");
        bench
            .run(&words)
            .refuses_with_hint(&["thesis", "chapter.tex"], &["empty folder"]);
    }
    assert_eq!(names(&bench.path("thesis")), ["chapter.tex"]);
    bench
        .run("pretrain recipe.toml --out recipe.toml")
        .refuses(&["recipe.toml"]);
    bench
        .run("pretrain --resume nowhere")
        .refuses_with_hint(&["nowhere"], &["--out"]);
    bench
        .run("pretrain --resume thesis")
        .refuses_with_hint(&["thesis"], &["--out"]);
    assert!(!bench.path("nowhere").exists());
}

/// `--overwrite` takes the old run away only once the new one can start.
#[test]
fn what_cannot_start_overwrites_nothing() {
    let bench = Workbench::new();
    let run = bench.trained(SHORT);
    let before = files(&run);
    for wrong in [
        "data.path=absent",
        "data.path=",
        "train.batch=0",
        "crops.globals.px=10",
        "--device cuda",
        "heads.hidden=100000000",
    ] {
        bench
            .run(&format!("pretrain recipe.toml --out run --overwrite {wrong}"))
            .refuses(&[]);
        assert!(files(&run) == before, "{wrong}: the old run was touched");
    }
}

#[test]
fn a_folder_in_use() {
    let bench = Workbench::new();
    let mut child = bench.start("pretrain recipe.toml --out run train.epochs=1000");
    let began = std::time::Instant::now();
    while !bench.path("run/recipe.toml").is_file() {
        assert!(began.elapsed().as_secs() < 60);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    bench
        .run("pretrain --resume run")
        .refuses_with_hint(&["run", "in use"], &["another folder"]);
    bench
        .run("pretrain recipe.toml --out run --overwrite")
        .refuses(&["run", "in use"]);
    child.kill().unwrap();
    child.wait().unwrap();
    bench.run("pretrain --resume run --stop-after 1").succeeds();
}

#[test]
fn what_changed_between_stop_and_resume() {
    let bench = Workbench::new();
    let undisturbed = bench.trained("");
    bench
        .run("pretrain recipe.toml --out stopped --stop-after 9")
        .succeeds();
    let stopped = bench.path("stopped");
    let recipe = fs::read_to_string(stopped.join("recipe.toml")).unwrap();

    bench.write("stopped/recipe.toml", recipe.replace("clip = 1.5", "clip = 2.5"));
    bench
        .run("pretrain --resume stopped")
        .refuses_with_hint(&["recipe.toml"], &["put recipe.toml back"]);
    bench.write("stopped/recipe.toml", &recipe[..recipe.len() / 2]);
    bench.run("pretrain --resume stopped").refuses(&["recipe.toml"]);
    bench.write("stopped/recipe.toml", format!("# My best run so far.\n{recipe}"));

    let image = bench.path("images/class-0/000.pgm");
    let pixels = fs::read(&image).unwrap();
    let mut other = pixels.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&image, &other).unwrap();
    bench
        .run("pretrain --resume stopped")
        .refuses_with_hint(&["images"], &["put the files back"]);
    fs::remove_file(&image).unwrap();
    bench
        .run("pretrain --resume stopped")
        .refuses_with_hint(&["images"], &["put the files back"]);
    fs::write(&image, &pixels).unwrap();
    fs::rename(bench.path("images"), bench.path("moved")).unwrap();
    bench.run("pretrain --resume stopped").refuses(&["images"]);
    fs::rename(bench.path("moved"), bench.path("images")).unwrap();

    bench.run("pretrain --resume stopped").succeeds();
    for name in [
        "parent/model.safetensors",
        "metrics.jsonl",
        "catalog.json",
        "recipe.toml",
    ] {
        assert!(
            fs::read(undisturbed.join(name)).unwrap() == fs::read(stopped.join(name)).unwrap(),
            "{name} differs"
        );
    }
}

#[test]
fn damaged_checkpoints() {
    let bench = Workbench::new();
    let undisturbed = bench.trained("");
    bench
        .run("pretrain recipe.toml --out stopped --stop-after 9")
        .succeeds();
    let stopped = bench.path("stopped");
    assert_eq!(names(&stopped.join("checkpoints")), ["step-00000008", "step-00000009"]);
    let tensors = stopped.join("checkpoints/step-00000009/state.safetensors");
    let facts = stopped.join("checkpoints/step-00000009/state.json");
    let (whole, said) = (fs::read(&tensors).unwrap(), fs::read_to_string(&facts).unwrap());

    let refused = |why: &str| {
        let done = bench.run("pretrain --resume stopped").ends_with(1);
        assert!(
            done.err.contains("step-00000009") && done.err.contains("hint:"),
            "{why}: {}",
            done.err
        );
    };
    for length in [0, 7, 1000, whole.len() / 2, whole.len() - 1] {
        fs::write(&tensors, &whole[..length]).unwrap();
        refused("truncated");
    }
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&tensors, &flipped).unwrap();
    refused("one bit flipped");
    fs::copy(stopped.join("checkpoints/step-00000008/state.safetensors"), &tensors).unwrap();
    refused("swapped for an older one");
    fs::remove_file(&tensors).unwrap();
    refused("weights missing");
    fs::write(&tensors, &whole).unwrap();
    fs::write(&facts, &said[..said.len() / 2]).unwrap();
    refused("facts truncated");
    fs::write(&facts, said.replace("\"format\": 1", "\"format\": 99")).unwrap();
    refused("of a newer version");
    fs::remove_file(&facts).unwrap();
    refused("facts missing");

    // The hint: go on from the one before.
    fs::remove_dir_all(stopped.join("checkpoints/step-00000009")).unwrap();
    bench.run("pretrain --resume stopped").succeeds();
    for name in ["parent/model.safetensors", "metrics.jsonl", "catalog.json"] {
        assert!(
            fs::read(undisturbed.join(name)).unwrap() == fs::read(stopped.join(name)).unwrap(),
            "{name} differs"
        );
    }
}

#[test]
fn too_little_data() {
    let bench = Workbench::new();
    fs::create_dir(bench.path("empty")).unwrap();
    bench.write("text/readme.txt", "no image");
    for (name, count) in [("one", 1), ("few", 4)] {
        for number in 0..count {
            bench.write(&format!("{name}/a/{number}.pgm"), crate::support::pgm(number));
        }
    }
    let pretrain = |data: &str| bench.run(&format!("pretrain recipe.toml --out run data.path={data} {SHORT}"));
    pretrain("empty").refuses_with_hint(&["empty", "no images"], &["folder of images"]);
    pretrain("text").refuses_with_hint(&["text", "no images"], &["folder of images"]);
    pretrain("one").refuses_with_hint(&["1 images"], &["data.val", "data.test"]);
    pretrain("few").refuses_with_hint(&["4 images"], &["data.val", "data.test"]);
    pretrain("recipe.toml").refuses(&["recipe.toml"]);
    bench
        .run("data empty")
        .refuses_with_hint(&["empty", "no images"], &["folder of images"]);
    bench.run("data text").refuses(&["text"]);
    for (name, count) in [("one", 1), ("few", 4), ("one/a/0.pgm", 1)] {
        let found = bench
            .run(&format!("data {name} --json --sheet sheet.png"))
            .succeeds()
            .json();
        assert_eq!(found["count"], count);
    }
    // Labels that are not there.
    for number in 0..IMAGES {
        bench.write(&format!("flat/{number:03}.pgm"), crate::support::pgm(number));
    }
    pretrain("flat").refuses_with_hint(&["flat", "labels"], &["labels"]);
    bench.run("data flat --labels").refuses(&["flat", "labels"]);
}

/// Bytes that are no image, on the wanted side of the split: 0 train, 1 val, 2 test.
fn damaged(side: usize, which: usize) -> Vec<u8> {
    let of = |bytes: &[u8]| {
        let hash = *blake3::hash(bytes).as_bytes();
        let splits = split(&[hash], 7, SplitShares { val: 0.3, test: 0.25 }).unwrap();
        [splits.train.len(), splits.val.len(), splits.test.len()]
            .iter()
            .position(|&n| n == 1)
            .unwrap()
    };
    let candidates = (0..).map(|i| format!("P5\n16 16\n255\nhalf an image {i}").into_bytes());
    candidates.filter(|bytes| of(bytes) == side).nth(which).unwrap()
}

#[test]
fn a_damaged_image_is_named_and_left_out() {
    let bench = Workbench::new();
    bench.write("images/class-1/broken.pgm", damaged(0, 0));
    let done = bench.run("pretrain recipe.toml --out run").succeeds();
    done.says(&["1 damaged", "broken.pgm"]);
    bench.run("eval knn run --split test").succeeds();
    bench.run("export run --all -o all --check").succeeds();
    let found = bench.run("data images --json --rows 0").succeeds().json();
    assert_eq!(
        (found["count"].as_u64(), found["damaged"].as_array().map(Vec::len)),
        (Some(121), Some(1))
    );
    assert!(found["damaged"][0][0].as_str().unwrap().contains("broken.pgm"));
    // Met again after a stop, it changes nothing.
    bench
        .run("pretrain recipe.toml --out stopped --stop-after 17")
        .succeeds();
    bench.run("pretrain --resume stopped").succeeds();
    for name in ["parent/model.safetensors", "metrics.jsonl"] {
        assert!(fs::read(bench.path("run").join(name)).unwrap() == fs::read(bench.path("stopped").join(name)).unwrap());
    }
}

/// Among the held-out images, too: a run must not end at its probe, nor a family stay without scores.
#[test]
fn a_damaged_held_out_image_is_named_and_left_out() {
    for (side, name) in [(1, "val.pgm"), (2, "test.pgm")] {
        let bench = Workbench::new();
        bench.write(&format!("images/class-1/{name}"), damaged(side, 0));
        bench.run("pretrain recipe.toml --out run").succeeds();
        let scored = bench.run("eval knn run").succeeds();
        let tested = bench.run("eval knn run --split test --child 8x1").succeeds();
        assert!(
            scored.err.contains(name) != tested.err.contains(name),
            "{name} is named where it is left out"
        );
        let card = |id: &str, split| {
            bench
                .catalog()
                .child(id)
                .unwrap()
                .scorecard("knn@20", split)
                .unwrap()
                .clone()
        };
        let (val, test) = (card("8x1", Split::Val), card("8x1", Split::Test));
        assert_eq!(
            (val.examples, test.examples),
            (30, 27),
            "what is left is what was scored"
        );
        assert_eq!(
            (
                val.details.contains_key("left_out"),
                test.details.contains_key("left_out")
            ),
            (side == 1, side == 2)
        );
    }
}

#[test]
fn too_many_damaged_images_stop_the_run() {
    let bench = Workbench::new();
    for number in 0..IMAGES / 4 {
        bench.write(&format!("images/class-2/broken-{number}.pgm"), damaged(0, number));
    }
    let done = bench.run("pretrain recipe.toml --out run");
    done.refuses_with_hint(&["damaged", "broken-"], &["share"]);
    assert!(!bench.path("run/catalog.json").exists());
    bench
        .run("pretrain recipe.toml --out run --overwrite data.max_damaged=0.5")
        .succeeds()
        .says(&["damaged", "broken-"]);
}
