#!/usr/bin/env python3
"""The rival of `offshoot bench lm`: whole training steps of a decoder of transformers in PyTorch, timed, as one line of JSON.

One step is forward pass, mean loss of the next tokens, backward pass, clipping by the norm of all gradients, and AdamW. Tokens are made
up once. The models are `GPT2LMHeadModel` and `LlamaForCausalLM` as their users have them, with PyTorch's fused attention (their
default) and no dropout.
"""

import argparse
import json
import resource
import time
from dataclasses import dataclass

import torch
import transformers
from torch.nn import functional as F


@dataclass(frozen=True)
class Case:
    """Sizes of one problem."""

    windows: int  # of a step
    width: int
    depth: int
    heads: int
    hidden: int
    vocabulary: int
    context: int

    def gpt2(self):
        numbers = transformers.GPT2Config(
            vocab_size=self.vocabulary,
            n_positions=self.context,
            n_embd=self.width,
            n_layer=self.depth,
            n_head=self.heads,
            n_inner=self.hidden,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
        return transformers.GPT2LMHeadModel(numbers)

    def llama(self):
        numbers = transformers.LlamaConfig(
            vocab_size=self.vocabulary,
            max_position_embeddings=self.context,
            hidden_size=self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads // 2,
            intermediate_size=self.hidden,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
        return transformers.LlamaForCausalLM(numbers)


CASES = {
    "tiny": Case(4, 32, 2, 4, 64, 97, 24),
    "cpu-s": Case(16, 256, 4, 4, 1024, 8192, 256),
    "slm-126m": Case(16, 1024, 7, 8, 4096, 32_768, 1024),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="cpu-s")
    parser.add_argument("--arch", choices=["gpt2", "llama"], default="gpt2")
    parser.add_argument("--threads", type=int, default=0, help="0: as PyTorch chooses")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="by torch.compile")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    case = CASES[args.case]
    model = getattr(case, args.arch)().train()
    tokens = torch.randint(case.vocabulary, (case.windows, case.context))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)

    def loss_of(ids):
        logits = model(ids, use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    if args.compile:
        loss_of = torch.compile(loss_of, dynamic=False)
    seconds = []
    for step in range(args.warmup + args.steps):
        began = time.perf_counter()
        loss = loss_of(tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        value = loss.item()
        if step >= args.warmup:
            seconds.append(time.perf_counter() - began)
    seconds.sort()
    median = seconds[len(seconds) // 2]
    line = {
        "case": args.case,
        "arch": args.arch,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "compiled": args.compile,
        "steps": args.steps,
        "median_s": round(median, 5),
        "min_s": round(seconds[0], 5),
        "tokens_per_s": round(tokens.numel() / median),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "loss": value,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
