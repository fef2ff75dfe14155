"""Draws accuracy against measured speed-up: skillprune and the other pruners, without training, as an SVG for the docs.

Accuracies come from ``results/peers-minilm.json``, times from ``results/peers-minilm-latency.json``; nothing is run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import matplotlib
from provenance import HERE, RESULTS

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

SHAPE = (8, 128)
PICTURE = HERE.parent / "docs" / "pareto.svg"
STYLES: dict[str, dict[str, Any]] = {
    "skillprune": {"color": "#c1272d", "marker": "o", "linewidth": 2.4, "zorder": 3},
    "torch_pruning": {"color": "#0072b2", "marker": "s"},
    "textpruner": {"color": "#009e73", "marker": "^"},
    "onnxsim": {"color": "#8a6d3b", "marker": "D"},
}
"""By tool; told apart by shape as well as by colour."""
NAMES = {"torch_pruning": "torch-pruning", "textpruner": "TextPruner"}
Point = tuple[float, float]


def main() -> None:
    """One panel per task."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows, times = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["result"]["rows"]
        for name in ("peers-minilm", "peers-minilm-latency")
    )
    speedups = {tuple(each["widths"]): each["speedup"] for each in times if (each["batch"], each["sequence"]) == SHAPE}
    matplotlib.rcParams["svg.hashsalt"] = "skillprune"  # the same picture from the same numbers, byte by byte
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = pyplot.subplots(1, len(tasks), figsize=(5 * len(tasks), 4.2), squeeze=False)
    for task, panel in zip(tasks, panels[0], strict=True):
        draw(panel, task, [row for row in rows if row["task"] == task], speedups)
    panels[0][0].set_ylabel("test accuracy")
    panels[0][0].legend(loc="lower left", frameon=False)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})
    print(f"wrote {PICTURE.relative_to(HERE.parent)}")


def draw(panel: Axes, task: str, rows: Sequence[Mapping[str, Any]], speedups: Mapping[tuple[int, ...], float]) -> None:
    """A line per arm through its widths, in the colour of its tool, and the dense model as a dashed level."""
    dense = fmean(row["test_accuracy"] for row in rows if row["arm"] == "dense")
    panel.axhline(dense, color="0.5", linestyle="--", linewidth=1)
    panel.annotate("dense", (1, dense), xytext=(0, 3), textcoords="offset points", color="0.4")
    labelled: set[str] = set()
    for (peer, _), points in lines(rows, speedups).items():
        label = None if peer in labelled else NAMES.get(peer, peer)
        labelled.add(peer)
        style: dict[str, Any] = {"linewidth": 1, "markersize": 5, "alpha": 0.8, **STYLES[peer]}
        panel.plot(*zip(*points, strict=True), label=label, **style)
    panel.set_title(f"MiniLM, {task}", fontsize=11)
    panel.set_xlabel(f"speed-up in ONNX Runtime, {SHAPE[0]} x {SHAPE[1]} tokens, two CPU threads")
    panel.spines[["top", "right"]].set_visible(False)


def lines(
    rows: Sequence[Mapping[str, Any]], speedups: Mapping[tuple[int, ...], float]
) -> dict[tuple[str, str], list[Point]]:
    """Mean speed-up and accuracy over seeds at every width, by tool and arm; skillprune first, so in the legend too.

    Widths that were not timed are left out.
    """
    found: dict[tuple[str, str], dict[float, list[Point]]] = {}
    for row in rows:
        if tuple(row.get("widths", ())) in speedups:
            point = (speedups[tuple(row["widths"])], row["test_accuracy"])
            found.setdefault((row["peer"], row["arm"]), {}).setdefault(row["keep_ratio"], []).append(point)
    return {
        arm: sorted((fmean(x for x, _ in points), fmean(y for _, y in points)) for points in widths.values())
        for arm, widths in sorted(found.items(), key=lambda item: list(STYLES).index(item[0][0]))
    }


if __name__ == "__main__":
    main()
