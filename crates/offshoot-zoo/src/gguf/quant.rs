//! Numbers of tensors from and to the blocks that GGUF files keep them in.
//!
//! Each block type is a scale (or two) and small integers. The sums and products below are in the order of the format's
//! reference, so that the bits are the same.

use half::f16;

use super::kind::TensorType;

/// Elements of a block of the types that end in `_K`.
const SUPER: usize = 256;
/// Elements of a block of the others.
const BLOCK: usize = 32;

/// Appends the numbers in `bytes`, whole blocks of the type `kind`, to `values`.
///
/// # Panics
/// If the type is none of those that are read.
pub(crate) fn decode(kind: TensorType, bytes: &[u8], values: &mut Vec<f32>) {
    let (_, size) = kind.block();
    let blocks = bytes.chunks_exact(size as usize);
    match kind {
        TensorType::F32 => values.extend(blocks.map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))),
        TensorType::F64 => values.extend(blocks.map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes")) as f32)),
        TensorType::F16 => values.extend(blocks.map(half)),
        TensorType::Bf16 => values.extend(blocks.map(|b| f32::from_bits(u32::from_le_bytes([0, 0, b[0], b[1]])))),
        TensorType::Q8_0 => blocks.for_each(|b| {
            let scale = half(b);
            values.extend(b[2..].iter().map(|&q| f32::from(q as i8) * scale));
        }),
        TensorType::Q4_0 => blocks.for_each(|b| {
            let scale = half(b);
            values.extend((0..BLOCK).map(|i| scale * (f32::from(nibble(&b[2..], i)) - 8.0)));
        }),
        TensorType::Q4_1 => blocks.for_each(|b| {
            let (scale, least) = (half(b), half(&b[2..]));
            values.extend((0..BLOCK).map(|i| scale * f32::from(nibble(&b[4..], i)) + least));
        }),
        TensorType::Q5_0 => blocks.for_each(|b| {
            let scale = half(b);
            values.extend((0..BLOCK).map(|i| scale * (f32::from(five(&b[2..], i)) - 16.0)));
        }),
        TensorType::Q5_1 => blocks.for_each(|b| {
            let (scale, least) = (half(b), half(&b[2..]));
            values.extend((0..BLOCK).map(|i| scale * f32::from(five(&b[4..], i)) + least));
        }),
        TensorType::Q2K => blocks.for_each(|b| {
            let (scales, packed) = (&b[..16], &b[16..80]);
            let (scale, least) = (half(&b[80..]), half(&b[82..]));
            values.extend((0..SUPER).map(|i| {
                let pair = scales[i / 16];
                let (scale, least) = (scale * f32::from(pair & 15), least * f32::from(pair >> 4));
                scale * f32::from(two(packed, i)) - least
            }));
        }),
        TensorType::Q3K => blocks.for_each(|b| {
            let (high, packed, scales, scale) = (&b[..32], &b[32..96], &b[96..108], half(&b[108..]));
            values.extend((0..SUPER).map(|i| {
                // A bit that is not set takes 4 off.
                let offset = if high[i % 32] >> (i / 32) & 1 == 1 { 0 } else { 4 };
                let q = i16::from(two(packed, i)) - offset;
                scale * f32::from(six(scales, i / 16)) * f32::from(q)
            }));
        }),
        TensorType::Q4K => blocks.for_each(|b| {
            let (scale, least, scales, packed) = (half(b), half(&b[2..]), &b[4..16], &b[16..]);
            values.extend((0..SUPER).map(|i| {
                let (s, m) = scale_and_least(scales, i / 32);
                scale * s * f32::from(half_byte(packed, i)) - least * m
            }));
        }),
        TensorType::Q5K => blocks.for_each(|b| {
            let (scale, least, scales, high, packed) = (half(b), half(&b[2..]), &b[4..16], &b[16..48], &b[48..]);
            values.extend((0..SUPER).map(|i| {
                let (s, m) = scale_and_least(scales, i / 32);
                let q = half_byte(packed, i) | (high[i % 32] >> (i / 32) & 1) << 4;
                scale * s * f32::from(q) - least * m
            }));
        }),
        TensorType::Q6K => blocks.for_each(|b| {
            let (low, high, scales, scale) = (&b[..128], &b[128..192], &b[192..208], half(&b[208..]));
            values.extend((0..SUPER).map(|i| {
                // Two halves of 128 elements: 64 bytes of low bits in two layers, 32 of high bits in four.
                let (part, within) = (i / 128, i % 128);
                let low = low[part * 64 + within % 64] >> (within / 64 * 4) & 15;
                let high = high[part * 32 + within % 32] >> (within / 32 * 2) & 3;
                let q = i16::from(low | high << 4) - 32;
                scale * f32::from(scales[i / 16] as i8) * f32::from(q)
            }));
        }),
        other => panic!("{other} is not read as numbers"),
    }
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Element `i` of 32 in 16 bytes: the low halves of all bytes come first.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i % 16] >> (i / 16 * 4) & 15
}

