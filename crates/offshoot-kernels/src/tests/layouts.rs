//! How inputs lie in memory does not matter, and what someone else holds is not written to.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{Shape, Slice};

use super::*;

/// The same tensor as a view whose rows are columns in memory.
fn turned(t: FlexTensor) -> FlexTensor {
    let mut axes: Vec<usize> = (0..t.shape().num_dims()).collect();
    axes.reverse();
    t.permute(&axes).to_contiguous().permute(&axes)
}

/// The same tensor read from its end in each dimension.
fn backwards(t: FlexTensor) -> FlexTensor {
    let axes: Vec<usize> = (0..t.shape().num_dims()).collect();
    Flex::float_flip(Flex::float_flip(t, &axes).to_contiguous(), &axes)
}

/// The same tensor as a part of a larger one, which holds NaN elsewhere: `before` and `after` it in the dimensions from which
/// `dims` says, and between its elements if `step` is above 1.
fn within(t: FlexTensor, dims: std::ops::RangeTo<usize>, [before, after, step]: [usize; 3]) -> FlexTensor {
    let own = t.shape();
    let (mut shape, mut slices) = (own.clone(), Vec::new());
    for d in 0..own.num_dims() {
        let (first, more, step) = if d < dims.end { (before, after, step) } else { (0, 0, 1) };
        shape[d] = first + own[d] * step + more;
        slices.push(Slice::new(
            first as isize,
            Some((first + own[d] * step) as isize),
            step as isize,
        ));
    }
    let around = FlexTensor::from_data(TensorData::new(vec![f32::NAN; shape.num_elements()], shape));
    Flex::float_slice(Flex::float_slice_assign(around, &slices, t), &slices)
}

/// The first entry along the first dimension, for all of them.
fn expanded(t: &FlexTensor) -> FlexTensor {
    Flex::float_expand(t.narrow(0, 0, 1), t.shape())
}

#[test]
fn views_give_what_copies_give() {
    type View = fn(FlexTensor) -> FlexTensor;
    let views: [(&str, View); 6] = [
        ("turned", turned),
        ("backwards", backwards),
        ("first rows", |t| within(t, ..1, [0, 2, 1])),
        ("last rows", |t| within(t, ..1, [2, 0, 1])),
        ("inner part", |t| within(t, ..4, [1, 3, 1])),
        ("every third", |t| within(t, ..4, [1, 0, 3])),
    ];
    for case in all() {
        let before: Vec<_> = case.inputs.iter().map(|t| bits(vec![t.clone()])).collect();
        let expected = case.bits();
        for (name, view) in views {
            let inputs: Vec<_> = case.inputs.iter().cloned().map(view).collect();
            let kept: Vec<_> = inputs.iter().map(|t| bits(vec![t.clone()])).collect();
            assert_eq!(kept, before, "the view itself: {name}");
            assert!(bits((case.kernel)(inputs.clone())) == expected, "{}, {name}", case.name);
            for (i, t) in inputs.into_iter().enumerate() {
                assert_eq!(
                    bits(vec![t]),
                    before[i],
                    "{}, {name}: input {i} was written to",
                    case.name
                );
            }
        }
        for (i, t) in case.inputs.iter().enumerate() {
            assert_eq!(
                bits(vec![t.clone()]),
                before[i],
                "{}: input {i} was written to",
                case.name
            );
        }
    }
}

#[test]
fn expanded_inputs_give_what_copies_give() {
    for case in all() {
        let views: Vec<_> = case.inputs.iter().map(expanded).collect();
        let copies = views.iter().map(|t| t.to_contiguous()).collect();
        let expected = bits((case.kernel)(copies));
        assert!(bits((case.kernel)(views)) == expected, "{}", case.name);
    }
}

/// Where a tensor's memory begins.
fn place(t: &FlexTensor) -> usize {
    t.bytes().as_ptr() as usize
}

/// Runs `work` on an input that nothing else holds and on one that is held, and checks where the result lies.
fn checked_in_place(name: &str, work: impl Fn(FlexTensor) -> FlexTensor) {
    let own = || Draw(21).tensor(&[3, 1000], 1.0);
    let alone = own();
    let before = place(&alone);
    let result = work(alone);
    assert_eq!(place(&result), before, "{name} did not use memory that was free");
    let expected = bits(vec![result]);

    let held = own();
    let shared = held.clone();
    let result = work(shared);
    assert_ne!(place(&result), place(&held), "{name} used memory that was held");
    assert_eq!(bits(vec![result]), expected, "{name}");
    assert_eq!(
        bits(vec![held]),
        bits(vec![own()]),
        "{name} wrote to a tensor that was held"
    );

    // The only holder of a part: what lies around it is nobody's, but the result is of the part's size.
    let part = within(own(), ..1, [2, 2, 1]);
    let result = work(part);
    assert_eq!(bits(vec![result]), expected, "{name} of a part");
}

#[test]
fn memory_is_reused_only_where_nobody_else_holds_it() {
    let flat = |t: FlexTensor| t.reshape(Shape::new([3000]));
    checked_in_place("GELU's gradient", |gradient| {
        gradients(Way::Ours, Gelu, vec![Draw(22).tensor(&[3, 1000], 3.0)], gradient).remove(0)
    });
    let form = SoftTargets {
        temperature: 0.1,
        rows: vec![vec![Some(0), None, Some(1)]].into(),
    };
    checked_in_place("the gradient of cross-entropy", |logits| {
        let targets = Draw(23).tensor(&[2, 1000], 1.0);
        let gradient = Draw(24).tensor(&[1, 3], 1.0);
        gradients(Way::Ours, form.clone(), vec![logits, targets], gradient).remove(0)
    });
    checked_in_place("the average", |average| {
        Flex::average(0.9, Tensors(vec![average, Draw(25).tensor(&[3, 1000], 1.0)])).remove(0)
    });
    let step = AdamStep {
        beta1: 0.9,
        beta2: 0.99,
        gradient_scale: 1.0,
        keep: 0.9,
        rate: 0.1,
        root_correction: 1.0,
        epsilon: 1e-8,
    };
    // Weight, first and second moment in turn.
    for which in 0..3 {
        checked_in_place("AdamW", |given| {
            let mut all: Vec<_> = (0..4).map(|i| Draw(30 + i).tensor(&[3, 1000], 1.0)).collect();
            all[2] = tensor(vec![0.5; 3000], &[3, 1000]);
            all[which] = given;
            Flex::adamw(vec![step], Tensors(all)).swap_remove(which)
        });
    }
    // The same tensor twice is held twice.
    let one = flat(Draw(26).tensor(&[3, 1000], 1.0));
    let results = Flex::average(0.9, Tensors(vec![one.clone(), one.clone(), one.clone(), one.clone()]));
    let [a, b] = results.try_into().unwrap();
    assert_eq!(bits(vec![a]), bits(vec![b]));
}
