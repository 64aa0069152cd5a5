#!/usr/bin/env python3
"""Opens language models that offshoot wrote with transformers and compares their logits with offshoot's.

Arguments are exported children, run folders (some of their children are exported first: smallest, middle, largest), or any other
folder of GPT2LMHeadModel or LlamaForCausalLM. Checked for each: that AutoModelForCausalLM takes every tensor and misses none; logits of
sequences of several lengths to a tolerance; that what transformers saves again has the same tensors, bit for bit, and opens here; that
the tokenizer opens; and that the Python of the model card runs. Exits with 1 if anything differs.

Before the first use: cargo build --release --workspace --examples --bins
"""

import argparse
import pathlib
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file

from exported import ROOT, folders, run, run_card
from opened import Difference


def our_logits(arguments, folder, sequences, scratch):
    """One tensor of logits a sequence."""
    output = scratch / "logits.safetensors"
    lists = [",".join(str(token) for token in sequence) for sequence in sequences]
    run(arguments.bin / "examples" / "logits", folder, output, *lists)
    rows = load_file(output)["logits"]
    return rows.split([len(sequence) for sequence in sequences])


def compare_logits(arguments, label, model, folder, scratch):
    generator = torch.Generator().manual_seed(0)
    context = model.config.max_position_embeddings
    lengths = sorted({1, 2, 17, min(context, arguments.tokens)})
    drawn = [torch.randint(model.config.vocab_size, (length,), generator=generator) for length in lengths if length <= context]
    ours = our_logits(arguments, folder, [sequence.tolist() for sequence in drawn], scratch)
    worst = largest = 0.0
    for sequence, found in zip(drawn, ours):
        with torch.inference_mode():
            theirs = model(sequence[None]).logits[0]
        worst = max(worst, (theirs - found).abs().max().item())
        largest = max(largest, theirs.abs().max().item())
    print(f"{label}: {type(model).__name__}, {model.num_parameters():,} parameters, logits differ by {worst:.1e} of {largest:.1f}")
    # Written so that NaN fails, too.
    if not worst <= arguments.tolerance * max(1.0, largest / 10):
        raise Difference(f"logits differ by {worst:e}")


def check(arguments, label, folder, scratch):
    model, told = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    problems = {kind: names for kind, names in told.items() if names}
    if problems:
        raise Difference(f"transformers says {problems}")
    model.eval()
    compare_logits(arguments, label, model, folder, scratch)
    again = scratch / "again"
    model.save_pretrained(again)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(again)
    first, second = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    if first.keys() != second.keys():
        raise Difference(f"tensors that only one side has: {sorted(first.keys() ^ second.keys())[:4]}")
    changed = [name for name in first if not torch.equal(first[name].float(), second[name])]
    if changed:
        raise Difference(f"tensors that changed on the way through transformers: {changed[:4]}")
    compare_logits(arguments, "  saved by transformers", model, again, scratch)
    if run_card(folder) is not None:
        print("  the Python of the model card runs")
    text = "The quick brown fox; naïve café, 123 €.\n\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if max(ids) >= model.config.vocab_size:
        raise Difference("the tokenizer has more tokens than the model")
    print(f"  tokenizer: {len(ids)} tokens, read back {'equal' if tokenizer.decode(ids) == text else 'otherwise'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=pathlib.Path, nargs="+", help="exported children, run folders, other model folders")
    parser.add_argument("--child", action="append", default=[], help="children of a run to look at")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target/release", help="folder of the binaries")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of the longest sequence")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a logit, for logits up to 10")
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for label, folder in folders(arguments, scratch):
            own = scratch / "own"
            own.mkdir(exist_ok=True)
            try:
                check(arguments, label, folder, own)
            except Difference as difference:
                print(f"{label}: {difference}", file=sys.stderr)
                failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
