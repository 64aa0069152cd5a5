//! The loader: the same bytes for any number of workers, from any step on, whatever happens to images.

use std::sync::Arc;

use offshoot_data::augment::CropSpec;
use offshoot_data::{
    Batch, BlockMasks, DataError, Labels, Loader, LoaderConfig, MultiCrop, Prepare, Preprocessing, evaluation_batches,
    open,
};
use tempfile::TempDir;

use crate::fixtures::*;

fn config(workers: usize) -> LoaderConfig {
    LoaderConfig {
        batch: 4,
        seed: 11,
        crops: MultiCrop {
            globals: CropSpec {
                px: 12,
                scale: (0.32, 1.0),
                count: 2,
            },
            locals: CropSpec {
                px: 6,
                scale: (0.05, 0.32),
                count: 3,
            },
            ..MultiCrop::default()
        },
        masks: Some(BlockMasks {
            grid: (4, 4),
            ..BlockMasks::default()
        }),
        workers,
        prefetch: 3,
        max_damaged: 0.0,
    }
}

fn memory(count: usize, damaged: &[usize]) -> Arc<Memory> {
    let images = (0..count).map(|i| picture(i, 20, 16, 3)).collect();
    Arc::new(Memory {
        images,
        damaged: damaged.to_vec(),
        panics_at: None,
    })
}

fn batches(source: &Arc<Memory>, config: LoaderConfig, first: u64, count: usize) -> Vec<Batch> {
    let train = (0..source.images.len()).collect();
    let loader = Loader::new(source.clone(), train, config).unwrap();
    loader
        .start(first)
        .take(count)
        .map(|batch| Batch {
            ready: 0,
            ..batch.unwrap()
        })
        .collect()
}

#[test]
fn shapes_and_values_are_as_promised() {
    let source = memory(10, &[]);
    let loader = Loader::new(source.clone(), (0..10).collect(), config(1)).unwrap();
    assert_eq!(loader.steps_per_epoch(), 2);
    let batch = loader.start(0).next().unwrap().unwrap();
    assert_eq!((batch.step, batch.batch, batch.indices.len()), (0, 4, 4));
    assert_eq!(batch.globals.len(), 2 * 4 * 3 * 144);
    assert_eq!(batch.locals.len(), 3 * 4 * 3 * 36);
    assert_eq!(batch.masks.len(), 2 * 4 * 16);
    assert_eq!(batch.masks.chunks(16).filter(|mask| mask.contains(&1)).count(), 4);
    // Crop-major: crop k of image i stands at k * B + i, and is what the augmentation alone gives.
    let crops = config(1).crops;
    for (i, &index) in batch.indices.iter().enumerate() {
        let mut rng = offshoot_data::Rng::for_example(11, "crops", 0, index as u64);
        let alone = crops.crops(&source.images[index], &mut rng);
        for (k, crop) in alone.globals.iter().enumerate() {
            assert_eq!(crop[..], batch.globals[(k * 4 + i) * 432..][..432]);
        }
        for (k, crop) in alone.locals.iter().enumerate() {
            assert_eq!(crop[..], batch.locals[(k * 4 + i) * 108..][..108]);
        }
    }
}

#[test]
fn any_number_of_workers_gives_the_same_bytes() {
    let source = memory(11, &[2, 7]);
    let with = |workers| {
        batches(
            &source,
            LoaderConfig {
                max_damaged: 0.5,
                ..config(workers)
            },
            0,
            9,
        )
    };
    let one = with(1);
    for workers in [0, 2, 5] {
        assert!(with(workers) == one, "{workers} workers differ");
    }
    assert_ne!(one[0].globals, one[2].globals);
    let reseeded = LoaderConfig {
        seed: 12,
        max_damaged: 0.5,
        ..config(1)
    };
    assert_ne!(batches(&source, reseeded, 0, 1)[0].globals, one[0].globals);
}

