"""The criterion ``skill``: elimination against ridge problems solved anew, its Gram matrix and metric against loops."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import (
    PADDINGS,
    Lone,
    activations_alone,
    by_site,
    details_by_site,
    down_modules,
    lone_examples,
    lone_ffn,
    sampled_alone,
    score,
)
from tiny import batches_for, tiny_bart, tiny_batches, tiny_bert, tiny_llama, tiny_llama_classifier
from torch import Tensor
from transformers import PreTrainedModel

from skillprune.activations import Observation, Reading
from skillprune.answers import Classifier, TaskModel, Writer
from skillprune.errors import DataError
from skillprune.families import Site, find_ffns
from skillprune.scoring import Provenance, ScoringData, Settings, elimination, engine, ranking, score_neurons
from skillprune.scoring.elimination import MOST_AT_ONCE, SHARE_AT_ONCE, Elimination
from skillprune.scoring.skill import GRADED_EXAMPLES, METRIC_IDENTITY, Skill

SEED = 7

Problem = tuple[Tensor, Tensor, Tensor]


def test_fewer_tokens_than_neurons_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    few, enough = tiny_batches(lengths=(5, 9), labels=(0, 1)), tiny_batches(lengths=(11,) * 6, labels=(0, 1) * 3)
    score(tiny_bert(), ScoringData(enough, enough), "skill")
    assert "rests on a ridge" not in caplog.text
    score(tiny_bert(), ScoringData(few, few), "skill")
    assert caplog.text.count("14 calibration tokens are fewer than a layer's 32 neurons") == 1


def problem(neurons: int, hidden: int, seed: int, *, tokens: int = 0) -> Problem:
    """A Gram matrix, weights and a metric; with few tokens the Gram matrix is singular."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scales = random(neurons).exp()
    activations = (
        random(tokens or 3 * neurons, neurons) @ (torch.eye(neurons) + 0.4 * random(neurons, neurons)) * scales
    )
    root = random(hidden, hidden)
    return activations.T @ activations / len(activations), random(hidden, neurons), root @ root.T


def eliminate(gram: Tensor, weight: Tensor, metric: Tensor, *, ridge: float = 0.01) -> Elimination:
    """Elimination in a plain layer, which has one expert."""
    return elimination.eliminate(gram.unsqueeze(0), weight.unsqueeze(0), metric, ridge=ridge)


def objective(gram: Tensor, weight: Tensor, metric: Tensor, kept: list[int], ridge: float = 0.01) -> float:
    """What the best weights on ``kept`` lose: half the error in the metric, with the pull towards the old weights.

    With ``D`` the change of the weights, ``(neurons, hidden)``, that is ``1/2 tr(M D^T H D)``, where rows that are not
    kept change by all they have; the others solve the normal equations.
    """
    hessian = (gram + ridge * gram.diagonal().mean() * torch.eye(len(gram))).numpy()
    old = weight.T.numpy()
    gone = [neuron for neuron in range(len(gram)) if neuron not in set(kept)]
    change = np.zeros_like(old)
    change[gone] = -old[gone]
    if kept:
        change[kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], -hessian[np.ix_(kept, gone)] @ change[gone])
    return 0.5 * float(np.trace(metric.numpy() @ change.T @ hessian @ change))


def greedy(*experts: Problem) -> tuple[list[int], list[float]]:
    """Removes the neuron whose removal leaves the lowest objective in all experts, each solved from scratch."""
    left, order, costs = list(range(len(experts[0][0]))), [], []
    while left:
        tried = [
            sum(objective(*expert, [each for each in left if each != neuron]) for expert in experts) for neuron in left
        ]
        best = int(np.argmin(tried))
        costs.append(tried[best])
        order.append(left.pop(best))
    return order, costs


def sound(found: Elimination, neurons: int) -> tuple[list[int], np.ndarray]:
    """Order and cost, after a look at what must hold for all of them."""
    order, cost = found.order.tolist(), found.cost.numpy()
    assert sorted(order) == list(range(neurons))
    assert (np.diff(cost) >= -1e-12 * cost[-1]).all() and cost[0] >= 0
    return order, cost


