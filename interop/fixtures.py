#!/usr/bin/env python3
"""Writes fixtures: small networks of transformers and timm, what they compute, and its gradients.

    fixtures.py swin DIR      an elastic Swin and three of its children; oracle: transformers' SwinModel
    fixtures.py resnet DIR    an elastic ResNet and three of its children; oracle: timm's resnet with GroupNorm
    fixtures.py import DIR    networks as others publish them, a folder each, by transformers and by timm
    fixtures.py gguf DIR      a GGUF file of every type by the gguf package, and small tokenizers

Everything is drawn in float32, computed in float64 and stored as float32. The README.md beside the fixtures in
crates/offshoot-zoo/tests/fixtures says what is in them.
"""

import argparse
import pathlib

import torch

import fixture_elastic
import fixture_gguf
import fixture_imports


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["swin", "resnet", "import", "gguf"])
    parser.add_argument("folder", type=pathlib.Path, help="where to; it is made if need be")
    parser.add_argument("--whole-gradients", action="store_true", help="no sums of rows: every element, for a closer look")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "import":
        fixture_imports.write(args.folder)
    elif args.what == "gguf":
        fixture_gguf.write(args.folder)
    else:
        net = {"swin": fixture_elastic.Swin, "resnet": fixture_elastic.ResNet}[args.what]()
        fixture_elastic.write(net, args.folder, args.whole_gradients)


if __name__ == "__main__":
    main()
