"""Budgets and the ways they walk: against brute force over all widths, real counts, and callables of known answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY_ALL, tiny_bert

from skillprune.families import find_ffns
from skillprune.planning import (
    Budget,
    Costs,
    KeepRatio,
    LatencyTable,
    Macs,
    MaxDrop,
    Parameters,
    Speedup,
    Trial,
    Widths,
    curves_of,
    layers_of,
    model_costs,
    plan_pruning,
    predict_plan,
)
from skillprune.planning.budget import first
from skillprune.planning.layers import Layer
from skillprune.planning.path import Path, sparing_path, uniform_path
from skillprune.scoring import NeuronScores, Provenance
from skillprune.surgery import prune_

SEEN = Provenance(model="m", data="d", examples=10, position="mean", seed=0)
NO_COSTS = Costs(1, 0, 0, 0, 0)


@st.composite
def layers(draw: st.DrawFn) -> list[Layer]:
    """A few layers of one stack, some of them left alone."""
    found = []
    for number in range(draw(st.integers(1, 3))):
        width, step = draw(st.integers(1, 12)), draw(st.integers(1, 6))
        smaller = range((width - 1) // step * step, -1, -step) if draw(st.booleans()) else ()
        found.append(Layer(("encoder", number), (width, *smaller), draw(st.integers(1, 3)), 1))
    return found


def falling(draw: st.DrawFn, layer: Layer) -> np.ndarray:
    """A curve that never rises and ends at 0."""
    steps = draw(st.lists(st.integers(0, 9), min_size=layer.width, max_size=layer.width))
    return np.append(np.cumsum(steps)[::-1], 0).astype(np.float64)


@st.composite
def layers_and_curves(draw: st.DrawFn) -> tuple[list[Layer], dict[tuple[str, int], np.ndarray]]:
    found = draw(layers())
    return found, {layer.site: falling(draw, layer) for layer in found}


def assert_falls(path: Path) -> None:
    """From the whole model down to where nothing more may go, one way only."""
    assert path.widths[0].tolist() == [layer.width for layer in path.layers]
    assert path.widths[-1].tolist() == [layer.widths[-1] for layer in path.layers]
    assert (np.diff(path.widths, axis=0) <= 0).all()
    assert (np.diff(path.widths, axis=0) < 0).any(axis=1).all()
    for layer, column in zip(path.layers, path.widths.T, strict=True):
        assert set(column.tolist()) <= set(layer.widths)


@settings(deadline=None)
@given(layers())
def test_an_even_path_falls_and_empties_no_layer_before_all(found: list[Layer]) -> None:
    path = uniform_path(found)
    assert_falls(path)
    free = np.array([len(layer.widths) > 1 for layer in found])
    assert (path.widths[:-1, free] > 0).all()


@settings(deadline=None)
@given(layers_and_curves())
def test_a_sparing_path_falls_and_visits_every_width(
    case: tuple[list[Layer], dict[tuple[str, int], np.ndarray]],
) -> None:
    found, curves = case
    path = sparing_path(found, curves)
    assert_falls(path)
    assert len(path) == 1 + sum(len(layer.widths) - 1 for layer in found)


@settings(deadline=None, max_examples=60)
@given(layers_and_curves())
def test_no_widths_save_as_much_for_less_where_curves_are_convex(
    case: tuple[list[Layer], dict[tuple[str, int], np.ndarray]],
) -> None:
    found, curves = case
    # Steps of equal width and rising cost: what greedy choice is optimal for.
    convex = {site: np.append(np.cumsum(np.sort(-np.diff(c)))[::-1], 0.0) for site, c in curves.items()}
    even = [Layer(each.site, tuple(range(each.width, -1, -1)), 1, 1) for each in found]
    path = sparing_path(even, convex)

    def cost(widths: tuple[int, ...]) -> float:
        return sum(float(convex[layer.site][width]) for layer, width in zip(even, widths, strict=True))

    everything = [(sum(widths), cost(widths)) for widths in itertools.product(*(layer.widths for layer in even))]
    for widths in path.widths.tolist():
        least = min(price for neurons, price in everything if neurons <= sum(widths))
        assert cost(tuple(widths)) == pytest.approx(least)


def test_a_layer_that_costs_nothing_goes_first_whatever_its_place() -> None:
    found = [Layer(("encoder", number), (4, 2, 0), 1, 1) for number in range(3)]
    curves = {
        ("encoder", 0): np.array([9.0, 5, 3, 1, 0]),
        ("encoder", 1): np.zeros(5),
        ("encoder", 2): np.arange(5.0)[::-1],
    }
    assert sparing_path(found, curves).widths.tolist() == [
        [4, 4, 4], [4, 2, 4], [4, 0, 4], [4, 0, 2], [4, 0, 0], [2, 0, 0], [0, 0, 0]
    ]  # fmt: skip


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 40))
def test_bisection_finds_what_a_scan_would(points: int, start: int) -> None:
    found = [Layer(("encoder", 0), tuple(range(points - 1, -1, -1)), 1, 1)] if points > 1 else []
    path = uniform_path(found) if found else Path((), np.zeros((1, 0), dtype=np.int64))
    tried: list[int] = []

    def fits(point: int) -> bool:
        tried.append(point)
        return point >= start

    assert first(path, fits) == (start if start < points else None)
    assert len(tried) <= 2 + math.log2(points)


def test_curves_are_what_a_criterion_brings_or_shares_of_its_scores() -> None:
    values = {"encoder": (np.array([3.0, 1.0, 4.0]), np.array([0.0, 0.0]))}
    shares = curves_of(NeuronScores("wanda", values, SEEN))
    np.testing.assert_allclose(shares["encoder", 0], [1, 0.5, 0.125, 0])
    np.testing.assert_allclose(shares["encoder", 1], [0, 0, 0])
    cost = {"cost": {"encoder": (np.array([0.5, 2.0, 7.0]), np.array([1.0, 2.0]))}}
    brought = curves_of(NeuronScores("skill", values, SEEN, cost))
    np.testing.assert_allclose(brought["encoder", 0], [7, 2, 0.5, 0])
    np.testing.assert_allclose(brought["encoder", 1], [2, 1, 0])


BUDGETS: dict[str, Callable[[float], Budget]] = {"parameters": Parameters, "macs": Macs}


@pytest.mark.parametrize("family", sorted(TINY_ALL))
@pytest.mark.parametrize("name", BUDGETS)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_budget_that_counts_gives_the_largest_model_within_it(family: str, name: str, absolute: bool) -> None:
    model = TINY_ALL[family](width=48)
    before = getattr(model_costs(model), name)
    limit = int(0.93 * before) if absolute else 0.93
    predicted = predict_plan(model, BUDGETS[name](limit), round_to=8)
    assert predicted.unmet is None
    assert getattr(predicted.after, name) <= 0.93 * before
    path = uniform_path(layers_of(find_ffns(model), round_to=8, keep_layers=()))
    points = [path[point] for point in range(len(path))]
    wider = points[points.index(dict(predicted.width_after)) - 1]
    scores = NeuronScores("w", {s: tuple(np.arange(float(n)) for n in w) for s, w in points[0].items()}, SEEN)
    share = sum(map(sum, wider.values())) / sum(map(sum, points[0].values()))
    plan = plan_pruning(model, scores, KeepRatio(share), round_to=8)
    assert plan.width_after == wider
    assert getattr(model_costs(prune_(model, plan)), name) > 0.93 * before


@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_that_cannot_be_met_says_what_can(name: str) -> None:
    model = tiny_bert(width=32)
    predicted = predict_plan(model, BUDGETS[name](1e-6), round_to=8)
    assert predicted.width_after == {"encoder": (0, 0, 0)}
    least = getattr(predicted.after, name)
    assert predicted.unmet is not None
    assert f"{least:,}" in predicted.unmet
    assert f"{least / getattr(predicted.before, name):.1%}" in predicted.unmet
    assert predicted.unmet in str(predicted)


TABLE = LatencyTable(
    ((1, 32), (8, 128)), (8.0, 150.0), {"encoder": (0.0, 0.5, 1.0)}, {"encoder": ((0.5, 0.7, 1.0), (0.4, 0.65, 1.0))}
)


def test_a_speed_up_is_read_off_the_table_where_it_is_smallest() -> None:
    before: Widths = {"encoder": (32, 32)}
    assert TABLE.speedup(before, before) == 1
    assert TABLE.speedup(before, {"encoder": (16, 16)}) == pytest.approx(1 / 0.7)
    assert TABLE.speedup(before, {"encoder": (0, 32)}) == pytest.approx(1 / 0.75)  # half of what both would save
    assert TABLE.speedup(before, {"encoder": (8, 24)}) == pytest.approx(1 / (1 - 0.5 * 0.4 - 0.5 * 0.15))


def test_the_largest_model_that_is_fast_enough() -> None:
    model = tiny_bert(width=32, layers=2)
    met = predict_plan(model, Speedup(1.4, TABLE), round_to=8)
    assert (met.width_after, met.unmet) == ({"encoder": (16, 16)}, None)
    assert [(each.batch, each.sequence, each.before_ms) for each in met.latency] == [(1, 32, 8.0), (8, 128, 150.0)]
    assert [each.after_ms for each in met.latency] == pytest.approx([0.7 * 8, 0.65 * 150])
    assert "5.60 ms  (1.43 times as fast)" in str(met)
    missed = predict_plan(model, Speedup(3.0, TABLE), round_to=8)
    assert missed.width_after == {"encoder": (0, 0)}
    assert missed.unmet is not None and "3 was asked" in missed.unmet and "2.00 is expected" in missed.unmet


@pytest.mark.parametrize("limit", [0.0, 0.01, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("margin", [0.0, 0.02])
def test_the_smallest_model_whose_drop_and_margin_are_within_the_limit(limit: float, margin: float) -> None:
    path = uniform_path([Layer(("encoder", 0), tuple(range(64, -1, -1)), 1, 1)])
    tried: list[int] = []

    def try_out(widths: Widths) -> Trial:
        (width,) = widths["encoder"]
        tried.append(width)
        return Trial((64 - width) / 100, margin)

    choice = MaxDrop(limit, try_out).stop(path, NO_COSTS)
    allowed = [width for width in range(64) if (64 - width) / 100 + margin <= limit]
    assert path.widths[choice.point, 0] == min(allowed, default=64)
    assert (choice.unmet is None) == bool(allowed)
    assert choice.unmet is None or f"loses 0.0100 on validation, with a standard error of {margin:.4f}" in choice.unmet
    assert len(tried) <= 8
    assert 64 not in tried  # the whole model loses nothing; no need to try
