#!/usr/bin/env python3
"""Compares greedy text of `offshoot generate` with transformers', token for token, and the speed of both.

MODEL is a folder of transformers with a tokenizer.json. Every prompt is continued by --tokens tokens by both programs, taking the best
token always, with and without a repetition penalty. Where they part, the first difference is named with the two best scores of
transformers there: a difference where these are equal but for rounding is none of the programs'. With --rounds, both then generate from
the first prompt by turns and the medians of tokens a second are printed, the prompt's apart; with --gguf and --llama-cpp, the folder where
llama-cpp-python is installed, llama.cpp does so too, from a file of the same weights. Exits with 1 if any token differs.

Before the first use: cargo build --release --workspace --examples --bins
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMPTS = [
    "Once upon a time, there was a little girl named",
    "The capital of France is",
    "def add(a, b):\n    ",
    "Tom and his dog went to the park. They saw a big",
    "In 1905, Albert Einstein published",
    "Ein Mädchen sagte: \u201cGrüß Gott\u201d, und",
]


def ours(arguments, prompt, penalty):
    command = [str(arguments.bin / "offshoot"), "generate", str(arguments.model), "--prompt", prompt, "--json"]
    command += ["--tokens", str(arguments.tokens), "--temperature", "0", "--repetition-penalty", str(penalty)]
    command += ["--begin-of-text", arguments.begin_of_text, "--threads", str(arguments.threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def theirs(model, ids, tokens, penalty):
    ids = torch.tensor([ids])
    options = dict(do_sample=False, repetition_penalty=penalty, pad_token_id=0)
    start = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, **options)
    first = time.perf_counter() - start
    start = time.perf_counter()
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **options)
    seconds = time.perf_counter() - start
    found = found[0, ids.shape[1] :].tolist()
    # The first token is the prompt's.
    return found, (len(found) - 1) / (seconds - first)


def llama_cpp(arguments):
    """What generates by llama.cpp and says how many tokens a second it made; nothing where it was not asked for."""
    if not arguments.gguf:
        return None
    sys.path.insert(0, str(arguments.llama_cpp))
    from llama_cpp import Llama

    threads = dict(n_threads=arguments.threads, n_threads_batch=arguments.threads)
    model = Llama(str(arguments.gguf), n_ctx=512, verbose=False, **threads)

    def generate(ids):
        model.reset()
        model.eval(ids)
        start = time.perf_counter()
        for _ in range(arguments.tokens - 1):
            model.eval([model.sample(temp=0.0)])
        return (arguments.tokens - 1) / (time.perf_counter() - start)

    return generate


def best(model, ids):
    scores = model(torch.tensor([ids])).logits[0, -1].topk(2)
    return ", ".join(f"{token} {score:.6f}" for token, score in zip(scores.indices.tolist(), scores.values.tolist()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=0, help="turns of a comparison of speed")
    parser.add_argument("--begin-of-text", choices=["auto", "yes", "no"], default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gguf", type=pathlib.Path, help="the same model for llama.cpp, to compare speed")
    parser.add_argument("--llama-cpp", type=pathlib.Path, help="where llama-cpp-python is installed")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target" / "release", help="where the program is")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    failed = False
    with torch.inference_mode():
        for prompt in PROMPTS:
            for penalty in (1.0, 1.2):
                done = ours(arguments, prompt, penalty)
                sample = done["samples"][0]
                found = sample["tokens"] + ([sample["end_token"]] if sample["end_token"] is not None else [])
                ids = done["prompt_tokens"]
                if arguments.begin_of_text == "auto" and tokenizer(prompt)["input_ids"] != ids:
                    print(f"{prompt!r}: other tokens than transformers': {ids}, {tokenizer(prompt)['input_ids']}")
                    failed = True
                expected, _ = theirs(model, ids, arguments.tokens, penalty)
                same = next(
                    (i for i, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected))
                )
                print(f"{prompt!r}, penalty {penalty}: {same} of {len(expected)} tokens are the same")
                if found != expected:
                    print(f"  then {found[same:same+3]} here, {expected[same:same+3]} by transformers")
                    print(f"  transformers' best there: {best(model, ids + expected[:same])}")
                    failed = True
        rates = {"here": [], "transformers": [], "llama.cpp": []}
        other = llama_cpp(arguments)
        for _ in range(arguments.rounds):
            done = ours(arguments, PROMPTS[0], 1.0)
            rates["here"].append(done["tokens_per_second"])
            rates["transformers"].append(theirs(model, done["prompt_tokens"], arguments.tokens, 1.0)[1])
            if other:
                rates["llama.cpp"].append(other(done["prompt_tokens"]))
        for name, each in rates.items():
            if each:
                median = statistics.median(each)
                shown = ", ".join(f"{rate:.1f}" for rate in each)
                ratio = statistics.median(rates["here"]) / median
                print(f"{name}: median {median:.1f} tokens a second with {arguments.threads} threads ({shown}); here {ratio:.2f} times")
    if failed:
        sys.exit("they differ")


if __name__ == "__main__":
    main()
