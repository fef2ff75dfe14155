"""Criteria of activity and of weights against loops over examples, tokens and neurons."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from naive import PADDINGS, activations_alone, by_site, details_by_site, down_modules, lone_ffn, score
from tiny import TINY_ALL, batches_for, tiny_batches, tiny_bert

from skillprune.activations import Observation, Reading
from skillprune.answers import Classifier, TaskModel, Writer
from skillprune.families import Site, find_ffns
from skillprune.scoring import CRITERIA, ScoringData, Settings

Columns = dict[Site, list[list[float]]]
READ = CRITERIA["wanda"].reads[0]


def subject_of(family: str) -> TaskModel:
    model = TINY_ALL[family]().double()
    return Writer(model) if family in {"llama", "bart"} else Classifier(model)


@cache
def columns_alone(family: str) -> Columns:
    """Per site and neuron, the activation at every real token of the ten examples."""
    positions = {} if family in {"bart", "distilbert"} else {"positions": True}
    batches = batches_for(family, batch_size=1, **positions)
    found = activations_alone(subject_of(family).model, batches)
    return {
        site: [list(column) for column in zip(*(token for example in examples for token in example), strict=True)]
        for site, examples in found.items()
    }


def wanda(column: list[float], weights: list[float]) -> float:
    return math.sqrt(math.fsum(a * a for a in column)) * math.fsum(map(abs, weights))


def fluctuation(column: list[float], weights: list[float]) -> float:
    mean = math.fsum(column) / len(column)
    variance = math.fsum((a - mean) ** 2 for a in column) / len(column)
    return variance * math.fsum(w * w for w in weights)


def magnitude(column: list[float], weights: list[float]) -> float:
    return math.sqrt(math.fsum(w * w for w in weights))


LOOPS: dict[str, Callable[[list[float], list[float]], float]] = {
    "wanda": wanda,
    "fluctuation": fluctuation,
    "magnitude": magnitude,
}


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("family", sorted(TINY_ALL))
def test_scores_equal_loops_however_examples_are_batched(family: str, padding: dict[str, Any]) -> None:
    subject, columns = subject_of(family), columns_alone(family)
    options = {**padding, "positions": True}
    if family in {"bart", "distilbert"}:  # they count positions from the first column, so the padding is right
        options = {name: value for name, value in padding.items() if name != "side"}
    data = ScoringData(batches_for(family, **options), ())
    for found in score(subject, data, *LOOPS):
        assert by_site(found).keys() == columns.keys()
        for site, down in down_modules(subject.model).items():
            weights = list(zip(*down.weight.tolist(), strict=True))
            assert len(weights) == len(by_site(found)[site])
            for neuron, value in enumerate(by_site(found)[site]):
                expected = LOOPS[found.criterion](columns[site][neuron], weights[neuron])
                assert value == pytest.approx(expected, rel=1e-8)
        if found.criterion == "fluctuation":
            for site, means in details_by_site(found, "mean").items():
                np.testing.assert_allclose(means, np.mean(columns[site], axis=1), rtol=1e-8, atol=1e-12)


def scores_of(name: str, batches: tuple, values: list[torch.Tensor]) -> tuple[np.ndarray, torch.Tensor]:
    ffn = lone_ffn(32, hidden=16)
    worker = CRITERIA[name]([ffn], Settings())
    for number, (batch, each) in enumerate(zip(batches, values, strict=True)):
        worker.update(READ, Observation(ffn, batch, number, Reading(), each))
    return worker.finish(ffn).scores, ffn.down.weight.detach()


@pytest.mark.parametrize("name", ["wanda", "fluctuation"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_not_rounded_to_half_precision(name: str, dtype: torch.dtype) -> None:
    batches, generator = tiny_batches(), torch.Generator().manual_seed(0)
    values = [torch.randn(*batch.mask.shape, 32, generator=generator).mul(1000).to(dtype) for batch in batches]
    found, weight = scores_of(name, batches, values)
    tokens = torch.cat([each[batch.mask] for each, batch in zip(values, batches, strict=True)]).double().T.tolist()
    expected = [LOOPS[name](*pair) for pair in zip(tokens, weight.T.tolist(), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_small_fluctuation_around_a_large_mean_is_not_lost() -> None:
    """Sums of squares in float64 would keep four digits here; the mean is 1e6 times the deviation."""
    batches, generator = tiny_batches(batch_size=3), torch.Generator().manual_seed(0)
    values = [1e6 + torch.randn(*batch.mask.shape, 32, generator=generator, dtype=torch.float64) for batch in batches]
    found, weight = scores_of("fluctuation", batches, values)
    tokens = torch.cat([each[batch.mask] for each, batch in zip(values, batches, strict=True)]).T.tolist()
    expected = [fluctuation(*pair) for pair in zip(tokens, weight.T.tolist(), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_padding_never_counts() -> None:
    batches = tiny_batches(pad_to=20)
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(*batch.mask.shape, 32, generator=generator, dtype=torch.float64) for batch in batches]
    poisoned = [
        each.masked_fill(~batch.mask.unsqueeze(-1), torch.inf) for each, batch in zip(values, batches, strict=True)
    ]
    for name in ("wanda", "fluctuation"):
        torch.manual_seed(0)
        clean, _ = scores_of(name, batches, values)
        torch.manual_seed(0)
        np.testing.assert_array_equal(scores_of(name, batches, poisoned)[0], clean)


def test_a_constant_neuron_does_not_fluctuate() -> None:
    model = tiny_bert()
    with torch.no_grad():
        for ffn in find_ffns(model):
            ffn.up.weight[:5] = 0
    (found,) = score(model, ScoringData(tiny_batches(), ()), "fluctuation")
    for values in found.values["encoder"]:
        assert values[:5].max() < 1e-9 * values[5:].min()
