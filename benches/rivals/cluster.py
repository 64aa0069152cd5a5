#!/usr/bin/env python3
"""The rival of `offshoot bench cluster`: scikit-learn's MiniBatchKMeans on vectors from a file, timed, as one line of JSON.

VECTORS is what `offshoot cluster --keep-embeddings` leaves: fp32, little-endian, --width numbers each. Timed is `fit`, which ends with the
nearest centroid of every vector, as offshoot's passes do. `--engine lloyd` is `KMeans`, which reads all vectors in every step: what can
be reached. Inertia is the mean squared distance of a vector to its centroid; `largest_times_k` is 1 for clusters of equal size.
"""

import argparse
import json
import time

import numpy as np
import sklearn
import threadpoolctl
from shared import peak_rss_mib, times
from sklearn.cluster import KMeans, MiniBatchKMeans


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors")
    parser.add_argument("--width", type=int, default=384, help="numbers of a vector")
    parser.add_argument("--k", type=int, default=16, help="clusters")
    parser.add_argument("--engine", choices=["minibatch", "lloyd"], default="minibatch")
    parser.add_argument("--batch", type=int, default=1024, help="vectors of a step; scikit-learn's default")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first pass; each pass has the next one")
    parser.add_argument("--passes", type=int, default=3, help="timed passes")
    args = parser.parse_args()
    threadpoolctl.threadpool_limits(args.threads)
    vectors = np.fromfile(args.vectors, dtype="<f4").reshape(-1, args.width)
    seconds, passes = [], []
    for index in range(args.passes):
        seed = args.seed + index
        if args.engine == "minibatch":
            model = MiniBatchKMeans(args.k, batch_size=args.batch, random_state=seed)
        else:
            model = KMeans(args.k, random_state=seed)
        began = time.perf_counter()
        model.fit(vectors)
        seconds.append(time.perf_counter() - began)
        distances = vectors - model.cluster_centers_[model.labels_]
        counts = np.bincount(model.labels_, minlength=args.k)
        shares = counts[counts > 0] / len(vectors)
        passes.append(
            {
                "seconds": round(seconds[-1], 5),
                "inertia": float((distances.astype(np.float64) ** 2).sum(1).mean()),
                "largest_times_k": float(counts.max() / len(vectors) * args.k),
                "entropy": float(-(shares * np.log(shares)).sum()),
                "steps": int(getattr(model, "n_steps_", model.n_iter_)),
            }
        )
    line = {
        "vectors": len(vectors),
        "width": args.width,
        "k": args.k,
        "engine": args.engine,
        "sklearn": sklearn.__version__,
        "threads": args.threads,
        **times(seconds),
        "passes": passes,
        "peak_rss_mib": peak_rss_mib(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
