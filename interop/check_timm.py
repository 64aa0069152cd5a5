#!/usr/bin/env python3
"""Opens exported residual networks with timm and compares their features with offshoot's.

Arguments are exported children or run folders (some of their children are exported first: smallest, middle, largest). Checked for
each, at its native size and at twice that: that timm opens the folder with every tensor in its place, that pooled features and the
last map are ours to a tolerance, and that timm reads normalisation and crop as they are. Exits with 1 if anything differs.

Before the first use: cargo build --release --workspace --examples --bins
"""

import argparse
import functools
import json
import pathlib
import sys
import tempfile

import timm
import torch

from exported import ROOT, Difference, folders, our_features


def opened(folder, config):
    """The folder as timm opens it; a norm of other numbers than timm's own must be told."""
    own = {}
    numbers = {"eps": config["norm_eps"]} if "norm_eps" in config else {}
    if "norm_groups" in config:
        own["norm_layer"] = functools.partial(timm.layers.GroupNorm, num_groups=config["norm_groups"], **numbers)
    elif numbers:
        own["norm_layer"] = functools.partial(torch.nn.BatchNorm2d, **numbers)
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **own).eval()


def check(arguments, label, folder, scratch):
    config = json.loads((folder / "config.json").read_text())
    model = opened(folder, config)
    channels, side, _ = config["pretrained_cfg"]["input_size"]
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{label}: {config['model_args']}, {parameters:,} parameters, native {side} px")
    generator = torch.Generator().manual_seed(0)
    for px in (side, 2 * side):
        images = torch.randn(arguments.images, channels, px, px, generator=generator)
        ours = {name: torch.from_numpy(value) for name, value in our_features(arguments, folder, images.numpy(), scratch).items()}
        with torch.inference_mode():
            last = model.forward_features(images)
            pooled = model.forward_head(last, pre_logits=True)
        patches = last.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(2).transpose(1, 2)
        pairs = {"cls": (ours["cls"], pooled), "patches": (ours["patches"], patches)}
        worst = {name: (a - b).abs().max().item() for name, (a, b) in pairs.items()}
        figures = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
        print(f"  {px:4} px: {figures} (largest feature {last.abs().max().item():.2f})")
        # Written so that a NaN fails.
        if not all(value <= arguments.tolerance for value in worst.values()):
            raise Difference(f"{px} px: features differ by more than {arguments.tolerance}")
    data = timm.data.resolve_model_data_config(model)
    said = json.loads((folder / "preprocessor_config.json").read_text())
    same = list(data["mean"]) == said["image_mean"] and list(data["std"]) == said["image_std"]
    if not same or abs(data["crop_pct"] - said["crop_size"]["height"] / said["size"]["shortest_edge"]) > 1e-9:
        raise Difference(f"timm prepares images by {data}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="+", type=pathlib.Path, help="run folder or exported folder")
    parser.add_argument("--child", action="append", default=[], help="child of a run instead of three of them; repeatable")
    parser.add_argument("--images", type=int, default=4, help="images a comparison")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a feature")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target" / "release", help="where the programs are")
    arguments = parser.parse_args()
    print(f"timm {timm.__version__}, torch {torch.__version__}")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for label, folder in folders(arguments, pathlib.Path(scratch)):
                check(arguments, label, folder, pathlib.Path(scratch))
    except Difference as difference:
        sys.exit(f"{difference}")


if __name__ == "__main__":
    main()