#[test]
fn starting_late_is_the_same_as_running_through() {
    for count in [11, 3] {
        let source = memory(count, &[1]);
        let config = LoaderConfig {
            max_damaged: 0.5,
            ..config(2)
        };
        let through = batches(&source, config.clone(), 0, 12);
        for first in [1, 5, 11] {
            assert!(batches(&source, config.clone(), first, 12 - first as usize)[..] == through[first as usize..]);
        }
    }
}

#[test]
fn an_epoch_meets_every_image_and_few_images_wrap() {
    let mut seen: Vec<usize> = batches(&memory(12, &[]), config(2), 3, 3)
        .iter()
        .flat_map(|b| b.indices.clone())
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..12).collect::<Vec<_>>());
    let one = batches(&memory(1, &[]), config(2), 0, 2);
    assert_eq!(one[0].indices, [0; 4]);
    // The same image in one batch is met with other crops each time.
    assert_ne!(one[0].globals[..432], one[0].globals[432..864]);
    assert_ne!(one[0].globals, one[1].globals);
}

#[test]
fn masks_begin_at_their_step() {
    let mut late = config(1);
    late.masks.as_mut().unwrap().from_step = 2;
    let made = batches(&memory(8, &[]), late, 0, 4);
    assert!(
        made[..2]
            .iter()
            .all(|b| b.masks.len() == 128 && b.masks.iter().all(|&v| v == 0))
    );
    assert!(made[2..].iter().all(|b| b.masks.contains(&1)));
    let none = LoaderConfig {
        masks: None,
        ..config(1)
    };
    assert!(batches(&memory(8, &[]), none, 0, 1)[0].masks.is_empty());
}

#[test]
fn damaged_images_are_replaced_counted_and_named() {
    let source = memory(20, &[3, 9]);
    let loader = Loader::new(
        source,
        (0..20).collect(),
        LoaderConfig {
            max_damaged: 0.1,
            ..config(2)
        },
    )
    .unwrap();
    let mut running = loader.start(0);
    for _ in 0..10 {
        let batch = running.next().unwrap().unwrap();
        assert!(!batch.indices.contains(&3) && !batch.indices.contains(&9));
    }
    let mut damaged = running.damaged().to_vec();
    damaged.sort();
    assert_eq!(
        damaged,
        [
            ("memory#3".into(), "memory#3: made so".into()),
            ("memory#9".into(), "memory#9: made so".into())
        ]
    );
}

#[test]
fn too_many_damaged_images_stop_the_run_at_the_same_step() {
    let source = memory(20, &[3, 9, 11]);
    let run = |workers| {
        let config = LoaderConfig {
            max_damaged: 0.1,
            ..config(workers)
        };
        let loader = Loader::new(source.clone(), (0..20).collect(), config).unwrap();
        let mut running = loader.start(0);
        let good = running.by_ref().take_while(Result::is_ok).count();
        assert!(running.next().is_none());
        let damaged = running.damaged().to_vec();
        (good, damaged)
    };
    let (good, damaged) = run(1);
    assert_eq!(damaged.len(), 3);
    assert_eq!(run(4), (good, damaged));

    let all = memory(5, &[0, 1, 2, 3, 4]);
    let config = LoaderConfig {
        max_damaged: 1.0,
        ..config(1)
    };
    let error = Loader::new(all, (0..5).collect(), config)
        .unwrap()
        .start(0)
        .next()
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().contains("5 of 5 images are damaged"), "{error}");
    assert!(error.to_string().contains("(memory#"), "{error}");
}

