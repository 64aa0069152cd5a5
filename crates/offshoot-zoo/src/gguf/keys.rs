//! The numbers of `gpt2` and `llama` in the metadata of a GGUF file: one table, read in both directions.

use super::kind::TensorType;
use super::names::Model;
use super::value::{Metadata, MetadataError, Sizes, Value};

/// Most blocks that are believed; llama.cpp's own limit is 512.
const MAX_BLOCKS: u64 = 4096;

/// Why the numbers of a file make no network here.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub(super) enum KeysError {
    /// A value is missing or of another type.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The file is of a network that is not known here.
    #[error("`general.architecture` is `{0}`; gpt2 and llama are read")]
    Model(String),
    /// A value cannot be.
    #[error("`{key}` {reason}")]
    Value {
        /// Its name.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Everything about a network that its tensors' shapes do not say, under the names that llama.cpp asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Numbers {
    /// Which network.
    pub(super) model: Model,
    /// What people call it.
    pub(super) name: Option<String>,
    /// Positions that it was trained for.
    pub(super) context_length: u64,
    /// Width of the residual stream.
    pub(super) embedding_length: u64,
    /// Blocks.
    pub(super) block_count: u64,
    /// Width of the feed-forward networks. Arrays are part of the format, but llama.cpp's own `gpt2` and `llama` take the first
    /// block's number for all.
    pub(super) feed_forward_length: Sizes,
    /// Heads of queries; the same holds.
    pub(super) head_count: Sizes,
    /// Heads of keys and values; as many as of queries if there is none.
    pub(super) head_count_kv: Option<Sizes>,
    /// Width of a head, where it is not the width divided by the heads.
    pub(super) key_length: Option<u64>,
    /// The same of values.
    pub(super) value_length: Option<u64>,
    /// What norms add to the variance, or to the mean square.
    pub(super) norm_epsilon: f32,
    /// Elements of a head that are rotated.
    pub(super) rope_dimension_count: Option<u64>,
    /// Base of the frequencies of rotary positions; 10,000 if there is none.
    pub(super) rope_freq_base: Option<f32>,
    /// How rotary positions are stretched.
    pub(super) rope_scaling: Option<Scaling>,
    /// Rows of the embeddings of tokens, where that is said.
    pub(super) vocab_size: Option<u64>,
    /// What most matrices are stored as, where that is said.
    pub(super) file_type: Option<u64>,
}

/// How rotary positions are stretched beyond the context of training. Llama 3's way is not among them: it is a tensor, see
/// [`rope`](super::rope).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scaling {
    /// `none`, `linear`, `yarn` or `longrope`.
    pub(super) kind: String,
    /// By how much.
    pub(super) factor: Option<f32>,
    /// Positions of the training before.
    pub(super) original_context_length: Option<u64>,
    /// What attention is multiplied with, of YaRN.
    pub(super) yarn_attention_factor: Option<f32>,
    /// How much of the frequencies is extrapolated, of YaRN.
    pub(super) yarn_extrapolation_factor: Option<f32>,
    /// Turns above which frequencies stay, of YaRN.
    pub(super) yarn_beta_fast: Option<f32>,
    /// Turns below which they are stretched, of YaRN.
    pub(super) yarn_beta_slow: Option<f32>,
}

/// One value: its name behind that of the network, who has it, and both directions.
struct Key {
    /// Behind `gpt2.` or `llama.`, but for those of all networks.
    name: &'static str,
    /// The networks that have it.
    models: &'static [Model],
    put: fn(&Numbers) -> Option<Value>,
    take: fn(&mut Numbers, &Metadata, &str) -> Result<(), KeysError>,
}

const BOTH: &[Model] = &Model::ALL;
const GPT2: &[Model] = &[Model::Gpt2];
const LLAMA: &[Model] = &[Model::Llama];
const SCALING: &str = "rope.scaling.type";

