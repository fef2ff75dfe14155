"""`NeuronScores` as a value: ranking, top, compare, and the file it travels in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import ALL, THREE, by_site, data_of, details_by_site, score
from safetensors.numpy import save_file
from scipy.stats import spearmanr
from tiny import tiny_bert

from skillprune.errors import DataError, PlanMismatch
from skillprune.scoring import NeuronScores, Provenance, load_scores, ranking, save_scores

SEEN = Provenance(model="m" * 64, data="d" * 64, examples=2048, position="cls", seed=5)
tied = st.lists(st.integers(-3, 3), min_size=2, max_size=30)


def scores(
    criterion: str = "wanda", seed: int = 0, widths: tuple[int, ...] = (8, 5, 7), seen: Provenance = SEEN
) -> NeuronScores:
    rng = np.random.default_rng(seed)
    return NeuronScores(criterion, {"encoder": tuple(rng.normal(size=width) for width in widths)}, seen)


def average_ranks(values: list[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]


@settings(deadline=None)
@given(tied)
def test_ranking_is_best_first_and_ties_go_to_the_lower_index(values: list[int]) -> None:
    expected = sorted(range(len(values)), key=lambda neuron: (-values[neuron], neuron))
    assert ranking(np.array(values, dtype=np.float64)).tolist() == expected


@settings(deadline=None)
@given(tied, st.floats(0, 1))
def test_top_takes_the_truncated_share_of_every_layer(values: list[int], share: float) -> None:
    vectors = (np.array(values, dtype=np.float64), np.arange(50.0))
    taken = NeuronScores("predictivity", {"encoder": vectors}, SEEN).top(share)["encoder"]
    best = sorted(range(len(values)), key=lambda neuron: (-values[neuron], neuron))
    assert taken[0].tolist() == sorted(best[: int(share * len(values))])
    assert taken[1].tolist() == list(range(50 - int(share * 50), 50))


def test_two_percent_of_3072_are_61() -> None:
    (taken,) = scores(widths=(3072,)).top(0.02)["encoder"]
    assert len(taken) == 61


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=4, max_size=30))
def test_compare_is_the_rank_correlation_of_the_vectors(pairs: list[tuple[int, int]]) -> None:
    mine, theirs = ([float(value) for value in column] for column in zip(*pairs, strict=True))
    mine, theirs = [*mine, 9.0], [*theirs, -9.0]  # neither is constant
    (found,) = NeuronScores("wanda", {"encoder": (np.array(mine),)}, SEEN).compare(
        NeuronScores("magnitude", {"encoder": (np.array(theirs),)}, SEEN)
    )["encoder"]
    assert found == pytest.approx(spearmanr(mine, theirs).statistic, abs=1e-12)
    ranks = np.array([average_ranks(mine), average_ranks(theirs)])
    if len(set(mine)) > 1 and len(set(theirs)) > 1:
        left, right = ranks - ranks.mean(axis=1, keepdims=True)
        assert found == pytest.approx((left @ right) / math.sqrt((left @ left) * (right @ right)), abs=1e-9)


def test_compare_goes_layer_by_layer_and_refuses_other_widths() -> None:
    first = scores()
    turned = NeuronScores("magnitude", {"encoder": tuple(-vector for vector in first.values["encoder"])}, SEEN)
    assert first.compare(turned)["encoder"] == pytest.approx((-1.0, -1.0, -1.0))
    assert first.compare(first)["encoder"] == pytest.approx((1.0, 1.0, 1.0))
    with pytest.raises(PlanMismatch, match=r"\(8, 5, 7\).*\(8, 5\)"):
        first.compare(scores(widths=(8, 5)))
    with pytest.raises(PlanMismatch):
        first.compare(NeuronScores("wanda", {"decoder": first.values["encoder"]}, SEEN))


@pytest.mark.parametrize("method", ["compare", "refuse_others"])
def test_scores_of_another_model_or_task_are_refused(method: str) -> None:
    """Of one model on two tasks scores can be compared, but not used for one another."""
    first = scores()
    another_model = scores("magnitude", seen=replace(SEEN, model="n" * 64))
    another_task = scores("magnitude", seen=replace(SEEN, data="e" * 64))
    alike = scores("magnitude", seen=replace(SEEN, examples=5, position="max", seed=6))
    with pytest.raises(DataError, match="wanda scores are of another model .*mmmmmmmmmmmm, not nnnnnnnnnnnn"):
        getattr(first, method)(another_model)
    getattr(first, method)(alike)
    if method == "compare":
        assert len(first.compare(another_task)["encoder"]) == 3
        return
    for other in (another_task, another_task.provenance):
        with pytest.raises(DataError, match="another task or sample .*dddddddddddd, not eeeeeeeeeeee"):
            first.refuse_others(other)
    first.refuse_others(SEEN)


def test_where_all_neurons_are_alike_there_is_no_correlation() -> None:
    flat = NeuronScores("random", {"encoder": (np.ones(8), np.arange(5.0), np.zeros(7))}, SEEN)
    first = scores()
    for found in (flat.compare(first)["encoder"], first.compare(flat)["encoder"]):
        assert [math.isnan(value) for value in found] == [True, False, True]


def test_best_per_layer_and_the_printed_summary() -> None:
    values = (np.array([1.0, 5.0, 3.0]), np.array([-2.0, -4.0]))
    found = NeuronScores("wanda", {"encoder": values}, SEEN)
    assert found.best_per_layer() == {"encoder": (5.0, -2.0)}
    assert found.widths == {"encoder": (3, 2)}
    head, first, second = str(found).splitlines()
    assert "wanda of 2048 examples (seed 5)" in head
    assert "encoder  0       3 neurons  lowest 1  median 3  highest 5" in first
    assert "encoder  1       2 neurons  lowest -4  median -3  highest -2" in second


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused_by_name(broken: float) -> None:
    with pytest.raises(DataError, match="wanda: .*decoder layer 1 "):
        NeuronScores("wanda", {"encoder": (np.ones(2),), "decoder": (np.ones(2), np.array([1.0, broken]))}, SEEN)


def test_a_file_gives_back_every_criterion_stack_and_layer_in_order(tmp_path: Path) -> None:
    """Thirteen layers of different widths, so that layer 10 must not come before layer 2."""
    rng = np.random.default_rng(0)
    names = ("wanda", "magnitude", "random", "predictivity")
    saved = tuple(
        NeuronScores(
            name,
            {
                "encoder": tuple(rng.normal(size=3 + layer) for layer in range(13)),
                "decoder": tuple(rng.normal(size=20 - layer)[::-1] for layer in range(11)),
            },
            Provenance(f"model of {name}", "data", 5 + number, "max", number),
        )
        for number, name in enumerate(names)
    )
    save_scores(saved, tmp_path / "scores.safetensors")
    loaded = load_scores(tmp_path / "scores.safetensors")
    assert {score.criterion for score in loaded} == set(names)
    by_name = {score.criterion: score for score in loaded}
    for each in saved:
        found = by_name[each.criterion]
        assert found.provenance == each.provenance
        assert found.widths == each.widths
        for stack, layers in each.values.items():
            assert all(np.array_equal(mine, theirs) for mine, theirs in zip(layers, found.values[stack], strict=True))
            assert all(vector.dtype == np.float64 for vector in found.values[stack])


def test_details_come_back_with_their_names_shapes_and_dtypes(tmp_path: Path) -> None:
    """Also those of one criterion whose name begins like another's, and arrays that are no plain rows in memory."""
    rng = np.random.default_rng(0)
    widths = {"encoder": tuple(3 + layer for layer in range(12)), "decoder": (5,)}

    def made(make: Callable[[int], Any]) -> dict[str, tuple[Any, ...]]:
        return {stack: tuple(map(make, layers)) for stack, layers in widths.items()}

    details = {
        "per_test": made(lambda width: rng.normal(size=(width, 3)).T),
        "direction": made(lambda width: rng.integers(-1, 2, (2, width)).astype(np.int8)),
        "order": made(lambda width: rng.permutation(width)[::-1]),
        "single": made(lambda width: rng.normal(size=width).astype(np.float32)),
    }
    saved = (
        NeuronScores("skill", made(lambda width: rng.normal(size=width)), SEEN, details),
        NeuronScores("skill_two", made(lambda width: rng.normal(size=width)), SEEN),
    )
    save_scores(saved, tmp_path / "scores.safetensors")
    found, bare = load_scores(tmp_path / "scores.safetensors")
    assert bare.details == {} and bare.widths == found.widths == widths
    assert found.details.keys() == details.keys()
    for name, stacks in details.items():
        assert found.details[name].keys() == stacks.keys()
        for stack, layers in stacks.items():
            for mine, theirs in zip(found.details[name][stack], layers, strict=True):
                assert mine.dtype == theirs.dtype
                np.testing.assert_array_equal(mine, theirs)


