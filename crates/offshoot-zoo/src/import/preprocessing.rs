//! How a model of others wants its images, as mean and deviation of values in 0..1 behind one resize and one crop.

use offshoot_family::architecture::LARGEST_IMAGE;
use offshoot_family::catalog::Preprocessing;
use serde_json::Value;

/// Largest side of an image that is believed, in pixels.
const MOST: u64 = LARGEST_IMAGE as u64;

/// Native image (channels and side) and what a side must be a multiple of.
type Input = ((usize, usize), usize);

/// For models that do not say: ImageNet's mean and deviation, or 0.5 for those of timm that mostly have that.
pub(super) fn usual((channels, side): (usize, usize), halves: bool, notes: &mut Vec<String>) -> Preprocessing {
    let mut usual = Preprocessing::default();
    let crop = side as u32;
    let taken = if halves {
        usual.mean = vec![0.5; 3];
        usual.std = vec![0.5; 3];
        "0.5 are taken for mean and deviation, as most of timm's models of such a name have them"
    } else {
        "ImageNet's mean and deviation are taken"
    };
    notes.push(format!(
        "it does not say how it wants its images: {taken}; `--mean` and `--std` say otherwise"
    ));
    let of = |values: Vec<f32>| match channels {
        1 => vec![values.iter().sum::<f32>() / values.len() as f32],
        _ => values,
    };
    Preprocessing {
        resize: (crop * 256).div_ceil(224),
        crop,
        channels: channels as u8,
        mean: of(usual.mean),
        std: of(usual.std),
    }
}

/// Of a `preprocessor_config.json`.
///
/// # Errors
/// Names the key whose value cannot be.
pub(super) fn of_transformers(
    said: &Value,
    (image, stride): Input,
    notes: &mut Vec<String>,
) -> Result<Preprocessing, String> {
    let does = |key: &str| said.get(key).and_then(Value::as_bool);
    let rescale = match (does("do_rescale").unwrap_or(true), said.get("rescale_factor")) {
        (false, _) => 1.0,
        (true, None) => 1.0 / 255.0,
        (true, Some(factor)) => factor
            .as_f64()
            .filter(|f| f.is_finite() && *f > 0.0)
            .ok_or(format!("`rescale_factor` is {factor}, not a number above 0"))?,
    };
    let normalises = does("do_normalize").unwrap_or(true);
    let values = |key: &str, otherwise: f64| match said.get(key) {
        Some(values) if normalises => numbers(key, values, image.0),
        _ => Ok(vec![otherwise; image.0]),
    };
    let usual = Preprocessing::default();
    if normalises && (said.get("image_mean").is_none() || said.get("image_std").is_none()) {
        return Ok(self::usual(image, false, notes));
    }
    let (mean, std) = (values("image_mean", 0.0)?, values("image_std", 1.0)?);
    let kind = said.get("image_processor_type").or(said.get("feature_extractor_type"));
    let next = kind
        .and_then(Value::as_str)
        .is_some_and(|kind| kind.starts_with("ConvNext"));
    let size = side(said.get("size"), "size")?;
    let crops = does("do_center_crop").unwrap_or(said.get("crop_size").is_some());
    let (resize, crop) = match (size, side(said.get("crop_size"), "crop_size")?) {
        (Some((size, _)), Some((crop, _))) if crops => (size, crop),
        (Some((size, _)), _) if next && size < 384 => {
            // Resized by so much more than what is cropped.
            let share = said.get("crop_pct").and_then(Value::as_f64).unwrap_or(224.0 / 256.0);
            let share = if share > 0.1 && share <= 1.0 { share } else { 1.0 };
            ((f64::from(size) / share) as u32, size)
        }
        (Some((size, squeezed)), _) => {
            if squeezed || next {
                notes.push(
                    "its own processor squeezes an image into a square; here the shorter side is resized and the centre cropped"
                        .into(),
                );
            }
            (size, size)
        }
        (None, crop) => {
            let crop = crop.map_or(usual.crop, |(crop, _)| crop);
            (crop, crop)
        }
    };
    if does("do_resize") == Some(false) {
        notes.push(
            "its own processor does not resize images; here the shorter side is resized and the centre cropped".into(),
        );
    }
    // `BitImageProcessor` resizes bicubically unless told otherwise, the others bilinearly.
    let bit = kind.and_then(Value::as_str).is_some_and(|kind| kind.starts_with("Bit"));
    let bicubic = said.get("resample").map_or(bit, |rule| rule.as_u64() == Some(3));
    resampling(bicubic, notes);
    let (resize, crop) = fitting(resize, crop, image.1, stride, notes);
    // (255 v r - mean) / std = (v - mean / (255 r)) / (std / (255 r)).
    let scale = 255.0 * rescale;
    Ok(Preprocessing {
        resize,
        crop,
        channels: image.0 as u8,
        mean: single("image_mean", mean.into_iter().map(|m| m / scale))?,
        std: single("image_std", std.into_iter().map(|s| s / scale))?,
    })
}