/// One row of the table for each way in which a value is kept.
macro_rules! keys {
    ($($name:literal $models:ident $way:ident $($field:ident).+;)*) => {
        [$(Key {
            name: $name,
            models: $models,
            put: |numbers| keys!(put $way numbers $($field).+),
            take: |numbers, metadata, key| keys!(take $way numbers metadata key $($field).+),
        },)*]
    };
    (put size $n:ident $f:ident) => { Some(short($n.$f)) };
    (take size $n:ident $m:ident $k:ident $f:ident) => {{
        $n.$f = Metadata::required($k, $m.size($k)?)?;
        Ok(())
    }};
    (put perhaps $n:ident $f:ident) => { $n.$f.map(short) };
    (take perhaps $n:ident $m:ident $k:ident $f:ident) => {{
        $n.$f = $m.size($k)?;
        Ok(())
    }};
    (put each $n:ident $f:ident) => { Some(sizes(&$n.$f)) };
    (take each $n:ident $m:ident $k:ident $f:ident) => {{
        $n.$f = Metadata::required($k, $m.sizes($k)?)?;
        Ok(())
    }};
    (put each_perhaps $n:ident $f:ident) => { $n.$f.as_ref().map(sizes) };
    (take each_perhaps $n:ident $m:ident $k:ident $f:ident) => {{
        $n.$f = $m.sizes($k)?;
        Ok(())
    }};
    (put real $n:ident $f:ident) => { Some($n.$f.into()) };
    (take real $n:ident $m:ident $k:ident $f:ident) => {{
        $n.$f = Metadata::required($k, $m.number($k)?)? as f32;
        Ok(())
    }};
    (put real_perhaps $n:ident $f:ident) => { $n.$f.map(Value::from) };
    (take real_perhaps $n:ident $m:ident $k:ident $f:ident) => {{
        $n.$f = $m.number($k)?.map(|v| v as f32);
        Ok(())
    }};
    (put text_perhaps $n:ident $f:ident) => { $n.$f.clone().map(Value::from) };
    (take text_perhaps $n:ident $m:ident $k:ident $f:ident) => {{
        $n.$f = $m.text($k)?.map(str::to_owned);
        Ok(())
    }};
    (put scaling $n:ident $f:ident) => { $n.$f.as_ref().map(|s| s.kind.clone().into()) };
    (take scaling $n:ident $m:ident $k:ident $f:ident) => {{
        // A file that says no type but a factor means a linear one.
        let factor = format!("{}.rope.scaling.factor", $n.model);
        let said = $m.text($k)?.or($m.get(&factor).map(|_| "linear"));
        $n.$f = said.map(Scaling::of);
        Ok(())
    }};
    (put scaling_real $n:ident $f:ident.$g:ident) => { $n.$f.as_ref()?.$g.map(Value::from) };
    (take scaling_real $n:ident $m:ident $k:ident $f:ident.$g:ident) => {{
        if let Some(scaling) = &mut $n.$f {
            scaling.$g = $m.number($k)?.map(|v| v as f32);
        }
        Ok(())
    }};
    (put scaling_size $n:ident $f:ident.$g:ident) => { $n.$f.as_ref()?.$g.map(short) };
    (take scaling_size $n:ident $m:ident $k:ident $f:ident.$g:ident) => {{
        if let Some(scaling) = &mut $n.$f {
            scaling.$g = $m.size($k)?;
        }
        Ok(())
    }};
}

/// Names as in the format's documents and llama.cpp's list of keys. A leading `general.` stands alone, all others behind the name of
/// the network.
static KEYS: [Key; 22] = keys! {
    "general.name" BOTH text_perhaps name;
    "general.file_type" BOTH perhaps file_type;
    "vocab_size" BOTH perhaps vocab_size;
    "context_length" BOTH size context_length;
    "embedding_length" BOTH size embedding_length;
    "block_count" BOTH size block_count;
    "feed_forward_length" BOTH each feed_forward_length;
    "attention.head_count" BOTH each head_count;
    "attention.head_count_kv" BOTH each_perhaps head_count_kv;
    "attention.key_length" BOTH perhaps key_length;
    "attention.value_length" BOTH perhaps value_length;
    "attention.layer_norm_epsilon" GPT2 real norm_epsilon;
    "attention.layer_norm_rms_epsilon" LLAMA real norm_epsilon;
    "rope.dimension_count" LLAMA perhaps rope_dimension_count;
    "rope.freq_base" LLAMA real_perhaps rope_freq_base;
    "rope.scaling.type" LLAMA scaling rope_scaling;
    "rope.scaling.factor" LLAMA scaling_real rope_scaling.factor;
    "rope.scaling.original_context_length" LLAMA scaling_size rope_scaling.original_context_length;
    "rope.scaling.yarn_attn_factor" LLAMA scaling_real rope_scaling.yarn_attention_factor;
    "rope.scaling.yarn_ext_factor" LLAMA scaling_real rope_scaling.yarn_extrapolation_factor;
    "rope.scaling.yarn_beta_fast" LLAMA scaling_real rope_scaling.yarn_beta_fast;
    "rope.scaling.yarn_beta_slow" LLAMA scaling_real rope_scaling.yarn_beta_slow;
};

