#!/usr/bin/env python3
"""Opens checkpoint folders with transformers or timm and compares their features with offshoot's.

Arguments are exported children, run folders (some of their children are exported first: smallest, middle, largest), or any
other folder in the layout of Dinov2Model, ViTModel, SwinModel or ResNetModel of transformers, with a classifier or without, or of
timm's resnet. Checked for each, at its native size and at others: features, patches and logits to a tolerance, through the class that
config.json names and through AutoModel; that all tensors come in, and out again bit for bit; that the preprocessor files open and
prepare an image as described; and that the Python of the model card makes the same features. Exits with 1 if anything differs.

Before the first use: cargo build --release --workspace --examples --bins
"""

import argparse
import json
import pathlib
import sys
import tempfile

import numpy
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, BitImageProcessor

from exported import ROOT, folders, our_features, run_card
from opened import Difference, compare, open_folder


def check_features(arguments, label, folder, scratch):
    opened = open_folder(folder, arguments.attention)
    print(f"{label}: {opened.kind}, {opened.channels} channels, {opened.parameters():,} parameters, native {opened.native} px")
    generator = torch.Generator().manual_seed(0)
    for px in arguments.px or opened.sizes():
        if px % opened.stride:
            raise Difference(f"{px} px is no multiple of {opened.stride}")
        # A SwinModel that has seen a map of one window never shifts that stage again, at any size: each size gets a fresh one.
        opened = open_folder(folder, arguments.attention)
        images = torch.randn(arguments.images, opened.channels, px, px, generator=generator)
        ours = {name: torch.from_numpy(value) for name, value in our_features(arguments, folder, images.numpy(), scratch).items()}
        with torch.inference_mode():
            compare(f"  {px:4} px", opened.run(images), ours, arguments.tolerance)
    return opened


def check_weights(folder, opened):
    """What the other program saves again has the same tensors as the folder, bit for bit."""
    with tempfile.TemporaryDirectory() as scratch:
        opened.save(scratch)
        again = load_file(pathlib.Path(scratch) / "model.safetensors")
    first = load_file(folder / "model.safetensors")
    # BatchNorm's counter plays no part in what a network computes, and is not exported.
    only_one = {name for name in first.keys() ^ again.keys() if not name.endswith(".num_batches_tracked")} - opened.left_out
    if only_one:
        raise Difference(f"tensors that only one side has: {sorted(only_one)[:4]}")
    changed = [name for name in first.keys() & again.keys() if not torch.equal(first[name], again[name])]
    if changed:
        raise Difference(f"tensors that changed on the way through {opened.kind}: {changed[:4]}")
    but = f" but {', '.join(opened.left_out)}" if opened.left_out else ""
    print(f"  {len(first)} tensors survive load and save bit for bit{but}")


def check_card(arguments, folder, scratch):
    """The lines of Python in the model card, run as they stand, give our features of a picture."""
    if not (folder / "preprocessor_config.json").is_file():
        return
    channels = len(json.loads((folder / "preprocessor_config.json").read_text())["image_mean"])
    pixels = numpy.random.default_rng(1).integers(0, 256, (90, 120, 3) if channels == 3 else (90, 120), dtype=numpy.uint8)
    with torch.inference_mode():
        known = run_card(folder, {"image": Image.fromarray(pixels)})
    if known is None:
        return
    ours = our_features(arguments, folder, known["pixel_values"].numpy(), scratch)
    for name, key in (("features", "cls"), ("logits", "logits")):
        if (name == "features" or key in ours) and not numpy.abs(known[name].numpy() - ours[key]).max() <= arguments.tolerance:
            raise Difference(f"the card's lines make other {name}")
    print("  the card's lines of Python make the same features")


def check_preprocessor(folder, opened):
    """The preprocessor opens, and does what its numbers say; so does timm's, where timm opens the model."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        print("  no preprocessor_config.json")
        return
    said = json.loads(path.read_text())
    processor = BitImageProcessor.from_pretrained(folder)
    automatic = AutoImageProcessor.from_pretrained(folder)
    channels = len(said["image_mean"])
    generator = numpy.random.default_rng(0)
    side = said["size"]["shortest_edge"]
    shape = (side + 11, side + 40, 3) if channels == 3 else (side + 11, side + 40)
    image = Image.fromarray(generator.integers(0, 256, shape, dtype=numpy.uint8))
    crop = said["crop_size"]
    # The documented steps, by hand: shorter side, centre, 0..1, mean and deviation.
    scale = side / min(image.size)
    resized = image.resize((int(scale * image.width), int(scale * image.height)), Image.Resampling.BICUBIC)
    left, top = (resized.width - crop["width"]) // 2, (resized.height - crop["height"]) // 2
    by_hand = numpy.asarray(resized.crop((left, top, left + crop["width"], top + crop["height"])), dtype=numpy.float32)
    by_hand = by_hand.reshape(crop["height"], crop["width"], channels) / 255
    by_hand = ((by_hand - numpy.array(said["image_mean"])) / numpy.array(said["image_std"])).transpose(2, 0, 1)
    figures = []
    programs = {
        f"{type(chosen).__name__} by {name}": lambda chosen=chosen: chosen(image, return_tensors="pt")["pixel_values"][0].numpy()
        for name, chosen in (("its name", processor), ("AutoImageProcessor", automatic))
    }
    if opened.kind.startswith("timm"):
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(opened.model))
        programs["timm's transform"] = lambda: transform(image).numpy()
    for name, program in programs.items():
        prepared = program()
        if prepared.shape != by_hand.shape:
            raise Difference(f"{name} makes {prepared.shape} where {by_hand.shape} is described")
        # In steps of the original 8 bits: resamplers round differently by one.
        steps = numpy.abs(prepared - by_hand).max() * 255 * max(said["image_std"])
        figures.append(f"{name} {steps:.1f}")
        if not steps < 2.5:
            raise Difference(f"{name} is off by {steps:.1f} of 255")
    print(f"  preprocessor, largest difference in steps of 1/255: {', '.join(figures)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="+", type=pathlib.Path, help="run folder or checkpoint folder")
    parser.add_argument("--child", action="append", default=[], help="child of a run instead of three of them; repeatable")
    parser.add_argument("--px", action="append", type=int, default=[], help="image side instead of native and two others; repeatable")
    parser.add_argument("--images", type=int, default=4, help="images a comparison")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a feature")
    parser.add_argument("--attention", default="eager", choices=["eager", "sdpa"], help="transformers' attention")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target" / "release", help="where the programs are")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, timm {timm.__version__}, torch {torch.__version__}")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            scratch = pathlib.Path(scratch)
            for label, folder in folders(arguments, scratch):
                if not (folder / "config.json").is_file():
                    raise Difference(f"{folder}: neither a run (catalog.json) nor a checkpoint folder (config.json)")
                opened = check_features(arguments, label, folder, scratch)
                check_weights(folder, opened)
                check_preprocessor(folder, opened)
                check_card(arguments, folder, scratch)
    except Difference as difference:
        sys.exit(f"error: {difference}")
    print("all equal within tolerance")


if __name__ == "__main__":
    main()
