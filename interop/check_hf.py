#!/usr/bin/env python3
"""Opens checkpoint folders with transformers and compares their features with offshoot's.

Arguments are exported children, run folders (some of their children are exported first: smallest, middle, largest), or any
other folder in the layout of transformers' Dinov2Model. Checked for each, at its native size and at others: class token and
patch tokens to a tolerance, through Dinov2Model and through AutoModel, and that the preprocessor files open and prepare an
image as described. Exits with 1 if anything differs.

Before the first use: cargo build --release --workspace --examples --bins
"""

import argparse
import json
import pathlib
import sys
import tempfile

import numpy
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, BitImageProcessor, Dinov2Model

from exported import ROOT, Difference, folders, our_features


def check_features(arguments, label, folder, scratch):
    model = Dinov2Model.from_pretrained(folder, attn_implementation=arguments.attention).eval()
    auto = AutoModel.from_pretrained(folder, attn_implementation=arguments.attention).eval()
    if type(auto) is not Dinov2Model:
        raise Difference(f"AutoModel makes a {type(auto).__name__} of it")
    config = model.config
    patch, native = config.patch_size, config.image_size
    near_half = max(patch, native // 2 // patch * patch)
    sizes = arguments.px or list(dict.fromkeys([native, near_half, native + patch]))
    generator = torch.Generator().manual_seed(0)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(
        f"{label}: {config.hidden_size} x {config.num_hidden_layers}, {config.num_channels} channels, "
        f"{parameters:,} parameters, native {native} px"
    )
    for px in sizes:
        if px % patch:
            raise Difference(f"{px} px is no multiple of the patch {patch}")
        images = torch.randn(arguments.images, config.num_channels, px, px, generator=generator)
        ours = {name: torch.from_numpy(value) for name, value in our_features(arguments, folder, images.numpy(), scratch).items()}
        with torch.inference_mode():
            theirs = model(images)
            through_auto = auto(images).last_hidden_state
        expected = theirs.last_hidden_state
        pairs = {
            "cls": (ours["cls"], expected[:, 0]),
            "patches": (ours["patches"], expected[:, 1:]),
            "pooler": (ours["cls"], theirs.pooler_output),
            "AutoModel": (through_auto, expected),
        }
        worst = {}
        for name, (a, b) in pairs.items():
            if a.shape != b.shape:
                raise Difference(f"{px} px: {name} is {tuple(a.shape)} here and {tuple(b.shape)} in transformers")
            worst[name] = (a - b).abs().max().item()
        figures = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
        print(f"  {px:4} px: {figures} (largest feature {expected.abs().max().item():.2f})")
        # Written so that a NaN fails.
        if not all(value <= arguments.tolerance for value in worst.values()):
            raise Difference(f"{px} px: features differ by more than {arguments.tolerance}")


def check_weights(folder):
    """What transformers saves again has the same tensors as the folder, bit for bit."""
    with tempfile.TemporaryDirectory() as scratch:
        Dinov2Model.from_pretrained(folder).save_pretrained(scratch)
        again = load_file(pathlib.Path(scratch) / "model.safetensors")
    first = load_file(folder / "model.safetensors")
    if first.keys() != again.keys():
        raise Difference(f"tensors that only one side has: {sorted(first.keys() ^ again.keys())[:4]}")
    changed = [name for name in first if not torch.equal(first[name], again[name])]
    if changed:
        raise Difference(f"tensors that changed on the way through transformers: {changed[:4]}")
    print(f"  {len(first)} tensors survive load and save bit for bit")


def check_preprocessor(folder):
    """The preprocessor opens, and does what its numbers say."""
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
    for name, chosen in (("BitImageProcessor", processor), ("AutoImageProcessor", automatic)):
        prepared = chosen(image, return_tensors="pt")["pixel_values"][0].numpy()
        if prepared.shape != by_hand.shape:
            raise Difference(f"{name} makes {prepared.shape} where {by_hand.shape} is described")
        # In steps of the original 8 bits: resamplers round differently by one.
        steps = numpy.abs(prepared - by_hand).max() * 255 * max(said["image_std"])
        figures.append(f"{type(chosen).__name__} {steps:.1f}")
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
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            scratch = pathlib.Path(scratch)
            for label, folder in folders(arguments, scratch):
                if not (folder / "config.json").is_file():
                    raise Difference(f"{folder}: neither a run (catalog.json) nor a checkpoint folder (config.json)")
                check_features(arguments, label, folder, scratch)
                check_weights(folder)
                check_preprocessor(folder)
    except Difference as difference:
        sys.exit(f"error: {difference}")
    print("all equal within tolerance")


if __name__ == "__main__":
    main()
