"""Answers of models: losses against a loop, random quantities against what they are said to average to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from naive import PADDINGS, alone, lone_examples, loss_alone, sampled_alone
from tiny import batches_for, tiny_bart, tiny_batches, tiny_bert, tiny_bert_masked_lm, tiny_llama
from torch import Tensor

from skillprune.answers import (
    Answers,
    ClassAnswers,
    Classifier,
    TaskModel,
    TokenAnswers,
    Verbalizer,
    Writer,
    label_names,
)
from skillprune.data import NO_TARGET, Batch


def answers_of(subject: TaskModel, batches: tuple[Batch, ...]) -> list[tuple[Answers, Batch]]:
    with torch.no_grad():
        return [(subject.ask(subject.prepare(batch)), batch) for batch in batches]


def log_softmax(logits: list[float]) -> list[float]:
    total = math.log(math.fsum(map(math.exp, logits)))
    return [logit - total for logit in logits]


def random_tokens(examples: int, tokens: int, vocabulary: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """What a model said at every position, and targets at some."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(examples, tokens, vocabulary, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (examples, tokens), generator=generator)
    targets[torch.rand(examples, tokens, generator=generator) < 0.3] = NO_TARGET
    return logits, targets


def test_class_losses_equal_a_loop() -> None:
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    expected = [-log_softmax(row)[label] for row, label in zip(scores.tolist(), labels.tolist(), strict=True)]
    np.testing.assert_allclose(ClassAnswers(scores, labels).losses(), expected, rtol=1e-12)


def test_token_losses_are_summed_over_the_targets_of_an_example() -> None:
    said, targets = random_tokens(5, 7, 6)
    expected = [
        -sum(log_softmax(logits)[target] for logits, target in zip(row, wanted, strict=True) if target != NO_TARGET)
        for row, wanted in zip(said.tolist(), targets.tolist(), strict=True)
    ]
    np.testing.assert_allclose(TokenAnswers.of(said, targets).losses(), expected, rtol=1e-12)


def test_what_is_said_where_nothing_is_predicted_takes_no_room_and_moves_nothing() -> None:
    said, targets = random_tokens(5, 7, 6)
    wanted, indices = targets != NO_TARGET, torch.arange(5)
    broken = said.masked_fill(~wanted.unsqueeze(-1), torch.nan).requires_grad_()
    mine, theirs = TokenAnswers.of(broken, targets), TokenAnswers.of(said, targets)
    assert mine.logits.shape == (int(wanted.sum()), 6) and len(mine) == int(wanted.sum()) < wanted.numel()
    assert torch.equal(mine.choices(), said[wanted])
    for ask in (TokenAnswers.losses, lambda answers: answers.sampled(2, indices)):
        assert torch.equal(ask(mine), ask(theirs))
        (gradient,) = torch.autograd.grad(ask(mine).sum(), broken, retain_graph=True)
        assert torch.equal(gradient.any(dim=-1), wanted)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_a_contrast_belongs_to_seed_and_example_and_lies_on_its_sphere(classes: int) -> None:
    """The scores are a variable, so the gradient of the sampled quantity is the contrast itself."""
    scores = torch.zeros(6, classes, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([4, 0, 9, 2, 11, 4])
    answers = ClassAnswers(scores, torch.zeros(6, dtype=torch.long))
    (contrasts,) = torch.autograd.grad(answers.sampled(3, indices).sum(), scores)
    np.testing.assert_allclose(contrasts.sum(dim=1), 0, atol=1e-12)
    np.testing.assert_allclose(contrasts.square().sum(dim=1), classes - 1, rtol=1e-12)
    for contrast, index in zip(contrasts.numpy(), indices.tolist(), strict=True):
        drawn = np.random.default_rng([3, index]).standard_normal(classes)
        drawn -= drawn.mean()
        np.testing.assert_allclose(contrast, drawn * math.sqrt((classes - 1) / (drawn @ drawn)), rtol=1e-10)
    (others,) = torch.autograd.grad(answers.sampled(4, indices).sum(), scores)
    assert classes == 2 or not torch.isclose(others, contrasts).all(dim=1).any()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_contrasts_average_to_the_centring_matrix(classes: int) -> None:
    """20000 draws; four standard errors of an entry, which is at most ``classes - 1``, are below 0.03 each."""
    scores = torch.zeros(20_000, classes, dtype=torch.float64, requires_grad=True)
    answers = ClassAnswers(scores, torch.zeros(20_000, dtype=torch.long))
    (contrasts,) = torch.autograd.grad(answers.sampled(0, torch.arange(20_000)).sum(), scores)
    moment = contrasts.T @ contrasts / len(contrasts)
    np.testing.assert_allclose(moment, np.eye(classes) - 1 / classes, atol=0.03)
    np.testing.assert_allclose(contrasts.mean(dim=0), 0, atol=0.03)
    if classes == 2:
        margin = torch.tensor([[0.5, -0.5], [-0.5, 0.5]], dtype=torch.float64)
        np.testing.assert_allclose(moment, margin, rtol=1e-12)


def test_sampled_tokens_come_with_the_chances_of_the_model() -> None:
    chances = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05], dtype=torch.float64)
    draws = 20_000
    logits = chances.log().clamp(min=-1e4).expand(draws, 1, 5)
    said = TokenAnswers.of(logits, torch.zeros(draws, 1, dtype=torch.long)).sampled(0, torch.arange(draws))
    tokens = (said.unsqueeze(1) - chances.log()).abs().argmin(dim=1)
    np.testing.assert_allclose(said, chances.log()[tokens], rtol=1e-9)
    found = torch.bincount(tokens, minlength=5) / draws
    np.testing.assert_allclose(found, chances, atol=4 * math.sqrt(0.25 / draws))
    assert found[1] == 0


