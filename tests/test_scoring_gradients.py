"""Criteria of effects against derivatives with respect to a mask, one example at a time, by autograd and differences.

The mask multiplies what the down projection reads; `test_scoring.alone` puts it there, without the package's hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from naive import (
    PADDINGS,
    THREE,
    Lone,
    alone,
    by_site,
    details_by_site,
    down_modules,
    effects_alone,
    lone_examples,
    loss_alone,
    sampled_alone,
    score,
)
from tiny import LABELS, TINY, batches_for, tiny_bart, tiny_batches, tiny_bert, tiny_llama, tiny_llama_classifier
from torch import Tensor

from skillprune.answers import Classifier, TaskModel, Writer
from skillprune.data import Batch
from skillprune.families import Site
from skillprune.scoring import ScoringData

SEED = 7
SUBJECTS = ("bert", "roberta", "distilbert", "llama classifier", "llama", "bart")
QUANTITIES: dict[str, Callable[[Tensor, Lone], Tensor]] = {
    "loss": loss_alone,
    "sampled": lambda logits, example: sampled_alone(logits, example, SEED),
}


@cache
def subject_of(name: str) -> TaskModel:
    if name == "llama classifier":
        return Classifier(tiny_llama_classifier(num_labels=3).double())
    if name in {"llama", "bart"}:
        return Writer({"llama": tiny_llama, "bart": tiny_bart}[name]().double())
    return Classifier(TINY[name](num_labels=3).double())


def batches_of(name: str, **options: Any) -> tuple[Batch, ...]:
    """Heads of encoders read the first column, so only LLaMA is padded on the left."""
    if name.startswith("llama"):
        options["positions"] = True
    else:
        options.pop("side", None)
    return batches_for(name, **options, labels=(0,) * 10 if name in {"llama", "bart"} else THREE)


@cache
def effects(name: str, quantity: str) -> dict[Site, np.ndarray]:
    return effects_alone(subject_of(name).model, batches_of(name, batch_size=1), QUANTITIES[quantity])


def attribution(effects: np.ndarray, labels: tuple[int, ...]) -> np.ndarray:
    means = [
        [
            np.mean([abs(row[neuron]) for row, y in zip(effects, labels, strict=True) if y == label])
            for label in (0, 1, 2)
        ]
        for neuron in range(effects.shape[1])
    ]
    return np.array(means).T


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("name", SUBJECTS)
def test_scores_equal_means_over_examples_run_alone(name: str, padding: dict[str, Any]) -> None:
    data = ScoringData(batches_of(name, **padding), ())
    criteria = ("taylor", "fisher", "gauss_newton", "attribution")
    taylor, fisher, gauss_newton, attributed = score(subject_of(name), data, *criteria, seed=SEED)
    for site, own in effects(name, "loss").items():
        floor = 1e-12 * np.abs(own).max()
        np.testing.assert_allclose(by_site(taylor)[site], [np.mean(np.abs(g)) for g in own.T], rtol=1e-6, atol=floor)
        np.testing.assert_allclose(by_site(fisher)[site], [np.mean(g**2) for g in own.T], rtol=1e-6, atol=floor**2)
        if name in {"llama", "bart"}:  # no classes: all examples are of one
            np.testing.assert_allclose(by_site(attributed)[site], by_site(taylor)[site], rtol=1e-12)
            continue
        per_class = attribution(own, THREE)
        np.testing.assert_allclose(details_by_site(attributed, "per_class")[site], per_class, rtol=1e-6, atol=floor)
        np.testing.assert_allclose(by_site(attributed)[site], per_class.mean(axis=0), rtol=1e-6, atol=floor)
    for site, own in effects(name, "sampled").items():
        floor = (1e-9 * np.abs(own).max()) ** 2
        expected = [np.mean(g**2) for g in own.T]
        np.testing.assert_allclose(by_site(gauss_newton)[site], expected, rtol=1e-6, atol=floor)


@pytest.mark.parametrize("quantity", sorted(QUANTITIES))
@pytest.mark.parametrize("name", ["bert", "llama", "bart"])
def test_effects_are_central_differences_of_the_mask(name: str, quantity: str) -> None:
    """So that autograd is not its own witness; three examples, a neuron in every layer.

    LLaMA's norms compute in float32, whatever its weights are, so there the step is larger and less is asked.
    """
    model = subject_of(name).model
    step, share = (1e-2, 5e-3) if name == "llama" else (1e-5, 1e-7)
    batches = batches_of(name, batch_size=1)[:3]
    ask = loss_alone if quantity == "loss" else QUANTITIES[quantity]
    for site, down in down_modules(model).items():
        neuron = (5 * site[1] + 3) % down.in_features
        differences = []
        for example in lone_examples(batches):
            values = []
            for change in (step, -step):
                mask = torch.ones(down.in_features, dtype=torch.float64)
                mask[neuron] += change
                with torch.no_grad():
                    values.append(float(ask(alone(model, example, {site: mask})[0], example)))
            differences.append((values[0] - values[1]) / (2 * step))
        own = effects(name, quantity)[site]
        np.testing.assert_allclose(own[:3, neuron], differences, rtol=1e-4, atol=share * np.abs(own).max())


def repeated(batch: Batch, times: int) -> tuple[Batch, ...]:
    """One example again and again, as so many examples of their own."""
    many = batch.select(torch.zeros(times, dtype=torch.long))
    return (replace(many, indices=torch.arange(times)),)


def test_with_two_classes_gauss_newton_is_half_the_squared_effect_on_the_margin() -> None:
    model, batches = tiny_bert().double(), tiny_batches()
    (found,) = score(model, ScoringData(batches, ()), "gauss_newton")
    for site, margin in effects_alone(model, batches, lambda logits, _: logits[1] - logits[0]).items():
        np.testing.assert_allclose(by_site(found)[site], 0.5 * (margin**2).mean(axis=0), rtol=1e-6)


def test_with_more_classes_gauss_newton_averages_to_the_centred_logits() -> None:
    """3000 draws for one example; the closed form is ``sum_cd (I - 1 1^T / C)_cd dz_c dz_d``."""
    model = tiny_bert(num_labels=4, layers=2).double()
    (one,) = tiny_batches(lengths=(6,), labels=(0,))
    (found,) = score(model, ScoringData(repeated(one, 3000), ()), "gauss_newton")
    each = [effects_alone(model, (one,), lambda logits, _, c=c: logits[c]) for c in range(4)]
    for site, values in by_site(found).items():
        logits = np.stack([effect[site][0] for effect in each])
        expected = np.einsum("cn,cd,dn->n", logits, np.eye(4) - 1 / 4, logits)
        np.testing.assert_allclose(values, expected, rtol=4 * np.sqrt(0.8 / 3000) + 0.01)


def test_of_a_language_model_gauss_newton_averages_to_the_true_fisher_information() -> None:
    """Sum over positions and tokens of ``p (d log p)^2``; positions are drawn independently and average to zero."""
    model = tiny_llama(layers=1).double()
    (one,) = batches_for("llama", lengths=(4,))
    (found,) = score(Writer(model), ScoringData(repeated(one, 4000), ()), "gauss_newton")
    (example,) = lone_examples((one,))
    logits = alone(model, example)[0].log_softmax(dim=-1).detach()
    expected = np.zeros(32)
    for place in range(3):
        for token in range(logits.shape[1]):
            (effect,) = effects_alone(
                model, (one,), lambda z, _, place=place, token=token: z[place].log_softmax(dim=0)[token]
            ).values()
            expected += float(logits[place, token].exp()) * effect[0] ** 2
    np.testing.assert_allclose(by_site(found)["decoder", 0].sum(), expected.sum(), rtol=0.1)
    np.testing.assert_allclose(by_site(found)["decoder", 0], expected, rtol=0.3)


def test_gauss_newton_needs_no_labels_and_follows_the_seed() -> None:
    model, shuffled = tiny_bert(num_labels=3).double(), tuple(np.roll(THREE, 3).tolist())
    scores = [
        by_site(score(model, ScoringData(tiny_batches(labels=labels), ()), "gauss_newton", seed=seed)[0])
        for labels, seed in ((THREE, 1), (shuffled, 1), (THREE, 2))
    ]
    for site, values in scores[0].items():
        np.testing.assert_array_equal(scores[1][site], values)
        assert not np.isclose(scores[2][site], values).any()


def test_with_equal_classes_attribution_is_taylor_and_otherwise_a_rare_class_is_not_drowned() -> None:
    model = tiny_bert().double()
    equal = ScoringData(tiny_batches(labels=(0, 1) * 5), ())
    taylor, attributed = score(model, equal, "taylor", "attribution")
    unequal = score(model, ScoringData(tiny_batches(labels=LABELS), ()), "taylor", "attribution")
    for site, values in by_site(taylor).items():
        np.testing.assert_allclose(by_site(attributed)[site], values, rtol=1e-9)
        assert not np.isclose(by_site(unequal[0])[site], by_site(unequal[1])[site], rtol=1e-3).all()


def test_a_class_that_does_not_occur_does_not_count_in_attribution() -> None:
    model = tiny_bert(num_labels=4).double()
    (found,) = score(model, ScoringData(tiny_batches(labels=THREE), ()), "attribution")
    for site, per_class in details_by_site(found, "per_class").items():
        assert (per_class[3] == 0).all() and (per_class[:3] > 0).all()
        np.testing.assert_allclose(by_site(found)[site], per_class[:3].mean(axis=0), rtol=1e-12)


def test_a_neuron_that_writes_nothing_has_no_effect() -> None:
    model = tiny_bert().double()
    with torch.no_grad():
        for down in down_modules(model).values():
            down.weight[:, [3, 8]] = 0
    for found in score(model, ScoringData(tiny_batches(), ()), "taylor", "fisher", "gauss_newton", "attribution"):
        for values in by_site(found).values():
            assert (values[[3, 8]] == 0).all() and (np.delete(values, [3, 8]) > 0).all()
