//! What can be typed: commands, options and their help. Nothing here does anything.

mod cluster;
mod plan;

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use self::cluster::{BenchCluster, Cluster, CorpusPart};
pub use self::plan::Plan;

/// Most threads that can be asked for.
const MAX_THREADS: u64 = 1024;

/// Train one large parent once and derive a whole family of small models from it.
///
/// A run is a folder. `pretrain` makes one; `family`, `eval`, `pick`, `export` and `report` read it. Start with `offshoot demo`.
#[derive(Debug, Parser)]
#[command(name = "offshoot", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 the input cannot be used, 2 a mistake of offshoot, 130 interrupted.")]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Where to compute.
#[derive(Clone, Debug, Args)]
pub struct Compute {
    /// Device: cpu; cuda, vulkan or metal where the build has them.
    #[arg(long, default_value = "cpu", value_name = "NAME", help_heading = "Compute")]
    pub device: String,
    /// CPU threads; 0 stands for one per core.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Compute")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(..=MAX_THREADS))]
    pub threads: usize,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Everything once on images that come along: pretrain, measure, pick, export, report.
    Demo(Demo),
    /// Say what a data set holds and draw a sheet of its augmented crops.
    Data(Data),
    /// Open a model of others, check it, and make it a run of one child.
    Import(Import),
    /// Train a tokenizer.
    #[command(subcommand)]
    Tokenizer(TokenizerCommand),
    /// Make a corpus of text: tokenized, split by document, cleared of duplicates.
    Tokenize(Tokenize),
    /// Cluster the windows of a corpus by what their texts are about, or assign them to the clusters of another.
    Cluster(Cluster),
    /// Pre-train a parent by a recipe: on images without labels, or on text.
    Pretrain(Pretrain),
    /// List the children of a run.
    Family(Family),
    /// Measure children: k-NN, linear probe, agreement with the parent, perplexity, latency.
    #[command(subcommand)]
    Eval(Eval),
    /// Write text with a language model.
    Generate(Generate),
    /// Find the best child within a budget.
    Pick(Pick),
    /// Say which way to a small model of a domain is worth it under four budgets.
    Plan(Plan),
    /// Write children as ordinary Hugging Face folders, ONNX models or GGUF files.
    Export(Export),
    /// Write one HTML page about a run.
    Report(Report),
    /// Measure speed.
    #[command(subcommand)]
    Bench(Bench),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual pages.
    Man {
        /// Folder to write them to.
        #[arg(short, long, value_name = "DIR", default_value = "man")]
        out: PathBuf,
    },
}

/// `offshoot demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Folder to make.
    #[arg(long, value_name = "DIR", default_value = "offshoot-demo")]
    pub out: PathBuf,
    /// Replace a demo that is there already.
    #[arg(long)]
    pub overwrite: bool,
    /// Go without labels: children are compared by their agreement with the parent.
    #[arg(long)]
    pub without_labels: bool,
    /// Steps of training instead of the recipe's; fewer to look around quickly.
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: Compute,
}

