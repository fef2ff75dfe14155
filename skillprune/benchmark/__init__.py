"""Honest latency of ONNX files: interleaved rounds, paired intervals, an identical-pair control, and the host's name.

Exporting the files is left to `export`, what to demand of them to the recipe.
"""

from skillprune.benchmark.host import environment
from skillprune.benchmark.measure import Feeds, measure_latency
from skillprune.benchmark.sessions import check_provider, open_session
from skillprune.benchmark.statistics import paired_speedup, quotient
from skillprune.benchmark.values import Control, Latency, Measurement, Ratio, Subject
from skillprune.benchmark.writers import open_writer

__all__ = [
    "Control",
    "Feeds",
    "Latency",
    "Measurement",
    "Ratio",
    "Subject",
    "check_provider",
    "environment",
    "measure_latency",
    "open_session",
    "open_writer",
    "paired_speedup",
    "quotient",
]