@settings(deadline=None, max_examples=25)
@given(neurons=st.integers(1, 9), hidden=st.integers(1, 5), seed=st.integers(0, 10_000), few=st.booleans())
def test_elimination_equals_a_greedy_that_solves_every_problem_anew(
    neurons: int, hidden: int, seed: int, few: bool
) -> None:
    given = problem(neurons, hidden, seed, tokens=max(2, neurons // 2) if few else 0)
    order, cost = sound(eliminate(*given), neurons)
    expected_order, expected_cost = greedy(given)
    assert order == expected_order
    np.testing.assert_allclose(cost, expected_cost, rtol=1e-6)


@settings(deadline=None, max_examples=15)
@given(neurons=st.integers(1, 7), experts=st.integers(1, 4), seed=st.integers(0, 10_000))
def test_of_several_experts_the_neurons_of_one_index_go_together(neurons: int, experts: int, seed: int) -> None:
    given = [problem(neurons, 3, seed + expert) for expert in range(experts)]
    gram, weight = (torch.stack([each[part] for each in given]) for part in (0, 1))
    metric = given[0][2]
    order, cost = sound(elimination.eliminate(gram, weight, metric), neurons)
    expected_order, expected_cost = greedy(*((each[0], each[1], metric) for each in given))
    assert order == expected_order
    np.testing.assert_allclose(cost, expected_cost, rtol=1e-6)


@settings(deadline=None, max_examples=10)
@given(neurons=st.integers(40, 110), seed=st.integers(0, 10_000), ridge=st.sampled_from([0.001, 0.01, 0.3]))
def test_at_every_step_the_cost_is_the_objective_of_the_refit_on_what_is_left(
    neurons: int, seed: int, ridge: float
) -> None:
    """Also where several neurons go at once; within a step only its end is exact."""
    given = problem(neurons, 4, seed)
    order, cost = sound(eliminate(*given, ridge=ridge), neurons)
    gone, several = 0, 0
    while gone < neurons:
        step = max(1, min(MOST_AT_ONCE, int(SHARE_AT_ONCE * (neurons - gone))))
        several += step > 1
        gone += step
        assert cost[gone - 1] == pytest.approx(objective(*given, order[gone:], ridge), rel=1e-7)
    assert gone == neurons
    assert several > 0
    assert cost[-1] == pytest.approx(objective(*given, [], ridge), rel=1e-7)


def test_with_two_left_the_pair_is_the_best_of_all_where_greedy_is_optimal() -> None:
    """An uncorrelated layer, where costs add up and greedy removal is exact."""
    gram, weight, metric = problem(6, 3, 1)
    gram = gram.diagonal().diag()
    order, cost = sound(eliminate(gram, weight, metric), 6)
    best = min(
        permutations(range(6), 4), key=lambda gone: objective(gram, weight, metric, list(set(range(6)) - {*gone}))
    )
    assert set(order[:4]) == set(best)
    single = 0.5 * (gram.diagonal() * 1.0 + 0.01 * gram.diagonal().mean()) * (weight * (metric @ weight)).sum(dim=0)
    np.testing.assert_allclose(np.diff(cost, prepend=0), single[order], rtol=1e-9)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), factor=st.sampled_from([1e-8, 0.1, 3.0, 1e6]))
def test_a_larger_metric_only_raises_the_costs(seed: int, factor: float) -> None:
    gram, weight, metric = problem(60, 4, seed)
    order, cost = sound(eliminate(gram, weight, metric), 60)
    other, scaled = sound(eliminate(gram, weight, factor * metric), 60)
    assert other == order
    np.testing.assert_allclose(scaled, factor * cost, rtol=1e-9)
    halved = eliminate(gram / 4, 2 * weight, metric)  # the same outputs from other units
    assert halved.order.tolist() == order
    np.testing.assert_allclose(halved.cost, cost, rtol=1e-9)


def test_neurons_that_never_fire_go_first_at_no_cost_the_higher_index_first() -> None:
    gram, weight, metric = problem(30, 4, 0)
    dead = [2, 7, 29]
    gram[dead], gram[:, dead] = 0, 0
    order, cost = sound(eliminate(gram, weight, metric), 30)
    assert order[:3] == dead[::-1]
    assert cost[:3].tolist() == [0, 0, 0] and cost[3] > 0
    alive = [neuron for neuron in range(30) if neuron not in dead]
    assert cost[-1] == pytest.approx(
        0.5 * float(torch.trace(metric @ weight[:, alive] @ _ridged(gram)[alive][:, alive] @ weight[:, alive].T))
    )
    nothing = eliminate(torch.zeros(5, 5, dtype=torch.float64), weight[:, :5], metric)
    assert nothing.order.tolist() == [4, 3, 2, 1, 0] and nothing.cost.tolist() == [0] * 5


