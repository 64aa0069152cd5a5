"""What the rivals of `offshoot bench` share: made-up numbers, the clock's summary and the memory of this process."""

import resource
import statistics
import sys

import numpy


def noise(first, count):
    """Made-up numbers `first` to `first + count`, in [-2, 2): the formula of crates/offshoot/src/command/bench/mod.rs."""
    values = numpy.empty(count, numpy.float32)
    block = 1 << 18  # small, so that making them adds nothing to the peak of memory
    for start in range(0, count, block):
        part = values[start : start + block]
        index = numpy.arange(first + start, first + start + len(part), dtype=numpy.uint64)
        h = index.astype(numpy.uint32)
        h = (h ^ (h >> 16)) * numpy.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * numpy.uint32(0xC2B2AE35)
        h ^= h >> 16
        part[:] = (h >> 8).astype(numpy.float32) / numpy.float32(1 << 22) - numpy.float32(2)
    return values


def times(seconds):
    """Median, the upper one of two, and minimum, as keys of the line."""
    return {"median_s": round(statistics.median_high(seconds), 5), "min_s": round(min(seconds), 5)}


def peak_rss_mib():
    """Most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, KiB elsewhere
