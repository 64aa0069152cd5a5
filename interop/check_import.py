#!/usr/bin/env python3
"""Opens models of others with offshoot and with transformers or timm, and compares what they compute.

Arguments are folders of transformers, or files of timm written NAME=FILE.safetensors, such as
vit_small_patch14_dinov2=weights.safetensors. Checked for each, at its native size and at 224 pixels: features, patches and logits to a tolerance. With
--photographs, a classifier's first five classes of each image file are compared too, prepared by the preprocessor of the folder.
Exits with 1 if anything differs.

Before the first use: cargo build --release --workspace --examples --bins
"""

import argparse
import pathlib
import sys
import tempfile

import timm
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor

from exported import ROOT, our_features
from opened import Difference, by_timm_name, compare, open_folder


def ours(arguments, model, name, images):
    """What the program under test computes."""
    with tempfile.TemporaryDirectory() as scratch:
        found = our_features(arguments, model, images.contiguous().numpy(), pathlib.Path(scratch), name)
        return {key: torch.from_numpy(value) for key, value in found.items()}


def check_noise(arguments, label, path, name, opened):
    generator = torch.Generator().manual_seed(0)
    # A model of timm's runs at its own size only.
    sizes = [opened.native] if name else list(dict.fromkeys([opened.native, 224]))
    for px in sizes:
        images = torch.randn(arguments.images, opened.channels, px, px, generator=generator)
        with torch.inference_mode():
            compare(f"{label}: {px} px", opened.run(images), ours(arguments, path, name, images), arguments.tolerance)


def check_photographs(arguments, label, path, opened):
    config = AutoConfig.from_pretrained(path)
    processor = AutoImageProcessor.from_pretrained(path)
    for photograph in arguments.photographs:
        image = Image.open(photograph).convert("RGB")
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        side = min(pixels.shape[2:]) // 32 * 32
        top, left = (pixels.shape[2] - side) // 2, (pixels.shape[3] - side) // 2
        pixels = pixels[:, :, top : top + side, left : left + side]
        with torch.inference_mode():
            theirs = opened.run(pixels)["logits"][0]
        found = ours(arguments, path, None, pixels)["logits"][0]
        first = theirs.topk(5).indices.tolist()
        names = ", ".join(config.id2label[index] for index in first)
        print(f"{label}: {photograph.name}: {names}; logits differ by {(theirs - found).abs().max().item():.1e}")
        if found.topk(5).indices.tolist() != first:
            raise Difference(f"{label}: {photograph.name}: other classes than transformers'")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+", help="folder of transformers, or NAME=FILE of timm")
    parser.add_argument("--photographs", nargs="*", type=pathlib.Path, default=[], help="image files to classify")
    parser.add_argument("--images", type=int, default=2, help="images of noise a comparison")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target" / "release", help="where the programs are")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, timm {timm.__version__}, torch {torch.__version__}")
    try:
        for model in arguments.model:
            name, _, file = model.rpartition("=")
            path = pathlib.Path(file)
            opened = by_timm_name(name, path) if name else open_folder(path)
            check_noise(arguments, name or path.name, path, name or None, opened)
            if not name and arguments.photographs and opened.kind.endswith("ForImageClassification"):
                check_photographs(arguments, path.name, path, opened)
    except Difference as difference:
        sys.exit(f"error: {difference}")
    print("all equal within tolerance")


if __name__ == "__main__":
    main()
