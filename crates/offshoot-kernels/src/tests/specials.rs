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
            let same = class(a, apart) == class(b, apart) || case.hides && a.is_finite();
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
                    same_classes(&case, &inputs, case.apart, &format!("{special} at {at} of input {i}"));
                }
            }
        }
    }
}

#[test]
fn rows_of_minus_infinity_come_out_as_in_plain_operations() {
    let everywhere = |case: Case, input: usize, width: usize, special: f32| {
        let mut inputs = case.inputs.clone();
        let mut values = elements(inputs[input].clone());
        values[width..2 * width].fill(special);
        inputs[input] = FlexTensor::from_data(TensorData::new(values, inputs[input].layout().shape().clone()));
        same_classes(&case, &inputs, case.apart, "a row of infinities");
    };
    for special in [f32::NEG_INFINITY, f32::INFINITY] {
        everywhere(soft_cross_entropy([9, 37, 2, 4], 0.1, 4), 0, 37, special);
        everywhere(tempered_softmax([5, 37], 0.07, 5), 0, 37, special);
        everywhere(sinkhorn([9, 21], (1.0, 0.05), 3, 6), 0, 21, special);
        // All that one query sees.
        everywhere(attention(windows(), 2, 3), 1, 9, special);
    }
}

#[test]
fn a_key_that_is_masked_leaves_the_rest_finite() {
    let case = attention(windows(), 1, 3);
    let mut bias = elements(case.inputs[1].clone());
    // The last key, for all queries.
    bias.chunks_exact_mut(9).for_each(|row| row[8] = f32::NEG_INFINITY);
    let mut inputs = case.inputs.clone();
    inputs[1] = tensor(bias, &[1, 3, 9, 9]);
    let results = (case.kernel)(inputs.clone()).into_iter().flat_map(elements);
    let plain: Vec<_> = (case.plain)(inputs).into_iter().flat_map(elements).collect();
    for (a, b) in results.zip(plain) {
        assert!((a - b).abs() < 1e-5, "{a} against {b}");
    }
}

/// What a row without targets holds is nobody's, a NaN too; nor need there be any targets.
#[test]
fn rows_without_targets_lose_nothing_whatever_they_hold() {
    let form = SoftTargets {
        temperature: 0.1,
        rows: vec![vec![None, Some(0), None], vec![None; 3]].into(),
    };
    for special in SPECIALS {
        let mut logits = elements(Draw(1).tensor(&[3, 17], 1.0));
        logits[..17].fill(special);
        logits[2 * 17] = special;
        let logits = tensor(logits, &[3, 17]);
        let tensors = vec![logits, Draw(2).tensor(&[1, 17], 1.0), tensor(Vec::new(), &[0, 17])];
        let gradient = tensor(vec![special, 1.0, special, special, special, special], &[2, 3]);
        for way in [Way::Ours, Way::Plain] {
            let losses = elements(result(way, form.clone(), tensors.clone()));
            assert!(losses[1].is_finite() && losses[1] != 0.0);
            assert_eq!([losses[0], losses[2], losses[3], losses[4], losses[5]], [0.0; 5]);
            let d = elements(gradients(way, form.clone(), tensors.clone(), gradient.clone()).remove(0));
            assert!(d[..17].iter().chain(&d[34..]).all(|&d| d == 0.0));
            assert!(d[17..34].iter().all(|&d| d.is_finite() && d != 0.0));
        }
    }
}