/// `offshoot data`.
#[derive(Debug, Args)]
pub struct Data {
    /// A folder of images, or IDX, CIFAR, Parquet or tar files.
    pub path: PathBuf,
    /// Use labels: class folders, label files or columns.
    #[arg(long)]
    pub labels: bool,
    /// The contact sheet to write.
    #[arg(long, value_name = "PNG", default_value = "contact-sheet.png")]
    pub sheet: PathBuf,
    /// Images on the sheet; 0 for no sheet.
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub rows: usize,
    /// Recipe whose crops are drawn instead of ones that suit the images.
    #[arg(long, value_name = "TOML")]
    pub recipe: Option<PathBuf>,
    /// Seed of the choice and of the crops.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `offshoot import`.
#[derive(Debug, Args)]
pub struct Import {
    /// A folder of transformers (dinov2, vit, swin, resnet, gpt2, llama) or timm, a .safetensors file with timm's names, or a .gguf file.
    pub path: PathBuf,
    /// What a bare file is, by timm's name, such as vit_base_patch16_224.
    #[arg(long, value_name = "NAME")]
    pub arch: Option<String>,
    /// Run folder to make; without it the model is only checked.
    #[arg(short, long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Replace the run that is in the folder.
    #[arg(long)]
    pub overwrite: bool,
    /// Side of the images that it is given, in pixels, instead of what comes with it.
    #[arg(long, value_name = "N")]
    pub px: Option<u32>,
    /// Mean of its images' values in 0..1, one number or one a channel, instead of what comes with it.
    #[arg(long, value_name = "M,M,M", value_delimiter = ',', allow_negative_numbers = true)]
    pub mean: Option<Vec<f32>>,
    /// Their deviation.
    #[arg(long, value_name = "S,S,S", value_delimiter = ',', allow_negative_numbers = true)]
    pub std: Option<Vec<f32>>,
    /// Images to score it on: a folder, IDX, CIFAR, Parquet or tar files.
    #[arg(long, value_name = "PATH", requires = "out", help_heading = "Data")]
    pub data: Option<PathBuf>,
    /// Use their labels.
    #[arg(long, requires = "data", help_heading = "Data")]
    pub labels: bool,
    /// Share of the images held out for choosing.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, help_heading = "Data")]
    pub val: f64,
    /// Share of the images held out for the final number.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, help_heading = "Data")]
    pub test: f64,
    /// Seed of the split.
    #[arg(long, default_value_t = 0, help_heading = "Data")]
    pub seed: u64,
}

/// `offshoot tokenizer`.
#[derive(Debug, Subcommand)]
pub enum TokenizerCommand {
    /// Train a byte-level BPE or a unigram tokenizer on text.
    Train(TrainTokenizer),
}

/// `offshoot tokenizer train`.
#[derive(Debug, Args)]
pub struct TrainTokenizer {
    /// Text files, JSONL, Parquet, or folders of those.
    #[arg(required = true, value_name = "PATH")]
    pub text: Vec<PathBuf>,
    /// File to write.
    #[arg(short, long, value_name = "JSON", default_value = "tokenizer.json")]
    pub out: PathBuf,
    /// Tokens to have, special ones and bytes included.
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    pub vocabulary: usize,
    /// Kind of the tokenizer.
    #[arg(long, value_enum, default_value_t = TokenizerKind::Bpe)]
    pub algorithm: TokenizerKind,
    /// Chooses the documents of a sample where there is more text than is counted (512 MiB).
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Replace the file.
    #[arg(long)]
    pub overwrite: bool,
}

/// Kinds of tokenizers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TokenizerKind {
    /// Byte-level BPE, as GPT-2 has.
    Bpe,
    /// A unigram language model with byte fallback, as SentencePiece trains.
    Unigram,
}

/// `offshoot tokenize`.
#[derive(Debug, Args)]
pub struct Tokenize {
    /// Domains: text files, JSONL, Parquet or folders of those, each with a name.
    #[arg(required = true, value_name = "NAME=PATH")]
    pub text: Vec<String>,
    /// A tokenizer.json, or a folder with one.
    #[arg(long, value_name = "PATH")]
    pub tokenizer: PathBuf,
    /// Folder to make.
    #[arg(short, long, value_name = "DIR")]
    pub out: PathBuf,
    /// Share of the documents held out for choosing.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    pub val: f64,
    /// Share of the documents held out for the final number.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    pub test: f64,
    /// Seed of the split.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Share of damaged documents of a domain that is allowed.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    pub max_damaged: f64,
    /// Leave training documents in that nearly equal a held-out one.
    #[arg(long)]
    pub keep_near_duplicates: bool,
    /// The token that begins a text, where the tokenizer's own names do not tell.
    #[arg(long, value_name = "TOKEN")]
    pub begin_of_text: Option<String>,
    /// The token that ends a text.
    #[arg(long, value_name = "TOKEN")]
    pub end_of_text: Option<String>,
}

