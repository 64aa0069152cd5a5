#!/usr/bin/env python3
"""The rival of `offshoot bench features`: class tokens and means of patch tokens of made-up images, timed, as one line of JSON.

CHILD is a folder that `offshoot export` or `offshoot bench features --save` wrote. Written as a user of these libraries would for
speed: in PyTorch one product for queries, keys and values, fused attention and inference mode, by the forward pass of
`poa_step.py`; in ONNX Runtime the file that PyTorch exports of the same, with all of the runtime's optimisations.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy

from shared import noise, peak_rss_mib, times

# Tensors of transformers' `Dinov2Model` under the names of `poa_step.py`.
STEM = {
    "patch.weight": "embeddings.patch_embeddings.projection.weight",
    "patch.bias": "embeddings.patch_embeddings.projection.bias",
    "cls": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
BLOCK = {
    **{f"{n}.{leaf}": f"{n}.{leaf}" for n in ("norm1", "norm2") for leaf in ("weight", "bias")},
    **{f"{n}.{leaf}": f"mlp.{n}.{leaf}" for n in ("fc1", "fc2") for leaf in ("weight", "bias")},
    **{f"proj.{leaf}": f"attention.output.dense.{leaf}" for leaf in ("weight", "bias")},
    **{f"gamma{n}": f"layer_scale{n}.lambda1" for n in (1, 2)},
}


def config_of(child):
    config = json.loads((child / "config.json").read_text())
    if config.get("model_type") != "dinov2" or config.get("layer_norm_eps") != 1e-6:
        sys.exit(f"{child}: not a child that offshoot exports")
    return config


def buffer(name):
    """Name of a tensor in a module; without the prefix, some would be those of the outputs."""
    return "weights_" + name.replace(".", "_")


def make_model(child):
    """The child as a PyTorch module: images to class tokens and means of patch tokens."""
    import torch
    from safetensors.torch import load_file

    from poa_step import backbone

    config, theirs = config_of(child), load_file(child / "model.safetensors")
    weights = {ours: theirs[name] for ours, name in STEM.items()}
    weights["cls"], weights["positions"] = weights["cls"].flatten(), weights["positions"][0]
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        for ours, name in BLOCK.items():
            weights[f"blocks.{i}.{ours}"] = theirs[at + name]
        for leaf in ("weight", "bias"):
            parts = [theirs[f"{at}attention.attention.{part}.{leaf}"] for part in ("query", "key", "value")]
            weights[f"blocks.{i}.qkv.{leaf}"] = torch.cat(parts)

    class Model(torch.nn.Module):
        patch = config["patch_size"]
        head_dim = config["hidden_size"] // config["num_attention_heads"]

        def __init__(self):
            super().__init__()
            for name, weight in weights.items():
                self.register_buffer(buffer(name), weight)

        def forward(self, images):
            own = {name: getattr(self, buffer(name)) for name in weights}
            cls, patches = backbone(own, self, images)
            return cls, patches.mean(1)

    return Model().eval()


def with_torch(args):
    """A function of images as an array, and versions."""
    import torch

    torch.set_num_threads(args.threads)
    model = make_model(args.child)
    if args.compile:
        model = torch.compile(model)

    def features(images):
        with torch.inference_mode():
            return [part.numpy() for part in model(torch.from_numpy(images))]

    return features, {"torch": torch.__version__}


def with_onnxruntime(args):
    """As `with_torch`. The file is made in another process: PyTorch's memory is not the runtime's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory() as scratch:
        file = args.onnx or pathlib.Path(scratch) / "model.onnx"
        if not file.is_file():
            made = [sys.executable, __file__, args.child, "--engine", "export", "--onnx", file]
            done = subprocess.run([str(part) for part in made], capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"PyTorch did not export {args.child}:\n{done.stderr}")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def features(images):
        return session.run(None, {"images": images})

    return features, {"onnxruntime": onnxruntime.__version__}


def export(args):
    import torch

    size = config_of(args.child)["image_size"]
    example = torch.zeros(2, config_of(args.child)["num_channels"], size, size)
    with torch.inference_mode():
        torch.onnx.export(
            make_model(args.child),
            (example,),
            args.onnx,
            input_names=["images"],
            output_names=["cls", "mean_patches"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=False,
        )


def time_passes(args):
    config = config_of(args.child)
    image = (config["num_channels"], config["image_size"], config["image_size"])
    features, versions = {"torch": with_torch, "onnxruntime": with_onnxruntime}[args.engine](args)
    images = noise(0, args.images * int(numpy.prod(image))).reshape(-1, *image)
    starts = range(0, args.images, args.batch)

    def one_pass(batches):
        parts = [features(images[start : start + args.batch]) for start in batches]
        return [numpy.concatenate(part) for part in zip(*parts)]

    if args.warmup:
        one_pass(starts[: args.warmup])
    seconds = []
    for _ in range(args.passes):
        began = time.perf_counter()
        found = one_pass(starts)
        seconds.append(time.perf_counter() - began)
    peak = peak_rss_mib()
    values = numpy.concatenate([part.ravel() for part in found]).astype(numpy.float64)
    line = times(seconds)
    return {
        "model": str(args.child),
        "engine": args.engine,
        **versions,
        "device": "cpu",
        "threads": args.threads,
        "dtype": "fp32",
        "compiled": args.compile,
        "images": args.images,
        "batch": args.batch,
        "passes": len(seconds),
        "images_per_s": round(args.images / line["median_s"], 2),
        **line,
        "peak_rss_mib": peak,
        "checksum": float(values @ noise(0, len(values)) / len(values) ** 0.5),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("child", type=pathlib.Path, metavar="CHILD", help="folder with config.json and model.safetensors")
    parser.add_argument("--engine", choices=["torch", "onnxruntime", "export"], default="torch", help="export only makes --onnx")
    parser.add_argument("--images", type=int, default=10_000, help="images of one pass")
    parser.add_argument("--batch", type=int, default=64, help="images that run at once")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--passes", type=int, default=1, help="timed passes over all images")
    parser.add_argument("--warmup", type=int, default=2, help="batches before the first timed pass")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--onnx", type=pathlib.Path, metavar="FILE", help="use this file, made if it is not there")
    args = parser.parse_args()
    for option in ("images", "batch", "threads", "passes"):
        if getattr(args, option) < 1:
            parser.error(f"--{option} must be at least 1")
    if not (args.child / "config.json").is_file():
        parser.error(f"{args.child} has no config.json")
    if args.engine == "export":
        export(args) if args.onnx else parser.error("--engine export needs --onnx")
    else:
        print(json.dumps(time_passes(args)))


if __name__ == "__main__":
    main()
