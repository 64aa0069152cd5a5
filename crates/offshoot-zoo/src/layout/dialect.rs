//! Dialects: how the tensors of a file, ours or a stranger's, become those of a network.

use std::collections::HashSet;

use offshoot_family::{Architecture, DecoderKind};

use super::LayoutTensor;
use crate::network::Network;
use crate::spec::TensorSpec;
use crate::weight_files::WeightFiles;

/// How a file says what a network's tensors are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dialect {
    /// Tensors of the file. Parts of one of ours stand in row order.
    pub tensors: Vec<LayoutTensor>,
    /// Our tensors that the file does not have; they start as in a fresh network.
    pub missing: Vec<TensorSpec>,
    /// Names that mean nothing here.
    pub ignored: Vec<Ignored>,
}

/// Tensors of a file that a network has no use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// How their names end; or how they begin, if it ends in a dot.
    pub names: &'static str,
    /// Why they are not needed.
    pub why: &'static str,
}

impl Ignored {
    /// Whether `name` is one of them.
    pub fn holds(&self, name: &str) -> bool {
        if self.names.ends_with('.') {
            name.starts_with(self.names)
        } else {
            name.ends_with(self.names)
        }
    }
}

/// Buffers that other libraries write beside the weights, and what they only train with.
const ALWAYS: [Ignored; 7] = [
    Ignored {
        names: ".num_batches_tracked",
        why: "a counter of training",
    },
    Ignored {
        names: ".relative_position_index",
        why: "follows from the window",
    },
    Ignored {
        names: ".attn_mask",
        why: "follows from the window",
    },
    Ignored {
        names: "pooler.",
        why: "features are taken before the pooler",
    },
    Ignored {
        names: ".attn.bias",
        why: "which tokens see which, which follows from their order",
    },
    Ignored {
        names: ".attn.masked_bias",
        why: "a number of the mask",
    },
    Ignored {
        names: ".rotary_emb.inv_freq",
        why: "follows from the configuration",
    },
];

/// The tensor without which a network is whole: it plays a part in masked training only.
const MASK_TOKEN: &str = "mask_token";

/// Whether a network is a decoder whose output layer is its embedding.
fn tied(network: &dyn Network) -> bool {
    network.as_decoder().is_some_and(|decoder| decoder.decoder().tied)
}

impl Dialect {
    /// A file with the names of a layout, whatever the model is called inside the class that was saved.
    pub(super) fn of_layout(tensors: Vec<LayoutTensor>, network: &dyn Network, files: &WeightFiles) -> Self {
        let bases: &[&str] = match network.architecture() {
            Architecture::Vit(_) => &["vit.", "dinov2."],
            Architecture::Swin(_) => &["swin."],
            Architecture::ResNet(_) => &["resnet."],
            Architecture::Decoder(decoder) => match decoder.kind {
                DecoderKind::Gpt2 => &["transformer."],
                DecoderKind::Llama => &["model."],
            },
            _ => &[],
        };
        let bare = |name: &str| {
            let base = bases.iter().find(|base| name.starts_with(*base));
            base.map_or(name, |base| &name[base.len()..]).to_owned()
        };
        let names = files.names();
        let used = bases
            .iter()
            .copied()
            .find(|base| names.iter().any(|name| name.starts_with(base)));
        let base = used.unwrap_or("");
        let mut dialect = Self {
            ignored: ALWAYS.to_vec(),
            ..Self::default()
        };
        for mut tensor in tensors {
            if !["classifier.", "lm_head."]
                .iter()
                .any(|head| tensor.name.starts_with(head))
            {
                tensor.name = format!("{base}{}", bare(&tensor.name));
            }
            dialect.add(tensor, files);
        }
        dialect.ignored.extend(match used {
            Some("vit.") => vec![Ignored {
                names: "vit.pooler.",
                why: "features are taken before the pooler",
            }],
            Some("dinov2.") => vec![Ignored {
                names: "classifier.",
                why: "it reads class and patch tokens together, which no classifier here does",
            }],
            _ => Vec::new(),
        });
        if tied(network) {
            dialect.ignored.push(Ignored {
                names: "lm_head.",
                why: "it is the embedding",
            });
        }
        dialect.fill(network);
        dialect
    }

    /// A file whose tensors are exactly these.
    pub(crate) fn exact(tensors: Vec<LayoutTensor>) -> Self {
        Self {
            tensors,
            ..Self::default()
        }
    }

    /// A file of timm: our tensors under other names; `rename` says which.
    pub fn timm(network: &dyn Network, rename: impl Fn(&str) -> String, files: &WeightFiles) -> Self {
        let mut dialect = Self {
            ignored: ALWAYS.to_vec(),
            ..Self::default()
        };
        for spec in network.specs() {
            let shape = match (&spec.name[..], spec.shape()) {
                ("cls_token" | MASK_TOKEN, shape) => [vec![1, 1], shape].concat(),
                ("pos_embed", shape) => [vec![1], shape].concat(),
                (_, shape) => shape,
            };
            let tensor = LayoutTensor::whole(rename(&spec.name), shape, spec.name);
            dialect.add(tensor, files);
        }
        if matches!(network.architecture(), Architecture::Vit(vit) if vit.layer_scale > 0.0) {
            dialect.ignored.push(Ignored {
                names: "head.",
                why: "no network with LayerScale has a classifier here",
            });
        }
        dialect.fill(network);
        dialect
    }

    /// Adds a tensor, if it is not a mask token that the file does not have.
    fn add(&mut self, tensor: LayoutTensor, files: &WeightFiles) {
        if tensor.tensor != MASK_TOKEN || files.shape(&tensor.name).is_some() {
            self.tensors.push(tensor);
        }
    }

    /// Notes what is in no tensor of the file.
    fn fill(&mut self, network: &dyn Network) {
        let known: HashSet<&str> = self.tensors.iter().map(|t| t.tensor.as_str()).collect();
        let specs = network.specs().into_iter();
        self.missing = specs.filter(|spec| !known.contains(&spec.name[..])).collect();
    }

    /// Compares names and shapes with those of `files`.
    ///
    /// # Errors
    /// Names the first few tensors that are missing, of another shape, or not part of the network, and how many more there are.
    pub fn check(&self, files: &WeightFiles) -> Result<(), String> {
        let mut differences = Vec::new();
        for tensor in &self.tensors {
            match files.shape(&tensor.name) {
                None => differences.push(format!("`{}` is missing", tensor.name)),
                Some(shape) if shape != tensor.shape => {
                    differences.push(format!(
                        "`{}` is {shape:?}, the configuration asks for {:?}",
                        tensor.name, tensor.shape
                    ));
                }
                Some(_) => {}
            }
        }
        let known: HashSet<&str> = self.tensors.iter().map(|t| t.name.as_str()).collect();
        let unknown = files
            .names()
            .into_iter()
            .filter(|name| !known.contains(name) && !self.ignored.iter().any(|ignored| ignored.holds(name)));
        differences.extend(unknown.map(|name| format!("`{name}` is not part of it")));
        if differences.is_empty() {
            return Ok(());
        }
        let more = differences.len().saturating_sub(4);
        differences.truncate(4);
        let more = if more > 0 {
            format!("; and {more} more")
        } else {
            String::new()
        };
        Err(format!("{}{more}", differences.join("; ")))
    }
}
