"""A Swin for `poa_step.py`: its tensors, its sub-networks and its forward pass over a plain dictionary of weights."""

import functools

import torch
from torch.nn import functional as F

NORM_EPS = 1e-5
MLP_RATIO = 4
WINDOW = 4
STAGES = 4


def linear_specs(name, outputs, inputs):
    yield name + ".weight", (outputs, inputs), 0, inputs**-0.5, torch.randn
    yield name + ".bias", (outputs,), 0, 0.02, torch.randn


def norm_specs(name, width):
    yield name + ".weight", (width,), 1, 0.1, torch.randn
    yield name + ".bias", (width,), 0, 0.1, torch.randn


def specs(width, depths, head_dim, patch):
    """Every tensor: name, shape, and how its values are drawn."""
    yield "patch.weight", (width, 3, patch, patch), 0, 0.05, torch.randn
    yield "patch.bias", (width,), 0, 0.02, torch.randn
    yield from norm_specs("patch.norm", width)
    yield "mask", (width,), 0, 0.02, torch.randn
    for stage, depth in enumerate(depths):
        d = width << stage
        for block in range(depth):
            at = f"stages.{stage}.{block}."
            yield from norm_specs(at + "norm1", d)
            yield from linear_specs(at + "qkv", 3 * d, d)
            yield at + "table", ((2 * WINDOW - 1) ** 2, d // head_dim), 0, 0.02, torch.randn
            yield from linear_specs(at + "proj", d, d)
            yield from norm_specs(at + "norm2", d)
            yield from linear_specs(at + "fc1", MLP_RATIO * d, d)
            yield from linear_specs(at + "fc2", d, MLP_RATIO * d)
        if stage < STAGES - 1:
            yield from norm_specs(f"stages.{stage}.merge.norm", 4 * d)
            yield f"stages.{stage}.merge.weight", (2 * d, 4 * d), 0, (4 * d) ** -0.5, torch.randn
    yield from norm_specs("norm", width << STAGES - 1)


def cut(weights, case, width, depths):
    """The sub-network of `width` and `depths` as weights of its own, blocks renumbered; differentiable."""
    gain = case.width / width
    child = {}
    for name, shape, *_ in specs(width, depths, case.head_dim, case.patch):
        parts = name.split(".")
        if parts[0] == "stages" and parts[2] != "merge":
            full, depth = case.depth[int(parts[1])], depths[int(parts[1])]
            parts[2] = str(int(parts[2]) * (full - 1) // max(depth - 1, 1))
        whole = weights[".".join(parts)]
        if "qkv" in parts:  # queries, keys and values are three groups of rows
            part = whole.unflatten(0, (3, -1))[:, : shape[0] // 3].flatten(0, 1)
        elif "merge" in parts:  # the four cells that become one are four groups of columns
            part = whole.unflatten(-1, (4, -1))[..., : shape[-1] // 4].flatten(-2)[: shape[0]]
        else:
            part = whole[: shape[0]]
        if len(shape) == 2:
            part = part[:, : shape[1]]
        child[name] = gain * part if len(shape) == 2 and parts[-1] != "table" else part
    return child


@functools.cache
def relative_positions(device):
    """Rows of the table for every pair of cells of a window."""
    row, column = torch.cartesian_prod(torch.arange(WINDOW), torch.arange(WINDOW)).T
    row, column = (a[:, None] - a + WINDOW - 1 for a in (row, column))
    return (row * (2 * WINDOW - 1) + column).flatten().to(device)


@functools.cache
def apart(height, width, shift, device):
    """What is added for pairs of cells that a shift has brought together from two sides of the map: [windows, 1, n, n]."""
    rows, columns = ((torch.arange(n) >= n - WINDOW).long() + (torch.arange(n) >= n - shift) for n in (height, width))
    region = partitioned((3 * rows[:, None] + columns)[None, :, :, None]).squeeze(-1)
    return torch.where(region[:, None, :, None] == region[:, None, None, :], 0.0, -100.0).to(device)


def partitioned(x):
    """[b, h, w, c] as [b * windows, cells, c]."""
    b, h, w, c = x.shape
    x = x.view(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c)
    return x.transpose(2, 3).reshape(-1, WINDOW * WINDOW, c)


def attention(w, at, x, head_dim, shift):
    """Attention within windows over [b, h, w, c]; maps are zero-padded to whole windows."""
    b, height, width, c = x.shape
    heads = c // head_dim
    x = F.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW)) if height % WINDOW or width % WINDOW else x
    rows, columns = x.shape[1:3]
    x = torch.roll(x, (-shift, -shift), (1, 2)) if shift else x
    y = F.linear(partitioned(x), w[at + "qkv.weight"], w[at + "qkv.bias"])
    windows, n = len(y) // b, WINDOW * WINDOW
    q, k, v = y.view(b, windows, n, 3, heads, head_dim).permute(3, 0, 1, 4, 2, 5).flatten(1, 3).unbind()
    bias = w[at + "table"].index_select(0, relative_positions(x.device)).view(n, n, heads).permute(2, 0, 1)
    if shift:
        bias = bias + apart(rows, columns, shift, x.device)
    bias = bias.expand(b, windows, heads, n, n).reshape(-1, n, n)
    # Fused attention takes longer: where the bias has a gradient, PyTorch has none that is fused on a CPU.
    scores = torch.baddbmm(bias, q, k.mT, alpha=head_dim**-0.5)
    y = torch.bmm(scores.softmax(-1), v).view(-1, heads, n, head_dim).transpose(1, 2).flatten(2)
    y = F.linear(y, w[at + "proj.weight"], w[at + "proj.bias"])
    y = y.view(b, rows // WINDOW, columns // WINDOW, WINDOW, WINDOW, c).transpose(2, 3).reshape(b, rows, columns, c)
    y = torch.roll(y, (shift, shift), (1, 2)) if shift else y
    return y[:, :height, :width]


def features(w, case, images, hidden=None):
    """The mean of the last map [b, 8 * width], and its cells [b, cells, 8 * width]."""

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], NORM_EPS)

    x = F.conv2d(images, w["patch.weight"], w["patch.bias"], stride=case.patch)
    x = norm(x.permute(0, 2, 3, 1), "patch.norm")
    if hidden is not None:
        covered = hidden.unflatten(1, (case.grid, case.grid)).repeat_interleave(4, 1).repeat_interleave(4, 2)
        x = torch.where(covered[..., None], w["mask"].to(x.dtype), x)
    for stage in range(STAGES):
        depth = sum(name.startswith(f"stages.{stage}.") and name.endswith(".table") for name in w)
        for block in range(depth):
            at = f"stages.{stage}.{block}."
            shift = WINDOW // 2 if block % 2 and min(x.shape[1:3]) > WINDOW else 0
            x = x + attention(w, at, norm(x, at + "norm1"), case.head_dim, shift)
            y = F.gelu(F.linear(norm(x, at + "norm2"), w[at + "fc1.weight"], w[at + "fc1.bias"]))
            x = x + F.linear(y, w[at + "fc2.weight"], w[at + "fc2.bias"])
        if stage < STAGES - 1:
            b, rows, columns, c = x.shape
            x = x.reshape(b, rows // 2, 2, columns // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
            x = F.linear(norm(x, f"stages.{stage}.merge.norm"), w[f"stages.{stage}.merge.weight"])
    x = norm(x, "norm").flatten(1, 2)
    return x.mean(1), x
