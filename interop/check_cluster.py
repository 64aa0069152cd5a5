#!/usr/bin/env python3
"""Compares `offshoot cluster --encoder` with transformers and scikit-learn on real text.

ENCODER is a folder of sentence-transformers with a BertModel, such as all-MiniLM-L6-v2. Each domain is NAME=FILE.jsonl, lines with a string
`text`, of which the first --documents are taken; --tokenizer makes the corpus. Compared are:

- the vector of every window with BertModel's last hidden states, pooled by 1_Pooling/config.json over the attention mask of up to
  max_seq_length tokens, and normalised: to --tolerance;
- the cluster of every window with the nearest centroid, and centroids, histograms and the index from clusters to windows with each other;
- inertia and balance with MiniBatchKMeans and KMeans on the same vectors: printed, and inertia at most --inertia times the former's best.

Exits with 1 if anything differs. Before the first use: cargo build --release --workspace --examples --bins
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import tokenizers
import torch
from safetensors.numpy import load_file
from sklearn.cluster import KMeans, MiniBatchKMeans
from transformers import AutoModel, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


def window_texts(corpus, context):
    """The texts of the windows of the train part, as `docs/text.md` says that they are cut."""
    facts = json.loads((corpus / "corpus.json").read_text())
    tokenizer = tokenizers.Tokenizer.from_file(str(corpus / "tokenizer.json"))
    end = facts["tokenizer"]["end_of_text"]
    for domain in facts["domains"]:
        folder = corpus / "domains" / domain["name"]
        tokens = np.fromfile(folder / "train.tokens", dtype="<u2" if facts["token_bytes"] == 2 else "<u4")
        first = 0
        for last, _ in np.fromfile(folder / "train.index", dtype="<u8").reshape(-1, 2):
            ids = [int(token) for token in tokens[first : int(last)]] + ([] if end is None else [end])
            first = int(last)
            for begin in range(0, len(ids), context):
                window = ids[begin : begin + context]
                if len(window) > 1:
                    yield domain["name"], tokenizer.decode(window, skip_special_tokens=True)


def embed(folder, texts, batch=32):
    """What sentence-transformers computes, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    longest = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    pooling = json.loads((folder / "1_Pooling/config.json").read_text())
    vectors = []
    with torch.inference_mode():
        for first in range(0, len(texts), batch):
            part = tokenizer(
                texts[first : first + batch], padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            states = model(**part).last_hidden_state
            mask = part["attention_mask"][..., None].float()
            mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            pooled = mean if pooling["pooling_mode_mean_tokens"] else states[:, 0]
            vectors.append(torch.nn.functional.normalize(pooled))
    return torch.cat(vectors).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=pathlib.Path)
    parser.add_argument("text", nargs="+", metavar="NAME=FILE.jsonl")
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True, help="tokenizer.json of the corpus")
    parser.add_argument("--documents", type=int, default=40, help="documents of each domain")
    parser.add_argument("--context", type=int, default=256, help="tokens of a window")
    parser.add_argument("--k", type=int, default=8, help="clusters")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--inertia", type=float, default=1.05, help="allowed, times that of MiniBatchKMeans' best; balance costs some")
    args = parser.parse_args()
    offshoot = ROOT / "target/release/offshoot"
    failed = []
    with tempfile.TemporaryDirectory() as base:
        base = pathlib.Path(base)
        domains = []
        for typed in args.text:
            name, path = typed.split("=", 1)
            with open(path, encoding="utf-8") as lines:
                (base / f"{name}.jsonl").write_text("".join(line for line, _ in zip(lines, range(args.documents))))
            domains.append(f"{name}={base / name}.jsonl")
        corpus, clusters = base / "corpus", base / "clusters"
        run(offshoot, "tokenize", *domains, "--tokenizer", args.tokenizer, "-o", corpus, "--val", 0, "--test", 0)
        chosen = ("--k", args.k, "--context", args.context, "--keep-embeddings")
        print(run(offshoot, "cluster", corpus, "--encoder", args.encoder, "-o", clusters, *chosen))
        facts = json.loads((clusters / "clusters.json").read_text())
        ours = np.fromfile(clusters / "embeddings.f32", dtype="<f4").reshape(-1, facts["encoder"]["width"])
        named = list(window_texts(corpus, args.context))
        if len(named) != len(ours):
            sys.exit(f"{len(ours)} windows, and {len(named)} by the corpus' files")
        theirs = embed(args.encoder, [text for _, text in named])
        difference = float(np.abs(ours - theirs).max())
        print(f"{len(ours)} vectors: largest difference {difference:.2e}")
        if not difference <= args.tolerance:
            at = int(np.abs(ours - theirs).max(1).argmax())
            failed.append(f"vector {at} differs by {difference:.2e}: {named[at][1][:80]!r}")

        centroids = load_file(clusters / "centroids.safetensors")["levels.0.centroids"][0]
        assigned = np.fromfile(clusters / "assignments.u32", dtype="<u4")
        distances = ((ours[:, None].astype(np.float64) - centroids[None]) ** 2).sum(-1)
        nearest = distances.min(1)
        if not (distances[np.arange(len(ours)), assigned] <= nearest + 1e-5).all():
            failed.append("a window is not in the cluster of the nearest centroid")
        if abs(nearest.mean() - facts["inertia"]) > 1e-5:
            failed.append(f"inertia {facts['inertia']}, computed again {nearest.mean()}")
        by_cluster = np.fromfile(clusters / "by-cluster.u32", dtype="<u4")
        if not (by_cluster == np.argsort(assigned, kind="stable")).all():
            failed.append("the index is not the inverse of the assignments")
        for domain in facts["domains"]:
            own = [cluster for (name, _), cluster in zip(named, assigned) if name == domain["name"]]
            if np.bincount(own, minlength=args.k).tolist() != domain["histogram"]:
                failed.append(f"histogram of {domain['name']}")

        def balance(labels):
            counts = np.bincount(labels, minlength=args.k)
            return f"largest share {counts.max() / len(labels):.3f}"

        print(f"offshoot: inertia {facts['inertia']:.5f}, {balance(assigned)}")
        best = {}
        for kind in (MiniBatchKMeans, KMeans):
            models = [kind(args.k, random_state=seed, n_init=1).fit(ours) for seed in range(5)]
            model = min(models, key=lambda model: model.inertia_)
            best[kind] = model.inertia_ / len(ours)
            print(f"{kind.__name__}, best of 5: inertia {best[kind]:.5f}, {balance(model.labels_)}")
        if facts["inertia"] > args.inertia * best[MiniBatchKMeans]:
            failed.append(f"inertia {facts['inertia']:.5f} against {best[MiniBatchKMeans]:.5f}")
    for line in failed:
        print(f"DIFFERS: {line}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
