//! The layers that only networks of images have: convolutions, pooling, and the norms of their maps.

use super::extent::Extent::{self, Batch, Fixed};
use super::graph::{Graph, Value};
use super::proto::Attribute;

/// How a kernel moves over an image, alike in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sliding {
    /// Distance of two positions.
    pub stride: usize,
    /// Border on each of the four sides.
    pub padding: usize,
}

impl Graph {
    /// The GroupNorm called `layer` of `[batch, channels, height, width]`, with a scale and a shift a channel. It is written as
    /// the normalisation of instances, for which runtimes have a kernel, over each group laid out as one.
    pub fn group_norm(&mut self, x: Value, layer: &str, groups: usize, epsilon: f64) -> Value {
        let shape = self.shape(x).to_vec();
        let [Batch(images), Fixed(channels), Fixed(height), Fixed(width)] = shape[..] else {
            panic!("`{layer}` normalises images, not {shape:?}")
        };
        assert!(
            groups > 0 && channels.is_multiple_of(groups),
            "{channels} channels of `{layer}` in {groups} groups"
        );
        let ones = self.floats(vec![1.0; groups], &[groups]);
        let zeros = self.floats(vec![0.0; groups], &[groups]);
        let grouped = [Batch(images), Fixed(groups), Fixed(channels / groups * height * width)];
        let x = self.reshape(x, &grouped);
        let attributes = vec![Attribute::float("epsilon", epsilon as f32)];
        let x = self.named_node(
            layer,
            "InstanceNormalization",
            &[x, ones, zeros],
            attributes,
            grouped.into(),
        );
        let x = self.reshape(x, &shape);
        let mut vector = |leaf: &str| {
            let vector = self.weight(&format!("{layer}.{leaf}"));
            self.reshape(vector, &[Fixed(channels), Fixed(1), Fixed(1)])
        };
        let (gamma, beta) = (vector("weight"), vector("bias"));
        let x = self.multiply(x, gamma);
        self.add(x, beta)
    }

    /// The BatchNorm called `layer` of `[batch, channels, height, width]` with the statistics that it holds: weight, bias, mean
    /// and variance, one of each a channel.
    pub fn batch_norm(&mut self, x: Value, layer: &str, epsilon: f64) -> Value {
        let shape = self.shape(x).to_vec();
        let mut operands = vec![x];
        for leaf in ["weight", "bias", "mean", "variance"] {
            let vector = self.weight(&format!("{layer}.{leaf}"));
            assert_eq!(self.shape(vector), &shape[1..2], "channels of `{layer}.{leaf}`");
            operands.push(vector);
        }
        let attributes = vec![Attribute::float("epsilon", epsilon as f32)];
        self.named_node(layer, "BatchNormalization", &operands, attributes, shape)
    }

    /// The convolution called `layer` of `[batch, channels, height, width]`: its kernel is `layer.weight`, (out, in, rows,
    /// columns), and its bias `layer.bias`, if the network has one.
    pub fn convolution(&mut self, x: Value, layer: &str, sliding: Sliding) -> Value {
        let weight = self.weight(&format!("{layer}.weight"));
        let [Fixed(outputs), Fixed(inputs), Fixed(rows), Fixed(columns)] = *self.shape(weight) else {
            panic!("`{layer}.weight` is no kernel")
        };
        assert_eq!(self.shape(x).get(1), Some(&Fixed(inputs)), "channels into `{layer}`");
        let (x, sliding) = match sliding {
            // Single pixels are picked first: where nothing but such convolutions reads a value, tract 0.23 takes their strides
            // over the layers in front, and fails.
            Sliding {
                stride: 2..,
                padding: 0,
            } if (rows, columns) == (1, 1) => (self.max_pool(x, 1, sliding), Sliding { stride: 1, ..sliding }),
            _ => (x, sliding),
        };
        let mut shape = slid(self.shape(x), [rows, columns], sliding);
        shape[1] = Fixed(outputs);
        let mut operands = vec![x, weight];
        operands.extend(self.weight_if_any(&format!("{layer}.bias")));
        let attributes = sliding_attributes([rows, columns], sliding);
        self.named_node(layer, "Conv", &operands, attributes, shape)
    }

    /// The largest of each `kernel` x `kernel` window of `[batch, channels, height, width]`; the border never wins.
    pub fn max_pool(&mut self, x: Value, kernel: usize, sliding: Sliding) -> Value {
        let shape = slid(self.shape(x), [kernel, kernel], sliding);
        self.node("MaxPool", &[x], sliding_attributes([kernel, kernel], sliding), shape)
    }
}

/// The shape after a kernel has slid over images.
fn slid(shape: &[Extent], kernel: [usize; 2], sliding: Sliding) -> Vec<Extent> {
    let [Batch(images), channels, Fixed(height), Fixed(width)] = *shape else {
        panic!("a kernel slides over images, not {shape:?}")
    };
    let positions = |size: usize, kernel: usize| {
        let padded = size + 2 * sliding.padding;
        assert!(
            sliding.stride > 0 && kernel > 0 && kernel <= padded,
            "a kernel of {kernel} on {padded} pixels"
        );
        Fixed((padded - kernel) / sliding.stride + 1)
    };
    vec![
        Batch(images),
        channels,
        positions(height, kernel[0]),
        positions(width, kernel[1]),
    ]
}

fn sliding_attributes(kernel: [usize; 2], sliding: Sliding) -> Vec<Attribute> {
    vec![
        Attribute::ints("kernel_shape", kernel),
        Attribute::ints("strides", [sliding.stride; 2]),
        Attribute::ints("pads", [sliding.padding; 4]),
    ]
}
