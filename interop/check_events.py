#!/usr/bin/env python3
"""Reads a run's event files with TensorBoard's own reader and compares them with metrics.jsonl and timing.jsonl.

Every value of the two logs must be there under the same tag, at the same step, as the 32-bit float nearest to it, and
nothing else may be there. A run that was resumed has one file for each start; TensorBoard joins them. Exits with 1 if
anything differs.
"""

import argparse
import json
import math
import pathlib
import sys

import numpy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def logged(run):
    """{(tag, step): value} of both logs."""
    values = {}
    for name in ("metrics.jsonl", "timing.jsonl"):
        for line in (run / name).read_text().splitlines():
            record = json.loads(line)
            step = record.pop("step")
            for tag, value in record.items():
                values[tag, step] = numpy.float32(WORDS.get(value, value))
    return values


def events(run):
    """{(tag, step): value} as TensorBoard sees the folder."""
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0})
    accumulator.Reload()
    kinds = {kind: tags for kind, tags in accumulator.Tags().items() if tags and kind != "scalars"}
    if kinds:
        sys.exit(f"error: the event files hold more than scalars: {kinds}")
    values = {}
    for tag in accumulator.Tags()["scalars"]:
        for event in accumulator.Scalars(tag):
            if (tag, event.step) in values:
                sys.exit(f"error: {run}: {tag} at step {event.step} is there twice")
            values[tag, event.step] = numpy.float32(event.value)
    return values


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", type=pathlib.Path, help="run folder")
    for run in parser.parse_args().run:
        ours, theirs = logged(run), events(run)
        if not ours:
            sys.exit(f"error: {run}: nothing is logged")
        if ours.keys() != theirs.keys():
            sys.exit(f"error: {run}: only one side has {sorted(ours.keys() ^ theirs.keys())[:5]}")
        wrong = [key for key, value in ours.items() if value.tobytes() != theirs[key].tobytes()]
        if wrong:
            sys.exit(f"error: {run}: {wrong[0]} is {theirs[wrong[0]]} in the event file, {ours[wrong[0]]} in the log")
        tags, steps = {tag for tag, _ in ours}, {step for _, step in ours}
        print(f"{run}: {len(ours)} values of {len(tags)} tags at {len(steps)} steps ({min(steps)} to {max(steps)}) are equal")


if __name__ == "__main__":
    main()