def test_tokens_of_one_example_are_drawn_independently_of_each_other() -> None:
    draws = 20_000
    logits = torch.zeros(draws, 2, 2, dtype=torch.float64)
    logits[:, 0, 0], logits[:, 1, 0] = math.log(3), math.log(4)  # chances 3/4 and 4/5
    said = TokenAnswers.of(logits, torch.zeros(draws, 2, dtype=torch.long)).sampled(1, torch.arange(draws))
    for first, second in ((3 / 4, 4 / 5), (3 / 4, 1 / 5), (1 / 4, 4 / 5), (1 / 4, 1 / 5)):
        share = (said - math.log(first * second)).abs().lt(1e-9).double().mean()
        assert float(share) == pytest.approx(first * second, abs=4 * math.sqrt(0.25 / draws))


def test_tokens_are_drawn_by_position_among_the_targets_and_padding_draws_nothing() -> None:
    logits, targets = random_tokens(4, 6, 8, seed=3)
    indices = torch.tensor([7, 1, 0, 5])
    expected = []
    for row, index in enumerate(indices.tolist()):
        places = [place for place, target in enumerate(targets[row].tolist()) if target != NO_TARGET]
        total = 0.0
        for place, draw in zip(places, np.random.default_rng([9, index]).random(len(places)), strict=True):
            logs = log_softmax(logits[row, place].tolist())
            token = next(token for token in range(8) if math.fsum(map(math.exp, logs[: token + 1])) >= draw)
            total += logs[token]
        expected.append(total)
    np.testing.assert_allclose(TokenAnswers.of(logits, targets).sampled(9, indices), expected, rtol=1e-10)
    nothing = TokenAnswers.of(logits, torch.full((4, 6), NO_TARGET))
    assert nothing.sampled(9, indices).tolist() == nothing.losses().tolist() == [0.0] * 4


