#!/usr/bin/env python3
"""Opens exported ONNX models with onnx.checker and onnxruntime and compares their outputs with offshoot's or transformers'.

Arguments are run folders; of each, the smallest, middle and largest child by parameters are exported as ONNX and as Hugging Face
folder. Of images: `cls` and `patches` are held against our own of the second folder, at batches of 1 and 5, and the metadata against
preprocessor_config.json. Of text: the logits are held against those of transformers' model of the second folder in fp64, for batches
and lengths of all sorts, the metadata against config.json, and the lines of Python in the model card are run. For both, the declared
inputs and outputs. Exits with 1 if anything differs.

Before the first use: cargo build --release --workspace --examples --bins
"""

import argparse
import json
import pathlib
import sys
import tempfile

import numpy
import onnx
import onnxruntime
import torch
import transformers

from exported import ROOT, export, family_members, our_features, run_card
from opened import Difference

BATCHES = (1, 5)
# Sequences and tokens of each; 0 stands for the context, up to LONGEST.
SHAPES = ((1, 1), (1, 33), (3, 20), (5, 2), (2, 0))
LONGEST = 256
TEXT = "Once upon a time, in a village by the sea, there lived 3 old fishermen."


def sides(value):
    """Declared sizes of an input or output; names of those that are open."""
    return [side.dim_value if side.HasField("dim_value") else side.dim_param for side in value.type.tensor_type.shape.dim]


def check_file(path):
    """The checker has no objection, shapes can be inferred, and the batch alone is open, or of text the length of sequences too."""
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    open_sides = ["batch", "sequence"] if is_text(model) else ["batch"]
    for value in [*model.graph.input, *model.graph.output]:
        first, others = sides(value)[: len(open_sides)], sides(value)[len(open_sides) :]
        if first != open_sides or not all(isinstance(side, int) and side > 0 for side in others):
            raise Difference(f"{value.name} is declared {[*first, *others]}")
    return model


def is_text(model):
    return model.graph.input[0].name == "input_ids"


def check_metadata(model, folder):
    """Metadata and preprocessor_config.json agree."""
    entries = {entry.key: entry.value for entry in model.metadata_props}

    def single(numbers):
        return [numpy.float32(number) for number in numbers]

    said = json.loads((folder / "preprocessor_config.json").read_text())
    pairs = {
        "resize": (int(entries["resize"]), said["size"]["shortest_edge"]),
        "crop": (int(entries["crop"]), said["crop_size"]["height"]),
        "mean": (single(json.loads(entries["mean"])), single(said["image_mean"])),
        "std": (single(json.loads(entries["std"])), single(said["image_std"])),
        "channels": (int(entries["channels"]), sides(model.graph.input[0])[1]),
        "layout": (entries["layout"], "NCHW"),
    }
    for key, (here, there) in pairs.items():
        if here != there:
            raise Difference(f"metadata say {key} {here}, preprocessor_config.json says {there}")


def check_text_metadata(model, exported, plain):
    """Metadata, the two folders' tokenizers and the numbers of config.json agree."""
    entries = {entry.key: entry.value for entry in model.metadata_props}
    config = json.loads((plain / "config.json").read_text())
    context = "n_positions" if config["model_type"] == "gpt2" else "max_position_embeddings"
    pairs = {"vocabulary": config["vocab_size"], "context": config[context]}
    pairs |= {key: config[key] for key in ("bos_token_id", "eos_token_id") if config.get(key) is not None}
    for key, there in pairs.items():
        if int(entries[key]) != there:
            raise Difference(f"metadata say {key} {entries[key]}, config.json says {there}")
    if sides(model.graph.output[0])[2] != config["vocab_size"]:
        raise Difference("logits are not of the vocabulary")
    if (exported / "tokenizer.json").read_bytes() != (plain / "tokenizer.json").read_bytes():
        raise Difference("the tokenizer is another one than the Hugging Face folder's")
    return config["vocab_size"], config[context]


