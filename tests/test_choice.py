"""Which variant is named best, judged on values made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillprune.benchmark import Latency, Measurement, Ratio
from skillprune.export import OnnxArtifact
from skillprune.pipeline.choice import choose, mean_speedups
from skillprune.pipeline.results import Exports, Variant

SHAPES = ((1, 8), (2, 16))
NAMES = ("fp32", "int8-dynamic", "int8-static")

speeds = st.floats(0.25, 8.0)


def exports(*refused: str) -> Exports:
    files = [OnnxArtifact(name, Path("model.onnx"), 10, "torchscript", 17, 0.0, None) for name in NAMES]
    variants = (Variant(file, refused="worse" if file.variant in refused else None) for file in files)
    return Exports(files[0], tuple(variants))


def latency(by_variant: dict[str, tuple[float, float]]) -> Latency:
    rows = [
        Measurement("pruned", name, "onnxruntime", "cpu", "cpu", *shape, 1, (1.0,), Ratio(speed, speed, speed))
        for name, values in by_variant.items()
        for shape, speed in zip(SHAPES, values, strict=True)
    ]
    return Latency(tuple(rows), ())


def constant(*values: float) -> Latency:
    return latency({name: (value, value) for name, value in zip(NAMES, values, strict=True)})


def test_means_are_geometric_and_of_one_subject() -> None:
    found = latency({"fp32": (1.0, 4.0)})
    assert mean_speedups(found) == {"fp32": pytest.approx(2.0)}
    assert mean_speedups(found, "dense") == {}


def test_the_fastest_that_is_not_refused_wins() -> None:
    assert choose(exports(), constant(2.0, 3.0, 4.0)).variant == "int8-static"
    choice = choose(exports("int8-static"), constant(2.0, 3.0, 4.0))
    assert choice.variant == "int8-dynamic"
    assert "3.00x" in choice.why and "int8-static 4.00x" in choice.why


def test_fp32_wins_where_nothing_is_faster() -> None:
    choice = choose(exports(), constant(2.0, 2.0, 1.5))
    assert choice.variant == "fp32"
    assert choice.slower == {"int8-dynamic": (pytest.approx(2.0), pytest.approx(2.0)), "int8-static": (1.5, 2.0)}


def test_what_may_be_as_fast_as_fp32_is_not_best_and_not_refused() -> None:
    rows = [
        Measurement("pruned", name, "onnxruntime", "cpu", "cpu", 1, 8, 1, (1.0,), Ratio(value, 0.9 * value, high))
        for name, value, high in (("fp32", 2.0, 2.1), ("int8-dynamic", 1.95, 2.05), ("int8-static", 1.8, 1.95))
    ]
    choice = choose(exports(), Latency(tuple(rows), ()))
    assert choice.variant == "fp32" and list(choice.slower) == ["int8-static"]


def test_a_shape_that_gains_much_can_outweigh_one_that_loses_little() -> None:
    found = latency({"fp32": (2.0, 2.0), "int8-dynamic": (1.9, 4.0), "int8-static": (4.0, 0.9)})
    assert choose(exports(), found).variant == "int8-dynamic"


def test_a_demand_is_held_at_every_shape_where_some_variant_holds_it() -> None:
    found = latency({"fp32": (2.0, 2.0), "int8-dynamic": (1.4, 4.0), "int8-static": (1.9, 3.0)})
    best = {least: choose(exports(), found, least=least).variant for least in (None, 1.4, 1.8, 1.95, 2.5)}
    assert best == {None: "int8-static", 1.4: "int8-static", 1.8: "int8-static", 1.95: "fp32", 2.5: "int8-static"}


@given(st.lists(st.tuples(speeds, speeds), min_size=3, max_size=3), st.sets(st.sampled_from(NAMES[1:])))
def test_no_fit_variant_is_faster_than_the_best(values: list[tuple[float, float]], refused: set[str]) -> None:
    found = latency(dict(zip(NAMES, values, strict=True)))
    means = {name: (first * second) ** 0.5 for name, (first, second) in zip(NAMES, values, strict=True)}
    best = choose(exports(*refused), found).variant
    assert best not in refused
    assert all(means[name] <= means[best] * (1 + 1e-9) for name in NAMES if name not in refused)
