#!/usr/bin/env python3
"""Opens exported ONNX models with onnx.checker and onnxruntime and compares their outputs with offshoot's features.

Arguments are run folders; of each, the smallest, middle and largest child by parameters are exported as ONNX and as Hugging Face
folder, the second for our own features. Checked for each, at batches of 1 and 5: `cls` and `patches` to a tolerance, the declared
inputs and outputs, and that the metadata say what preprocessor_config.json says. Exits with 1 if anything differs.

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

from exported import ROOT, export, family_members, our_features
from opened import Difference

BATCHES = (1, 5)


def sides(value):
    """Declared sizes of an input or output; names of those that are open."""
    return [side.dim_value if side.HasField("dim_value") else side.dim_param for side in value.type.tensor_type.shape.dim]


def check_file(path):
    """The checker has no objection, shapes can be inferred, and the batch alone is open."""
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    for value in [*model.graph.input, *model.graph.output]:
        first, *others = sides(value)
        if first != "batch" or not all(isinstance(side, int) and side > 0 for side in others):
            raise Difference(f"{value.name} is declared {[first, *others]}")
    return model


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


def check_child(arguments, run_folder, child, scratch):
    exported = scratch / "onnx"
    plain = scratch / "hf"
    export(arguments, run_folder, child, exported, "onnx")
    export(arguments, run_folder, child, plain)
    model = check_file(exported / "model.onnx")
    check_metadata(model, exported)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(exported / "model.onnx", options, providers=["CPUExecutionProvider"])
    _, channels, side, _ = sides(model.graph.input[0])
    generator = numpy.random.default_rng(0)
    size = sum(file.stat().st_size for file in exported.glob("model.onnx*"))
    print(f"{run_folder} {child}: {len(model.graph.node)} nodes, {size:,} bytes, {channels} x {side} x {side}")
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="+", type=pathlib.Path, help="run folder")
    parser.add_argument("--child", action="append", default=[], help="child of a run instead of three of them; repeatable")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a feature")
    parser.add_argument("--threads", type=int, default=1, help="threads of onnxruntime")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target" / "release", help="where the programs are")
    arguments = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}")
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
