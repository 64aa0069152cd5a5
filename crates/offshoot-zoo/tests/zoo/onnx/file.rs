//! Exported ONNX files as tract reads and runs them, and what the format asks for that tract does not look at.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_zoo::onnx::MODEL;
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Side;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, StringStringEntryProto, ValueInfoProto, type_proto};
use tract_onnx::prelude::{
    Framework, InferenceModelExt, IntoRunnable, IntoTValue, IntoTensor, Tensor, TypedFact, TypedRunnableModel, tvec,
};
use tract_onnx::tract_hir::internal::DimLike;
use tract_onnx::{data_resolver, tensor};

/// A model's file: what it declares and holds.
pub(crate) struct Model {
    folder: PathBuf,
    pub(crate) proto: ModelProto,
}

/// A model ready to run, on inputs of any open size.
pub(crate) struct Compiled {
    plan: Arc<TypedRunnableModel>,
    outputs: Vec<String>,
}

impl Model {
    /// The model in `folder`, well formed.
    pub(crate) fn open(folder: &Path) -> Self {
        let proto = tract_onnx::onnx().proto_model_for_path(folder.join(MODEL)).unwrap();
        let model = Self {
            folder: folder.to_owned(),
            proto,
        };
        model.check();
        model
    }

    pub(crate) fn graph(&self) -> &GraphProto {
        self.proto.graph.as_ref().unwrap()
    }

    pub(crate) fn metadata(&self) -> BTreeMap<&str, &str> {
        pairs(&self.proto.metadata_props)
    }

    /// Weights and constants by name, wherever they lie.
    pub(crate) fn initializers(&self) -> BTreeMap<&str, Tensor> {
        let (resolver, folder) = (data_resolver::default(), self.folder.to_str());
        let all = self.graph().initializer.iter();
        all.map(|t| (&t.name[..], tensor::load_tensor(&*resolver, t, folder).unwrap()))
            .collect()
    }

    /// Names, offsets and lengths of tensors in the data file, in the order of the model.
    pub(crate) fn external(&self) -> Vec<(&str, u64, u64)> {
        let all = self.graph().initializer.iter();
        all.filter(|t| !t.external_data.is_empty())
            .map(|t| {
                let place = pairs(&t.external_data);
                let [offset, length] = ["offset", "length"].map(|key| place[key].parse().unwrap());
                (&t.name[..], offset, length)
            })
            .collect()
    }

    /// The file once more, compiled by tract for the sizes that it declares, open ones among them.
    pub(crate) fn compile(&self) -> Compiled {
        let onnx = tract_onnx::onnx().with_ignore_output_shapes(false);
        let model = onnx.model_for_path(self.folder.join(MODEL)).unwrap();
        let model = model.into_optimized().unwrap();
        let open = |fact: &TypedFact| -> Vec<bool> { fact.shape.iter().map(|side| side.to_usize().is_err()).collect() };
        let facts = (0..model.inputs.len()).map(|i| model.input_fact(i).unwrap());
        let facts = facts.chain((0..model.outputs.len()).map(|i| model.output_fact(i).unwrap()));
        let graph = self.graph();
        for (fact, value) in facts.zip(graph.input.iter().chain(&graph.output)) {
            let (name, sides) = declared(value);
            let said: Vec<bool> = sides.iter().map(|side| matches!(side, Side::DimParam(_))).collect();
            assert_eq!(open(fact), said, "open sides of `{name}`");
        }
        Compiled {
            plan: model.into_runnable().unwrap(),
            outputs: self.graph().output.iter().map(|o| o.name.clone()).collect(),
        }
    }