/// Values behind the name of a network under which it computes something else than here, unless they are 0.
const OTHER: [&str; 6] = [
    "expert_count",
    "attention.sliding_window",
    "attention.scale",
    "attn_logit_softcapping",
    "logit_scale",
    "residual_scale",
];

impl Key {
    /// Its whole name for `model`.
    fn of(&self, model: Model) -> String {
        match self.name.starts_with("general.") {
            true => self.name.to_owned(),
            false => format!("{model}.{}", self.name),
        }
    }
}

impl Scaling {
    /// One of this kind, with nothing more said.
    pub(super) fn of(kind: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            factor: None,
            original_context_length: None,
            yarn_attention_factor: None,
            yarn_extrapolation_factor: None,
            yarn_beta_fast: None,
            yarn_beta_slow: None,
        }
    }
}

impl Numbers {
    /// The metadata that say these numbers.
    ///
    /// # Errors
    /// If some of them cannot be, or a number has no place in a file.
    pub(super) fn metadata(&self) -> Result<Metadata, KeysError> {
        self.check()?;
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", self.model.name());
        for key in KEYS.iter().filter(|key| key.models.contains(&self.model)) {
            if let Some(value) = (key.put)(self) {
                metadata.set(&key.of(self.model), value);
            }
        }
        Ok(metadata)
    }

    /// The numbers that `metadata` say.
    ///
    /// # Errors
    /// Names the value that is missing, is not what it should be, or that no network here has.
    pub(super) fn of(metadata: &Metadata) -> Result<Self, KeysError> {
        let architecture = "general.architecture";
        let name = Metadata::required(architecture, metadata.text(architecture)?)?;
        let model = Model::of_name(name).ok_or_else(|| KeysError::Model(name.to_owned()))?;
        let mut numbers = Self {
            model,
            name: None,
            context_length: 0,
            embedding_length: 0,
            block_count: 0,
            feed_forward_length: Sizes::All(0),
            head_count: Sizes::All(0),
            head_count_kv: None,
            key_length: None,
            value_length: None,
            norm_epsilon: 0.0,
            rope_dimension_count: None,
            rope_freq_base: None,
            rope_scaling: None,
            vocab_size: None,
            file_type: None,
        };
        for key in KEYS.iter().filter(|key| key.models.contains(&model)) {
            (key.take)(&mut numbers, metadata, &key.of(model))?;
        }
        for other in OTHER {
            let key = format!("{model}.{other}");
            if metadata.number(&key)?.is_some_and(|value| value != 0.0) {
                let reason = "is not 0, and no network here has that".into();
                return Err(KeysError::Value { key, reason });
            }
        }
        numbers.check()?;
        Ok(numbers)
    }

