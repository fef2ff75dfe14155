"""Tunes a soft prompt while the model stays as it is; running a model with a prompt is left to prompted.

Wang, Wen et al., "Finding Skill Neurons in Pre-trained Transformer-based Language Models", arXiv 2211.07349; optimiser
and initialisation are those of its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Adam
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from skillprune.activations import PLAIN, Capacity, Observation, Visitor, stream
from skillprune.activations.hooks import evaluating, frozen
from skillprune.answers import Classifier, TaskModel
from skillprune.data import NO_TARGET, Batch
from skillprune.errors import DataError
from skillprune.families import base_model, find_ffns
from skillprune.progress import Progress, silent, track
from skillprune.prompts.prompted import Prompted, PromptSettings, SoftPrompt
from skillprune.prompts.slots import check_fit
from skillprune.prompts.voices import embed

_BETAS, _EPSILON, _WARM_UP_SHARE, _LARGEST_GRADIENT = (0.9, 0.98), 1e-6, 0.006, 1.0
_SPREAD = 1 / 30


def tune_prompt(
    subject: TaskModel,
    train: Sequence[Batch],
    validation: Sequence[Batch],
    settings: PromptSettings,
    *,
    mask_token: int | None = None,
    start: SoftPrompt | None = None,
    progress: Progress = silent,
) -> Prompted:
    """Tunes the vectors, and with ``train_head`` a copy of the head; the model's parameters stay bit for bit.

    With ``start`` a prompt is tuned again, for example on the pruned model: then the losses begin with that of
    ``start`` as it is, and it is what is kept if no epoch is better.

    Args:
        subject: the model, and how the task is put to it.
        train: batches to learn from, in an order drawn anew for every epoch.
        validation: batches that decide which epoch's vectors are kept.
        settings: size, schedule and seed.
        mask_token: the tokenizer's mask token; the first slot starts as a copy of its embedding, if there is one.
        start: vectors, and with ``train_head`` the head, to start from; otherwise vectors are drawn by seed.
        progress: told about every step.

    Raises:
        RecipeError: inputs and slots are more than the model has positions for.
        DataError: a split is empty, or the loss is not finite, with the layer and batch where the model without prompt
            has activations that are not.
        MissingExtra: the model is a language model, and PEFT is not installed.
        UnsupportedArchitecture: the model is a classifier with a decoder.
        ResourceFailure: not even one example fits into the device's memory.
        ValueError: the head is to be trained, and there is no classification head; or ``start`` has another number of
            slots or another size than is asked for, or no head that is.
    """
    if not train or not validation:
        raise DataError("a soft prompt needs examples to learn from and validation examples to choose the best epoch")
    for batch in (*train, *validation):
        check_fit(batch, subject.model.config, settings.tokens)
    generator = torch.Generator().manual_seed(settings.seed)
    # Evaluation mode, also while training: scoring runs the model without dropout, so that is the model the prompt is
    # for, and the same seed gives the same vectors whatever else draws random numbers.
    with evaluating(subject.model), frozen(subject.model), torch.enable_grad():
        vectors = _first_vectors(subject.model, settings.tokens, mask_token, generator)
        prompt = SoftPrompt(vectors, settings, _head_of(subject) if settings.train_head else {})
        prompt = _parameters(prompt if start is None else _values_of(start, prompt))
        tuned = _trained(Prompted(subject, prompt), train, validation, start is not None, generator, progress)
    return Prompted(subject, tuned)


def _first_vectors(model: PreTrainedModel, tokens: int, mask_token: int | None, generator: torch.Generator) -> Tensor:
    some = embed(model, mask_token or 0)
    vectors = (torch.randn(tokens, len(some), generator=generator) * _SPREAD).to(some.device)
    if mask_token is not None:
        vectors[0] = some
    return vectors


def _head_of(subject: TaskModel) -> dict[str, Tensor]:
    """Copies of the parameters outside the base model, in float32 like the vectors."""
    body = {id(parameter) for parameter in base_model(subject.model).parameters()}
    own = {name: value for name, value in subject.model.named_parameters() if id(value) not in body}
    if not own or not isinstance(subject, Classifier):
        raise ValueError(f"train_head needs a classification head, which {type(subject.model).__name__} has not")
    return {name: value.detach().clone().float() for name, value in own.items()}


def _values_of(start: SoftPrompt, prompt: SoftPrompt) -> SoftPrompt:
    """The prompt with the vectors and the head of another one."""
    head = {name: _like(start.head.get(name), value) for name, value in prompt.head.items()}
    return replace(prompt, vectors=_like(start.vectors, prompt.vectors), head=head)


def _like(given: Tensor | None, expected: Tensor) -> Tensor:
    """A copy of ``given`` where ``expected`` is, if it has the same shape."""
    if given is None or given.shape != expected.shape:
        found = "nothing" if given is None else tuple(given.shape)
        raise ValueError(f"the soft prompt to start from has {found} where {tuple(expected.shape)} is to be tuned")
    return given.detach().to(expected, copy=True)


def _parameters(prompt: SoftPrompt) -> SoftPrompt:
    """The prompt with vectors and head as leaves that gradients are taken of."""
    head = {name: nn.Parameter(value) for name, value in prompt.head.items()}
    return replace(prompt, vectors=nn.Parameter(prompt.vectors), head=head)


def _trained(
    tuned: Prompted,
    train: Sequence[Batch],
    validation: Sequence[Batch],
    keep_start: bool,
    generator: torch.Generator,
    progress: Progress,
) -> SoftPrompt:
    """The prompt after the epoch that is best on validation data; before the first, where that may be kept."""
    prompt, settings = tuned.prompt, tuned.prompt.settings
    trained = [prompt.vectors, *prompt.head.values()]
    order = [
        number for _ in range(settings.epochs) for number in torch.randperm(len(train), generator=generator).tolist()
    ]
    optimizer = Adam(trained, lr=settings.learning_rate, betas=_BETAS, eps=_EPSILON)
    schedule = get_linear_schedule_with_warmup(optimizer, int(_WARM_UP_SHARE * len(order)), len(order))
    capacity = Capacity()
    losses = [_mean_loss(tuned, validation, capacity)] if keep_start else []
    best = _copy_of(prompt)
    for step, number in enumerate(track(order, "soft prompt", progress), start=1):
        parts = capacity.run(train[number], partial(_gradients, tuned, trained, number))
        for parameter, *gradients in zip(trained, *(gradients for gradients, _ in parts), strict=True):
            parameter.grad = torch.stack(gradients).sum(dim=0) / sum(count for _, count in parts)
        nn.utils.clip_grad_norm_(trained, _LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        if step % len(train) == 0:
            losses.append(_mean_loss(tuned, validation, capacity))
            if losses[-1] == min(losses):
                best = _copy_of(prompt)
    return replace(best, losses=tuple(losses))


def _gradients(tuned: Prompted, trained: Sequence[Tensor], number: int, batch: Batch) -> tuple[tuple[Tensor, ...], int]:
    """Gradients of the summed loss, and over how much it was summed."""
    total, count = _loss(tuned, number, batch)
    return torch.autograd.grad(total, trained, allow_unused=True, materialize_grads=True), count


def _loss(tuned: Prompted, number: int, batch: Batch) -> tuple[Tensor, int]:
    """The loss of a batch, summed, and over how much: examples, or tokens of a model that writes."""
    total = tuned.ask(tuned.prepare(batch)).losses().sum()
    if not bool(total.isfinite()):
        _refuse_broken_model(tuned.subject, number, batch)
        raise DataError(
            f"the loss of the soft prompt is not finite in batch {number}; lower scoring.prompt.learning_rate, or set "
            "model.dtype to float32"
        )
    count = len(batch) if batch.targets is None else int((batch.targets != NO_TARGET).sum())
    return total, max(1, count)


def _refuse_broken_model(subject: TaskModel, number: int, batch: Batch) -> None:
    """Names the lowest layer whose activations are not finite, if the model has such layers without a prompt."""
    ffns = find_ffns(subject.model)
    everywhere = Visitor(PLAIN, frozenset(ffn.site for ffn in ffns), Observation.check)
    stream(subject, ffns, {number: batch}, [everywhere], quantities={})


def _mean_loss(tuned: Prompted, batches: Sequence[Batch], capacity: Capacity) -> float:
    total, count = 0.0, 0
    with torch.no_grad():
        for number, batch in enumerate(batches):
            for loss, more in capacity.run(batch, partial(_loss, tuned, number)):
                total, count = total + float(loss), count + more
    return total / count


def _copy_of(prompt: SoftPrompt) -> SoftPrompt:
    head = {name: value.detach().clone() for name, value in prompt.head.items()}
    return replace(prompt, vectors=prompt.vectors.detach().clone(), head=head)