/// `offshoot pretrain`.
#[derive(Debug, Args)]
pub struct Pretrain {
    /// The recipe, and overrides such as `optim.lr=1e-3`.
    #[arg(value_name = "RECIPE | KEY=VALUE")]
    pub recipe: Vec<String>,
    /// Run folder to make.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Start from this model instead of fresh weights: a run, an exported child, a folder of transformers or timm, or a GGUF file.
    #[arg(long, value_name = "PATH")]
    pub init: Option<PathBuf>,
    /// Go on with the run in this folder, from its newest checkpoint.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "overwrite", "dry_run", "recipe", "init"])]
    pub resume: Option<PathBuf>,
    /// Replace the run that is in the folder.
    #[arg(long)]
    pub overwrite: bool,
    /// Print what the run would be and cost, and stop; no model is allocated.
    #[arg(long)]
    pub dry_run: bool,
    /// Rate for the hours of a dry run, in TFLOP/s.
    #[arg(long, value_name = "TFLOPS", default_value_t = 100.0)]
    pub rate: f64,
    /// Stop as if interrupted once this many steps are done.
    #[arg(long, value_name = "N")]
    pub stop_after: Option<u64>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: Compute,
}

/// `offshoot family`.
#[derive(Debug, Args)]
pub struct Family {
    /// Run folder.
    pub run: PathBuf,
    /// Column to sort by; `-` in front for descending.
    #[arg(long, value_name = "COLUMN", allow_hyphen_values = true)]
    pub sort: Option<String>,
    /// Keep rows where `COLUMN OP VALUE` holds, such as `width>=512`; may be given more than once.
    #[arg(long, value_name = "CONDITION")]
    pub filter: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Which children a measurement is for.
#[derive(Clone, Debug, Args)]
pub struct Which {
    /// Run folder.
    pub run: PathBuf,
    /// Only this child, by id or name; may be given more than once. Without it, the whole family.
    #[arg(long, value_name = "ID")]
    pub child: Vec<String>,
    /// Part of the data to score. Choose on val; test is for the final number.
    #[arg(long, value_enum, default_value_t = Part::Val)]
    pub split: Part,
    /// Images of training data that vote or train the probe, at most; 0 for all. With a limit the numbers are only printed.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub references: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: Compute,
}

/// A held-out part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// What choices are made on.
    Val,
    /// What the final number is measured on.
    Test,
}

/// `offshoot eval`.
#[derive(Debug, Subcommand)]
pub enum Eval {
    /// Weighted k-NN on class tokens as DINO does it: k 10, 20, 100, 200, temperature 0.07. Needs labels.
    Knn(Which),
    /// Linear probe on frozen features with DINOv2's grid of learning rates. Needs labels.
    Linear(Linear),
    /// Share of the parent's 20 nearest neighbours that a child finds too. Needs no labels.
    Agreement(Which),
    /// Perplexity of language models on documents, per token and per byte, of each domain and in the mean.
    Perplexity(Perplexity),
    /// Milliseconds for one image, or one token of text, on this machine.
    Latency(Latency),
}

/// `offshoot eval linear`.
#[derive(Debug, Args)]
pub struct Linear {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub which: Which,
    /// Passes over the training features.
    #[arg(long, default_value_t = 10)]
    pub epochs: usize,
    /// Images of one step.
    #[arg(long, default_value_t = 256)]
    pub batch: usize,
    /// Seed of start values and order.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// `offshoot eval latency`.
#[derive(Debug, Args)]
pub struct Latency {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub which: Which,
    /// Timed runs of each child.
    #[arg(long, default_value_t = 30)]
    pub repeats: usize,
    /// Of a language model: tokens there are with the one that is timed, or as many as it can see if that is fewer.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub context: usize,
}

/// A language model: a child of a run, or a folder.
#[derive(Clone, Debug, Args)]
pub struct LanguageModel {
    /// Run folder, a folder of transformers (llama, gpt2) with its tokenizer.json, or a GGUF file.
    #[arg(value_name = "RUN | MODEL")]
    pub place: PathBuf,
    /// Whether a begin-of-text token is put before a text.
    #[arg(long, value_enum, default_value_t = BeginOfText::Auto, value_name = "WHEN")]
    pub begin_of_text: BeginOfText,
}

/// When a begin-of-text token is put before a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BeginOfText {
    /// If the tokenizer itself adds one; that of a run does what the run was trained with.
    Auto,
    /// Always; the model must have one.
    Yes,
    /// Never.
    No,
}

