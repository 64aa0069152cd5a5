"""Import fixtures: micro networks in the files and under the names in which others publish theirs, with their features.

Each is made with random weights by the class that owns the format. Where timm has the architecture too, the same weights
are stored a second time as a bare file under timm's names, once both libraries have agreed on features and logits.
"""

import functools
import re

import timm
import torch
import transformers
from safetensors.torch import load_file

from fixture_store import close, doubled, objective, random_weights, save, stored_gradient, versions, write_json

LABELS = 5


def tokens(model, images):
    """Features of a ViT: the class token and the others."""
    x = model(images).last_hidden_state
    return x[:, 0], x[:, 1:]


def swin_map(model, images):
    x = model(images).last_hidden_state
    side = round(x.shape[1] ** 0.5)
    return x.mean(1), doubled(x.unflatten(1, (side, side)))


def resnet_map(model, images):
    x = model(images).last_hidden_state
    return x.mean((2, 3)), doubled(x.permute(0, 2, 3, 1))


def timm_tokens(model, images):
    x = model.forward_features(images)
    return x[:, 0], x[:, 1:]


def timm_swin_map(model, images):
    x = model.forward_features(images)
    return x.mean((1, 2)), doubled(x)


def timm_resnet_map(model, images):
    x = model.forward_features(images)
    return x.mean((2, 3)), doubled(x.permute(0, 2, 3, 1))