/// Element `i` of 32 of five bits: four bytes of fifth bits, then the other four as [`nibble`] has them.
fn five(bytes: &[u8], i: usize) -> u8 {
    nibble(&bytes[4..], i) | (bytes[i / 8] >> (i % 8) & 1) << 4
}

/// Element `i` of 256 of two bits: two halves of 32 bytes with four layers each.
fn two(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

/// Element `i` of 256 of four bits: four quarters of 32 bytes with two layers each.
fn half_byte(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15
}

/// Number `i` of the 16 scales of a `Q3_K` block, which are of six bits each with an offset of 32.
fn six(bytes: &[u8], i: usize) -> i8 {
    let low = bytes[i % 8] >> (i / 8 * 4) & 15;
    let high = bytes[8 + i % 4] >> (i / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

/// Number `i` of the 8 pairs of a scale and a least value in a `Q4_K` or `Q5_K` block, which are of six bits each.
fn scale_and_least(bytes: &[u8], i: usize) -> (f32, f32) {
    let (scale, least) = if i < 4 {
        (bytes[i] & 63, bytes[i + 4] & 63)
    } else {
        let both = bytes[i + 4];
        (both & 15 | bytes[i - 4] >> 6 << 4, both >> 4 | bytes[i] >> 6 << 4)
    };
    (scale.into(), least.into())
}

/// Appends `values`, whole blocks, to `bytes` as the type `kind`.
///
/// # Errors
/// The first number that the type cannot hold.
///
/// # Panics
/// If the type is none of those that are written.
pub(crate) fn encode(kind: TensorType, values: &[f32], bytes: &mut Vec<u8>) -> Result<(), f32> {
    match kind {
        TensorType::F32 => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        TensorType::F16 => {
            for &value in values {
                bytes.extend(held(value, value)?.to_le_bytes());
            }
        }
        TensorType::Q8_0 => {
            for block in values.chunks_exact(BLOCK) {
                if let Some(&value) = block.iter().find(|v| !v.is_finite()) {
                    return Err(value);
                }
                let largest = block.iter().fold(0f32, |largest, v| largest.max(v.abs()));
                let scale = largest / 127.0;
                let inverse = if scale == 0.0 { 0.0 } else { scale.recip() };
                bytes.extend(held(scale, largest)?.to_le_bytes());
                // `round` takes halves away from zero, as the reference does.
                bytes.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
            }
        }
        other => panic!("{other} is not written"),
    }
    Ok(())
}

/// `value` in 16 bits; `told` if it became infinite by that.
fn held(value: f32, told: f32) -> Result<f16, f32> {
    let short = f16::from_f32(value);
    if value.is_finite() && !short.is_finite() {
        return Err(told);
    }
    Ok(short)
}