def check_text(arguments, session, model, exported, plain):
    vocabulary, context = check_text_metadata(model, exported, plain)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(exported / "tokenizer.json"))
    generator = numpy.random.default_rng(0)
    shapes = [(batch, length or min(context, LONGEST)) for batch, length in SHAPES]
    cases = [generator.integers(vocabulary, size=(batch, min(length, context))) for batch, length in shapes]
    cases.append(numpy.array([tokenizer(TEXT)["input_ids"][:context]]))
    with torch.inference_mode():
        single = [theirs(torch.from_numpy(ids)).logits.numpy() for ids in cases]
        exact = theirs.double()
        double = [exact(torch.from_numpy(ids)).logits.numpy() for ids in cases]
    for ids, rounded, expected in zip(cases, single, double):
        (ours,) = session.run(["logits"], {"input_ids": ids.astype(numpy.int64)})
        if ours.shape != expected.shape:
            raise Difference(f"logits are {ours.shape} in onnxruntime and {expected.shape} in transformers")
        worst, own = (numpy.abs(logits - expected).max() for logits in (ours, rounded))
        apart = numpy.abs(ours - rounded).max()
        print(
            f"  {ids.shape[0]} x {ids.shape[1]} tokens: {worst:.1e} from transformers in fp64, which is itself {own:.1e} off in fp32; "
            f"{apart:.1e} from that (largest logit {numpy.abs(expected).max():.1f})"
        )
        # Written so that a NaN fails.
        if not worst <= max(arguments.tolerance, 2 * own):
            raise Difference(f"logits differ by more than {arguments.tolerance} and twice what rounding makes of transformers' own")
    if run_card(exported)["logits"].shape[2] != vocabulary:
        raise Difference("the model card's lines give something else")
    if theirs.config.model_type == "gpt2":
        quiet = onnxruntime.RunOptions()
        quiet.log_severity_level = 4
        try:
            session.run(["logits"], {"input_ids": numpy.zeros((1, context + 1), numpy.int64)}, quiet)
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
            return
        raise Difference("a sequence that is longer than the context is not refused")


def check_images(arguments, session, model, exported, plain, scratch):
    check_metadata(model, exported)
    _, channels, side, _ = sides(model.graph.input[0])
    generator = numpy.random.default_rng(0)
    for batch in BATCHES:
        images = generator.standard_normal((batch, channels, side, side), dtype=numpy.float32)
        ours = our_features(arguments, plain, images, scratch)
        names = [output.name for output in session.get_outputs()]
        theirs = dict(zip(names, session.run(names, {"pixel_values": images})))
        worst = {}
        if ours.keys() != theirs.keys():
            raise Difference(f"{list(ours)} here and {list(theirs)} in onnxruntime")
        for name in ours:
            if ours[name].shape != theirs[name].shape:
                raise Difference(f"{name} is {ours[name].shape} here and {theirs[name].shape} in onnxruntime")
            worst[name] = numpy.abs(ours[name] - theirs[name]).max()
        figures = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
        largest = max(numpy.abs(value).max() for value in ours.values())
        print(f"  batch {batch}: {figures} (largest feature {largest:.2f})")
        # Written so that a NaN fails.
        if not all(value <= arguments.tolerance for value in worst.values()):
            raise Difference(f"batch {batch}: features differ by more than {arguments.tolerance}")


def check_child(arguments, run_folder, child, scratch):
    exported = scratch / "onnx"
    plain = scratch / "hf"
    export(arguments, run_folder, child, exported, "onnx")
    export(arguments, run_folder, child, plain)
    model = check_file(exported / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(exported / "model.onnx", options, providers=["CPUExecutionProvider"])
    size = sum(file.stat().st_size for file in exported.glob("model.onnx*"))
    shape = " x ".join(str(side) for side in sides(model.graph.input[0])[1:])
    print(f"{run_folder} {child}: {len(model.graph.node)} nodes, {size:,} bytes, {shape}")
    if is_text(model):
        check_text(arguments, session, model, exported, plain)
    else:
        check_images(arguments, session, model, exported, plain, scratch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="+", type=pathlib.Path, help="run folder")
    parser.add_argument("--child", action="append", default=[], help="child of a run instead of three of them; repeatable")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a feature or logit")
    parser.add_argument("--threads", type=int, default=1, help="threads of onnxruntime")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target" / "release", help="where the programs are")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, transformers {transformers.__version__}")
    try:
        for path in arguments.path:
            if not (path / "catalog.json").is_file():
                raise Difference(f"{path}: no run (catalog.json)")
            for child in family_members(path, arguments.child):
                with tempfile.TemporaryDirectory() as scratch:
                    check_child(arguments, path, child, pathlib.Path(scratch))
    except Difference as difference:
        sys.exit(f"error: {difference}")
    print("all equal within tolerance")


if __name__ == "__main__":
    main()
