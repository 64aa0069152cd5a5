//! NaN and infinities come out where the plain operations let them come out.

use super::*;

/// What of a number must be equal: NaN, either infinity, or none of them.
fn class(x: f32, apart: bool) -> f32 {
    match x {
        _ if x.is_finite() => 0.0,
        _ if x.is_nan() || !apart => f32::MAX,
        _ => x,
    }
}

/// Fails unless the same elements of kernel and plain results are NaN and infinite; where infinities and NaN need not be kept
/// `apart`, unless the same elements are finite.
fn same_classes(case: &Case, inputs: &[FlexTensor], apart: bool, what: &str) {
    let (ours, plain) = ((case.kernel)(inputs.to_vec()), (case.plain)(inputs.to_vec()));
    for (i, (ours, plain)) in ours.into_iter().zip(plain).enumerate() {
        for (e, (a, b)) in elements(ours).into_iter().zip(elements(plain)).enumerate() {
            let same = class(a, apart) == class(b, apart);
            assert!(same, "{}, {what}: result {i}, element {e} is {a}, not {b}", case.name);
        }
    }
}

const SPECIALS: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

#[test]
fn one_special_number_comes_out_where_it_does_in_plain_operations() {
    for case in all() {
        for (i, input) in case.inputs.iter().enumerate() {
            let values = elements(input.clone());
            for at in [0, values.len() / 2, values.len() - 1] {
                for special in SPECIALS {
                    let mut values = values.clone();
                    values[at] = special;
                    let mut inputs = case.inputs.clone();
                    inputs[i] = FlexTensor::from_data(TensorData::new(values, input.layout().shape().clone()));
                    same_classes(&case, &inputs, true, &format!("{special} at {at} of input {i}"));
                }
            }
        }
    }
}