/// `offshoot eval perplexity`.
#[derive(Debug, Args)]
pub struct Perplexity {
    /// The models.
    #[command(flatten)]
    pub model: LanguageModel,
    /// Only this child of a run, by id or name; may be given more than once. Without it, the whole family.
    #[arg(long, value_name = "ID")]
    pub child: Vec<String>,
    /// Text of a domain instead of the run's own: a .txt, .jsonl (also .gz, .zst) or .parquet file, or a folder of them; may be given
    /// more than once. All of its documents are scored, and the numbers are only printed unless the run has no text of its own.
    #[arg(long, value_name = "NAME=PATH")]
    pub data: Vec<String>,
    /// Part of the run's text to score. Choose on val; test is for the final number.
    #[arg(long, value_enum, default_value_t = Part::Val)]
    pub split: Part,
    /// Tokens of a window, the last of which is only predicted; the model's context, or the run's, without it. With another than the
    /// run's the numbers are only printed.
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Tokens from the beginning of a window to that of the next; one less than the context without it, so that every token but a
    /// document's first is predicted once and none is read twice as context but for one a window. With another the numbers are only
    /// printed.
    #[arg(long, value_name = "N")]
    pub stride: Option<usize>,
    /// Documents of each domain, at most; 0 for all. With a limit the numbers are only printed.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub documents: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: Compute,
}

/// `offshoot generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// The model.
    #[command(flatten)]
    pub model: LanguageModel,
    /// A child of a run, by id or name; the largest without it.
    #[arg(long, value_name = "ID")]
    pub child: Option<String>,
    /// What the text begins with.
    #[command(flatten)]
    pub prompt: Prompt,
    /// Tokens to generate, at most.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub tokens: usize,
    /// Texts to generate from the same prompt.
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = RangedU64ValueParser::<u64>::new().range(1..=1_000_000))]
    pub samples: u64,
    /// Divides the scores of tokens: below 1 surer, above 1 freer; 0 takes the best token always.
    #[arg(
        long,
        value_name = "T",
        default_value_t = 1.0,
        help_heading = "Sampling",
        allow_negative_numbers = true
    )]
    pub temperature: f64,
    /// Draw only from so many of the best tokens; 0 for all.
    #[arg(long, value_name = "K", default_value_t = 50, help_heading = "Sampling")]
    pub top_k: usize,
    /// Draw only from the best tokens that have this share of the probability together; 1 for all.
    #[arg(long, value_name = "P", default_value_t = 1.0, help_heading = "Sampling")]
    pub top_p: f64,
    /// Make tokens that occurred less likely: above 1; 1 does nothing.
    #[arg(long, value_name = "R", default_value_t = 1.0, help_heading = "Sampling")]
    pub repetition_penalty: f64,
    /// Decides all draws.
    #[arg(long, default_value_t = 0, help_heading = "Sampling")]
    pub seed: u64,
    /// Print JSON when all is done, with the ids of all tokens.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: Compute,
}

/// What a generated text begins with.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Prompt {
    /// This text. Names of the tokenizer's special tokens in it are those tokens.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// The text of this file, in UTF-8; - for standard input.
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,
}

