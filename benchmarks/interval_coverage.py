"""How often the 95 % interval of a speed-up holds the truth, on simulated rounds.

Each round's log ratio is the truth, plus what its opening fixes (placement), plus noise that neighbouring rounds share
in part. Noise has a standard deviation of 3 %; placement and the correlation vary. One opening of 60 rounds is compared
with as many rounds over several openings, and with what a shape gets that is measured again.
"""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from provenance import write_result

from skillprune.benchmark import paired_speedup

SIZES = ((1, 60), (3, 20), (6, 10), (12, 10), (24, 10))
PLACEMENTS = (0.0, 0.01, 0.03)
CORRELATIONS = (0.0, 0.3, 0.5)
NOISE = 0.03


def main() -> None:
    """Simulates every combination, prints and writes a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    arguments = parser.parse_args()
    rows = [
        coverage(*size, placement, correlation, arguments.simulations)
        for size, placement, correlation in product(SIZES, PLACEMENTS, CORRELATIONS)
    ]
    write_result("interval-coverage", seeds=[0], result={"simulations": arguments.simulations, "rows": rows})


def coverage(openings: int, rounds: int, placement: float, correlation: float, simulations: int) -> dict[str, Any]:
    """Share of intervals that hold the truth, and their mean width."""
    rng = np.random.default_rng(0)
    held, widths = 0, 0.0
    for number in range(simulations):
        logs = placement * rng.normal(size=(openings, 1)) + NOISE * noise(openings, rounds, correlation, rng)
        found = paired_speedup(np.exp(logs), np.ones_like(logs), seed=number)
        held += found.low <= 1.0 <= found.high
        widths += found.high - found.low
    setting = {"openings": openings, "rounds_each": rounds, "placement": placement, "correlation": correlation}
    row = {**setting, "coverage": held / simulations, "width": round(widths / simulations, 4)}
    print(row, flush=True)
    return row


def noise(openings: int, rounds: int, correlation: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """First-order autoregressive noise of unit variance in every opening, ``(openings, rounds)``."""
    fresh = rng.normal(size=(openings, rounds))
    values = fresh.copy()
    for row in range(1, rounds):
        values[:, row] = correlation * values[:, row - 1] + np.sqrt(1 - correlation**2) * fresh[:, row]
    return values


if __name__ == "__main__":
    main()
