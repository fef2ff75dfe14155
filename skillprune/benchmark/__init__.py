"""Honest latency of models in the runtimes that serve them: interleaved rounds, paired intervals, a control, the host.

Exporting the files is left to `export`, what to demand of them to the recipe. Names resolve on use: a worker imports
this package, and must hold no library but the one it times.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skillprune.benchmark.host import environment
    from skillprune.benchmark.measure import Feeds, measure_latency
    from skillprune.benchmark.profile import LayerTime, profile_layers
    from skillprune.benchmark.runtimes import open_here
    from skillprune.benchmark.sessions import check_provider, open_session
    from skillprune.benchmark.starting import check_start
    from skillprune.benchmark.statistics import paired_speedup, quotient, signed_rank_p
    from skillprune.benchmark.values import Control, Latency, Measurement, Phase, Point, Ratio, Subject
    from skillprune.benchmark.writers import open_writer

__all__ = [
    "Control",
    "Feeds",
    "Latency",
    "LayerTime",
    "Measurement",
    "Phase",
    "Point",
    "Ratio",
    "Subject",
    "check_provider",
    "check_start",
    "environment",
    "measure_latency",
    "open_here",
    "open_session",
    "open_writer",
    "paired_speedup",
    "profile_layers",
    "quotient",
    "signed_rank_p",
]

_HOME = {
    **dict.fromkeys(("Control", "Latency", "Measurement", "Phase", "Point", "Ratio", "Subject"), "values"),
    **dict.fromkeys(("Feeds", "measure_latency"), "measure"),
    **dict.fromkeys(("LayerTime", "profile_layers"), "profile"),
    **dict.fromkeys(("check_provider", "open_session"), "sessions"),
    **dict.fromkeys(("paired_speedup", "quotient", "signed_rank_p"), "statistics"),
    "check_start": "starting",
    "environment": "host",
    "open_here": "runtimes",
    "open_writer": "writers",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"skillprune.benchmark.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
