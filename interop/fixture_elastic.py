"""Elastic fixtures: a parent and what its children compute, with gradients for every tensor of the parent.

A child is a stock module of the child's own numbers, run on slices of the parent's tensors, so that autograd gives the
gradient with respect to the parent.
"""

import functools
import pathlib
import tempfile

import timm
import torch
import transformers
from safetensors.torch import load_file
from timm.layers import GroupNorm
from torch.func import functional_call
from torch.nn import functional as F

from fixture_store import COTANGENTS, close, doubled, objective, random_weights, save, stored_gradient, versions, write_json


def kept_blocks(depth, of):
    """Block ids kept at `depth` of `of`: evenly spaced, first and last always among them."""
    return [(of - 1) * j // max(depth - 1, 1) for j in range(depth)]


def masks_for(images, grid, seed):
    """u8 [b, grid * grid]: a third of the first image, none of the others."""
    masks = torch.zeros(images, grid * grid, dtype=torch.uint8)
    masks[0, torch.randperm(grid * grid, generator=torch.Generator().manual_seed(seed))[: grid * grid // 3]] = 1
    return masks


def crops(channels, sizes, seed):
    """Two images of each size, by name."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, channels, px, px, generator=generator) for name, px in sizes.items()}


def write(net, folder, whole):
    """The fixture of one elastic architecture; `net` is a Swin or a ResNet below."""
    folder.mkdir(parents=True, exist_ok=True)
    net.save_parent(folder / "parent")
    images = crops(net.channels, {"images.native": net.native, "images.local": net.local}, seed=1)
    masks = masks_for(2, net.native // net.token_px, seed=2)
    expected = images | {"masks": masks} | net.extra_tensors()
    cases, gradients = [], {}
    for child, shape in net.children.items():
        for kind in ("native", "masked", "local"):
            name, source = f"{child}.{kind}", "images.local" if kind == "local" else "images.native"
            parent = {k: v.double().requires_grad_() for k, v in net.weights.items()}
            mask = masks.bool() if kind == "masked" else None
            cls, patches = net.features(parent, shape, images[source].double(), mask, kind)
            side = round(patches.shape[1] ** 0.5)
            last = patches.detach().unflatten(1, (side, side))[:, ::2, ::2]  # all else repeats these
            expected |= {f"{name}.cls": cls.detach(), f"{name}.map": last}
            case = {"name": name, "child": child, "images": source, "masks": "masks" if mask is not None else None}
            # The native case differs from the masked one in its mask only: its features are enough.
            case["gradient"] = None if kind == "native" else len(next(iter(gradients.values()), []))
            cases.append(case)
            if kind == "native":
                continue
            found = torch.autograd.grad(objective(cls, patches), list(parent.values()), allow_unused=True)
            for (key, tensor), gradient in zip(parent.items(), found):
                gradients.setdefault(key, []).append(torch.zeros_like(tensor) if gradient is None else gradient)
    for key, values in gradients.items():
        # A softmax does not see what all keys have in common: the keys' bias has no gradient.
        if not key.endswith("key.bias") and not any(value.abs().max() > 1e-3 for value in values):
            raise SystemExit(f"{key}: no case has a gradient for it")
    expected |= dict(stored_gradient(key, values, whole) for key, values in gradients.items())
    save(expected, folder / "expected.safetensors")
    about = {
        "architecture": net.name,
        "versions": versions(),
        "parent": net.numbers(),
        "children": net.children,
        "cotangents": COTANGENTS,
        "cases": cases,
    }
    write_json(about, folder / "cases.json")


# Swin.


def modern(name):
    """The name of a parameter in transformers 5 for its name in a file."""
    for old, new in (
        (".attention.self.relative_position_bias_table", ".attention.relative_position_bias.relative_position_bias_table"),
        (".attention.self.query.", ".attention.q_proj."),
        (".attention.self.key.", ".attention.k_proj."),
        (".attention.self.value.", ".attention.v_proj."),
        (".attention.output.dense.", ".attention.o_proj."),
        (".intermediate.dense.", ".mlp.fc1."),
        (".output.dense.", ".mlp.fc2."),
    ):
        name = name.replace(old, new)
    return name


def swin_model(**config):
    """A SwinModel in float64 whose attention keeps that precision (the eager one has a softmax in float32)."""
    config = transformers.SwinConfig(drop_path_rate=0.0, **config)
    config._attn_implementation = "sdpa"
    return transformers.SwinModel(config, add_pooling_layer=False, use_mask_token=True).double().eval()


def windows_of(x, window):
    """[b, h, w, c] as [b * windows, window * window, c], windows row by row."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c)
    return x.transpose(2, 3).reshape(-1, window * window, c)


def swin_attention(w, at, x, heads, window, shift):
    """Windowed attention over a map [b, h, w, c] that has been normalised; zero-padded to whole windows."""
    b, height, width, c = x.shape
    x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    padded = x.shape[1:3]
    x = torch.roll(x, (-shift, -shift), (1, 2))
    cells = windows_of(x, window)
    q, k, v = (
        F.linear(cells, w[f"{at}self.{part}.weight"], w[f"{at}self.{part}.bias"]).unflatten(2, (heads, -1)).transpose(1, 2)
        for part in ("query", "key", "value")
    )
    row, column = (axis.flatten() for axis in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    row, column = (a[:, None] - a[None, :] + window - 1 for a in (row, column))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    scores = scores + w[f"{at}self.relative_position_bias_table"][row * (2 * window - 1) + column].permute(2, 0, 1)
    if shift:
        # Cells that the roll has brought together from two sides of the map do not see each other.
        row, column = ((torch.arange(n) >= n - window).long() + (torch.arange(n) >= n - shift) for n in padded)
        region = windows_of((3 * row[:, None] + column)[None, :, :, None], window).squeeze(2)
        apart = (region[:, :, None] != region[:, None, :]).repeat(b, 1, 1)[:, None]
        scores = scores.masked_fill(apart, -torch.inf)
    cells = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    cells = F.linear(cells, w[f"{at}output.dense.weight"], w[f"{at}output.dense.bias"])
    x = cells.reshape(b, padded[0] // window, padded[1] // window, window, window, c).transpose(2, 3)
    x = torch.roll(x.reshape(b, *padded, c), (shift, shift), (1, 2))
    return x[:, :height, :width]


def swin_features(w, config, images, mask=None):
    """A Swin of the names in a file, for maps of any size: one that is smaller than a window is padded to it."""
    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], 1e-5)

    def linear(x, name):
        return F.linear(x, w[name + ".weight"], w.get(name + ".bias"))

    window = config["window_size"]
    patches = "embeddings.patch_embeddings.projection"
    x = F.conv2d(images, w[patches + ".weight"], w[patches + ".bias"], stride=config["patch_size"])
    x = norm(x.permute(0, 2, 3, 1), "embeddings.norm")
    if mask is not None:
        x = torch.where(on_patches(mask, x.shape[1])[..., None], w["embeddings.mask_token"].flatten(), x)
    for stage, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"])):
        for block in range(depth):
            at = f"encoder.layers.{stage}.blocks.{block}."
            shift = window // 2 if block % 2 == 1 and min(x.shape[1:3]) > window else 0
            y = norm(x, at + "layernorm_before")
            x = x + swin_attention(w, at + "attention.", y, heads, window, shift)
            y = linear(norm(x, at + "layernorm_after"), at + "intermediate.dense")
            x = x + linear(F.gelu(y), at + "output.dense")
        if stage < 3:
            at = f"encoder.layers.{stage}.downsample."
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            x = torch.cat([x[:, row::2, column::2] for column in range(2) for row in range(2)], -1)
            x = linear(norm(x, at + "norm"), at + "reduction")
    x = norm(x, "layernorm")
    return x.mean((1, 2)), doubled(x)


def on_patches(mask, side):
    """[b, grid * grid] as [b, side, side]: every token's flag for all patches under it."""
    grid = round(mask.shape[1] ** 0.5)
    mask = mask.unflatten(1, (grid, grid))
    return mask.repeat_interleave(side // grid, 1).repeat_interleave(side // grid, 2)


class Swin:
    """Widths 4 and 6 with heads of 2 channels, 2 or 3 blocks in the third stage."""

    name = "swin"
    native, local, token_px, channels = 48, 16, 8, 1
    width, head_dim, depths = 6, 2, (2, 1, 3, 1)
    children = {
        "6x3": {"width": 6, "depth": 3},
        "4x2": {"width": 4, "depth": 2},
        "4x3": {"width": 4, "depth": 3},
        "6x2": {"width": 6, "depth": 2},
    }

    def __init__(self):
        model = swin_model(**self.config({"width": self.width, "depth": self.depths[2]})).float()
        with tempfile.TemporaryDirectory() as scratch:
            model.save_pretrained(scratch)
            names = load_file(pathlib.Path(scratch) / "model.safetensors")
        self.weights = random_weights(names, seed=0)
        model.load_state_dict({modern(k): v for k, v in self.weights.items()})
        self.model = model

    def config(self, shape):
        """What a SwinConfig needs to know of a child."""
        heads = shape["width"] // self.head_dim
        return {
            "image_size": self.native,
            "patch_size": 2,
            "num_channels": self.channels,
            "embed_dim": shape["width"],
            "depths": [*self.depths[:2], shape["depth"], self.depths[3]],
            "num_heads": [heads << stage for stage in range(4)],
            "window_size": 3,
            "mlp_ratio": 2.0,
        }

    def numbers(self):
        return self.config({"width": self.width, "depth": self.depths[2]}) | {"head_dim": self.head_dim, "local_px": self.local}

    def save_parent(self, folder):
        self.model.save_pretrained(folder)

    def extra_tensors(self):
        return {}

    def cut(self, parent, shape):
        """The child's tensors from the parent's: leading channels, evenly spaced blocks, gains; differentiable."""
        child = {}
        stock = swin_model(**self.config(shape)).state_dict()
        kept = kept_blocks(shape["depth"], self.depths[2])
        gain = self.width / shape["width"]
        for name, tensor in parent.items():
            parts = name.split(".")
            if name.startswith("encoder.layers.2.blocks."):
                if int(parts[4]) not in kept:
                    continue
                parts[4] = str(kept.index(int(parts[4])))
            to = ".".join(parts)
            if ".downsample." in name:  # four groups of channels, the leading ones of each
                shapes = (-1, 4, tensor.shape[-1] // 4)
                wanted = stock[modern(to)].shape
                tensor = tensor.reshape(shapes)[: wanted[0] if tensor.dim() == 2 else 1, :, : wanted[-1] // 4].reshape(wanted)
            else:
                tensor = tensor[tuple(slice(size) for size in stock[modern(to)].shape)]
            matrix = tensor.dim() == 2 and not name.endswith("table")
            child[to] = gain * tensor if matrix else tensor
        return child

    def features(self, parent, shape, images, mask, kind):
        child, config = self.cut(parent, shape), self.config(shape)
        own = swin_features(child, config, images, mask)
        if kind == "local":  # SwinModel has no maps smaller than a window
            return own
        sizes = [images] if mask is not None else [images, F.pad(images, (0, 16, 0, 16), mode="reflect")]
        for x in sizes:  # the second size has maps that are no multiple of a window
            theirs = self.stock(child, config, x, mask)
            ours = swin_features(child, config, x, mask)
            leaves = list(parent.values())
            gradients = [torch.autograd.grad(objective(*f), leaves, retain_graph=True, allow_unused=True) for f in (ours, theirs)]
            used = [[a for a in g if a is not None] for g in gradients]
            close(f"swin {shape} at {x.shape[-1]}", [*ours, *used[0]], [*theirs, *used[1]])
        return self.stock(child, config, images, mask)

    def stock(self, child, config, images, mask):
        # A new module every time: SwinModel remembers a window that it has once shrunk.
        model = swin_model(**config)
        kwargs = {}
        if mask is not None:
            kwargs["bool_masked_pos"] = on_patches(mask, images.shape[-1] // config["patch_size"]).flatten(1)
        x = functional_call(model, {modern(k): v for k, v in child.items()}, (images,), kwargs).last_hidden_state
        side = round(x.shape[1] ** 0.5)
        return x.mean(1), doubled(x.unflatten(1, (side, side)))


# ResNet.


class ResNet:
    """Mids 2, 4 and 6, GroupNorm of 2 groups, 2 or 3 blocks in the second and third stage."""

    name = "resnet"
    native, local, token_px, channels = 64, 32, 16, 1
    planes, groups, width, depths = (1, 2, 4, 8), 2, 6, (1, 3, 3, 1)
    children = {
        "6x3x3": {"width": 6, "depths": [3, 3]},
        "2x2x2": {"width": 2, "depths": [2, 2]},
        "4x2x3": {"width": 4, "depths": [2, 3]},
        "2x3x3": {"width": 2, "depths": [3, 3]},
    }

    def __init__(self):
        self.model = self.stock({"width": self.width, "depths": self.depths[1:3]}).float()
        names = self.model.state_dict() | {"mask_token": torch.zeros(64)}
        self.weights = random_weights(names, seed=4)
        self.weights["mask_token"] = self.weights["mask_token"].abs() + 0.1  # where a ReLU's output would be
        self.model.load_state_dict({k: v for k, v in self.weights.items() if k != "mask_token"})

    def model_args(self, shape):
        """What timm's resnet50 needs to know of a child, as JSON has it."""
        return {
            "layers": [self.depths[0], *shape["depths"], self.depths[3]],
            "channels": list(self.planes),
            "base_width": 64 * shape["width"] // self.planes[0],
            "norm_layer": "groupnorm",
            "in_chans": self.channels,
        }

    def norm(self):
        return functools.partial(GroupNorm, num_groups=self.groups)

    def stock(self, shape):
        args = self.model_args(shape) | {"norm_layer": self.norm()}
        return timm.create_model("resnet50", num_classes=0, **args).double().eval()

    def numbers(self):
        return {
            "image_size": self.native,
            "local_px": self.local,
            "num_channels": self.channels,
            "stem": 64,
            "outputs": [4 * planes for planes in self.planes],
            "width": self.width,
            "depths": list(self.depths),
            "groups": self.groups,
            "norm_eps": 1e-5,
        }

    def extra_tensors(self):
        # timm refuses a file with a tensor that it does not know.
        return {"mask_token": self.weights["mask_token"]}

    def save_parent(self, folder):
        shape = {"width": self.width, "depths": list(self.depths[1:3])}
        size = (self.channels, self.native, self.native)
        write_timm(self.model, folder, self.model_args(shape), size, norm_groups=self.groups)
        opened = timm.create_model(f"local-dir:{folder}", pretrained=True, norm_layer=self.norm()).eval()
        images = torch.randn(2, *size)
        close("the parent as timm opens it", [opened(images)], [self.model(images)], 0.0)
        # 32 groups need no word of ours: timm opens such a folder by itself.
        args = {"layers": [1, 2, 2, 1], "channels": [8, 16, 32, 64], "base_width": 256, "norm_layer": "groupnorm", "in_chans": 3}
        model = timm.create_model("resnet50", num_classes=0, **args).eval()
        with tempfile.TemporaryDirectory() as scratch:
            model.load_state_dict(random_weights(model.state_dict(), seed=5))
            write_timm(model, pathlib.Path(scratch), args, (3, 64, 64))
            opened = timm.create_model(f"local-dir:{scratch}", pretrained=True).eval()
            images = torch.randn(2, 3, 64, 64)
            close("32 groups as timm opens them", [opened(images)], [model(images)], 0.0)

    def cut(self, parent, shape):
        """The child's tensors from the parent's; differentiable."""
        stock = self.stock(shape).state_dict()
        gain = self.width / shape["width"]
        kept = {f"layer{i + 2}": kept_blocks(shape["depths"][i], self.depths[i + 1]) for i in range(2)}
        child = {}
        for name, tensor in parent.items():
            parts = name.split(".")
            if parts[0] in kept:
                if int(parts[1]) not in kept[parts[0]]:
                    continue
                parts[1] = str(kept[parts[0]].index(int(parts[1])))
            to = ".".join(parts)
            if name == "mask_token":
                child[to] = tensor
                continue
            tensor = tensor[tuple(slice(size) for size in stock[to].shape)]
            child[to] = gain * tensor if parts[-2] in ("conv2", "conv3") else tensor
        return child

    def features(self, parent, shape, images, mask, kind):
        child, model = self.cut(parent, shape), self.stock(shape)
        token = child.pop("mask_token")

        def hidden(module, inputs, output):
            return torch.where(on_patches(mask, output.shape[-1])[:, None], token[:, None, None], output)

        margins = []
        for module in model.modules():
            if isinstance(module, torch.nn.ReLU):
                module.register_forward_pre_hook(lambda module, inputs: margins.append(inputs[0].abs().min().item()))
        if mask is not None:
            model.maxpool.register_forward_hook(hidden)
        model.forward = model.forward_features
        x = functional_call(model, child, (images,))
        # An activation so near to zero that float32 may see it on the other side has no certain gradient.
        if kind != "native" and min(margins) < 2e-6:
            raise SystemExit(f"an activation of {shape} is {min(margins):.0e}: take another seed")
        return model.forward_head(x), doubled(x.permute(0, 2, 3, 1))


def write_timm(model, folder, model_args, input_size, **ours):
    """A folder that timm opens as `local-dir:`; `ours` are keys of the top level, which it passes over."""
    folder.mkdir(parents=True, exist_ok=True)
    save(model.state_dict(), folder / "model.safetensors")
    channels = input_size[0]
    config = {
        "architecture": "resnet50",
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": model_args,
        **ours,
        "pretrained_cfg": {
            "input_size": list(input_size),
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": [0.5] * channels,
            "std": [0.25] * channels,
            "num_classes": model.num_classes,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }
    write_json(config, folder / "config.json")
