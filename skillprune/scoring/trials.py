"""Makes one set of scores of several trials, each with a soft prompt of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from skillprune.errors import DataError
from skillprune.scoring.predictivity import Predictivity, reduced
from skillprune.scoring.scores import NeuronScores

How = Literal["mean", "min"]

Stacks = Mapping[str, tuple[NDArray[Any], ...]]


def combine_trials(
    trials: Sequence[NeuronScores], how: How = "mean", reduce: Literal["max", "mean"] = "max"
) -> NeuronScores:
    """Combines trials neuron by neuron.

    Predictivity is combined per test before one number is made of the tests, as published (Wang, Wen et al. 2022); of
    other criteria the scores are averaged and the details, which belong to a single trial, are left out if there are
    several.

    Args:
        trials: scores under one criterion of one model and task.
        how: what predictivity takes of its trials; the published definition is the mean.
        reduce: what predictivity takes of its tests.

    Raises:
        DataError: there are no trials, or they are of different criteria, models or tasks.
    """
    if not trials or len({trial.criterion for trial in trials}) > 1:
        raise DataError("trials of one criterion are combined; give at least one, and all of the same")
    for trial in trials[1:]:
        trial.refuse_others(trials[0])
    if trials[0].criterion != Predictivity.name:
        details = trials[0].details if len(trials) == 1 else {}
        return replace(trials[0], values=_over([trial.values for trial in trials], "mean"), details=details)
    per_test = _over([trial.details["per_test"] for trial in trials], how)
    leaning = [_leaning(trial) for trial in trials]
    direction = {
        stack: tuple(np.sign(layer).astype(np.int8) for layer in layers)
        for stack, layers in _over(leaning, "mean").items()
    }
    values = {stack: tuple(reduced(each, reduce) for each in layers) for stack, layers in per_test.items()}
    return replace(trials[0], values=values, details={"per_test": per_test, "direction": direction})


def _leaning(trial: NeuronScores) -> dict[str, tuple[NDArray[np.float64], ...]]:
    """How far firing speaks for the class (positive) or against it, per test."""
    return {
        stack: tuple(
            sign * (accuracy - 0.5) for sign, accuracy in zip(trial.details["direction"][stack], layers, strict=True)
        )
        for stack, layers in trial.details["per_test"].items()
    }


def _over(trials: Sequence[Stacks], how: How) -> dict[str, tuple[NDArray[np.float64], ...]]:
    function = np.mean if how == "mean" else np.min
    return {
        stack: tuple(
            function(np.stack(layers), axis=0) for layers in zip(*(each[stack] for each in trials), strict=True)
        )
        for stack in trials[0]
    }