/// Of timm's `pretrained_cfg`.
///
/// # Errors
/// Names the key whose value cannot be.
pub(super) fn of_timm(said: &Value, (image, stride): Input, notes: &mut Vec<String>) -> Result<Preprocessing, String> {
    let (Some(mean), Some(std)) = (said.get("mean"), said.get("std")) else {
        return Ok(usual(image, false, notes));
    };
    let (mean, std) = (numbers("mean", mean, image.0)?, numbers("std", std, image.0)?);
    let share = said.get("crop_pct").and_then(Value::as_f64).unwrap_or(0.875);
    let share = if share > 0.1 && share <= 1.0 { share } else { 1.0 };
    let crop = image.1 as u32;
    resampling(
        said.get("interpolation").and_then(Value::as_str) == Some("bicubic"),
        notes,
    );
    let (resize, crop) = fitting((f64::from(crop) / share) as u32, crop, image.1, stride, notes);
    Ok(Preprocessing {
        resize,
        crop,
        channels: image.0 as u8,
        mean: single("mean", mean.into_iter())?,
        std: single("std", std.into_iter())?,
    })
}

/// Numbers in single precision, in which they are kept and used.
fn single(key: &str, values: impl Iterator<Item = f64>) -> Result<Vec<f32>, String> {
    let values: Vec<f32> = values.map(|v| v as f32).collect();
    let good = |v: &f32| v.is_finite() && (!key.ends_with("std") || *v > 0.0);
    if values.iter().all(good) {
        return Ok(values);
    }
    Err(format!(
        "`{key}` comes to {values:?} for values in 0..1, which no image can be prepared with"
    ))
}

fn resampling(bicubic: bool, notes: &mut Vec<String>) {
    if !bicubic {
        notes.push("its images were resized by another rule; here it is always bicubic".into());
    }
}

/// A crop that the network can run on: the one that was said, or else the native one.
fn fitting(resize: u32, crop: u32, native: usize, stride: usize, notes: &mut Vec<String>) -> (u32, u32) {
    if (crop as usize).is_multiple_of(stride) && crop > 0 {
        return (resize.max(crop), crop);
    }
    notes.push(format!(
        "its crops of {crop} pixels are no multiple of {stride}: the native {native} are taken"
    ));
    let native = native as u32;
    ((native * 256).div_ceil(224), native)
}

/// One number a channel; one for all stands for each.
fn numbers(key: &str, value: &Value, channels: usize) -> Result<Vec<f64>, String> {
    let list = match value {
        Value::Array(list) => list.iter().map(Value::as_f64).collect(),
        one => one.as_f64().map(|one| vec![one]),
    };
    let list: Option<Vec<f64>> = list;
    let good = |list: &Vec<f64>| {
        let all = list
            .iter()
            .all(|v| v.is_finite() && (!key.ends_with("std") || *v > 0.0));
        all && (list.len() == 1 || list.len() == channels)
    };
    let list = list.filter(good);
    let list = list.ok_or(format!(
        "`{key}` is {value}, not one number for each of {channels} channels"
    ))?;
    Ok(if list.len() == 1 { vec![list[0]; channels] } else { list })
}

/// A side in any of the ways to write one, and whether both sides are fixed.
fn side(value: Option<&Value>, key: &str) -> Result<Option<(u32, bool)>, String> {
    let Some(value) = value else {
        return Ok(None);
    };
    let shorter = value.get("shortest_edge");
    let number = match (value, shorter) {
        (Value::Object(sides), None) => sides.get("height").filter(|height| sides.get("width") == Some(height)),
        (Value::Object(_), shorter) => shorter,
        (one, _) => Some(one),
    };
    let number = number.and_then(Value::as_u64).filter(|n| (1..=MOST).contains(n));
    let number = number.ok_or(format!("`{key}` is {value}, not the side of a square"))?;
    Ok(Some((number as u32, shorter.is_none())))
}