    /// Names are made once and before they are used; weights lie in one place; operators have the attributes that the tests
    /// know of, by these names. tract passes over any other, and takes the operator's default.
    fn check(&self) {
        assert_eq!(self.proto.opset_import.len(), 1);
        let graph = self.graph();
        let mut known: BTreeSet<&str> = graph.input.iter().map(|i| &i.name[..]).collect();
        for tensor in &graph.initializer {
            assert!(known.insert(&tensor.name), "`{}` comes twice", tensor.name);
            let apart = !tensor.external_data.is_empty();
            assert_eq!(tensor.raw_data.is_empty(), apart, "`{}`", tensor.name);
            let place = apart.then_some(DataLocation::External as i32);
            assert_eq!(tensor.data_location, place, "`{}`", tensor.name);
        }
        for node in &graph.node {
            let used = node.input.iter().find(|name| !known.contains(&name[..]));
            assert_eq!(used, None, "`{}` uses what nothing before it gives", node.name);
            for output in &node.output {
                assert!(known.insert(output), "`{output}` is made twice");
            }
            let given: BTreeSet<_> = node.attribute.iter().map(|a| &a.name[..]).collect();
            assert_eq!(given, attributes(node), "attributes of `{}`", node.name);
        }
    }
}

/// All attributes that a node of this kind has, by the operators' specification (opset 20).
fn attributes(node: &NodeProto) -> BTreeSet<&'static str> {
    let names: &[&str] = match &node.op_type[..] {
        "Gemm" => &["transB"],
        "LayerNormalization" => &["axis", "epsilon"],
        "InstanceNormalization" | "BatchNormalization" => &["epsilon"],
        "Softmax" | "Concat" | "Gather" => &["axis"],
        "Cast" => &["to"],
        // Without it, by the error function.
        "Gelu" if !node.attribute.is_empty() => &["approximate"],
        "Split" => &["axis", "num_outputs"],
        "Transpose" => &["perm"],
        "Shape" => &["start", "end"],
        "ReduceMean" => &["keepdims"],
        "Conv" | "MaxPool" => &["kernel_shape", "strides", "pads"],
        _ => &[],
    };
    names.iter().copied().collect()
}

impl Compiled {
    /// The outputs by name, for images of this shape.
    pub(crate) fn run(&self, shape: [usize; 4], pixels: &[f32]) -> BTreeMap<&str, Tensor> {
        self.outputs(Tensor::from_shape(&shape, pixels).unwrap()).unwrap()
    }

    /// The outputs by name for sequences of equal length, if tract takes them.
    pub(crate) fn read(&self, sequences: &[Vec<u32>]) -> Option<BTreeMap<&str, Tensor>> {
        let shape = [sequences.len(), sequences[0].len()];
        let ids: Vec<i64> = sequences.iter().flatten().map(|&id| id.into()).collect();
        self.outputs(Tensor::from_shape(&shape, &ids).unwrap())
    }

    fn outputs(&self, input: Tensor) -> Option<BTreeMap<&str, Tensor>> {
        let outputs = self.plan.run(tvec![input.into_tvalue()]).ok()?;
        assert_eq!(outputs.len(), self.outputs.len());
        let names = self.outputs.iter().map(String::as_str);
        Some(names.zip(outputs.into_iter().map(IntoTensor::into_tensor)).collect())
    }
}

/// The numbers of a tensor, row-major.
pub(crate) fn floats(tensor: &Tensor) -> &[f32] {
    tensor.as_plain_ram().unwrap().as_slice().unwrap()
}

/// Name and sides of an input or output as the file declares it.
pub(crate) fn declared(value: &ValueInfoProto) -> (&str, Vec<Side>) {
    let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        panic!("`{}` is no tensor", value.name)
    };
    let element = if value.name == "input_ids" { 7 } else { 1 };
    assert_eq!(tensor.elem_type, element, "64-bit integers and 32-bit floats");
    let sides = tensor.shape.as_ref().unwrap().dim.iter();
    (&value.name, sides.map(|side| side.value.clone().unwrap()).collect())
}

fn pairs(entries: &[StringStringEntryProto]) -> BTreeMap<&str, &str> {
    entries.iter().map(|e| (&e.key[..], &e.value[..])).collect()
}
