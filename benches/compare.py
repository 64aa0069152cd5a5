"""Runs `offshoot bench` and its rivals in turns on this machine and prints a Markdown table; called by compare.sh.

A round runs offshoot and then each rival once, every run in a process of its own and with the same number of threads. Times of a
row are medians over the rounds, and its ratios are offshoot's over the rival's: below 1, offshoot is faster, or smaller.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
RIVALS = ROOT / "benches" / "rivals"

# Modules that each engine needs, under the names of their packages.
NEEDS = {
    "torch": {"torch": "torch"},
    "transformers": {"torch": "torch", "transformers": "transformers"},
    "onnxruntime": {"torch": "torch", "onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    "sklearn": {"sklearn": "scikit-learn", "threadpoolctl": "threadpoolctl"},
    "sklearn-normalised": {"sklearn": "scikit-learn", "threadpoolctl": "threadpoolctl"},
}
# Largest difference of checksums: of a sum over features, of a mean similarity.
TOLERANCE = {"features": 1e-3, "knn": 1e-5}

COLUMNS = (
    "case",
    "threads",
    "rival",
    "offshoot s",
    "rival s",
    "ratio",
    "ratio of each round: min, quartiles, max",
    "offshoot GFLOP/s",
    "rival GFLOP/s",
    "share of GEMM floor",
    "offshoot MiB",
    "rival MiB",
    "ratio of MiB",
)


def fail(message, hint=None):
    tell(f"error: {message}")
    if hint:
        tell(f"hint: {hint}")
    sys.exit(1)


def tell(line):
    print(line, file=sys.stderr, flush=True)


# The machine.


def cpu():
    """The CPU's name, as the system has it."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0]
    if sys.platform == "darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return asked.stdout.strip()
    return platform.processor() or platform.machine()


def vectors():
    """The widest vector instructions that the CPU says it has, where the system tells."""
    info = pathlib.Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.is_file() else []
    return next((f" with {name}" for name in ("avx512f", "avx2") if name in flags), "")


def load():
    """Processes that wanted a core in the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def commit():
    """The commit of the sources, and whether they differ from it."""
    try:
        asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def header(args, engines):
    """One line with all that is needed to do the same again."""
    packages = sorted({package for engine in engines for package in NEEDS[engine].values()})
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    version = subprocess.run([str(args.binary), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    parts = [
        f"{cpu()}{vectors()}, {os.cpu_count()} logical cores",
        f"{platform.system()} {platform.release()} {platform.machine()}",
        f"{version} (sources at {commit()})",
        f"Python {platform.python_version()}",
        *versions,
        f"`compare.sh {' '.join(sys.argv[1:])}`".replace(" `", "`"),
        f"{args.pairs} rounds",
        *([f"load {load():.1f} at the start"] if load() is not None else []),
    ]
    return "; ".join(parts)


# Runs.


class Job:
    """One setting of one measurement: offshoot's command, and that of every rival."""

    def __init__(self, case, threads, offshoot, rivals):
        self.case = case
        self.threads = threads
        self.commands = {"offshoot": offshoot, **rivals}


def run(command):
    """The JSON line that a command prints."""
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stderr.strip()}")
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        fail(f"`{' '.join(command)}` printed no line of JSON:\n{done.stdout.strip()}")


def measure(job, pairs, log, tolerance):
    """All lines of each program, by its name, in the order of the rounds."""
    lines = {name: [] for name in job.commands}
    for round_ in range(1, pairs + 1):
        for name, command in job.commands.items():
            line = run(command)
            lines[name].append(line)
            tell(
                f"{job.case}, {job.threads} threads, round {round_} of {pairs}: {name} {line['median_s']} s, {line['peak_rss_mib']} MiB"
            )
            if log:
                log.write(json.dumps({"program": name, "round": round_, **line}) + "\n")
                log.flush()
        compare_checksums(job, {name: own[-1] for name, own in lines.items()}, tolerance)
    return lines


def compare_checksums(job, lines, tolerance):
    """Fails if two programs did not compute the same; steps have none, since they draw their own numbers."""
    ours = lines["offshoot"].get("checksum")
    for name, line in lines.items():
        # Written so that NaN fails, too.
        if ours is not None and not abs(line["checksum"] - ours) <= tolerance:
            fail(f"{job.case}: {name} computed something else: checksum {line['checksum']}, offshoot's is {ours}")


