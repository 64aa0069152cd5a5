"""Models as transformers and timm open them, and what they compute in the words of offshoot: cls, patches and logits."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import timm
import torch
import transformers
from safetensors.torch import load_file
from timm.models import save_for_hf

MASK_TOKEN = "embeddings.mask_token"


class Difference(Exception):
    """Something is not what it should be."""


@dataclasses.dataclass
class Opened:
    """A model that another program has opened."""

    kind: str
    channels: int
    native: int
    # What the side of an image must be a multiple of, and the smallest side that the other program runs at.
    stride: int
    smallest: int
    # From images to cls, patches, logits where there is a classifier, and whatever else must be equal to cls.
    run: Callable
    # The model, and a function that saves it into a folder.
    model: torch.nn.Module
    save: Callable
    # Tensors of the file that the program says it has no place for.
    left_out: frozenset = frozenset()

    def sizes(self):
        """The native size, about half of it, one step above it and twice it, as far as the other program runs there."""
        half = self.native // 2 // self.stride * self.stride
        wanted = [self.native, half, self.native + self.stride, 2 * self.native]
        return [px for px in dict.fromkeys(wanted) if px >= max(self.smallest, self.stride)]

    def parameters(self):
        return sum(weight.numel() for weight in self.model.parameters())


def of_map(cells):
    """cls and patches of a last map [b, c, h, w]: its mean, and it row by row with every cell twice in both directions."""
    doubled = cells.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return {"cls": cells.mean((2, 3)), "patches": doubled.flatten(2).mT}


def of_tokens(tokens):
    return {"cls": tokens[:, 0], "patches": tokens[:, 1:]}


def as_map(tokens):
    """Tokens [b, h * w, c] of a square map as [b, c, h, w]."""
    return tokens.mT.unflatten(2, (int(tokens.shape[1] ** 0.5), -1))


def by_transformers(folder, attention="eager"):
    """A folder of transformers, by the class that its config.json names; a mask token is loaded where the class has a place for it."""
    config = transformers.AutoConfig.from_pretrained(folder)
    kind, model_type = config.architectures[0], config.model_type
    classifies = kind.endswith("ForImageClassification")
    options = {"attn_implementation": attention}
    names = load_names(folder)
    if not classifies and model_type in ("vit", "swin"):
        options["use_mask_token"] = MASK_TOKEN in names
    if kind == "ViTModel":
        options["add_pooling_layer"] = any(name.startswith("pooler.") for name in names)
    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, **options)
    model.eval()
    left_out = frozenset(info["unexpected_keys"])
    mask_token = {name for name in names if classifies and name.endswith(MASK_TOKEN)}
    # Counters of training steps: transformers reports that they are missing, and starts them from 0.
    missing = [name for name in info["missing_keys"] if not name.endswith(".num_batches_tracked")]
    wrong = [*missing, *info["mismatched_keys"], *(left_out - mask_token)]
    if wrong:
        raise Difference(f"{kind} misses, or has no place for: {wrong[:4]}")
    auto = transformers.AutoModel.from_pretrained(folder, attn_implementation=attention).eval()
    backbone = getattr(model, model.base_model_prefix, model) if classifies else model
    if type(auto) is not type(backbone):
        raise Difference(f"AutoModel makes a {type(auto).__name__} of it, not a {type(backbone).__name__}")
    # At another size than its own, a ViT has to be told that positions are to be interpolated.
    further = {"interpolate_pos_encoding": True} if model_type == "vit" else {}

    def features(run, images):
        tokens = run(images, **further).last_hidden_state
        if tokens.ndim == 4:
            return of_map(tokens)
        return of_map(as_map(tokens)) if model_type == "swin" else of_tokens(tokens)

    def run(images):
        found = features(backbone, images)
        found["AutoModel"] = features(auto, images)["cls"]
        pooled = backbone(images, **further).get("pooler_output")
        # A ViTModel's pooler is a layer of its own.
        if pooled is not None and model_type != "vit":
            found["pooler"] = pooled.flatten(1)
        if classifies:
            found["logits"] = model(images, **further).logits
        return found

    patch = getattr(config, "patch_size", 4)
    stride = patch if model_type in ("vit", "dinov2") else patch << (len(config.depths) - 1)
    # SwinModel does not run on maps smaller than a window.
    smallest = config.window_size * stride if model_type == "swin" else stride
    return Opened(
        kind=kind,
        channels=config.num_channels,
        native=getattr(config, "image_size", 224),
        stride=stride,
        smallest=smallest,
        run=run,
        model=model,
        save=model.save_pretrained,
        left_out=left_out,
    )


def load_names(folder):
    return load_file(folder / "model.safetensors").keys()


def timm_norm(config):
    """The norm of a folder whose numbers timm has no key for: they are in keys of ours."""
    eps = config.get("norm_eps", 1e-5)
    if "norm_groups" in config:
        return {"norm_layer": functools.partial(timm.layers.GroupNorm, num_groups=config["norm_groups"], eps=eps)}
    return {"norm_layer": functools.partial(torch.nn.BatchNorm2d, eps=eps)} if "norm_eps" in config else {}


def of_timm(model, kind, model_args=None):
    """A model of timm; `forward_features` gives tokens, or a map with the channels first (ResNet) or last (Swin)."""
    model.eval()
    data = timm.data.resolve_model_data_config(model)
    channels, native, _ = data["input_size"]
    stride = max((feature["reduction"] for feature in model.feature_info), default=32) if hasattr(model, "feature_info") else 32

    def run(images):
        x = model.forward_features(images)
        if x.ndim == 3:
            found = of_tokens(x)
        else:
            found = of_map(x if isinstance(model, timm.models.ResNet) else x.permute(0, 3, 1, 2))
        if model.num_classes:
            found["logits"] = model(images)
        return found

    def save(folder):
        save_for_hf(model, folder, safe_serialization=True, model_args=model_args)

    return Opened(kind, channels, native, stride, stride, run, model, save)


def by_timm(folder):
    """A folder of timm. It refuses what is missing or left over by itself."""
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, **timm_norm(config))
    return of_timm(model, f"timm's {config['architecture']}", config["model_args"])


def by_timm_name(name, file):
    """A file of timm by the name of its network."""
    weights = load_file(file)
    head = next((weights[key] for key in ("head.weight", "head.fc.weight", "fc.weight") if key in weights), None)
    model = timm.create_model(name, num_classes=0 if head is None else head.shape[0])
    model.load_state_dict(weights)
    return of_timm(model, f"timm's {name}")


def open_folder(folder, attention="eager"):
    """A folder by the library that its config.json is of."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    return by_transformers(folder, attention) if "model_type" in config else by_timm(folder)


def compare(label, theirs, ours, tolerance):
    """Largest differences by name, in words. `ours` must have everything but what is the other program's own form of cls."""
    if ("logits" in theirs) != ("logits" in ours):
        raise Difference(f"{label}: only one side has logits")
    worst = {}
    for name, expected in theirs.items():
        found = ours.get(name, ours["cls"])
        if expected.shape != found.shape:
            raise Difference(f"{label}: {name} is {tuple(found.shape)} here and {tuple(expected.shape)} there")
        worst[name] = (found - expected).abs().max().item()
    largest = max(expected.abs().max().item() for expected in theirs.values())
    figures = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    print(f"{label}: {figures} (largest value {largest:.2f})", flush=True)
    # Written so that a NaN fails.
    if not all(value <= tolerance for value in worst.values()):
        raise Difference(f"{label}: differs by more than {tolerance}")
