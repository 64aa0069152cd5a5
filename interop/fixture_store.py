"""What the fixture writers share: weights to start from, and how features and gradients are stored."""

import json

import safetensors
import timm
import torch
import transformers
from safetensors.torch import save_file

# A gradient is stored whole up to this many elements, else as its rows' weighted sums.
WHOLE = 64


def random_weights(parameters, seed):
    """Values for named tensors such that every one of them matters: norms near 1 with spread, nothing zero."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, tensor in parameters.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if not tensor.is_floating_point():
            values[name] = tensor
        elif name.endswith("running_var"):
            values[name] = 0.5 + torch.rand(tensor.shape, generator=generator)
        elif "lambda" in name or "gamma" in name:
            values[name] = 0.6 + 0.2 * noise
        elif tensor.dim() == 1:
            values[name] = 1 + 0.2 * noise if name.endswith("weight") else 0.2 * noise
        elif any(part in name for part in ("token", "table", "position", "pos_embed")):
            values[name] = 0.5 * noise
        else:
            values[name] = noise * tensor[0].numel() ** -0.5
    return values


def doubled(patches_map):
    """[b, g, g, d] as [b, 4 * g * g, d]: every cell twice in each direction, row by row."""
    return patches_map.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)


def row_weights(count):
    """The weights under which a long row of a gradient is summed up."""
    return 1.5 + torch.arange(count, dtype=torch.float64).cos()


def stored_gradient(name, gradients, whole=False):
    """One tensor's gradients in all cases, as stored: name and value."""
    stack = torch.stack(gradients)
    if whole or stack.dim() == 2 or stack[0].numel() <= WHOLE:
        return f"grad.{name}", stack
    rows = stack.flatten(2)
    return f"grad.{name}.rows", rows @ row_weights(rows.shape[-1])


def objective(cls, patches):
    """The number whose gradient is taken: features times cotangents that follow from their flat index."""
    def index(x):
        return torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape)

    return (cls * index(cls).cos()).sum() + (patches * (index(patches) / 2 + 1).cos()).sum()


COTANGENTS = {"cls": "cos(k)", "patches": "cos(k / 2 + 1)", "rows": "1.5 + cos(j)"}


def save(tensors, path):
    save_file({k: (v.float() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}, path)


def versions():
    modules = (torch, transformers, timm, safetensors)
    return {module.__name__: module.__version__ for module in modules}


def write_json(value, path):
    """JSON with short lists on one line."""
    def lines(value, indent):
        if isinstance(value, dict) and any(isinstance(v, (dict, list)) for v in value.values()):
            inner = ",\n".join(f'{indent} {json.dumps(k)}: {lines(v, indent + " ")}' for k, v in value.items())
            return f"{{\n{inner}\n{indent}}}"
        if isinstance(value, list) and any(isinstance(v, dict) for v in value):
            inner = ",\n".join(indent + " " + json.dumps(v) for v in value)
            return f"[\n{inner}\n{indent}]"
        return json.dumps(value)

    path.write_text(lines(value, "") + "\n")


def close(what, ours, theirs, limit=1e-10):
    difference = max((a - b).abs().max().item() for a, b in zip(ours, theirs))
    if difference > limit:
        raise SystemExit(f"{what}: {difference:.1e} apart")
    return difference