    /// Makes sure that they can be the numbers of a network.
    fn check(&self) -> Result<(), KeysError> {
        let wrong = |name: &str, reason: String| {
            let key = format!("{}.{name}", self.model);
            Err(KeysError::Value { key, reason })
        };
        let sizes = [
            ("context_length", self.context_length),
            ("embedding_length", self.embedding_length),
            ("block_count", self.block_count),
        ];
        for (name, size) in sizes {
            if size == 0 || size > u64::from(u32::MAX) {
                return wrong(name, format!("is {size}"));
            }
        }
        if self.block_count > MAX_BLOCKS {
            return wrong(
                "block_count",
                format!("is {}; at most {MAX_BLOCKS} are read", self.block_count),
            );
        }
        let optional = [
            ("vocab_size", self.vocab_size),
            ("attention.key_length", self.key_length),
            ("attention.value_length", self.value_length),
            ("rope.dimension_count", self.rope_dimension_count),
        ];
        for (name, size) in optional {
            if let Some(size) = size.filter(|&size| size == 0 || size > u64::from(u32::MAX)) {
                return wrong(name, format!("is {size}"));
            }
        }
        let each = [
            ("feed_forward_length", Some(&self.feed_forward_length)),
            ("attention.head_count", Some(&self.head_count)),
            ("attention.head_count_kv", self.head_count_kv.as_ref()),
        ];
        for (name, sizes) in each {
            let values = match sizes {
                None => continue,
                Some(Sizes::All(size)) => std::slice::from_ref(size),
                Some(Sizes::Each(sizes)) if sizes.len() as u64 != self.block_count => {
                    return wrong(
                        name,
                        format!("has {} values for {} blocks", sizes.len(), self.block_count),
                    );
                }
                Some(Sizes::Each(sizes)) => sizes,
            };
            if let Some(size) = values.iter().find(|&&size| size == 0 || size > u64::from(u32::MAX)) {
                return wrong(name, format!("is {size}"));
            }
        }
        for block in 0..self.block_count as usize {
            let (heads, kv) = (self.head_count.at(block), self.heads_kv(block));
            if !heads.is_multiple_of(kv) {
                let reason = format!("is {kv}, of which {heads} heads are no multiple");
                return wrong("attention.head_count_kv", reason);
            }
            if self.key_length.is_none() && !self.embedding_length.is_multiple_of(heads) {
                let reason = format!(
                    "is {heads}, of which a width of {} is no multiple",
                    self.embedding_length
                );
                return wrong("attention.head_count", reason);
            }
        }
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon >= 0.0) {
            let name = match self.model {
                Model::Gpt2 => "attention.layer_norm_epsilon",
                Model::Llama => "attention.layer_norm_rms_epsilon",
            };
            return wrong(name, format!("is {}", self.norm_epsilon));
        }
        if let Some(base) = self.rope_freq_base.filter(|base| !(base.is_finite() && *base > 0.0)) {
            return wrong("rope.freq_base", format!("is {base}"));
        }
        if let Some(scaling) = &self.rope_scaling {
            if !["none", "linear", "yarn", "longrope"].contains(&scaling.kind.as_str()) {
                let reason = format!("is `{}`; none, linear, yarn and longrope are known", scaling.kind);
                return wrong(SCALING, reason);
            }
            if let Some(factor) = scaling.factor.filter(|factor| !(factor.is_finite() && *factor > 0.0)) {
                return wrong("rope.scaling.factor", format!("is {factor}"));
            }
        }
        Ok(())
    }

    /// Heads of keys and values of one block.
    pub(super) fn heads_kv(&self, block: usize) -> u64 {
        self.head_count_kv.as_ref().unwrap_or(&self.head_count).at(block)
    }
}

impl Sizes {
    /// That of one block.
    ///
    /// # Panics
    /// If there is no such block.
    pub(super) fn at(&self, block: usize) -> u64 {
        match self {
            Self::All(size) => *size,
            Self::Each(sizes) => sizes[block],
        }
    }
}

/// The value of `general.file_type` for a file most of whose matrices are stored like this, if it has one.
pub(super) fn file_type(kind: TensorType) -> Option<u64> {
    // `LlamaFileType` of the format's package; mixtures of K types have several numbers.
    Some(match kind {
        TensorType::F32 => 0,
        TensorType::F16 => 1,
        TensorType::Q4_0 => 2,
        TensorType::Q4_1 => 3,
        TensorType::Q8_0 => 7,
        TensorType::Q5_0 => 8,
        TensorType::Q5_1 => 9,
        TensorType::Bf16 => 32,
        _ => return None,
    })
}

/// Sizes are written in 32 bits, as all readers expect. They were checked to fit.
fn short(size: u64) -> Value {
    Value::U32(size as u32)
}