def test_sampling_is_differentiable_and_does_not_vanish_where_the_loss_does() -> None:
    """The sum over tokens of ``p (e_v - p)(e_v - p)^T`` is ``diag(p) - p p^T``, whatever the targets are."""
    logits = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    many = logits.expand(20_000, 1, 3).clone().requires_grad_()
    answers = TokenAnswers.of(many, torch.zeros(20_000, 1, dtype=torch.long))
    (gradients,) = torch.autograd.grad(answers.sampled(0, torch.arange(20_000)).sum(), many)
    found = torch.einsum("ni,nj->ij", gradients[:, 0], gradients[:, 0]) / 20_000
    chances = logits.softmax(dim=0)
    np.testing.assert_allclose(found, chances.diag() - chances.outer(chances), atol=0.01)


def test_half_precision_logits_are_judged_in_single_precision() -> None:
    scores = torch.tensor([[0.125, 9.0]], dtype=torch.bfloat16)
    losses = ClassAnswers(scores, torch.tensor([1])).losses()
    assert losses.dtype == torch.float32
    assert float(losses) == pytest.approx(-log_softmax([0.125, 9.0])[1], rel=1e-4)
    tokens = TokenAnswers.of(scores.unsqueeze(0), torch.tensor([[1]]))
    assert tokens.sampled(0, torch.tensor([0])).dtype == tokens.losses().dtype == torch.float32


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("family", ["llama", "bart"])
def test_a_writers_answers_equal_those_of_examples_alone(family: str, padding: dict[str, object]) -> None:
    subject = Writer({"llama": tiny_llama, "bart": tiny_bart}[family]().double())
    options = {**padding, "positions": True} if family == "llama" else {**padding, "side": "right"}
    batches = batches_for(family, **options)
    examples = lone_examples(batches)
    for answers, batch in answers_of(subject, batches):
        assert isinstance(answers, TokenAnswers)
        losses, sampled = answers.losses(), answers.sampled(5, batch.indices)
        for row, index in enumerate(batch.indices.tolist()):
            with torch.no_grad():
                logits, _ = alone(subject.model, examples[index])
            assert float(losses[row]) == pytest.approx(float(loss_alone(logits, examples[index])), rel=1e-8)
            assert float(sampled[row]) == pytest.approx(float(sampled_alone(logits, examples[index], 5)), rel=1e-8)


def test_a_classifiers_answers_are_its_head() -> None:
    model = tiny_bert(num_labels=3).double()
    ((answers, batch),) = answers_of(Classifier(model), tiny_batches(batch_size=10))
    assert isinstance(answers, ClassAnswers)
    with torch.no_grad():
        assert torch.equal(answers.scores, model(**batch.inputs).logits)
    assert torch.equal(answers.labels, batch.labels)


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_a_verbalizer_reads_its_words_where_the_prompt_is_answered(padding: dict[str, object]) -> None:
    model, words = tiny_bert_masked_lm().double(), (17, 5, 40)
    batches = tiny_batches(**{**padding, "positions": True})
    answer_of = [1, 4, 0, 11, 3, 2, 9, 5, 6, 7]
    examples = lone_examples(batches)
    for batch in batches:
        starts = batch.mask.long().argmax(dim=1)
        answer = starts + torch.tensor([answer_of[index] for index in batch.indices.tolist()])
        asked = Batch(batch.inputs, batch.labels, batch.special, batch.indices, answer=answer)
        ((answers, _),) = answers_of(Verbalizer(model, words), (asked,))
        assert isinstance(answers, ClassAnswers)
        for row, index in enumerate(batch.indices.tolist()):
            with torch.no_grad():
                logits, _ = alone(model, examples[index])
            expected: Tensor = logits[answer_of[index]][list(words)]
            np.testing.assert_allclose(answers.scores[row], expected, rtol=1e-8)


def test_label_names_stand_in_the_order_of_their_ids() -> None:
    model = tiny_bert(num_labels=12)
    names = [f"class {index}" for index in range(12)]
    model.config.id2label = {index: names[index] for index in reversed(range(12))}
    assert label_names(model) == tuple(names)
