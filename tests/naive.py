"""The naive side of the scoring tests: one example at a time, without padding, with hooks and paths of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from tiny import LABELS, tiny_batches
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillprune.activations import Observation, Reading
from skillprune.answers import TaskModel, Writer
from skillprune.data import NO_TARGET, Batch
from skillprune.families import FFN, Site, Stack
from skillprune.scoring import (
    CRITERIA,
    Criterion,
    NeuronScores,
    Provenance,
    Read,
    ScoringData,
    score_neurons,
    settings_for,
)

ALL = tuple(CRITERIA)
SEEN = Provenance(model="m", data="d", examples=10, position="mean", seed=7)
THREE = (0, 1, 2, 0, 0, 2, 1, 0, 0, 2)
OTHER_LENGTHS = (6, 4, 11, 3, 8, 9, 5, 12, 7, 10)
TOKEN_CRITERIA = ("skill", "wanda", "fluctuation", "magnitude", "random", "fisher", "gauss_newton", "taylor")

DOWN = {
    "bert": {"encoder": "bert.encoder.layer.{}.output.dense"},
    "roberta": {"encoder": "roberta.encoder.layer.{}.output.dense"},
    "distilbert": {"encoder": "distilbert.transformer.layer.{}.ffn.lin2"},
    "llama": {"decoder": "model.layers.{}.mlp.down_proj"},
    "bart": {"encoder": "model.encoder.layers.{}.fc2", "decoder": "model.decoder.layers.{}.fc2"},
}

PADDINGS = (
    {"batch_size": 1},
    {"batch_size": 4, "side": "left"},
    {"batch_size": 10, "pad_to": 15, "order": (3, 9, 0, 7, 1, 8, 2, 5, 4, 6)},
    {"batch_size": 3, "side": "left", "pad_to": 14, "order": (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)},
)
"""Ways to put the same ten examples into batches."""


class Lone(NamedTuple):
    """One example without padding, as inputs of a batch of one."""

    inputs: dict[str, Tensor]
    label: int
    targets: Tensor | None
    index: int


def lone_examples(batches: Sequence[Batch]) -> list[Lone]:
    """Every example of a split by itself, in the order of the split."""
    found = {}
    for batch in batches:
        for row, index in enumerate(batch.indices.tolist()):
            inputs, targets = {}, None
            if batch.targets is not None:
                written = batch.targets.shape[1] != batch.mask.shape[1] or "decoder_input_ids" in batch.inputs
                kept = batch.targets[row] != NO_TARGET if written else batch.mask[row]
                targets = batch.targets[row][kept]
            for name, tensor in batch.inputs.items():
                inputs[name] = tensor[row][kept if name == "decoder_input_ids" else batch.mask[row]].unsqueeze(0)
            found[index] = Lone(inputs, int(batch.labels[row]), targets, index)
    return [found[index] for index in sorted(found)]


def down_modules(model: PreTrainedModel) -> dict[Site, nn.Linear]:
    """Every down projection, by paths written down here."""
    modules = dict(model.named_modules())
    return {
        (stack, layer): modules[path.format(layer)]
        for stack, path in DOWN[model.config.model_type].items()
        for layer in range(sum(name.startswith(path.split("{}")[0]) for name in modules))
        if path.format(layer) in modules
    }


def alone(
    model: PreTrainedModel, example: Lone, masks: Mapping[Site, Tensor] | None = None
) -> tuple[Tensor, dict[Site, Tensor]]:
    """The logits of one example and what every down projection reads, ``(tokens, neurons)``; masks multiply that."""
    read: dict[Site, Tensor] = {}
    with ExitStack() as stack:
        for site, down in down_modules(model).items():

            def hook(_: nn.Module, args: tuple[Tensor], site: Site = site) -> tuple[Tensor] | None:
                read[site] = args[0][0].detach()
                return None if masks is None or site not in masks else (args[0] * masks[site],)

            stack.callback(down.register_forward_pre_hook(hook).remove)
        logits = model(**example.inputs).logits[0]
    return logits, read


def activations_alone(model: PreTrainedModel, batches: Sequence[Batch]) -> dict[Site, list[list[list[float]]]]:
    """Activations per site, example, token and neuron; every example runs alone and without padding."""
    found: dict[Site, list[list[list[float]]]] = {}
    for example in lone_examples(batches):
        with torch.no_grad():
            for site, read in alone(model, example)[1].items():
                found.setdefault(site, []).append(read.tolist())
    return found


def loss_alone(logits: Tensor, example: Lone) -> Tensor:
    """Cross-entropy written out, summed over targets where there are several."""
    if example.targets is None:
        return logits.exp().sum().log() - logits[example.label]
    places = [place for place, token in enumerate(example.targets.tolist()) if token != NO_TARGET]
    return sum((logits[place].exp().sum().log() - logits[place, example.targets[place]] for place in places), 0)


def sampled_alone(logits: Tensor, example: Lone, seed: int) -> Tensor:
    """The random quantity of `Answers.sampled`, from its documentation."""
    rng = np.random.default_rng([seed, example.index])
    if example.targets is None:
        drawn = rng.standard_normal(len(logits))
        drawn = drawn - drawn.mean()
        contrast = drawn / np.sqrt((drawn**2).sum()) * np.sqrt(len(logits) - 1)
        return sum(float(weight) * logit for weight, logit in zip(contrast, logits, strict=True))
    places = [place for place, token in enumerate(example.targets.tolist()) if token != NO_TARGET]
    total = torch.zeros((), dtype=logits.dtype)
    for place, draw in zip(places, rng.random(len(places)), strict=True):
        chances = (logits[place] - logits[place].exp().sum().log()).exp().tolist()
        token, reached = 0, chances[0]
        while reached < draw and token < len(chances) - 1:
            token += 1
            reached += chances[token]
        total = total + logits[place, token] - logits[place].exp().sum().log()
    return total


def effects_alone(
    model: PreTrainedModel, batches: Sequence[Batch], quantity: Callable[[Tensor, Lone], Tensor]
) -> dict[Site, np.ndarray]:
    """Derivatives of a quantity with respect to a mask of ones, per site ``(examples, neurons)``, one by one."""
    found: dict[Site, list[np.ndarray]] = {}
    for example in lone_examples(batches):
        masks = {
            site: torch.ones(down.in_features, dtype=torch.float64, requires_grad=True)
            for site, down in down_modules(model).items()
        }
        quantity(alone(model, example, masks)[0], example).backward(inputs=list(masks.values()))
        for site, mask in masks.items():
            assert mask.grad is not None
            found.setdefault(site, []).append(mask.grad.numpy())
    return {site: np.stack(rows) for site, rows in found.items()}


def score(subject: PreTrainedModel | TaskModel, data: ScoringData, *criteria: str, **others: Any) -> tuple:
    """Scores; ``others`` are fields of `Settings`, but for ``state_bytes`` and ``progress``."""
    options = {name: others.pop(name) for name in ("state_bytes", "progress") if name in others}
    if isinstance(subject, Writer):
        others.setdefault("labels", ())
    found = settings_for(subject, data, **{"seed": SEEN.seed, **others})
    return score_neurons(subject, data, criteria=criteria, provenance=SEEN, settings=found, **options)


def data_of(labels: Sequence[int] = LABELS, **options: Any) -> ScoringData:
    """Ten examples to calibrate on and ten others, of other lengths, to validate on."""
    calibration = tiny_batches(labels=labels, **options)
    return ScoringData(calibration, tiny_batches(labels=labels, lengths=OTHER_LENGTHS, seed=1, **options))


def by_site(scores: NeuronScores) -> dict[Site, np.ndarray]:
    return {(stack, layer): values for stack, layers in scores.values.items() for layer, values in enumerate(layers)}


def details_by_site(scores: NeuronScores, name: str) -> dict[Site, np.ndarray]:
    return {
        (stack, layer): values for stack, layers in scores.details[name].items() for layer, values in enumerate(layers)
    }


def lone_ffn(neurons: int, *, hidden: int = 2, bias: bool = True) -> FFN:
    """An FFN without a model, for criteria that are fed by hand; float64."""
    parts = {"up": nn.Linear(hidden, neurons), "act": nn.Identity(), "down": nn.Linear(neurons, hidden, bias=bias)}
    stack = Stack("encoder", "", "up", "down", "act", None, residual="up", attending=(), attention="")
    return FFN(stack, 0, nn.ModuleDict(parts).double())


def feed(
    worker: Criterion,
    read: Read,
    ffn: FFN,
    rows: Sequence[Sequence[float]],
    labels: Sequence[int],
    *,
    reading: Reading = Reading("cls"),  # noqa: B008  # frozen
) -> None:
    """Hands over one-token examples, one batch each."""
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        ones = torch.ones(1, 1, dtype=torch.long)
        batch = Batch({"attention_mask": ones}, torch.tensor([label]), ones.bool(), torch.tensor([index]))
        activations = torch.tensor([[list(map(float, row))]], dtype=torch.float64)
        worker.update(read, Observation(ffn, batch, index, reading, activations))


def assert_same(found: NeuronScores, expected: NeuronScores, rtol: float = 1e-6) -> None:
    assert found.criterion == expected.criterion
    mine, theirs = by_site(found), by_site(expected)
    assert mine.keys() == theirs.keys()
    for site in mine:
        # Where a neuron costs next to nothing, only the size of what is next to it can be kept.
        floor = 1e-9 * float(np.abs(theirs[site]).max())
        np.testing.assert_allclose(mine[site], theirs[site], rtol=rtol, atol=floor, err_msg=f"{found.criterion} {site}")