/// `offshoot pick`.
#[derive(Debug, Args)]
pub struct Pick {
    /// Run folder.
    pub run: PathBuf,
    /// Most parameters, such as 5M.
    #[arg(long, value_name = "COUNT", help_heading = "Budget")]
    pub params: Option<String>,
    /// Most bytes of the exported file, such as 20MB.
    #[arg(long, value_name = "SIZE", help_heading = "Budget")]
    pub bytes: Option<String>,
    /// Most multiply-adds of one image or token, such as 1G.
    #[arg(long, value_name = "COUNT", help_heading = "Budget")]
    pub macs: Option<String>,
    /// Most milliseconds for one image or token on this machine; children without a measurement are measured first.
    #[arg(long, value_name = "MS", help_heading = "Budget")]
    pub ms: Option<String>,
    /// Metric to choose by on the val split instead of the recipe's score.
    #[arg(long, value_name = "METRIC")]
    pub by: Option<String>,
    /// Runners-up to explain.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub show: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: Compute,
}

/// `offshoot export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Run folder.
    pub run: PathBuf,
    /// The children to write.
    #[command(flatten)]
    pub what: ExportWhat,
    /// Folder to make; with --all or --pareto, one folder a child in it.
    #[arg(short, long, value_name = "DIR")]
    pub out: PathBuf,
    /// Layout of the folders.
    #[arg(long, value_enum, default_value_t = Format::Hf)]
    pub format: Format,
    /// How matrices are stored in a GGUF file.
    #[arg(long, value_enum, default_value_t = Stored::F32)]
    pub stored: Stored,
    /// Replace folders that are there already.
    #[arg(long)]
    pub overwrite: bool,
    /// Read every folder back and compare its features on held-out images with the family's. Not for onnx.
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: Compute,
}

/// Which children to export.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct ExportWhat {
    /// One child by its sizes, such as 384x12.
    #[arg(long, value_name = "SIZES")]
    pub size: Option<String>,
    /// One child by its familiar name, such as vit-s.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// One child by its id.
    #[arg(long, value_name = "ID")]
    pub child: Option<String>,
    /// Every child.
    #[arg(long)]
    pub all: bool,
    /// The children that no other beats in parameters and score.
    #[arg(long)]
    pub pareto: bool,
}

/// Layout of an exported folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Hugging Face: config.json, model.safetensors, preprocessor_config.json, README.md; for transformers, or for timm where
    /// transformers has no such network.
    Hf,
    /// The same for timm: residual networks that stride in the second convolution.
    Timm,
    /// GGUF of decoders, for llama.cpp and others: model.gguf with the tokenizer in it, README.md.
    Gguf,
    /// ONNX: model.onnx (and model.onnx.data beyond 1 GiB of weights), preprocessor_config.json, README.md.
    Onnx,
}

/// How matrices are stored in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stored {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Blocks of 32 bytes with a scale.
    #[value(name = "q8_0")]
    Q8,
}

/// `offshoot report`.
#[derive(Debug, Args)]
pub struct Report {
    /// Run folder.
    pub run: PathBuf,
    /// Page to write; report.html in the run folder by default.
    #[arg(short, long, value_name = "HTML")]
    pub out: Option<PathBuf>,
}

/// `offshoot bench`.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Time whole training steps: losses, backward, optimizer and average, without loading data.
    Step(BenchStep),
    /// Time whole training steps of a decoder language model: loss, backward, clipping and optimizer, on made-up tokens.
    Lm(BenchLm),
    /// Time a child's features of made-up images: class tokens and means of patch tokens, as every score is made from.
    Features(BenchFeatures),
    /// Time the search for nearest neighbours among made-up features.
    Knn(BenchKnn),
    /// Time k-means on vectors from a file.
    Cluster(BenchCluster),
}

/// `offshoot bench step`.
#[derive(Debug, Args)]
pub struct BenchStep {
    /// Size of the problem.
    #[arg(long, value_enum, default_value_t = Case::CpuS)]
    pub case: Case,
    /// Timed steps.
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub steps: usize,
    /// Steps before the first timed one.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub warmup: usize,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: Compute,
}

