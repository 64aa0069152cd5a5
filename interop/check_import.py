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
import subprocess
import sys
import tempfile

import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Difference(Exception):
    """Something is not what it should be."""


def ours(arguments, model, name, images):
    """What the program under test computes."""
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        save_file({"images": images.contiguous()}, scratch / "images.safetensors")
        command = [arguments.bin / "examples" / "features", model, scratch / "images.safetensors", scratch / "out.safetensors"]
        command += [name] if name else []
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise Difference(f"features failed:\n{done.stderr.strip()}")
        return load_file(scratch / "out.safetensors")


def from_transformers(folder):
    """Native size, channels, and a function from images to features, patches and logits."""
    config = AutoConfig.from_pretrained(folder)
    classifies = any(name.endswith("ForImageClassification") for name in config.architectures or [])
    made = AutoModelForImageClassification if classifies else AutoModel
    model = made.from_pretrained(folder).eval()
    backbone = getattr(model, model.base_model_prefix, model) if classifies else model

    def run(images):
        x = backbone(images).last_hidden_state
        if x.ndim == 4:
            found = {"cls": x.mean((2, 3))}
        elif config.model_type == "swin":
            found = {"cls": x.mean(1)}
        else:
            found = {"cls": x[:, 0], "patches": x[:, 1:]}
        if classifies:
            found["logits"] = model(images).logits
        return found

    return getattr(config, "image_size", 224), config.num_channels, run


def from_timm(name, file):
    weights = load_file(file)
    head = next((weights[key] for key in ("head.weight", "head.fc.weight", "fc.weight") if key in weights), None)
    args = {"num_classes": 0 if head is None else head.shape[0]}
    model = timm.create_model(name, **args)
    model.load_state_dict(weights)
    model.eval()
    size = model.default_cfg["input_size"]

    def run(images):
        x = model.forward_features(images)
        if x.ndim == 3:
            found = {"cls": x[:, 0], "patches": x[:, 1:]}
        else:
            found = {"cls": x.mean((2, 3)) if name.startswith(("resnet", "wide_resnet")) else x.mean((1, 2))}
        if head is not None:
            found["logits"] = model(images)
        return found

    return size[1], size[0], run


def check_noise(arguments, label, path, name, native, channels, run):
    generator = torch.Generator().manual_seed(0)
    # A model of timm's runs at its own size only.
    sizes = [native] if name else list(dict.fromkeys([native, 224]))
    for px in sizes:
        images = torch.randn(arguments.images, channels, px, px, generator=generator)
        with torch.inference_mode():
            theirs = run(images)
        found = ours(arguments, path, name, images)
        if ("logits" in theirs) != ("logits" in found):
            raise Difference(f"{label}: only one side has logits")
        worst = {}
        for key, expected in theirs.items():
            if expected.shape != found[key].shape:
                raise Difference(f"{label}: {key} is {tuple(found[key].shape)} here, {tuple(expected.shape)} there")
            worst[key] = (found[key] - expected).abs().max().item()
        largest = max(expected.abs().max().item() for expected in theirs.values())
        figures = ", ".join(f"{key} {value:.1e}" for key, value in worst.items())
        print(f"{label}: {px} px: {figures} (largest value {largest:.2f})", flush=True)
        # Written so that a NaN fails.
        if not all(value <= arguments.tolerance for value in worst.values()):
            raise Difference(f"{label}: differs by more than {arguments.tolerance}")


def check_photographs(arguments, label, path, run):
    config = AutoConfig.from_pretrained(path)
    processor = AutoImageProcessor.from_pretrained(path)
    for photograph in arguments.photographs:
        image = Image.open(photograph).convert("RGB")
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        side = min(pixels.shape[2:]) // 32 * 32
        top, left = (pixels.shape[2] - side) // 2, (pixels.shape[3] - side) // 2
        pixels = pixels[:, :, top : top + side, left : left + side]
        with torch.inference_mode():
            theirs = run(pixels)["logits"][0]
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
            native, channels, run = from_timm(name, path) if name else from_transformers(path)
            check_noise(arguments, name or path.name, path, name or None, native, channels, run)
            if not name and arguments.photographs and "logits" in run(torch.zeros(1, channels, native, native)):
                check_photographs(arguments, path.name, path, run)
    except Difference as difference:
        sys.exit(f"error: {difference}")
    print("all equal within tolerance")


if __name__ == "__main__":
    main()
