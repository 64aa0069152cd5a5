"""A ResNet with GroupNorm for `poa_step.py`: its tensors, its sub-networks and its forward pass over a plain dictionary of weights."""

import torch
from torch.nn import functional as F

NORM_EPS = 1e-5
STEM = 64
OUTPUTS = (256, 512, 1024, 2048)
GROUPS = 32


def specs(width, depths):
    """Every tensor: name, shape, and how its values are drawn. Only channels inside of blocks depend on `width`."""

    def convolution(name, outputs, inputs, kernel):
        yield f"{name}.weight", (outputs, inputs, kernel, kernel), 0, (inputs * kernel * kernel) ** -0.5, torch.randn
        yield f"{name}.norm.weight", (outputs,), 1, 0.1, torch.randn
        yield f"{name}.norm.bias", (outputs,), 0, 0.1, torch.randn

    yield from convolution("stem", STEM, 3, 7)
    yield "mask", (STEM,), 0, 0.02, torch.randn
    inputs = STEM
    for stage, (depth, outputs) in enumerate(zip(depths, OUTPUTS)):
        mid = width << stage
        for block in range(depth):
            at = f"stages.{stage}.{block}."
            yield from convolution(at + "conv1", mid, inputs, 1)
            yield from convolution(at + "conv2", mid, mid, 3)
            yield from convolution(at + "conv3", outputs, mid, 1)
            if block == 0:
                yield from convolution(at + "shortcut", outputs, inputs, 1)
            inputs = outputs


def cut(weights, case, width, depths):
    """The sub-network of `width` and `depths` as weights of its own, blocks renumbered; differentiable."""
    gain = case.width / width
    child = {}
    for name, shape, *_ in specs(width, depths):
        parts = name.split(".")
        if parts[0] == "stages":
            full, depth = case.depth[int(parts[1])], depths[int(parts[1])]
            parts[2] = str(int(parts[2]) * (full - 1) // max(depth - 1, 1))
        part = weights[".".join(parts)][: shape[0]]
        if len(shape) == 4:
            part = part[:, : shape[1]]
        child[name] = gain * part if len(shape) == 4 and parts[-2] in ("conv2", "conv3") else part
    return child


def features(w, case, images, hidden=None):
    """Global average pooling of the last map [b, 2048], and its cells [b, cells, 2048]."""

    def normed(x, name, stride=1):
        weight = w[name + ".weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return F.group_norm(x, GROUPS, w[name + ".norm.weight"], w[name + ".norm.bias"], NORM_EPS)

    x = F.relu_(normed(images, "stem", 2))
    x = F.max_pool2d(x, 3, 2, 1)
    if hidden is not None:
        covered = hidden.unflatten(1, (case.grid, case.grid)).repeat_interleave(4, 1).repeat_interleave(4, 2)
        x = torch.where(covered[:, None], w["mask"][:, None, None].to(x.dtype), x)
    for stage in range(len(OUTPUTS)):
        depth = sum(name.startswith(f"stages.{stage}.") and name.endswith(".conv1.weight") for name in w)
        for block in range(depth):
            at = f"stages.{stage}.{block}."
            stride = 2 if stage > 0 and block == 0 else 1
            y = F.relu_(normed(x, at + "conv1"))
            y = F.relu_(normed(y, at + "conv2", stride))
            y = normed(y, at + "conv3")
            x = F.relu_(y + (normed(x, at + "shortcut", stride) if block == 0 else x))
    x = x.flatten(2).mT
    return x.mean(1), x
