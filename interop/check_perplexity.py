#!/usr/bin/env python3
"""Compares `offshoot eval perplexity` with transformers on the same checkpoint and text.

MODEL is a folder of transformers with a tokenizer.json. Each domain is NAME=FILE.jsonl, lines with a string `text`. Both programs score the
first --documents of each, whole, by the same windows: --context tokens, --stride apart, read on their own from position 0, of which
each predicts what is new in it (the loop of Hugging Face's page on the perplexity of fixed-length models). Compared are tokens and bytes,
which must be equal, and each domain's and the mean's perplexity per token and per byte, to --tolerance, relative. Exits with 1 if
anything differs.

Before the first use: cargo build --release --workspace --examples --bins
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent


def documents(path, limit):
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            if not text.strip():
                continue
            yield text
            limit -= 1
            if limit == 0:
                return


def windows(tokens, context, stride):
    """Begin and end of each window, and the first token that it predicts."""
    end = 1
    for begin in range(0, tokens, stride):
        predicted, end = end, min(begin + context, tokens)
        yield begin, end, predicted
        if end == tokens:
            return


def score(model, tokenizer, texts, context, stride, begin):
    nats, count, size = 0.0, 0, 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = torch.tensor(begin + ids)
        if len(ids) < 2:
            continue
        size += len(text.encode())
        for first, end, predicted in windows(len(ids), context, stride):
            logits = model(ids[None, first:end]).logits[0].float()
            losses = torch.nn.functional.cross_entropy(logits[:-1], ids[first + 1 : end], reduction="none")
            new = losses[predicted - first - 1 :].double()
            nats += new.sum().item()
            count += len(new)
    return nats, count, size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("domain", nargs="+", help="NAME=FILE.jsonl")
    parser.add_argument("--documents", type=int, default=20, help="of each domain, the first ones")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--stride", type=int, help="one less than the context by default")
    parser.add_argument("--begin-of-text", choices=["auto", "yes", "no"], default="auto")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target" / "release", help="where the program is")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    stride = arguments.stride or arguments.context - 1
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")

    command = [str(arguments.bin / "offshoot"), "eval", "perplexity", str(arguments.model), "--json"]
    command += [part for domain in arguments.domain for part in ("--data", domain)]
    command += ["--documents", str(arguments.documents), "--context", str(arguments.context), "--stride", str(stride)]
    command += ["--begin-of-text", arguments.begin_of_text, "--threads", str(arguments.threads)]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[0]["scorecards"]
    ours = {card["metric"]: card for card in ours}

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    added = framed[: len(framed) - len(plain)] if framed != plain else []
    begin = {"auto": added, "yes": [model.config.bos_token_id], "no": []}[arguments.begin_of_text]

    failed = False

    def compare(name, found, expected):
        nonlocal failed
        difference = abs(found / expected - 1)
        failed |= not difference <= arguments.tolerance
        print(f"{name}: {found:.6f} here, {expected:.6f} by transformers, {difference:.1e} apart")

    per_token, per_byte = [], []
    with torch.inference_mode():
        for domain in arguments.domain:
            name, _, path = domain.partition("=")
            nats, count, size = score(
                model, tokenizer, documents(path, arguments.documents), arguments.context, stride, begin
            )
            card = ours[f"perplexity/{name}"]
            if (card["details"]["tokens"], card["details"]["bytes"]) != (count, size):
                details = card["details"]
                print(f"{name}: {details['tokens']} tokens of {details['bytes']} bytes here, {count} of {size} there")
                failed = True
            print(f"{name}: {card['examples']} documents, {count} tokens predicted, {size} bytes")
            compare(f"perplexity/{name}", card["value"], math.exp(nats / count))
            compare(f"byte_perplexity/{name}", ours[f"byte_perplexity/{name}"]["value"], math.exp(nats / size))
            per_token.append(nats / count)
            per_byte.append(nats / size)
    compare("perplexity", ours["perplexity"]["value"], math.exp(sum(per_token) / len(per_token)))
    compare("byte_perplexity", ours["byte_perplexity"]["value"], math.exp(sum(per_byte) / len(per_byte)))
    if failed:
        sys.exit("they differ")


if __name__ == "__main__":
    main()