#[test]
fn damaged_files_are_named_by_their_path() {
    let root = TempDir::new().unwrap();
    for i in 0..6 {
        put(root.path(), &format!("{i}.jpg"), &jpeg(&picture(i, 40, 30, 3)));
    }
    let whole = jpeg(&picture(9, 40, 30, 3));
    put(root.path(), "broken.jpg", &whole[..whole.len() / 2]);
    put(root.path(), "empty.png", b"");
    let source: Arc<dyn offshoot_data::Source> = open(root.path(), Labels::Ignore).unwrap().into();
    let loader = Loader::new(source, (0..8).collect(), LoaderConfig { batch: 8, ..config(2) }).unwrap();
    let error = loader.start(0).next().unwrap().unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, DataError::TooManyDamaged { damaged: 2, of: 8, .. }),
        "{text}"
    );
    assert!(
        text.contains("broken.jpg: truncated JPEG") && text.contains("empty.png: the file is empty"),
        "{text}"
    );
}

#[test]
fn a_panic_in_a_worker_is_an_error() {
    let images = (0..600).map(|i| picture(i, 4, 4, 1)).collect();
    // Not among the images looked at before the workers start.
    let source = Arc::new(Memory {
        images,
        damaged: Vec::new(),
        panics_at: Some(7),
    });
    for workers in [0, 1, 3] {
        let loader = Loader::new(source.clone(), (0..600).collect(), config(workers)).unwrap();
        let error = loader.start(0).find_map(Result::err).unwrap();
        assert!(
            matches!(&error, DataError::Worker { reason, .. } if reason.contains("image 7")),
            "{error}"
        );
    }
}

#[test]
fn dropping_the_batches_ends_the_workers() {
    let source = memory(8, &[]);
    let loader = Loader::new(source.clone(), (0..8).collect(), config(3)).unwrap();
    for first in 0..20 {
        let mut running = loader.start(first);
        if first % 2 == 0 {
            assert!(running.next().unwrap().unwrap().ready <= 3);
        }
    }
    drop(loader);
    // No thread holds the source any more.
    assert_eq!(Arc::strong_count(&source), 1);
}

#[test]
fn what_cannot_work_is_refused_at_once() {
    let source = memory(4, &[]);
    let refused =
        |train: Vec<usize>, config: LoaderConfig| Loader::new(source.clone(), train, config).err().unwrap().to_string();
    assert!(refused(vec![], config(1)).contains("no image is left for training"));
    assert!(refused(vec![4], config(1)).contains("beyond the 4"));
    assert!(refused(vec![0], LoaderConfig { batch: 0, ..config(1) }).contains("`batch`"));
    assert!(
        refused(
            vec![0],
            LoaderConfig {
                batch: usize::MAX / 2,
                ..config(1)
            }
        )
        .contains("`batch`")
    );
    assert!(
        refused(
            vec![0],
            LoaderConfig {
                max_damaged: f64::NAN,
                ..config(1)
            }
        )
        .contains("`max_damaged`")
    );
    assert!(
        refused(
            vec![0],
            LoaderConfig {
                workers: 1 << 20,
                ..config(1)
            }
        )
        .contains("`workers`")
    );
    let masks = Some(BlockMasks {
        grid: (0, 4),
        ..BlockMasks::default()
    });
    assert!(refused(vec![0], LoaderConfig { masks, ..config(1) }).contains("`grid`"));
}

#[test]
fn evaluation_runs_in_order_and_tolerates_no_damage() {
    let source = memory(10, &[6]);
    let evaluation = Preprocessing {
        resize: 10,
        crop: 8,
        ..Preprocessing::default()
    };
    let indices = [9, 0, 3, 3, 5];
    let made: Vec<_> = evaluation_batches(&*source, &indices, &evaluation, 2)
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        made.iter().map(|(_, i)| i.clone()).collect::<Vec<_>>(),
        [vec![9, 0], vec![3, 3], vec![5]]
    );
    let values: Vec<f32> = made.into_iter().flat_map(|(values, _)| values).collect();
    let expected: Vec<f32> = indices
        .iter()
        .flat_map(|&i| evaluation.view(&source.images[i]))
        .collect();
    assert_eq!(values, expected);
    let mut broken = evaluation_batches(&*source, &[0, 6, 1], &evaluation, 2);
    assert!(matches!(broken.next(), Some(Err(DataError::Damaged { .. }))));
    assert!(broken.next().is_none());
}
