#!/usr/bin/env python3
"""The rival of `offshoot bench knn`: nearest neighbours by cosine among made-up features, timed, as one line of JSON.

`--engine torch` multiplies normalised features in blocks of queries and takes the largest of each row. `--engine sklearn` is
scikit-learn's brute-force search by cosine. `--engine sklearn-normalised` is its search by Euclidean distance among normalised
features, which finds the same neighbours by a faster path. All are exact. Normalising is timed, as it is in offshoot.
"""

import argparse
import json
import time

from shared import noise, peak_rss_mib, times


def with_torch(args):
    """A search, giving all similarities, and versions."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(args.threads)

    def search(references, queries):
        with torch.inference_mode():
            columns = F.normalize(torch.from_numpy(references)).T
            found = []
            for block in torch.from_numpy(queries).split(args.block):
                found.append((F.normalize(block) @ columns).topk(args.k))
            indices = torch.cat([part.indices for part in found])
            assert indices.shape == (args.queries, args.k)
            return torch.cat([part.values for part in found]).double().numpy()

    return search, {"torch": torch.__version__}


def with_sklearn(args):
    """As `with_torch`."""
    import sklearn
    import threadpoolctl
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import normalize

    threadpoolctl.threadpool_limits(args.threads)
    fast = args.engine == "sklearn-normalised"
    kind = {"algorithm": "brute", "metric": "euclidean" if fast else "cosine", "n_jobs": args.threads}

    def search(references, queries):
        if fast:
            references, queries = normalize(references), normalize(queries)
        found = NearestNeighbors(n_neighbors=args.k, **kind).fit(references)
        distances, _ = found.kneighbors(queries)
        return 1 - distances**2 / 2 if fast else 1 - distances

    return search, {"sklearn": sklearn.__version__}


def time_searches(args):
    search, versions = (with_torch if args.engine == "torch" else with_sklearn)(args)
    references = noise(0, args.references * args.dim).reshape(-1, args.dim)
    queries = noise(references.size, args.queries * args.dim).reshape(-1, args.dim)
    seconds = []
    for done in range(args.warmup + args.passes):
        began = time.perf_counter()
        similarities = search(references, queries)
        if done >= args.warmup:
            seconds.append(time.perf_counter() - began)
    line = times(seconds)
    return {
        **{name: getattr(args, name) for name in ("references", "queries", "dim", "k")},
        "engine": args.engine,
        **versions,
        "device": "cpu",
        "threads": args.threads,
        "dtype": "fp32",
        "passes": len(seconds),
        "queries_per_s": round(args.queries / line["median_s"], 2),
        **line,
        "peak_rss_mib": peak_rss_mib(),
        "checksum": float(similarities.mean()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["torch", "sklearn", "sklearn-normalised"], default="torch")
    parser.add_argument("--references", type=int, default=50_000, help="features that are searched")
    parser.add_argument("--queries", type=int, default=10_000, help="features whose neighbours are wanted")
    parser.add_argument("--dim", type=int, default=384, help="channels of each")
    parser.add_argument("--k", type=int, default=20, help="neighbours of each query")
    parser.add_argument("--block", type=int, default=1024, help="queries that PyTorch compares at once")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--passes", type=int, default=3, help="timed searches")
    parser.add_argument("--warmup", type=int, default=1, help="searches before the first timed one")
    args = parser.parse_args()
    for option in ("references", "queries", "dim", "k", "block", "threads", "passes"):
        if getattr(args, option) < 1:
            parser.error(f"--{option} must be at least 1")
    if args.k > args.references:
        parser.error("--k is more than the references")
    print(json.dumps(time_searches(args)))


if __name__ == "__main__":
    main()
