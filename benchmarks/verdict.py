"""Two pruners on the same test examples, and whether the default holds its own over all tasks and widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot
from statistics import fmean
from typing import Any

from skillprune.evaluation import Predictions, compare, standard_error

PLACE = ("task", "keep_ratio")


def standing(rows: Sequence[Mapping[str, Any]], arm: Sequence[str], pair: str) -> list[dict[str, Any]]:
    """A line per rival; first those that come nearest.

    Seeds of one task and width are averaged. Their error is taken for as small as it could be, that of independent
    seeds, which finds a place worse sooner than their common test examples would justify.

    Args:
        rows: one per task, width, seed and arm.
        arm: keys that tell arms apart.
        pair: key of ``difference`` (the default minus the rival) and its paired ``standard_error``; rows that have none
            are left out.
    """
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Mapping[str, float]]]] = {}
    for row in rows:
        if row.get(pair) is not None:
            places = found.setdefault(tuple(row[key] for key in arm), {})
            places.setdefault(tuple(row[key] for key in PLACE), []).append(row[pair])
    lines = [{**dict(zip(arm, values, strict=True)), **_line(places)} for values, places in found.items()]
    return sorted(lines, key=lambda line: float(line["mean_difference"]))


def paired(first: Predictions, second: Predictions, seed: int) -> dict[str, float]:
    """How much more of the same examples the second answers right, with its interval, McNemar's test and error."""
    found = compare(first, second, metric="accuracy", seed=seed)
    return {
        "difference": found.difference,
        "standard_error": standard_error(first, second, metric="accuracy", seed=seed),
        "ci_low": found.low,
        "ci_high": found.high,
        "p_value": found.p_value,
    }


def _line(places: Mapping[tuple[Any, ...], Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    differences = {place: fmean(each["difference"] for each in pairs) for place, pairs in places.items()}
    errors = {place: hypot(*(each["standard_error"] for each in pairs)) / len(pairs) for place, pairs in places.items()}
    # An error of zero means that both answered alike.
    in_errors = {place: differences[place] / errors[place] if errors[place] else 0.0 for place in places}
    worst = min(in_errors, key=lambda place: in_errors[place])
    return {
        "comparisons": len(places),
        "mean_difference": fmean(differences.values()),
        "worst_at": dict(zip(PLACE, worst, strict=True)),
        "worst_in_standard_errors": in_errors[worst],
        "worse_by_more_than_one": sum(each < -1 for each in in_errors.values()),
    }