/// Sizes of `bench step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// 192 x 6 on 32 pixels, 32 images.
    CpuS,
    /// 384 x 12 on 32 pixels, 16 images.
    CpuM,
    /// POA's ViT-L/16 on 224 pixels, 50 images.
    VitL,
    /// A Swin of width 96 with 2, 2, 6, 2 blocks on 64 pixels, 8 images.
    SwinS,
    /// A ResNet of width 64 with 2, 3, 6, 2 blocks on 64 pixels, 8 images.
    #[value(name = "resnet-s")]
    ResNetS,
}

/// `offshoot bench lm`.
#[derive(Debug, Args)]
pub struct BenchLm {
    /// Size of the problem.
    #[arg(long, value_enum, default_value_t = LmCase::CpuS)]
    pub case: LmCase,
    /// Kind of the decoder; a Llama has half as many heads of keys and values as of queries.
    #[arg(long, value_enum, default_value_t = LmArch::Gpt2)]
    pub arch: LmArch,
    /// Experts of a projected network (SLM-pn) with as many codes and slices; 0 for a plain decoder.
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = RangedU64ValueParser::<usize>::new().range(0..=1024))]
    pub experts: usize,
    /// Run blocks again for the gradient.
    #[arg(long)]
    pub recompute: bool,
    /// Timed steps.
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub steps: usize,
    /// Steps before the first timed one.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub warmup: usize,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: Compute,
}

/// Kinds of decoders for `bench lm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LmArch {
    /// GPT-2.
    Gpt2,
    /// Llama.
    Llama,
}

impl LmArch {
    /// Its name as it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
        }
    }
}

/// Sizes of `bench lm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LmCase {
    /// 32 x 2, 97 tokens, 4 windows of 24.
    Tiny,
    /// 256 x 4, 8,192 tokens, 16 windows of 256.
    CpuS,
    /// The paper's 1,024 x 7, 32,768 tokens, 16 windows of 1,024.
    #[value(name = "slm-126m")]
    Slm126m,
}

/// `offshoot bench features`.
#[derive(Debug, Args)]
pub struct BenchFeatures {
    /// The model to time.
    #[command(flatten)]
    pub subject: BenchSubject,
    /// Write the fresh model of --case to this folder, as `offshoot export` writes children.
    #[arg(long, value_name = "DIR", conflicts_with = "child")]
    pub save: Option<PathBuf>,
    /// Images of one pass, of the model's native size.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub images: usize,
    /// Images that run at once.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub batch: usize,
    /// Timed passes over all images.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub passes: usize,
    /// Batches before the first timed pass.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub warmup: usize,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: Compute,
}

/// The model that `bench features` times.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct BenchSubject {
    /// An exported child: a folder with config.json and model.safetensors.
    pub child: Option<PathBuf>,
    /// A fresh model of this size instead.
    #[arg(long, value_enum)]
    pub case: Option<Model>,
}

/// Sizes of fresh models for `bench features`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Model {
    /// 192 x 6 on 32 pixels, patches of 4.
    CpuS,
    /// 384 x 12 on 32 pixels, patches of 4.
    CpuM,
    /// ViT-S/16: 384 x 12 on 224 pixels, patches of 16.
    #[value(name = "vit-s16")]
    VitS16,
}

/// `offshoot bench knn`.
#[derive(Debug, Args)]
pub struct BenchKnn {
    /// Features that are searched.
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    pub references: usize,
    /// Features whose neighbours are wanted.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub queries: usize,
    /// Channels of each.
    #[arg(long, value_name = "N", default_value_t = 384)]
    pub dim: usize,
    /// Neighbours of each query.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub k: usize,
    /// Timed searches.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub passes: usize,
    /// Searches before the first timed one.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub warmup: usize,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: Compute,
}