def test_what_scoring_finds_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = score(tiny_bert(num_labels=3, layers=2), data_of(THREE), *ALL)
    save_scores(saved, tmp_path / "scores.safetensors")
    for found, expected in zip(load_scores(tmp_path / "scores.safetensors"), saved, strict=True):
        assert (found.criterion, found.provenance) == (expected.criterion, expected.provenance)
        assert found.details.keys() == expected.details.keys()
        for site, values in by_site(expected).items():
            np.testing.assert_array_equal(by_site(found)[site], values)
            for name in expected.details:
                mine, theirs = details_by_site(found, name)[site], details_by_site(expected, name)[site]
                assert mine.dtype == theirs.dtype
                np.testing.assert_array_equal(mine, theirs)
        assert str(found) == str(expected)


@pytest.mark.parametrize("attempt", range(3))
def test_criteria_come_back_in_the_order_they_were_saved(tmp_path: Path, attempt: int) -> None:
    names = ["wanda", "magnitude", "random", "predictivity", "alpha", "omega"][attempt:]
    save_scores([scores(name) for name in names], tmp_path / "scores.safetensors")
    assert [score.criterion for score in load_scores(tmp_path / "scores.safetensors")] == names


@pytest.mark.parametrize("wrong", ["missing", "folder", "text", "empty", "truncated", "pickle", "other safetensors"])
def test_a_file_that_holds_no_scores_is_an_error_that_names_it(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "scores.safetensors"
    if wrong == "folder":
        path.mkdir()
    elif wrong == "text":
        path.write_text("these are no scores\n" * 10, encoding="utf-8")
    elif wrong == "empty":
        path.touch()
    elif wrong == "truncated":
        save_scores([scores()], path)
        path.write_bytes(path.read_bytes()[:-20])
    elif wrong == "pickle":
        torch.save({"wanda": torch.ones(3)}, path)
    elif wrong == "other safetensors":
        save_file({"wanda/encoder/0": np.ones(3)}, path)
    with pytest.raises(DataError, match=r"scores\.safetensors"):
        load_scores(path)
