//! Reads ONNX files in the tests: a protobuf reader of its own, which shares nothing with the writer but the format.

use std::collections::BTreeMap;
use std::path::Path;

/// The fields of one message by number, in order.
pub(crate) struct Message(Vec<(u32, Field)>);

#[derive(Clone)]
pub(crate) enum Field {
    Number(u64),
    Bytes(Vec<u8>),
    Single(f32),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

impl Message {
    pub(crate) fn parse(mut bytes: &[u8]) -> Self {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let field = match key & 7 {
                0 => Field::Number(varint(&mut bytes)),
                2 => {
                    let length = varint(&mut bytes) as usize;
                    let (own, rest) = bytes.split_at(length);
                    bytes = rest;
                    Field::Bytes(own.to_vec())
                }
                5 => {
                    let (own, rest) = bytes.split_at(4);
                    bytes = rest;
                    Field::Single(f32::from_le_bytes(own.try_into().unwrap()))
                }
                other => panic!("wire type {other}"),
            };
            fields.push(((key >> 3) as u32, field));
        }
        Self(fields)
    }

    fn all(&self, number: u32) -> impl Iterator<Item = &Field> {
        self.0.iter().filter(move |(n, _)| *n == number).map(|(_, field)| field)
    }

    pub(crate) fn messages(&self, number: u32) -> Vec<Message> {
        self.bytes(number).into_iter().map(|b| Message::parse(&b)).collect()
    }

    pub(crate) fn message(&self, number: u32) -> Message {
        self.messages(number).remove(0)
    }

    fn bytes(&self, number: u32) -> Vec<Vec<u8>> {
        let bytes = |field: &Field| match field {
            Field::Bytes(bytes) => bytes.clone(),
            _ => panic!("field {number} is no bytes"),
        };
        self.all(number).map(bytes).collect()
    }

    pub(crate) fn texts(&self, number: u32) -> Vec<String> {
        self.bytes(number)
            .into_iter()
            .map(|b| String::from_utf8(b).unwrap())
            .collect()
    }

    pub(crate) fn text(&self, number: u32) -> String {
        self.texts(number).pop().unwrap_or_default()
    }

    pub(crate) fn numbers(&self, number: u32) -> Vec<i64> {
        let whole = |field: &Field| match field {
            Field::Number(value) => *value as i64,
            _ => panic!("field {number} is no number"),
        };
        self.all(number).map(whole).collect()
    }

    fn single(&self, number: u32) -> Option<f32> {
        self.all(number).next().map(|field| match field {
            Field::Single(value) => *value,
            _ => panic!("field {number} is no float"),
        })
    }
}

/// A tensor: integers are exact in f64 at the sizes of the tests.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f64>,
}

#[derive(Clone)]
pub(crate) enum Attribute {
    Number(f64),
    Numbers(Vec<i64>),
}

pub(crate) struct Node {
    pub(crate) op: String,
    pub(crate) name: String,
    pub(crate) inputs: Vec<String>,
    pub(crate) outputs: Vec<String>,
    pub(crate) attributes: BTreeMap<String, Attribute>,
}

/// One dimension of an input or output as the file declares it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Side {
    Fixed(i64),
    Named(String),
}

pub(crate) struct Model {
    pub(crate) ir_version: i64,
    pub(crate) opset: i64,
    pub(crate) producer: (String, String),
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) initializers: BTreeMap<String, Tensor>,
    /// Names, offsets and lengths of tensors in the data file, in the order of the model.
    pub(crate) external: Vec<(String, usize, usize)>,
    pub(crate) inputs: Vec<(String, Vec<Side>)>,
    pub(crate) outputs: Vec<(String, Vec<Side>)>,
}

impl Model {
    pub(crate) fn open(folder: &Path) -> Self {
        let model = Message::parse(&std::fs::read(folder.join("model.onnx")).unwrap());
        let graph = model.message(7);
        let opsets = model.messages(8);
        assert_eq!(opsets.len(), 1);
        let pairs = |message: &Message, number| -> BTreeMap<String, String> {
            let entries = message.messages(number);
            entries.iter().map(|e| (e.text(1), e.text(2))).collect()
        };
        let mut external = Vec::new();
        let mut initializers = BTreeMap::new();
        for tensor in graph.messages(5) {
            let shape: Vec<usize> = tensor.numbers(1).into_iter().map(|n| n as usize).collect();
            let place = pairs(&tensor, 13);
            let raw = if place.is_empty() {
                assert!(tensor.numbers(14).is_empty());
                tensor.bytes(9).remove(0)
            } else {
                assert_eq!(tensor.numbers(14), [1]);
                assert!(tensor.bytes(9).is_empty());
                let [offset, length] = ["offset", "length"].map(|key| place[key].parse::<usize>().unwrap());
                external.push((tensor.text(8), offset, length));
                std::fs::read(folder.join(&place["location"])).unwrap()[offset..offset + length].to_vec()
            };
            let values: Vec<f64> = match tensor.numbers(2)[..] {
                [1] => raw
                    .chunks(4)
                    .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                    .collect(),
                [7] => raw
                    .chunks(8)
                    .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64)
                    .collect(),
                ref other => panic!("data type {other:?}"),
            };
            assert_eq!(values.len(), shape.iter().product::<usize>());
            let before = initializers.insert(tensor.text(8), Tensor { shape, values });
            assert!(before.is_none(), "`{}` comes twice", tensor.text(8));
        }
        Self {
            ir_version: model.numbers(1)[0],
            opset: opsets[0].numbers(2)[0],
            producer: (model.text(2), model.text(3)),
            metadata: pairs(&model, 14),
            nodes: graph.messages(1).iter().map(node).collect(),
            initializers,
            external,
            inputs: graph.messages(11).iter().map(declared).collect(),
            outputs: graph.messages(12).iter().map(declared).collect(),
        }
    }
}

fn node(message: &Message) -> Node {
    let attribute = |a: &Message| {
        let value = match a.numbers(20)[..] {
            [1] => Attribute::Number(f64::from(a.single(2).unwrap())),
            [2] => Attribute::Number(a.numbers(3)[0] as f64),
            [7] => Attribute::Numbers(a.numbers(8)),
            ref other => panic!("attribute type {other:?}"),
        };
        (a.text(1), value)
    };
    Node {
        op: message.text(4),
        name: message.text(3),
        inputs: message.texts(1),
        outputs: message.texts(2),
        attributes: message.messages(5).iter().map(attribute).collect(),
    }
}

fn declared(message: &Message) -> (String, Vec<Side>) {
    let tensor = message.message(2).message(1);
    assert_eq!(tensor.numbers(1), [1], "32-bit floats");
    let side = |dim: &Message| match (dim.numbers(1).pop(), dim.texts(2).pop()) {
        (Some(size), None) => Side::Fixed(size),
        (None, Some(name)) => Side::Named(name),
        _ => panic!("a dimension is a number or a name"),
    };
    (
        message.text(1),
        tensor.message(2).messages(1).iter().map(side).collect(),
    )
}
