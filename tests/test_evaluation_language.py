"""Losses and written texts against loops over single examples, and what two models differ by against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon
from tiny import END, TINY_ALL, batches_for, tiny_bart, tiny_llama
from torch import Tensor, nn

from skillprune.answers import Classifier, Writer
from skillprune.data import NO_TARGET, Batch
from skillprune.errors import ResourceFailure
from skillprune.evaluation import Losses, Predictions, compare, drop, judge_split, standard_error


def losses_alone(model: torch.nn.Module, batch: Batch) -> list[tuple[float, int]]:
    """Negative log-likelihood and number of targets, one example at a time."""
    found = []
    for row in range(len(batch)):
        inputs = {name: tensor[row : row + 1] for name, tensor in batch.inputs.items()}
        with torch.no_grad():
            chances = model(**inputs).logits[0].double().softmax(dim=-1)
        wanted = [(place, token) for place, token in enumerate(batch.targets[row].tolist()) if token != NO_TARGET]
        found.append((-sum(math.log(chances[place, token]) for place, token in wanted), len(wanted)))
    return found


@pytest.mark.parametrize(("family", "build"), [("llama", tiny_llama), ("bart", tiny_bart)])
def test_losses_are_those_of_every_example_alone_in_the_order_of_the_split(family: str, build: object) -> None:
    model, batches = build(), batches_for(family)
    found = judge_split(Writer(model), batches, "perplexity")
    expected = dict(
        pair for batch in batches for pair in zip(batch.indices.tolist(), losses_alone(model, batch), strict=True)
    )
    assert isinstance(found, Losses) and len(found) == len(expected)
    for index, (summed, tokens) in expected.items():
        assert found.summed[index] == pytest.approx(summed, rel=1e-5)
        assert found.tokens[index] == tokens
    mean = sum(summed for summed, _ in expected.values()) / sum(tokens for _, tokens in expected.values())
    assert found.value("loss") == pytest.approx(mean, rel=1e-6)
    assert found.value("perplexity") == pytest.approx(math.exp(mean), rel=1e-6)


def greedy(model: torch.nn.Module, text: Tensor, mask: Tensor, most: int) -> list[int]:
    """Argmax after argmax, without a cache, up to the end."""
    written = [model.config.decoder_start_token_id]
    while len(written) <= most:
        with torch.no_grad():
            logits = model(
                input_ids=text, attention_mask=mask, decoder_input_ids=torch.tensor([written]), use_cache=False
            ).logits
        written.append(int(logits[0, -1].argmax()))
        if written[-1] == END:
            break
    return written[1:]


def targets_of(texts: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, texts))
    return torch.tensor([[*text, *[NO_TARGET] * (longest - len(text))] for text in texts])


@pytest.mark.parametrize("ends_with", [END, [END, 58]])
def test_an_exact_match_is_the_whole_text_that_greedy_decoding_writes(ends_with: int | list[int]) -> None:
    """One text ends, and matches as a whole only; the others go on and match nothing that ends."""
    model = tiny_bart(seed=5)
    model.generation_config.eos_token_id = ends_with
    (batch, *_) = batches_for("bart")
    rows = [batch.inputs[name].split(1) for name in ("input_ids", "attention_mask")]
    texts = [greedy(model, *row, 6) for row in zip(*rows, strict=True)]
    ends = [text[-1] == END for text in texts]
    assert any(ends) and not all(ends)
    order = batch.indices.argsort().tolist()
    for wanted, right in (
        ([text if ended else [*text[:3], END] for text, ended in zip(texts, ends, strict=True)], ends),
        ([[*text[:-2], END] for text in texts], [False] * len(texts)),
        ([[*text[:-1], 7, END] for text in texts], [False] * len(texts)),
    ):
        found = judge_split(Writer(model), [replace(batch, targets=targets_of(wanted))], "exact_match")
        assert isinstance(found, Predictions)
        assert (found.predicted == found.labels).tolist() == [right[row] for row in order]
        assert found.value("exact_match") == sum(right) / len(right)


JUDGED = {"accuracy": ("bert", Classifier), "perplexity": ("llama", Writer), "exact_match": ("bart", Writer)}


def refusing(most: int, sizes: list[int]) -> Callable[..., None]:
    """A hook for a model that has memory for ``most`` examples; it writes down how many it was given."""

    def refuse(_: nn.Module, __: object, kwargs: dict[str, Any]) -> None:
        sizes.append(len(kwargs["attention_mask"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("no memory left")

    return refuse


@pytest.mark.parametrize("metric", JUDGED)
def test_batches_that_do_not_fit_are_judged_in_halves(metric: str) -> None:
    family, put = JUDGED[metric]
    model, sizes = TINY_ALL[family](), list[int]()
    batches = batches_for(family, batch_size=5)
    whole = judge_split(put(model), batches, metric)
    model.register_forward_pre_hook(refusing(2, sizes), with_kwargs=True)
    found = judge_split(put(model), batches, metric)
    assert sizes[0] == 5 and max(sizes[1:]) == 2  # it does not try five again
    for name, expected in vars(whole).items():
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-5)


@pytest.mark.parametrize("metric", JUDGED)
def test_one_example_that_does_not_fit_is_a_resource_failure(metric: str) -> None:
    family, put = JUDGED[metric]
    model = TINY_ALL[family]()
    model.register_forward_pre_hook(refusing(0, []), with_kwargs=True)
    with pytest.raises(ResourceFailure, match=r"one example of .* does not fit .*lower task\.max_length"):
        judge_split(put(model), batches_for(family), metric)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9), st.integers(1, 9)), min_size=1, max_size=20))
def test_differences_and_drops_of_losses(rows: list[tuple[float, float, int]]) -> None:
    first, second, tokens = (np.array(column) for column in zip(*rows, strict=True))
    one, two = Losses(first, tokens.astype(int)), Losses(second, tokens.astype(int))
    means = [float(each.sum() / tokens.sum()) for each in (first, second)]
    by_loss = compare(one, two, metric="loss", seed=0, draws=50)
    assert by_loss.difference == by_loss.drop == pytest.approx(means[1] - means[0])
    by_perplexity = compare(one, two, metric="perplexity", seed=0, draws=50)
    assert by_perplexity.difference == pytest.approx(math.exp(means[1]) - math.exp(means[0]))
    assert by_perplexity.drop == pytest.approx(math.exp(means[1] - means[0]) - 1)
    assert by_loss.agreement is None
    per_token = second / tokens - first / tokens
    assert by_loss.p_value == (pytest.approx(float(wilcoxon(per_token).pvalue)) if per_token.any() else 1.0)
    assert by_loss.low <= by_loss.high


def test_a_shift_that_is_the_same_everywhere_is_certain() -> None:
    one, two = (Losses(np.full(30, loss), np.full(30, 2)) for loss in (2.0, 2.5))
    found = compare(one, two, metric="loss", seed=1)
    assert (found.low, found.high, found.difference) == pytest.approx((0.25, 0.25, 0.25))
    assert standard_error(one, two, metric="perplexity", seed=1) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "exact_match"])
def test_a_share_drops_when_it_falls(metric: str) -> None:
    assert drop(metric, 0.9, 0.7) == pytest.approx(0.2)
    assert drop("loss", 1.0, 1.2) == pytest.approx(0.2)
    assert drop("perplexity", 2.0, 3.0) == pytest.approx(0.5)
