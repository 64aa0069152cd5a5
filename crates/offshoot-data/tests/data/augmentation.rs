//! Crops of images of any size, and the normalisation.

use offshoot_data::augment::{Blur, CropSpec};
use offshoot_data::{Image, MultiCrop, Prepare, Preprocessing, Rng};
use proptest::prelude::{Just, ProptestConfig, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use crate::fixtures::picture;

fn small(channels: u8) -> MultiCrop {
    MultiCrop {
        globals: CropSpec {
            px: 12,
            scale: (0.32, 1.0),
            count: 2,
        },
        locals: CropSpec {
            px: 5,
            scale: (0.05, 0.32),
            count: 3,
        },
        channels,
        mean: vec![0.5],
        std: vec![0.25],
        ..MultiCrop::default()
    }
}

fn plain() -> MultiCrop {
    MultiCrop {
        hflip: 0.0,
        jitter_p: 0.0,
        gray_p: 0.0,
        blur: Blur::Off,
        solarize_p: 0.0,
        ..small(3)
    }
}

fn rng(index: u64) -> Rng {
    Rng::for_example(1, "test", 0, index)
}

#[test]
fn a_flat_image_is_normalised_channel_by_channel() {
    let image = Image {
        width: 40,
        height: 30,
        channels: 3,
        pixels: [255, 0, 51].repeat(1200),
    };
    let crops = MultiCrop {
        mean: vec![0.5, 0.25, 0.2],
        std: vec![0.25, 0.5, 1.0],
        ..plain()
    };
    let drawn = crops.crops(&image, &mut rng(0));
    assert_eq!((drawn.globals.len(), drawn.locals.len()), (2, 3));
    for (crop, px) in drawn
        .globals
        .iter()
        .map(|c| (c, 12))
        .chain(drawn.locals.iter().map(|c| (c, 5)))
    {
        let plane = px * px;
        assert_eq!(crop.len(), 3 * plane);
        assert!(crop[..plane].iter().all(|&v| v == (1.0 - 0.5) / 0.25));
        assert!(crop[plane..2 * plane].iter().all(|&v| v == -0.5));
        assert!(crop[2 * plane..].iter().all(|&v| v == 51.0 / 255.0 - 0.2));
    }
}

#[test]
fn the_default_is_poa_for_imagenet() {
    let crops = MultiCrop::default();
    assert_eq!(
        (crops.globals.px, crops.globals.count, crops.globals.scale),
        (224, 2, (0.32, 1.0))
    );
    assert_eq!(
        (crops.locals.px, crops.locals.count, crops.locals.scale),
        (96, 8, (0.05, 0.32))
    );
    assert_eq!((crops.jitter_p, crops.hue, crops.blur), (0.8, 0.1, Blur::Code));
    crops.check().unwrap();
}

#[test]
fn grey_stays_grey_in_one_channel_and_is_repeated_in_three() {
    let grey = picture(3, 30, 30, 1);
    let one = MultiCrop { channels: 1, ..plain() }.crops(&grey, &mut rng(0));
    let three = plain().crops(&grey, &mut rng(0));
    assert_eq!(
        [one.globals[0].clone(), one.globals[0].clone(), one.globals[0].clone()].concat(),
        three.globals[0]
    );
    let jittered = small(3).crops(&grey, &mut rng(5));
    for crop in &jittered.globals {
        let (r, rest) = crop.split_at(144);
        let off = r.iter().zip(rest).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-6, "{off}");
    }
}

#[test]
fn crops_depend_on_their_generator_alone() {
    let image = picture(3, 50, 37, 3);
    assert_eq!(small(3).crops(&image, &mut rng(1)), small(3).crops(&image, &mut rng(1)));
    assert_ne!(small(3).crops(&image, &mut rng(1)), small(3).crops(&image, &mut rng(2)));
    // More local crops do not change the others.
    let mut more = small(3);
    more.locals.count = 5;
    let (few, more) = (small(3).crops(&image, &mut rng(1)), more.crops(&image, &mut rng(1)));
    assert_eq!(few.globals, more.globals);
    assert_eq!(few.locals[..], more.locals[..3]);
}

