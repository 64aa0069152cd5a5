#!/usr/bin/env python3
"""The rival of `offshoot bench step`: whole POA training steps in PyTorch, timed, as one line of JSON.

One step is what elastic pre-training does between two batches: the teacher's forward pass, both students' forward passes,
every term of the loss, the backward pass, AdamW, and the teacher's average. Data is made up once and not loaded.

The backbone is a ViT (below), a Swin (`poa_swin.py`) or a ResNet (`poa_resnet.py`).

Written as a PyTorch user would write it for speed: fused attention, one head pass for all rows of a student, the elastic
student's weights cut once a step, masked patches by index, multi-tensor updates. Seed 0 decides every number.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

import poa_resnet
import poa_swin


@dataclass(frozen=True)
class Case:
    """Sizes of one problem."""

    width: int  # of a Swin in its first stage, of a ResNet inside of the blocks of its first stage
    depth: int | tuple  # a tuple has the blocks of every stage
    head_dim: int | None
    patch: int
    global_px: int
    local_px: int
    views: int  # local crops an image
    images: int
    hidden: int
    bottleneck: int
    prototypes: tuple
    elastic: tuple  # width and depth of the elastic student
    architecture: str = "vit"

    @property
    def grid(self):
        """Side of the grid of patches that are masked and compared."""
        return self.global_px // {"vit": self.patch, "swin": 4 * self.patch, "resnet": 16}[self.architecture]

    def features(self, width):
        """Channels of the features of the sub-network of `width`."""
        return {"vit": width, "swin": 8 * width, "resnet": poa_resnet.OUTPUTS[-1]}[self.architecture]


CASES = {
    "cpu-s": Case(192, 6, 32, 4, 32, 16, 6, 32, 512, 128, (512, 1024, 2048, 4096), (128, 4)),
    "cpu-m": Case(384, 12, 64, 4, 32, 16, 6, 16, 1024, 256, (1024, 2048, 4096, 8192), (256, 8)),
    "vit-l": Case(1024, 24, 64, 16, 224, 96, 8, 50, 2048, 256, (8192, 16384, 32768, 65536), (640, 17)),
    "swin-s": Case(
        *(96, (2, 2, 6, 2), 16, 2, 64, 32, 6, 8, 512, 128, (512, 1024, 2048, 4096)), (64, (2, 2, 4, 2)), architecture="swin"
    ),
    "resnet-s": Case(
        *(64, (2, 3, 6, 2), None, 4, 64, 32, 6, 8, 512, 128, (512, 1024, 2048, 4096)), (32, (2, 2, 4, 2)), architecture="resnet"
    ),
}

INTACT_SHARE = 0.8
STUDENT_TEMPERATURE = 0.1
TEACHER_TEMPERATURE = 0.05
KOLEO_WEIGHT = 0.1
SINKHORN_ROUNDS = 3
MOMENTUM = 0.99
NORM_EPS = 1e-6


# Weights: a plain dictionary of tensors. A spec is (name, shape, offset, scale, source); its value is offset + scale * draw.


def backbone_specs(case):
    """Every tensor of the backbone, in the order in which values are drawn."""
    if case.architecture == "swin":
        return poa_swin.specs(case.width, case.depth, case.head_dim, case.patch)
    if case.architecture == "resnet":
        return poa_resnet.specs(case.width, case.depth)
    return vit_specs(case)


def vit_specs(case):
    d, p = case.width, case.patch
    normal = torch.randn
    yield "patch.weight", (d, 3, p, p), 0, 0.05, normal
    for name in ("patch.bias", "cls", "mask"):
        yield name, (d,), 0, 0.02, normal
    yield "positions", (1 + case.grid**2, d), 0, 0.02, normal
    for i in range(case.depth):
        yield from block_specs(f"blocks.{i}.", d)
    yield "norm.weight", (d,), 1, 0.1, normal
    yield "norm.bias", (d,), 0, 0.1, normal


def block_specs(block, d):
    def norm(name):
        yield f"{block}{name}.weight", (d,), 1, 0.1, torch.randn
        yield f"{block}{name}.bias", (d,), 0, 0.1, torch.randn

    def linear(name, outputs, inputs):
        yield f"{block}{name}.weight", (outputs, inputs), 0, inputs**-0.5, torch.randn
        yield f"{block}{name}.bias", (outputs,), 0, 0.02, torch.randn

    yield from norm("norm1")
    yield from linear("qkv", 3 * d, d)
    yield from linear("proj", d, d)
    for name in ("gamma1", "gamma2"):
        yield block + name, (d,), 0.5, 0.1, torch.randn
    yield from norm("norm2")
    yield from linear("fc1", 4 * d, d)
    yield from linear("fc2", d, 4 * d)


def head_specs(case):
    """Every tensor of the projection heads, in the order in which values are drawn."""
    sizes = (case.features(case.width), case.hidden, case.hidden, case.bottleneck)
    for i, prototypes in enumerate(case.prototypes):
        for layer, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
            yield f"heads.{i}.{layer}.weight", (outputs, inputs), 0, inputs**-0.5, torch.randn
            yield f"heads.{i}.{layer}.bias", (outputs,), 0, 0.02, torch.randn
        yield f"heads.{i}.direction", (prototypes, case.bottleneck), 0, 1, torch.randn
        yield f"heads.{i}.gain", (prototypes,), 1, 0.1, torch.rand


def draw(case, device):
    weights = {}
    for specs in (backbone_specs(case), head_specs(case)):
        for name, shape, offset, scale, source in specs:
            weights[name] = (offset + scale * source(shape)).to(device)
    return weights


def is_decayed(name):
    """Biases, norms and LayerScale are not decayed."""
    return not (name.endswith(".bias") or "norm" in name or "gamma" in name)


def cut(weights, case, width, depth):
    """The sub-network of `width` and `depth` as weights of its own, blocks renumbered; differentiable.

    Leading channels, evenly spaced blocks, and a factor on every matrix that reads a narrowed axis.
    """
    if (width, depth) == (case.width, case.depth):
        return weights
    cut_backbone = {"vit": cut_vit, "swin": poa_swin.cut, "resnet": poa_resnet.cut}[case.architecture]
    child = cut_backbone(weights, case, width, depth)
    full, left = case.features(case.width), case.features(width)
    for name, weight in weights.items():
        if name.startswith("heads."):
            reads = name.endswith(".0.weight") and left != full
            child[name] = full / left * weight[:, :left] if reads else weight
    return child


def cut_vit(weights, case, width, depth):
    full, gain = case.width, case.width / width
    child = {"patch.weight": weights["patch.weight"][:width]}
    for name in ("patch.bias", "cls", "mask", "norm.weight", "norm.bias"):
        child[name] = weights[name][:width]
    child["positions"] = weights["positions"][:, :width]
    for to in range(depth):
        of = to * (case.depth - 1) // max(depth - 1, 1)
        for name, shape, *_ in block_specs("", width):
            whole = weights[f"blocks.{of}.{name}"]
            if name.startswith("qkv"):  # queries, keys and values are three groups of rows
                part = whole.unflatten(0, (3, full))[:, :width].flatten(0, 1)
            else:
                part = whole[: shape[0]]
            child[f"blocks.{to}.{name}"] = gain * part[:, : shape[1]] if len(shape) == 2 else part
    return child


# Forward passes.


def resampled(positions, side):
    """Learned positions at another grid: bicubic, no antialias, a tenth of a pixel added to the output side."""
    token, patches = positions[:1], positions[1:]
    own = round(len(patches) ** 0.5)
    if own == side:
        return positions
    grid = patches.T.unflatten(1, (own, own))[None]
    factor = (side + 0.1) / own
    grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic", recompute_scale_factor=False)
    return torch.cat([token, grid[0].flatten(1).T])


def backbone(w, case, images, hidden_patches=None):
    """Class tokens [b, width] and patch tokens [b, patches, width]."""
    x = F.conv2d(images, w["patch.weight"], w["patch.bias"], stride=case.patch)
    b, width, side, _ = x.shape
    x = x.flatten(2).mT
    if hidden_patches is not None:
        x = torch.where(hidden_patches[..., None], w["mask"].to(x.dtype), x)
    x = torch.cat([w["cls"].expand(b, 1, width), x], dim=1) + resampled(w["positions"], side)
    heads = width // case.head_dim
    depth = sum(name.endswith(".gamma1") for name in w)
    for i in range(depth):
        at = f"blocks.{i}."
        y = F.layer_norm(x, (width,), w[at + "norm1.weight"], w[at + "norm1.bias"], NORM_EPS)
        y = F.linear(y, w[at + "qkv.weight"], w[at + "qkv.bias"])
        q, k, v = y.unflatten(2, (3, heads, case.head_dim)).permute(2, 0, 3, 1, 4).unbind()
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + w[at + "gamma1"] * F.linear(y, w[at + "proj.weight"], w[at + "proj.bias"])
        y = F.layer_norm(x, (width,), w[at + "norm2.weight"], w[at + "norm2.bias"], NORM_EPS)
        y = F.gelu(F.linear(y, w[at + "fc1.weight"], w[at + "fc1.bias"]))
        x = x + w[at + "gamma2"] * F.linear(y, w[at + "fc2.weight"], w[at + "fc2.bias"])
    x = F.layer_norm(x, (width,), w["norm.weight"], w["norm.bias"], NORM_EPS)
    return x[:, 0], x[:, 1:]


def bottleneck(w, i, rows):
    """Head `i` up to its unit-length bottleneck."""
    for layer in range(3):
        rows = F.linear(rows, w[f"heads.{i}.{layer}.weight"], w[f"heads.{i}.{layer}.bias"])
        rows = F.gelu(rows) if layer < 2 else rows
    return F.normalize(rows, dim=-1, eps=1e-12)


def prototypes(w, i):
    """The weight-normalised last layer of head `i`."""
    return w[f"heads.{i}.gain"][:, None] * F.normalize(w[f"heads.{i}.direction"], dim=-1, eps=0.0)


# The loss.


def sinkhorn(logits):
    """Teacher targets [rows, prototypes]: prototypes evened out, then rows, and so on; every row sums to 1."""
    q = logits.float() / TEACHER_TEMPERATURE
    q = torch.exp(q - q.max())
    q /= q.sum()
    rows, columns = q.shape
    for _ in range(SINKHORN_ROUNDS):
        q /= q.sum(0, keepdim=True) * columns
        q /= q.sum(1, keepdim=True) * rows
    return q * rows


def koleo(x):
    """Minus the mean log distance of every row to its nearest neighbour on the sphere."""
    x = F.normalize(x.float(), dim=-1, eps=1e-8)
    with torch.no_grad():
        likeness = (x @ x.mT).fill_diagonal_(-2)
        nearest = likeness.argmax(1)
    return -torch.log(F.pairwise_distance(x, x[nearest], eps=1e-8) + 1e-8).mean()


def step_loss(case, student, teacher, batch):
    """The loss of one step."""
    images, views = case.images, case.views
    globals_, locals_, masks, masked, token_weights = batch
    parts = [2 * images, len(masked), views * images]
    pairs = 2 * views + 2

    features = {"vit": backbone, "swin": poa_swin.features, "resnet": poa_resnet.features}[case.architecture]
    with torch.no_grad():
        cls, patches = features(teacher, case, globals_)
        teacher_rows = torch.cat([cls, patches.flatten(0, 1)[masked]])
    slim = cut(student, case, *case.elastic)
    rows, koleos = [], []
    for weights in (student, slim):
        cls, patches = features(weights, case, globals_, masks)
        local_cls, _ = features(weights, case, locals_)
        rows.append(torch.cat([cls, patches.flatten(0, 1)[masked], local_cls]))
        koleos += [koleo(crop) for crop in cls.split(images)]

    terms = []
    for i in range(len(case.prototypes)):
        with torch.no_grad():
            logits = F.linear(bottleneck(teacher, i, teacher_rows), prototypes(teacher, i))
            for_cls, for_tokens = (sinkhorn(part) for part in logits.split(parts[:2]))
            first, second = for_cls.split(images)
            other, both = torch.cat([second, first]), first + second
        last = prototypes(student, i)
        intact, elastic = (F.linear(bottleneck(w, i, x), last) for w, x in zip((student, slim), rows))
        with torch.no_grad():
            taught_globally, _, taught_locally = F.softmax(intact / STUDENT_TEMPERATURE, -1).split(parts)
        for logits, share in ((intact, INTACT_SHARE), (elastic, 1 - INTACT_SHARE)):
            log_p = F.log_softmax(logits / STUDENT_TEMPERATURE, -1)
            on_globals, on_tokens, on_locals = log_p.split(parts)
            # Local views meet the targets of both global crops, a global view those of the other one.
            crossed = (on_locals.unflatten(0, (views, images)) * both).sum() / (images * pairs)
            crossed = crossed + 2 / pairs * (on_globals * other).sum(-1).mean()
            hidden = ((on_tokens * for_tokens).sum(-1) * token_weights).sum() / (2 * images)
            terms.append(-share * (crossed + hidden))
        # `log_p` is the elastic student's: it follows the intact one on the very same views.
        same = (on_globals * taught_globally).sum(-1).mean() + (on_locals * taught_locally).sum(-1).mean()
        terms.append(-(1 - INTACT_SHARE) * same)
    return torch.stack(terms).sum() / len(case.prototypes) + 0.5 * KOLEO_WEIGHT * torch.stack(koleos).sum()


def make_batch(case, device):
    """Crops of noise and masks: every second global crop is masked, from a tenth to a half of its patches."""
    crops, patches = 2 * case.images, case.grid**2
    masks = torch.zeros(crops, patches, dtype=torch.bool)
    for crop in range(0, crops, 2):
        share = 0.1 + 0.4 * crop / crops
        count = max(1, int(patches * share))
        masks[crop, torch.randperm(patches)[:count]] = True
    globals_ = torch.randn(crops, 3, case.global_px, case.global_px)
    locals_ = torch.randn(case.views * case.images, 3, case.local_px, case.local_px)
    masked = masks.flatten().nonzero().squeeze(1)
    token_weights = (1.0 / masks.sum(1).clamp(min=1))[masked // patches]
    if case.architecture != "vit":
        # The grid of patches has the last map doubled: each masked patch as the cell of the map that it repeats.
        side = case.grid // 2
        row, column = masked // case.grid, masked % case.grid
        crop, row = row // case.grid, row % case.grid // 2
        masked = (crop * side + row) * side + column // 2
    return tuple(t.to(device) for t in (globals_, locals_, masks, masked, token_weights))


def time_steps(args):
    if args.threads:
        torch.set_num_threads(args.threads)
    case, device = CASES[args.case], args.device
    torch.manual_seed(0)
    student, teacher = draw(case, device), draw(case, device)
    batch = make_batch(case, device)
    leaves = [weight.requires_grad_() for weight in student.values()]
    groups = [
        {"params": [w for name, w in student.items() if is_decayed(name) == decay], "weight_decay": 0.05 * decay}
        for decay in (True, False)
    ]
    # None leaves the choice of a fused or multi-tensor update to PyTorch: multi-tensor on a GPU.
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, foreach=None)
    averages = list(teacher.values())
    loss_of = torch.compile(step_loss, dynamic=False) if args.compile else step_loss
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = loss_of(case, student, teacher, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, leaves, 1 - MOMENTUM)
        return loss.detach()

    seconds = []
    for done in range(args.warmup + args.steps):
        wait()
        began = time.perf_counter()
        loss = step()
        wait()
        if done >= args.warmup:
            seconds.append(time.perf_counter() - began)
    return {
        "case": args.case,
        "torch": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "compiled": args.compile,
        "steps": len(seconds),
        "median_s": round(statistics.median_high(seconds), 5),
        "min_s": round(min(seconds), 5),
        "peak_rss_mib": peak_rss_mib(),
        "loss": loss.item(),
    }


def peak_rss_mib():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, KiB elsewhere


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="cpu-s", help="size of the problem")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the choice to PyTorch")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16 is autocast over fp32 weights")
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss")
    parser.add_argument("--steps", type=int, default=7, help="timed steps, at least 1")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the first timed one")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error("--steps must be at least 1")
    print(json.dumps(time_steps(args)))


if __name__ == "__main__":
    main()