fn sizes(sizes: &Sizes) -> Value {
    match sizes {
        Sizes::All(size) => short(*size),
        Sizes::Each(sizes) => sizes.iter().map(|&size| size as u32).collect::<Vec<_>>().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Numbers {
        Numbers {
            model: Model::Llama,
            name: Some("a name".into()),
            context_length: 2048,
            embedding_length: 576,
            block_count: 3,
            feed_forward_length: Sizes::Each(vec![1536, 1024, 512]),
            head_count: Sizes::All(9),
            head_count_kv: Some(Sizes::All(3)),
            key_length: Some(64),
            value_length: Some(64),
            norm_epsilon: 1e-5,
            rope_dimension_count: Some(64),
            rope_freq_base: Some(100_000.0),
            rope_scaling: Some(Scaling {
                factor: Some(4.0),
                original_context_length: Some(512),
                yarn_beta_fast: Some(32.0),
                ..Scaling::of("yarn")
            }),
            vocab_size: Some(49_152),
            file_type: file_type(TensorType::F16),
        }
    }

    fn gpt2() -> Numbers {
        Numbers {
            model: Model::Gpt2,
            head_count_kv: None,
            key_length: None,
            value_length: None,
            rope_dimension_count: None,
            rope_freq_base: None,
            rope_scaling: None,
            feed_forward_length: Sizes::All(2304),
            ..llama()
        }
    }

    #[test]
    fn numbers_come_back_from_the_metadata_that_say_them() {
        for numbers in [llama(), gpt2()] {
            assert_eq!(Numbers::of(&numbers.metadata().unwrap()), Ok(numbers));
        }
        let metadata = llama().metadata().unwrap();
        assert_eq!(metadata.get("llama.rope.freq_base"), Some(&Value::F32(100_000.0)));
        assert_eq!(metadata.get("llama.attention.head_count_kv"), Some(&Value::U32(3)));
        assert_eq!(
            metadata.get("llama.feed_forward_length"),
            Some(&vec![1536u32, 1024, 512].into())
        );
        assert_eq!(metadata.get("general.file_type"), Some(&Value::U32(1)));
        let metadata = gpt2().metadata().unwrap();
        assert_eq!(
            metadata.get("gpt2.attention.layer_norm_epsilon"),
            Some(&Value::F32(1e-5))
        );
        assert_eq!(metadata.get("gpt2.rope.freq_base"), None);
    }

    #[test]
    fn a_value_that_is_missing_or_cannot_be_is_named() {
        let whole = llama().metadata().unwrap();
        for key in [
            "llama.block_count",
            "llama.attention.head_count",
            "llama.attention.layer_norm_rms_epsilon",
        ] {
            let mut metadata = Metadata::new();
            for (name, value) in whole.iter().filter(|(name, _)| *name != key) {
                metadata.set(name, value.clone());
            }
            let error = Numbers::of(&metadata).unwrap_err();
            assert_eq!(error.to_string(), format!("the metadata has no `{key}`"));
        }
        let cases: [(&str, Value, &str); 12] = [
            ("general.architecture", "qwen2".into(), "gpt2 and llama are read"),
            ("llama.block_count", 0u32.into(), "is 0"),
            ("llama.block_count", (-1i32).into(), "whole number"),
            ("llama.block_count", 5000u32.into(), "at most 4096"),
            ("llama.context_length", u64::MAX.into(), "is 18446744073709551615"),
            ("llama.attention.head_count_kv", 2u32.into(), "no multiple"),
            (
                "llama.feed_forward_length",
                vec![1u32, 2].into(),
                "2 values for 3 blocks",
            ),
            ("llama.attention.head_count", vec![9u32, 0, 9].into(), "is 0"),
            ("llama.attention.layer_norm_rms_epsilon", f32::NAN.into(), "NaN"),
            ("llama.rope.freq_base", 0f32.into(), "is 0"),
            ("llama.rope.scaling.type", "other".into(), "`other`"),
            ("llama.expert_count", 8u32.into(), "no network here"),
        ];
        for (key, value, reason) in cases {
            let mut metadata = whole.clone();
            metadata.set(key, value);
            let text = Numbers::of(&metadata).unwrap_err().to_string();
            assert!(text.contains(key) && text.contains(reason), "{key}: {text}");
        }
    }

    #[test]
    fn a_factor_without_a_type_is_linear() {
        let mut metadata = Metadata::new();
        let plain = Numbers {
            rope_scaling: None,
            ..llama()
        };
        metadata.extend(plain.metadata().unwrap());
        metadata.set("llama.rope.scaling.factor", 2f32);
        let scaling = Numbers::of(&metadata).unwrap().rope_scaling.unwrap();
        assert_eq!((scaling.kind.as_str(), scaling.factor), ("linear", Some(2.0)));
    }
}