#[test]
fn blur_and_solarize_follow_the_view() {
    // Stripes lose contrast when they are blurred, and nothing else is switched on.
    let pixels: Vec<u8> = (0..64 * 64).map(|i| if i % 2 == 0 { 20 } else { 120 }).collect();
    let image = Image {
        width: 64,
        height: 64,
        channels: 1,
        pixels,
    };
    let spec = CropSpec {
        px: 64,
        scale: (1.0, 1.0),
        count: 2,
    };
    let base = MultiCrop {
        globals: spec,
        locals: CropSpec { count: 1, ..spec },
        channels: 1,
        ..plain()
    };
    let share = |blur: Blur, solarize_p: f32, pick: fn(&offshoot_data::Crops) -> &Vec<f32>, hit: fn(&[f32]) -> bool| {
        let crops = MultiCrop {
            blur,
            solarize_p,
            ..base.clone()
        };
        (0..400)
            .filter(|&i| hit(pick(&crops.crops(&image, &mut rng(i)))))
            .count() as f64
            / 400.0
    };
    let span = |crop: &[f32]| {
        crop.iter().copied().fold(f32::MIN, f32::max) - crop.iter().copied().fold(f32::MAX, f32::min) < 1.5
    };
    // A sigma below about 0.3 leaves the stripes as they are.
    let cases: [(Blur, [f64; 3]); 3] = [
        (Blur::Code, [0.0, 0.9, 0.5]),
        (Blur::Paper, [1.0, 0.1, 0.5]),
        (Blur::Off, [0.0; 3]),
    ];
    for (blur, expected) in cases {
        let found = [
            share(blur, 0.0, |c| &c.globals[0], span),
            share(blur, 0.0, |c| &c.globals[1], span),
            share(blur, 0.0, |c| &c.locals[0], span),
        ];
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (expected * 0.9 - found).abs() < 0.12,
                "{blur:?}: {found} for {expected}"
            );
        }
    }
    let bright = Image {
        pixels: vec![200; 64 * 64],
        ..image.clone()
    };
    let inverted = (0..400)
        .filter(|&i| {
            let drawn = MultiCrop {
                solarize_p: 0.2,
                ..base.clone()
            }
            .crops(&bright, &mut rng(i));
            assert!(drawn.globals[0][0] > 0.0 && drawn.locals[0][0] > 0.0);
            drawn.globals[1][0] < 0.0
        })
        .count();
    assert!((50..110).contains(&inverted), "{inverted}");
}

#[test]
fn settings_that_cannot_work_are_named() {
    let bad = [
        (
            "globals",
            MultiCrop {
                globals: CropSpec {
                    px: 0,
                    scale: (0.1, 1.0),
                    count: 2,
                },
                ..small(3)
            },
        ),
        (
            "globals",
            MultiCrop {
                globals: CropSpec {
                    px: 9,
                    scale: (0.1, 1.0),
                    count: 0,
                },
                ..small(3)
            },
        ),
        (
            "locals",
            MultiCrop {
                locals: CropSpec {
                    px: 9,
                    scale: (0.5, 0.1),
                    count: 2,
                },
                ..small(3)
            },
        ),
        (
            "jitter_p",
            MultiCrop {
                jitter_p: 1.5,
                ..small(3)
            },
        ),
        ("hue", MultiCrop { hue: 0.6, ..small(3) }),
        (
            "channels",
            MultiCrop {
                channels: 2,
                ..small(3)
            },
        ),
        (
            "std",
            MultiCrop {
                std: vec![0.0],
                ..small(3)
            },
        ),
        (
            "mean",
            MultiCrop {
                mean: vec![0.1, 0.2],
                ..small(3)
            },
        ),
    ];
    for (field, crops) in bad {
        let error = crops.check().unwrap_err().to_string();
        assert!(error.starts_with(&format!("setting `{field}`")), "{error}");
    }
    assert!(
        Preprocessing {
            crop: 300,
            ..Preprocessing::default()
        }
        .check()
        .is_err()
    );
}

#[test]
fn evaluation_takes_the_centre() {
    // A square of 20 in the middle of 60 x 40, resized by a half: the crop of 10 lies wholly within it.
    let mut image = Image {
        width: 60,
        height: 40,
        channels: 1,
        pixels: vec![0; 2400],
    };
    for y in 0..40 {
        image.pixels[y * 60 + 16..y * 60 + 44].fill(255);
    }
    let evaluation = Preprocessing {
        resize: 20,
        crop: 10,
        mean: vec![0.0],
        std: vec![1.0],
        channels: 1,
    };
    assert_eq!(evaluation.view(&image), vec![1.0; 100]);
    let same = Preprocessing {
        resize: 9,
        crop: 9,
        mean: vec![0.0],
        std: vec![1.0],
        channels: 1,
    };
    let image = picture(4, 9, 9, 1);
    let expected: Vec<f32> = image.pixels.iter().map(|&p| f32::from(p) / 255.0).collect();
    assert_eq!(same.view(&image), expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_size_gives_finite_crops_of_the_right_length(
        (width, height) in prop_oneof![
            (1u32..40, 1u32..40),
            Just((1, 1)),
            (Just(1), 1u32..3000),
            (1u32..3000, Just(1)),
            (1u32..4, 500u32..2000),
        ],
        px in 1u32..40,
        source_channels in prop_oneof![Just(1u8), Just(3)],
        channels in prop_oneof![Just(1u8), Just(3)],
        seed in any::<u64>(),
    ) {
        let image = picture(2, width, height, source_channels);
        let mut crops = small(channels);
        crops.globals.px = px;
        crops.check().unwrap();
        let drawn = crops.crops(&image, &mut Rng::for_example(seed, "test", 0, 0));
        let plane = usize::from(channels) * px as usize * px as usize;
        for (crop, len) in drawn.globals.iter().map(|c| (c, plane)).chain(drawn.locals.iter().map(|c| (c, usize::from(channels) * 25))) {
            prop_assert_eq!(crop.len(), len);
            prop_assert!(crop.iter().all(|v| v.is_finite() && (-2.0..=2.0).contains(v)));
        }
        let evaluation = Preprocessing { resize: px + 3, crop: px, channels, mean: vec![0.5], std: vec![0.25] };
        let view = evaluation.view(&image);
        prop_assert_eq!(view.len(), plane);
        prop_assert!(view.iter().all(|v| (-2.0..=2.0).contains(v)));
    }
}