# Names in timm for names in a file of transformers; the first rule that fits each part is taken, in this order.
VIT_NAMES = [
    (r"^(vit|dinov2)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"attention\.attention\.(query|key|value)", r"attn.\1"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^layernorm", "norm"),
    (r"^classifier", "head"),
]
SWIN_NAMES = [
    (r"^swin\.", ""),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.norm", "patch_embed.norm"),
    # timm halves the map at the start of a stage, transformers at the end of the one before.
    (r"^encoder\.layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample"),
    (r"^encoder\.", ""),
    (r"attention\.self\.(query|key|value)", r"attn.\1"),
    (r"attention\.self\.relative_position_bias_table", "attn.relative_position_bias_table"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^layernorm", "norm"),
    (r"^classifier", "head.fc"),
]
RESNET_NAMES = [
    (r"^resnet\.", ""),
    (r"^embedder\.embedder\.convolution", "conv1"),
    (r"^embedder\.embedder\.normalization", "bn1"),
    (r"^encoder\.stages\.(\d)\.layers\.", lambda found: f"layer{int(found[1]) + 1}."),
    (r"layer\.(\d)\.convolution", lambda found: f"conv{int(found[1]) + 1}"),
    (r"layer\.(\d)\.normalization", lambda found: f"bn{int(found[1]) + 1}"),
    (r"shortcut\.convolution", "downsample.0"),
    (r"shortcut\.normalization", "downsample.1"),
    (r"^classifier\.1", "fc"),
]


def in_timm(weights, names):
    """The weights of a transformers file under timm's names; queries, keys and values are one tensor there."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, new in names:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    fused = {}
    for name, tensor in renamed.items():
        part = re.search(r"attn\.(query|key|value)\.", name)
        if part is None:
            fused[name] = tensor
        elif part[1] == "query":
            parts = [renamed[name.replace("query", other)] for other in ("query", "key", "value")]
            fused[name.replace("query", "qkv")] = torch.cat(parts)
    return fused


def features(model, backbone, of, images, gradients):
    """What `expected.safetensors` holds of a model in float64."""
    cls, patches = of(backbone, images)
    expected = {"images": images, "cls": cls.detach(), "patches": patches.detach()}
    if getattr(model, "num_classes", None) or hasattr(model, "classifier"):
        logits = model(images)
        expected["logits"] = getattr(logits, "logits", logits).detach()
    if gradients:
        names, parameters = zip(*backbone.named_parameters())
        found = torch.autograd.grad(objective(cls, patches), parameters, allow_unused=True)
        # A classifier is no part of the backbone.
        used = [(name, gradient[None]) for name, gradient in zip(names, found) if gradient is not None]
        expected |= dict(stored_gradient(name, list(gradient)) for name, gradient in used)
    return expected


def write_transformers(folder, model, of, px, images=2, gradients=False, seed=0):
    """A folder as `save_pretrained` writes it, and what its network computes."""
    folder.mkdir(parents=True, exist_ok=True)
    model.load_state_dict(random_weights(model.state_dict(), seed))
    model.save_pretrained(folder)
    model.config._attn_implementation = "sdpa"  # the eager one has a softmax in float32
    model.double().eval()
    backbone = getattr(model, model.base_model_prefix, model)
    channels = model.config.num_channels
    pixels = torch.randn(images, channels, px, px, generator=torch.Generator().manual_seed(seed + 100)).double()
    expected = features(model, backbone, of, pixels, gradients)
    save(expected, folder / "expected.safetensors")
    return expected


def write_timm(folder, source, names, of, expected, name, gradients=False, **args):
    """The weights of the folder `source` as a bare file of timm's `name`, and what timm computes with them."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = in_timm(load_file(source / "model.safetensors"), names)
    weights.pop("mask_token", None)
    model = timm.create_model(name, **args)
    model.load_state_dict(weights)
    save(model.state_dict(), folder / f"{folder.name}.safetensors")
    model.double().eval()
    ours = features(model, model, of, expected["images"], gradients)
    for key in ("cls", "patches", *(["logits"] if "logits" in expected else [])):
        close(f"{folder.name}: {key} of timm and of transformers", [ours[key]], [expected[key]], 1e-9)
    save(ours, folder / "expected.safetensors")
    write_json({"model": name, "args": args, "versions": versions()}, folder / "about.json")


def write(root):
    """All import fixtures."""
    labels = {"num_labels": LABELS}
    vit = {"image_size": 16, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    timm_vit = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}

    config = transformers.ViTConfig(**vit, intermediate_size=96)
    write_transformers(root / "vit", transformers.ViTModel(config), tokens, 16)

    # timm has 1e-6 where ViTConfig has 1e-12.
    config = transformers.ViTConfig(**vit, intermediate_size=96, layer_norm_eps=1e-6, **labels)
    made = functools.partial(write_transformers, px=16, seed=1)
    expected = made(root / "vit-classifier", transformers.ViTForImageClassification(config), tokens)
    name = "vit_tiny_patch16_224"
    source = root / "vit-classifier"
    write_timm(root / "vit-timm", source, VIT_NAMES, timm_tokens, expected, name, num_classes=LABELS, **timm_vit)

    config = transformers.Dinov2Config(**vit, mlp_ratio=4)
    expected = write_transformers(root / "dinov2", transformers.Dinov2Model(config), tokens, 16, seed=2)
    name, args = "vit_small_patch14_dinov2", {"num_classes": 0, "init_values": 1e-5, **timm_vit}
    write_timm(root / "dinov2-timm", root / "dinov2", VIT_NAMES, timm_tokens, expected, name, **args)

    # Heads of 4 channels, maps of 16, 8, 4 and 2 in windows of 2.
    swin = {"patch_size": 2, "embed_dim": 4, "num_heads": [1, 2, 4, 8], "depths": [2, 1, 2, 1], "window_size": 2}
    config = transformers.SwinConfig(image_size=32, mlp_ratio=2.0, **swin, **labels)
    expected = write_transformers(root / "swin-classifier", transformers.SwinForImageClassification(config), swin_map, 32, seed=3)
    name, args = "swin_tiny_patch4_window7_224", {"img_size": 32, "mlp_ratio": 2.0, "num_classes": LABELS, **swin}
    write_timm(root / "swin-timm", root / "swin-classifier", SWIN_NAMES, timm_swin_map, expected, name, **args)

    # The stem of timm's has 64 channels whatever one asks for.
    config = {"embedding_size": 64, "hidden_sizes": [4, 8, 16, 32], "depths": [1, 2, 2, 1]}
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**config, **labels))
    made = functools.partial(write_transformers, of=resnet_map, px=64, images=1, gradients=True)
    expected = made(root / "resnet-classifier", model, seed=4)
    source, name = root / "resnet-classifier", "resnet50"
    args = {"layers": [1, 2, 2, 1], "channels": [1, 2, 4, 8], "base_width": 64, "num_classes": LABELS}
    write_timm(root / "resnet-timm", source, RESNET_NAMES, timm_resnet_map, expected, name, gradients=True, **args)

    for folder, first in (("resnet", False), ("resnet-strides-first", True)):
        config = {"embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [2, 2, 3, 1]}
        config = transformers.ResNetConfig(**config, downsample_in_bottleneck=first)
        made(root / folder, transformers.ResNetModel(config), seed=5)