# The table.


def row(job, name, lines):
    ours, theirs = lines["offshoot"], lines[name]

    def seconds(lines):
        return statistics.median(line["median_s"] for line in lines)

    def peak(lines):
        peaks = [line["peak_rss_mib"] for line in lines]
        return None if None in peaks else max(peaks)

    ratios = [own["median_s"] / other["median_s"] for own, other in zip(ours, theirs)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    flops = ours[0]["flops"] / 1e9
    shares = [line["gemm_floor_s"] / line["median_s"] for line in ours if "gemm_floor_s" in line]
    own, other = peak(ours), peak(theirs)
    return (
        job.case,
        job.threads,
        name,
        f"{seconds(ours):.3f}",
        f"{seconds(theirs):.3f}",
        f"{seconds(ours) / seconds(theirs):.3f}",
        f"{min(ratios):.3f}, {low:.3f} {middle:.3f} {high:.3f}, {max(ratios):.3f}",
        f"{flops / seconds(ours):.1f}",
        f"{flops / seconds(theirs):.1f}",
        f"{statistics.median(shares):.2f}" if shares else "-",
        own or "-",
        other or "-",
        f"{own / other:.2f}" if own and other else "-",
    )


def print_row(cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


# What can be compared.


def options(**values):
    return [part for name, value in values.items() for part in (f"--{name}", value)]


def step_jobs(args, _scratch):
    for case in args.cases:
        for threads in args.threads:
            own = options(case=case, threads=threads, steps=args.steps, warmup=args.warmup)
            rivals = {"torch": [sys.executable, RIVALS / "poa_step.py", *own]}
            yield Job(case, threads, [args.binary, "bench", "step", *own], rivals)


def lm_jobs(args, _scratch):
    for case in args.cases:
        for arch in args.archs:
            for threads in args.threads:
                own = options(case=case, arch=arch, threads=threads, steps=args.steps, warmup=args.warmup)
                rivals = {"transformers": [sys.executable, RIVALS / "lm_step.py", *own]}
                yield Job(f"{case} {arch}", threads, [args.binary, "bench", "lm", *own], rivals)


def features_jobs(args, scratch):
    for case in args.cases:
        images = args.images or (256 if case == "vit-s16" else 10_000)
        if pathlib.Path(case).is_dir():
            child = case
        else:
            child = scratch / case
            tell(f"{case}: writing a fresh model")
            run([args.binary, "bench", "features", *options(case=case, save=child, images=1, warmup=0)])
        onnx = scratch / f"{pathlib.Path(case).name}.onnx"
        if "onnxruntime" in args.engines:
            tell(f"{case}: exporting it to ONNX")
            made = [sys.executable, RIVALS / "features.py", child, *options(engine="export", onnx=onnx)]
            done = subprocess.run([str(part) for part in made], capture_output=True, text=True)
            if done.returncode != 0:
                fail(f"PyTorch did not export {child}:\n{done.stderr.strip()}")
        for threads in args.threads:
            own = [child, *options(images=images, batch=args.batch, threads=threads, passes=args.passes, warmup=args.warmup)]
            rivals = {
                engine: [sys.executable, RIVALS / "features.py", *own, *options(engine=engine)]
                + (options(onnx=onnx) if engine == "onnxruntime" else [])
                for engine in args.engines
            }
            yield Job(f"{case}, {images} images", threads, [args.binary, "bench", "features", *own], rivals)


def knn_jobs(args, _scratch):
    sizes = {name: getattr(args, name) for name in ("references", "queries", "dim", "k", "passes", "warmup")}
    for threads in args.threads:
        own = options(**sizes, threads=threads)
        rivals = {engine: [sys.executable, RIVALS / "knn.py", *own, *options(engine=engine)] for engine in args.engines}
        case = f"{args.queries} queries of {args.references} x {args.dim}, k {args.k}"
        yield Job(case, threads, [args.binary, "bench", "knn", *own], rivals)


def count(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def arguments():
    parser = argparse.ArgumentParser(
        prog="compare.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)

    def kind(name, jobs, help):
        own = kinds.add_parser(name, help=help, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        own.set_defaults(jobs=jobs)
        own.add_argument("--threads", type=count, nargs="+", default=[1, 2], help="CPU threads, one row each")
        own.add_argument("--pairs", type=count, default=10, help="rounds of one run of each program")
        own.add_argument("--log", type=pathlib.Path, metavar="JSONL", help="file to which the line of every run is added")
        own.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/offshoot", help="offshoot")
        return own

    step = kind("step", step_jobs, "whole training steps, against PyTorch")
    sizes = ["cpu-s", "cpu-m", "swin-s", "resnet-s", "vit-l"]
    step.add_argument("--cases", nargs="+", choices=sizes, default=sizes[:4], help="sizes")
    step.add_argument("--steps", type=count, default=5, help="timed steps of one run")
    step.add_argument("--warmup", type=int, default=2, help="steps before the first timed one")
    step.set_defaults(engines=["torch"])

    lm = kind("lm", lm_jobs, "whole training steps of decoders, against transformers in PyTorch")
    lm.add_argument("--cases", nargs="+", choices=["tiny", "cpu-s", "slm-126m"], default=["cpu-s"], help="sizes")
    lm.add_argument("--archs", nargs="+", choices=["gpt2", "llama"], default=["gpt2", "llama"], help="kinds of decoders")
    lm.add_argument("--steps", type=count, default=5, help="timed steps of one run")
    lm.add_argument("--warmup", type=int, default=2, help="steps before the first timed one")
    lm.set_defaults(engines=["transformers"])

    features = kind("features", features_jobs, "features of images, against PyTorch and ONNX Runtime")
    features.add_argument(
        "--cases",
        nargs="+",
        default=["cpu-m", "vit-s16"],
        help="cpu-s, cpu-m, vit-s16 with fresh weights, or folders of exported children",
    )
    features.add_argument("--images", type=count, help="images of one pass; 10000, and 256 for vit-s16, if not given")
    features.add_argument("--batch", type=count, default=64, help="images that run at once")
    features.add_argument("--passes", type=count, default=1, help="timed passes of one run")
    features.add_argument("--warmup", type=int, default=2, help="batches before the first timed pass")
    engines = ["torch", "onnxruntime"]
    features.add_argument("--engines", nargs="+", choices=engines, default=engines, help="rivals")

    knn = kind("knn", knn_jobs, "nearest neighbours, against PyTorch and scikit-learn")
    knn.add_argument("--references", type=count, default=50_000, help="features that are searched")
    knn.add_argument("--queries", type=count, default=10_000, help="features whose neighbours are wanted")
    knn.add_argument("--dim", type=count, default=384, help="channels of each")
    knn.add_argument("--k", type=count, default=20, help="neighbours of each query")
    knn.add_argument("--passes", type=count, default=3, help="timed searches of one run")
    knn.add_argument("--warmup", type=int, default=1, help="searches before the first timed one")
    engines = ["torch", "sklearn", "sklearn-normalised"]
    knn.add_argument("--engines", nargs="+", choices=engines, default=engines, help="rivals")
    return parser.parse_args()


def check(args):
    """Fails before the first run if something is missing."""
    if not os.access(args.binary, os.X_OK) or args.binary.is_dir():
        fail(f"there is no binary at {args.binary}", "cargo build --release, or name one by --binary")
    modules = {"numpy": "numpy", "safetensors": "safetensors"} if args.kind not in ("step", "lm") else {}
    for engine in args.engines:
        modules |= NEEDS[engine]
    missing = sorted(package for module, package in modules.items() if importlib.util.find_spec(module) is None)
    if missing:
        fail(
            f"{sys.executable} has no {', '.join(missing)}",
            f"{sys.executable} -m pip install -r benches/requirements.txt",
        )


def main():
    args = arguments()
    check(args)
    try:
        log = args.log.open("a") if args.log else None
    except OSError as error:
        fail(f"the log cannot be written: {error}")
    if (load() or 0) > 0.5:
        tell(f"warning: the machine is busy (load {load():.1f}): times will be too long, and not equally so for all programs")
    print(header(args, args.engines) + "\n", flush=True)
    print_row(COLUMNS)
    print_row(["---"] * len(COLUMNS))
    with tempfile.TemporaryDirectory() as scratch:
        for job in args.jobs(args, pathlib.Path(scratch)):
            lines = measure(job, args.pairs, log, TOLERANCE.get(args.kind))
            for name in job.commands:
                if name != "offshoot":
                    print_row(row(job, name, lines))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("interrupted; rows printed above are whole")