def _ridged(gram: Tensor) -> Tensor:
    return gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))


@pytest.mark.parametrize("seed", range(5))
def test_of_two_equal_neurons_one_goes_early_at_almost_no_cost(seed: int) -> None:
    gram, weight, metric = problem(12, 6, seed)
    gram, weight = gram / gram.diagonal().sqrt().outer(gram.diagonal().sqrt()), weight / weight.norm(dim=0)
    doubled = [*range(12), 4]
    gram, weight = gram[doubled][:, doubled], weight[:, doubled]
    order, cost = sound(eliminate(gram, weight, metric, ridge=1e-6), 13)
    assert order[0] in {4, 12}
    # The other one takes over: both weights change by what the one had, and only the ridge minds.
    assert cost[0] <= 1.0001e-6 * float(weight[:, 4] @ metric @ weight[:, 4])
    assert cost[0] < 0.02 * cost[1]


def test_of_neurons_that_cost_the_same_the_higher_index_goes_first() -> None:
    same = torch.eye(8, dtype=torch.float64)
    found = eliminate(same, torch.ones(3, 8, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    assert found.order.tolist() == list(range(8))[::-1]


def subject_of(name: str) -> TaskModel:
    if name in {"llama", "bart"}:
        return Writer({"llama": tiny_llama, "bart": tiny_bart}[name](layers=2).double())
    model: PreTrainedModel = tiny_bert(num_labels=3) if name == "bert" else tiny_llama_classifier(num_labels=3)
    return Classifier(model.double())


def output_gradients_alone(model: PreTrainedModel, example: Lone) -> dict[Site, np.ndarray]:
    """Gradients of the sampled quantity with respect to a zero added to every FFN's output, ``(tokens, hidden)``."""
    added, handles = {}, []
    for site, down in down_modules(model).items():

        def hook(_: Any, __: Any, output: Tensor, site: Site = site) -> Tensor:
            added[site] = torch.zeros_like(output, requires_grad=True)
            return output + added[site]

        handles.append(down.register_forward_hook(hook))
    logits = model(**example.inputs).logits[0]
    for handle in handles:
        handle.remove()
    sampled_alone(logits, example, SEED).backward(inputs=list(added.values()))
    return {site: tensor.grad[0].numpy() for site, tensor in added.items()}


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("name", ["bert", "llama classifier", "llama", "bart"])
def test_scores_are_those_of_moments_summed_over_real_tokens_by_hand(name: str, padding: dict[str, Any]) -> None:
    """The Gram matrix is centred where the down projection has a bias, which LLaMA's has not."""
    subject = subject_of(name)
    options = {**padding, "positions": True} if name.startswith("llama") else {**padding, "side": "right"}
    batches = batches_for(name, **options)
    (found,) = score(subject, ScoringData(batches, ()), "skill", seed=SEED)
    activations = activations_alone(subject.model, batches)
    gradients = [output_gradients_alone(subject.model, example) for example in lone_examples(batches)]
    for site, down in down_modules(subject.model).items():
        tokens = np.array([token for example in activations[site] for token in example])
        assert (down.bias is None) == name.startswith("llama")
        if down.bias is not None:
            tokens = tokens - tokens.mean(axis=0)
        gram = sum(np.outer(token, token) for token in tokens) / len(tokens)
        graded = np.concatenate([each[site] for each in gradients])
        assert len(graded) == len(tokens)
        metric = sum(np.outer(g, g) for g in graded) / len(graded)
        metric = metric + METRIC_IDENTITY * np.mean(np.diag(metric)) * np.eye(len(metric))
        expected = eliminate(torch.from_numpy(gram), down.weight.detach(), torch.from_numpy(metric))
        order, cost = (details_by_site(found, key)[site] for key in ("order", "cost"))
        np.testing.assert_array_equal(order, expected.order)
        np.testing.assert_allclose(cost, expected.cost, rtol=1e-6, atol=1e-9 * float(expected.cost[-1]))
        np.testing.assert_array_equal(by_site(found)[site][order], cost)
        if (np.diff(cost) > 0).all():
            assert ranking(by_site(found)[site]).tolist() == order.tolist()[::-1]


def test_the_metric_is_made_of_the_first_512_examples_in_whatever_batches_they_are() -> None:
    model = tiny_bert(layers=1, hidden=4, width=6).double()
    lengths = [2 + number % 3 for number in range(GRADED_EXAMPLES + 40)]
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    batches = tiny_batches(lengths=lengths, batch_size=64, order=order)
    ffns, seen = find_ffns(model), []

    class Watched(Skill):
        def finish(self, ffn: Any) -> Any:
            seen.append({key: value.clone() for key, value in self.state(ffn).items()})
            return super().finish(ffn)

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(engine.CRITERIA, "skill", Watched)
        score(model, ScoringData(batches, ()), "skill", seed=SEED)
    assert int(seen[0]["graded"]) == sum(lengths[:GRADED_EXAMPLES])
    assert int(seen[0]["tokens"]) == sum(lengths)
    expected = np.zeros((4, 4))
    for example in lone_examples(batches)[:GRADED_EXAMPLES]:
        gradients = output_gradients_alone(model, example)["encoder", 0]
        expected += gradients.T @ gradients
    np.testing.assert_allclose(seen[0]["metric"], expected, rtol=1e-9, atol=1e-12)
    assert len(ffns) == 1


def test_where_no_answer_depends_on_a_layer_plain_reconstruction_is_what_counts() -> None:
    """A head of zeros: gradients vanish everywhere, and the metric is the identity."""
    model = tiny_bert(layers=1).double()
    with torch.no_grad():
        model.classifier.weight.zero_()
    batches = tiny_batches()
    (found,) = score(model, ScoringData(batches, ()), "skill")
    (examples,) = activations_alone(model, batches).values()
    tokens = torch.tensor([token for example in examples for token in example], dtype=torch.float64)
    gram = torch.cov(tokens.T, correction=0)
    (down,) = down_modules(model).values()
    expected = eliminate(gram, down.weight.detach(), torch.eye(16, dtype=torch.float64))
    np.testing.assert_array_equal(details_by_site(found, "order")["encoder", 0], expected.order)
    np.testing.assert_allclose(details_by_site(found, "cost")["encoder", 0], expected.cost, rtol=1e-6)


def test_costs_are_in_units_of_the_answers_so_that_layers_can_be_compared() -> None:
    model = tiny_bert(layers=2).double()
    data = ScoringData(tiny_batches(), ())
    (before,) = score(model, data, "skill")
    with torch.no_grad():
        model.classifier.weight.mul_(3)
    (after,) = score(model, data, "skill")
    for site, values in by_site(before).items():
        np.testing.assert_allclose(by_site(after)[site], 9 * values, rtol=1e-6, atol=1e-9 * values.max())


def test_neurons_without_variance_are_the_first_to_go_in_a_layer_with_a_bias() -> None:
    model = tiny_bert(layers=1).double()
    with torch.no_grad():
        find_ffns(model)[0].up.weight[[4, 9]] = 0
        find_ffns(model)[0].up.bias[[4, 9]] = 2.0
    (found,) = score(model, ScoringData(tiny_batches(), ()), "skill")
    order, cost = (details_by_site(found, key)["encoder", 0] for key in ("order", "cost"))
    assert set(order[:2].tolist()) == {4, 9}
    assert cost[2] > 0


def test_labels_do_not_matter_to_skill() -> None:
    model = tiny_bert().double()
    first, second = (
        score_neurons(
            model,
            ScoringData(tiny_batches(labels=labels), ()),
            criteria=["skill"],
            provenance=Provenance("m", "d", 10, "mean", 0),
            settings=Settings(examples={"calibration": 10, "validation": 0}),
        )[0]
        for labels in ((0,) * 10, (1,) * 10)
    )
    for site, values in by_site(first).items():
        np.testing.assert_array_equal(by_site(second)[site], values)


def test_products_that_overflow_are_refused_with_the_layer() -> None:
    ffn = lone_ffn(4)
    worker = Skill([ffn], Settings())
    batch = tiny_batches(batch_size=2)[0]
    shape = batch.mask.shape
    large = torch.full((*shape, 4), 1e25)
    worker.update(Skill.reads[0], Observation(ffn, batch, 0, Reading(), large))
    with pytest.raises(DataError, match="layer 0 are not finite"):
        worker.finish(ffn)
