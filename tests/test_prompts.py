"""Soft prompts: they learn, the model stays, and a prompted model says what a computation by hand says."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    PAD,
    POSITIONS,
    TINY,
    VOCABULARY,
    batches_for,
    tiny_bart,
    tiny_batches,
    tiny_bert,
    tiny_bert_masked_lm,
    tiny_distilbert_masked_lm,
    tiny_llama,
    tiny_llama_classifier,
    tiny_roberta,
    tiny_roberta_masked_lm,
)
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedModel,
)

from skillprune.activations import PLAIN, Observation, Reading, Visitor, stream
from skillprune.answers import Classifier, TaskModel, Verbalizer, Writer
from skillprune.data import NO_TARGET, Batch
from skillprune.errors import CheckpointError, DataError, MissingExtra, RecipeError, UnsupportedArchitecture
from skillprune.families import find_ffns
from skillprune.prompts import Prompted, PromptSettings, SoftPrompt, load_prompt, save_prompt, tune_prompt

TOKENS = 4
WORDS = (7, 11)
SETTINGS = PromptSettings(tokens=TOKENS, epochs=2, learning_rate=0.01)
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}

LANGUAGE_MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "bert": tiny_bert_masked_lm,
    "roberta": tiny_roberta_masked_lm,
    "distilbert": tiny_distilbert_masked_lm,
    "llama": tiny_llama,
}
CLASSIFIERS: dict[str, Callable[..., PreTrainedModel]] = {**TINY, "llama": tiny_llama_classifier}


def answering(batches: tuple[Batch, ...], *, last: bool) -> tuple[Batch, ...]:
    """The batches with the last or the second real token as the position that answers."""

    def place(batch: Batch) -> Tensor:
        steps = batch.mask.cumsum(dim=1)
        return (steps == (steps[:, -1:] if last else 2)).to(torch.uint8).argmax(dim=1)

    return tuple(replace(batch, answer=place(batch)) for batch in batches)


def subject_and_batches(kind: str, family: str, **options: Any) -> tuple[TaskModel, tuple[Batch, ...]]:
    """A tiny model, the way a task is put to it, and batches that fit."""
    if kind == "classifier":
        return Classifier(CLASSIFIERS[family]()), tiny_batches(**options)
    if kind == "verbalizer":
        batches = answering(tiny_batches(**options), last=family == "llama")
        return Verbalizer(LANGUAGE_MODELS[family](), words=WORDS), batches
    if family == "bert2bert":
        return Writer(bert_to_bert()), tiny_batches(targets="written", **options)
    return Writer(tiny_bart() if family == "bart" else tiny_llama()), batches_for(family, **options)


def bert_to_bert() -> EncoderDecoderModel:
    """Two BERTs, the second of which writes; its vocabulary is larger, and it has more positions."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    reads = BertConfig(vocab_size=VOCABULARY, pad_token_id=PAD, max_position_embeddings=POSITIONS, **sizes)
    writes = BertConfig(vocab_size=VOCABULARY + 3, pad_token_id=PAD, max_position_embeddings=2 * POSITIONS, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(reads, writes))
        for parameter in model.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


KINDS = [
    *(("classifier", family) for family in CLASSIFIERS),
    *(("verbalizer", family) for family in LANGUAGE_MODELS),
    *(("writer", family) for family in ("llama", "bart")),
]


def some_vectors(subject: TaskModel, seed: int = 5) -> Tensor:
    table = subject.model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    return torch.randn(TOKENS, table.embedding_dim, generator=torch.Generator().manual_seed(seed))


def prompted_by(subject: TaskModel) -> Prompted:
    return Prompted(subject, SoftPrompt(some_vectors(subject), SETTINGS))


def by_hand(subject: TaskModel, vectors: Tensor, batch: Batch, row: int) -> Tensor:
    """The model's logits for one example without padding, its embeddings and the vectors put together here."""
    first = 1 if isinstance(subject, Classifier) else 0
    real = batch.mask[row]
    embedded = subject.model.get_input_embeddings()(batch.inputs["input_ids"][row, real])
    whole = torch.cat([embedded[:first], vectors, embedded[first:]]).unsqueeze(0)
    inputs: dict[str, Tensor] = {
        "inputs_embeds": whole,
        "attention_mask": torch.ones(whole.shape[:2], dtype=torch.long),
    }
    if "position_ids" in batch.inputs:
        start = int(batch.inputs["position_ids"][row, real][0])
        inputs["position_ids"] = start + torch.arange(whole.shape[1]).unsqueeze(0)
    if "token_type_ids" in batch.inputs:
        types = batch.inputs["token_type_ids"][row, real]
        inputs["token_type_ids"] = torch.cat([types[:first], types[0].expand(TOKENS), types[first:]]).unsqueeze(0)
    if "decoder_input_ids" in batch.inputs:
        assert batch.targets is not None
        inputs["decoder_input_ids"] = batch.inputs["decoder_input_ids"][row, batch.targets[row] != NO_TARGET][None]
    logits: Tensor = subject.model(**inputs).logits[0]
    return logits


def expected_loss(subject: TaskModel, vectors: Tensor, batch: Batch, row: int) -> Tensor:
    """The loss of one example, with the answer looked up in what `by_hand` computed."""
    logits = by_hand(subject, vectors, batch, row)
    if isinstance(subject, Classifier):
        return nn.functional.cross_entropy(logits, batch.labels[row])
    real = batch.mask[row]
    if isinstance(subject, Verbalizer):
        assert batch.answer is not None
        place = TOKENS + int(real[: int(batch.answer[row])].sum())
        return nn.functional.cross_entropy(logits[place, list(subject.words)], batch.labels[row])
    assert batch.targets is not None
    if "decoder_input_ids" in batch.inputs:
        wanted = batch.targets[row][batch.targets[row] != NO_TARGET]
        return nn.functional.cross_entropy(logits, wanted, reduction="sum")
    text = batch.inputs["input_ids"][row, real]
    return nn.functional.cross_entropy(logits[TOKENS:-1], text[1:], reduction="sum")


@pytest.mark.parametrize(("kind", "family"), [*KINDS, ("writer", "bert2bert")])
@pytest.mark.parametrize("padding", ["right", "left", "wide", "left with positions"])
def test_a_prompted_model_says_what_a_computation_by_hand_says(kind: str, family: str, padding: str) -> None:
    positions = padding == "left with positions"
    if positions and family in ("distilbert", "bart", "bert2bert"):
        pytest.skip("takes no position ids")
    side, pad_to = "left" if "left" in padding else "right", POSITIONS if padding == "wide" else 0
    subject, batches = subject_and_batches(kind, family, side=side, pad_to=pad_to, positions=positions)
    prompted = prompted_by(subject)
    for batch in batches:
        prepared = prompted.prepare(batch)
        with torch.no_grad():
            losses = prompted.ask(prepared).losses()
        expected = torch.stack([expected_loss(subject, some_vectors(subject), batch, row) for row in range(len(batch))])
        torch.testing.assert_close(losses, expected, **TOLERANCE)
    assert all(parameter.requires_grad for parameter in subject.model.parameters())


@pytest.mark.parametrize("kind", ["classifier", "verbalizer"])
def test_segments_of_a_pair_arrive(kind: str) -> None:
    subject, (batch, *_) = subject_and_batches(kind, "bert")
    segments = (batch.mask.cumsum(dim=1) > 2).long() * batch.mask
    paired = replace(batch, inputs={**batch.inputs, "token_type_ids": segments})
    prompted = prompted_by(subject)
    with torch.no_grad():
        losses, plain = (prompted.ask(prompted.prepare(each)).losses() for each in (paired, batch))
    expected = torch.stack([expected_loss(subject, some_vectors(subject), paired, row) for row in range(len(batch))])
    torch.testing.assert_close(losses, expected, **TOLERANCE)
    assert not torch.allclose(losses, plain, **TOLERANCE)


def test_a_prepared_batch_says_where_everything_went() -> None:
    subject, (batch, *_) = subject_and_batches("writer", "llama", side="left", lengths=(2, 3), positions=True)
    batch = replace(batch, answer=torch.tensor([2, 1]))
    prepared = prompted_by(subject).prepare(batch)
    ids = batch.inputs["input_ids"]
    assert prepared.mask.tolist() == [[True] * 6 + [False], [True] * 7]
    assert prepared.prompt is not None and prepared.prompt.tolist() == [[True] * 4 + [False] * 3] * 2
    assert prepared.inputs["input_ids"][:, TOKENS:].tolist() == [[*ids[0, 1:].tolist(), PAD], ids[1].tolist()]
    assert prepared.inputs["position_ids"].tolist() == [[2, 3, 4, 5, 6, 7, PAD], [2, 3, 4, 5, 6, 7, 8]]
    assert prepared.special.tolist() == [[False] * 4 + [True, True, False], [False] * 4 + [True, False, True]]
    assert prepared.answer is not None and prepared.answer.tolist() == [5, 5]
    none = [NO_TARGET] * TOKENS
    first, second = [int(ids[0, 2]), NO_TARGET, NO_TARGET], [*ids[1, 1:].tolist(), NO_TARGET]
    assert prepared.targets is not None and prepared.targets.tolist() == [[*none, *first], [*none, *second]]


def test_a_classifier_keeps_its_first_token_first() -> None:
    subject, (batch, *_) = subject_and_batches("classifier", "bert", side="left")
    starts = batch.mask.to(torch.uint8).argmax(dim=1)
    prepared = prompted_by(subject).prepare(replace(batch, answer=starts + torch.tensor([0, 1, 2, 0])))
    assert prepared.answer is not None and prepared.answer.tolist() == [0, TOKENS + 1, TOKENS + 2, 0]
    firsts = [int(batch.inputs["input_ids"][row, batch.mask[row]][0]) for row in range(len(batch))]
    assert prepared.inputs["input_ids"][:, 0].tolist() == firsts
    assert (
        prepared.prompt is not None and prepared.prompt[:, : TOKENS + 2].tolist() == [[False, *[True] * 4, False]] * 4
    )


def test_the_pooler_reads_cls() -> None:
    subject, (batch, *_) = subject_and_batches("classifier", "bert")
    model = subject.model
    prompted, seen = prompted_by(subject), []
    handle = model.bert.pooler.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, 0]))
    embedded: list[Tensor] = []
    lower = model.bert.embeddings.register_forward_hook(lambda _, __, output: embedded.append(output))
    with torch.no_grad():
        prompted.ask(prompted.prepare(batch))
        handle.remove()
        lower.remove()
        # What the embeddings make of [CLS] at index 0 does not know of the prompt, what the blocks make of it does.
        table = model.bert.embeddings
        cls = table.word_embeddings(batch.inputs["input_ids"][:, 0]) + table.position_embeddings.weight[0]
        torch.testing.assert_close(embedded[0][:, 0], table.LayerNorm(cls + table.token_type_embeddings.weight[0]))
        body = model.bert(inputs_embeds=whole_of(subject, batch, 0), output_hidden_states=True)
    torch.testing.assert_close(seen[0][:1], body.last_hidden_state[:, 0], **TOLERANCE)


def whole_of(subject: TaskModel, batch: Batch, row: int) -> Tensor:
    """Embeddings of one example with the vectors after its first token, ``(1, length, hidden)``."""
    embedded = subject.model.get_input_embeddings()(batch.inputs["input_ids"][row, batch.mask[row]])
    return torch.cat([embedded[:1], some_vectors(subject), embedded[1:]]).unsqueeze(0)


@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_activations_of_the_slots_can_be_read(kind: str, family: str) -> None:
    subject, batches = subject_and_batches(kind, family, side="left" if family == "llama" else "right")
    ffns = tuple(ffn for ffn in find_ffns(subject.model) if ffn.stack.side == "input")
    first = 1 if kind == "classifier" else 0
    seen: list[Observation] = []
    visitor = Visitor(PLAIN, frozenset({ffns[1].site}), seen.append)
    prompted = prompted_by(subject)
    stream(prompted, ffns, dict(enumerate(batches)), [visitor], quantities={}, reading=Reading("prompt"))
    assert len(seen) == len(batches)
    for batch, observation in zip(batches, seen, strict=True):
        assert observation.pooled.shape == (len(batch), TOKENS, ffns[1].width)
        for row in range(len(batch)):
            calls: list[Tensor] = []
            handle = ffns[1].down.module.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args[0]))
            by_hand(subject, some_vectors(subject), batch, row)
            handle.remove()
            torch.testing.assert_close(observation.pooled[row], calls[0][0, first : first + TOKENS], **TOLERANCE)


def test_gradients_of_a_prompted_model_can_be_streamed() -> None:
    subject, batches = subject_and_batches("verbalizer", "bert")
    ffns, seen = find_ffns(subject.model), []
    visitor = Visitor("loss", frozenset({ffns[0].site}), lambda observation: seen.append(observation.effects))
    prompted = prompted_by(subject)
    stream(
        prompted, ffns, dict(enumerate(batches)), [visitor], quantities={"loss": lambda answers, _: answers.losses()}
    )
    assert all(bool(effects.ne(0).any()) for effects in seen)
    assert not prompted.prompt.vectors.requires_grad


def separable(examples: int = 48, *, seed: int = 0, batch_size: int = 16) -> tuple[Batch, ...]:
    """Examples whose second and last token name the class, two of class 0 for one of class 1."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 9, (examples,), generator=generator).tolist()
    labels = [int(index % 3 == 0) for index in range(examples)]
    batches = tiny_batches(lengths=lengths, labels=labels, batch_size=batch_size, seed=seed)
    for batch in batches:
        for places in (1, batch.mask.sum(dim=1) - 1):
            batch.inputs["input_ids"][torch.arange(len(batch)), places] = 20 + 10 * batch.labels
    return batches


LEARNERS: dict[str, tuple[Callable[[], TaskModel], bool]] = {
    "classifier": (lambda: Classifier(tiny_bert(hidden=32, width=64)), False),
    "masked": (lambda: Verbalizer(tiny_bert_masked_lm(hidden=32, width=64), words=WORDS), False),
    "causal": (lambda: Verbalizer(tiny_llama(hidden=32, width=64), words=WORDS), True),
}


def measure(subject: TaskModel, batches: tuple[Batch, ...]) -> tuple[float, float]:
    """Mean loss and accuracy."""
    losses, right = [], []
    with torch.no_grad():
        for batch in batches:
            prepared = subject.prepare(batch)
            answers: Any = subject.ask(prepared)
            losses.append(answers.losses())
            right.append(answers.scores.argmax(dim=1) == prepared.labels)
    return float(torch.cat(losses).mean()), float(torch.cat(right).double().mean())


@pytest.mark.parametrize("name", LEARNERS)
def test_a_prompt_learns_and_the_model_stays(name: str) -> None:
    build, last = LEARNERS[name]
    subject = build()
    subject.model.train()
    names = [name for name, _ in subject.model.named_parameters()]
    for parameter in list(subject.model.parameters())[::2]:
        parameter.requires_grad = False
    flags = [parameter.requires_grad for parameter in subject.model.parameters()]
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    train, validation = answering(separable(), last=last), answering(separable(seed=1), last=last)
    settings = PromptSettings(tokens=8, epochs=20, learning_rate=0.05)
    tuned = tune_prompt(subject, train, validation, settings)
    assert subject.model.training
    assert [name for name, _ in subject.model.named_parameters()] == names
    assert [parameter.requires_grad for parameter in subject.model.parameters()] == flags
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())
    subject.model.eval()
    untuned = tune_prompt(subject, train, validation, replace(settings, epochs=1, learning_rate=1e-9))
    (loss, accuracy), (loss_before, _) = measure(tuned, train), measure(untuned, train)
    assert loss < 0.8 * loss_before
    majority = max(float(torch.cat([batch.labels for batch in train]).eq(label).double().mean()) for label in (0, 1))
    assert accuracy > majority + 0.15
    assert not tuned.prompt.vectors.requires_grad and tuned.prompt.vectors.dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_a_prompt_learns_to_write(family: str) -> None:
    subject, batches = subject_and_batches("writer", family)
    tuned = tune_prompt(subject, batches, batches, PromptSettings(tokens=TOKENS, epochs=10, learning_rate=0.05))
    assert tuned.prompt.losses[-1] < tuned.prompt.losses[0]
    targets = sum(int((batch.targets != NO_TARGET).sum()) for batch in batches if batch.targets is not None)
    with torch.no_grad():
        total = sum(float(tuned.ask(tuned.prepare(batch)).losses().sum()) for batch in batches)
    assert total / targets == pytest.approx(min(tuned.prompt.losses), rel=1e-4)


def test_the_best_epoch_is_kept() -> None:
    subject, batches = subject_and_batches("classifier", "bert")
    backwards = tuple(replace(batch, labels=1 - batch.labels) for batch in batches)
    tuned = tune_prompt(subject, batches, backwards, PromptSettings(tokens=TOKENS, epochs=6, learning_rate=0.1))
    losses = tuned.prompt.losses
    assert len(losses) == 6 and min(losses) < losses[-1], "the last epoch should be worse, or nothing is tested"
    total = sum(measure(tuned, (batch,))[0] * len(batch) for batch in backwards)
    assert total / sum(map(len, backwards)) == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.parametrize(("kind", "family"), [("classifier", "bert"), ("writer", "llama")])
def test_batches_that_do_not_fit_are_put_in_halves_and_teach_the_same(kind: str, family: str) -> None:
    subject, batches = subject_and_batches(kind, family, batch_size=5)
    settings = PromptSettings(tokens=TOKENS, epochs=2, learning_rate=0.01)
    whole = tune_prompt(subject, batches, batches, settings).prompt
    sizes: list[int] = []

    def refuse(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        sizes.append(len(kwargs["attention_mask"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("no memory left")

    subject.model.register_forward_pre_hook(refuse, with_kwargs=True)
    parts = tune_prompt(subject, batches, batches, settings).prompt
    assert sizes[0] == 5 and max(sizes[1:]) <= 2
    torch.testing.assert_close(parts.vectors, whole.vectors, rtol=1e-4, atol=1e-5)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)


@pytest.mark.parametrize(("steps", "warm_up"), [(3, 0), (180, 1)])
def test_the_optimiser_is_that_of_the_paper(steps: int, warm_up: int) -> None:
    subject, (batch, *_) = subject_and_batches("classifier", "bert", lengths=(3, 5), labels=(1, 0))
    with torch.no_grad():
        subject.model.classifier.weight.mul_(10)  # so that gradients are long enough to be clipped
    settings = PromptSettings(tokens=TOKENS, epochs=1, learning_rate=0.01)
    tuned = tune_prompt(subject, [batch] * steps, [batch], settings).prompt
    vectors = torch.randn(TOKENS, 16, generator=torch.Generator().manual_seed(0)) / 30
    first, second = torch.zeros_like(vectors), torch.zeros_like(vectors)
    norms = []
    for step in range(steps):
        vectors.requires_grad_()
        losses = [expected_loss(subject, vectors, batch, row) for row in range(len(batch))]
        (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), vectors)
        norms.append(float(gradient.norm()))
        gradient = gradient / max(1.0, norms[-1])
        first, second = 0.9 * first + 0.1 * gradient, 0.98 * second + 0.02 * gradient**2
        slope = (second / (1 - 0.98 ** (step + 1))).sqrt() + 1e-6
        share = step / warm_up if step < warm_up else (steps - step) / (steps - warm_up)
        moved = settings.learning_rate * share * first / (1 - 0.9 ** (step + 1)) / slope
        vectors = vectors.detach() - moved
    assert max(norms) > 1, "no gradient is clipped, so nothing is tested"
    torch.testing.assert_close(tuned.vectors, vectors, rtol=1e-3, atol=1e-4)


def test_every_epoch_has_an_order_of_its_own() -> None:
    class Recorder(Classifier):
        def prepare(self, batch: Batch) -> Batch:
            seen.append(int(batch.indices[0]))
            return super().prepare(batch)

    def orders(seed: int) -> list[list[int]]:
        seen.clear()
        tune_prompt(Recorder(tiny_bert()), train, validation, replace(SETTINGS, epochs=3, seed=seed))
        learnt = [index for index in seen if index < 100]
        return [learnt[start : start + len(train)] for start in range(0, len(learnt), len(train))]

    seen: list[int] = []
    train = tiny_batches(batch_size=1)
    validation = [replace(train[0], indices=torch.tensor([100]))]
    first, other = orders(0), orders(1)
    assert all(sorted(order) == list(range(len(train))) for order in (*first, *other))
    assert len({tuple(order) for order in (*first, *other)}) == 6
    assert orders(0) == first


def test_the_seed_makes_the_prompt() -> None:
    subject, batches = subject_and_batches("classifier", "roberta")
    torch.manual_seed(1)
    one = tune_prompt(subject, batches, batches, SETTINGS).prompt.vectors
    torch.manual_seed(2)
    again = tune_prompt(subject, batches, batches, SETTINGS).prompt.vectors
    other = tune_prompt(subject, batches, batches, replace(SETTINGS, seed=1)).prompt.vectors
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("kind", ["classifier", "verbalizer"])
def test_global_random_numbers_are_left_alone(kind: str) -> None:
    subject, batches = subject_and_batches(kind, "bert")
    state = torch.get_rng_state()
    tune_prompt(subject, batches, batches, SETTINGS)
    assert torch.equal(state, torch.get_rng_state())


def test_the_first_slot_starts_as_the_mask_token() -> None:
    subject, batches = subject_and_batches("verbalizer", "bert")
    still = PromptSettings(tokens=200 // 5, epochs=1, learning_rate=1e-12)
    vectors = tune_prompt(subject, batches, batches, still, mask_token=9).prompt.vectors
    table = subject.model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    torch.testing.assert_close(vectors[0], table.weight[9])
    assert vectors[1:].std().item() == pytest.approx(1 / 30, rel=0.15)
    without = tune_prompt(subject, batches, batches, still).prompt.vectors
    torch.testing.assert_close(without[1:], vectors[1:])
    assert without.std().item() == pytest.approx(1 / 30, rel=0.15)


def test_a_prompt_is_tuned_again_from_where_it_was() -> None:
    subject, batches = Classifier(tiny_bert()), tiny_batches()
    first = tune_prompt(subject, batches, batches, SETTINGS)
    other = Classifier(tiny_bert(seed=3))
    before = copy.deepcopy(other.model.state_dict())
    kept = first.prompt.vectors.clone()
    again = tune_prompt(other, batches, batches, SETTINGS, start=first.prompt)
    moved = Prompted(other, first.prompt)
    with torch.no_grad():
        losses = torch.cat([moved.ask(moved.prepare(batch)).losses() for batch in batches])
    assert len(again.prompt.losses) == 1 + SETTINGS.epochs
    assert again.prompt.losses[0] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert min(again.prompt.losses) < again.prompt.losses[0]
    assert torch.equal(first.prompt.vectors, kept) and not torch.equal(again.prompt.vectors, kept)
    assert all(torch.equal(value, before[name]) for name, value in other.model.state_dict().items())


def test_a_prompt_that_tuning_only_harms_stays_as_it_was() -> None:
    subject, batches = Classifier(tiny_bert()), tiny_batches()
    first = tune_prompt(subject, batches, batches, replace(SETTINGS, epochs=20))
    again = tune_prompt(subject, batches, batches, replace(SETTINGS, learning_rate=100.0), start=first.prompt)
    assert min(again.prompt.losses) == again.prompt.losses[0]
    assert torch.equal(again.prompt.vectors, first.prompt.vectors)


def test_a_head_is_tuned_again_from_where_it_was() -> None:
    subject, batches, settings = Classifier(tiny_bert()), tiny_batches(), replace(SETTINGS, train_head=True)
    first = tune_prompt(subject, batches, batches, settings)
    hardly = tune_prompt(subject, batches, batches, replace(settings, learning_rate=1e-9), start=first.prompt)
    for name, value in hardly.prompt.head.items():
        torch.testing.assert_close(value, first.prompt.head[name], rtol=0, atol=1e-6)
        assert not torch.allclose(value, subject.model.get_parameter(name), rtol=0, atol=1e-4)
    headless = replace(first.prompt, head={})
    with pytest.raises(ValueError, match="has nothing where"):
        tune_prompt(subject, batches, batches, settings, start=headless)
    with pytest.raises(ValueError, match=r"has \(4, 16\) where \(3, 16\)"):
        tune_prompt(subject, batches, batches, replace(SETTINGS, tokens=3), start=first.prompt)


def test_a_head_is_trained_only_if_asked_and_the_model_s_own_stays() -> None:
    subject, batches = subject_and_batches("classifier", "roberta")
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    assert not tune_prompt(subject, batches, batches, SETTINGS).prompt.head
    trained = tune_prompt(subject, batches, batches, replace(SETTINGS, train_head=True, learning_rate=0.05))
    assert set(trained.prompt.head) == {name for name in before if name.startswith("classifier.")}
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    assert all(not torch.equal(value, before[name]) for name, value in trained.prompt.head.items())
    with torch.no_grad():
        answered: Any = trained.ask(trained.prepare(batches[0]))
        for name, value in trained.prompt.head.items():
            subject.model.get_parameter(name).copy_(value)
    by_itself = by_hand(subject, trained.prompt.vectors, batches[0], 0)
    torch.testing.assert_close(answered.scores[0], by_itself, **TOLERANCE)


@pytest.mark.parametrize(("kind", "family"), [("verbalizer", "bert"), ("writer", "llama")])
def test_only_classifiers_have_a_head_to_train(kind: str, family: str) -> None:
    subject, batches = subject_and_batches(kind, family)
    with pytest.raises(ValueError, match="classification head"):
        tune_prompt(subject, batches, batches, replace(SETTINGS, train_head=True))


@pytest.mark.parametrize(("kind", "family"), [("classifier", "bert"), ("verbalizer", "llama")])
def test_half_precision_models_have_precise_prompts(kind: str, family: str) -> None:
    subject, batches = subject_and_batches(kind, family)
    subject.model.to(torch.bfloat16)
    settings = replace(SETTINGS, train_head=kind == "classifier")
    tuned = tune_prompt(subject, batches, batches, settings)
    assert tuned.prompt.vectors.dtype == torch.float32
    assert not torch.equal(tuned.prompt.vectors, tuned.prompt.vectors.bfloat16().float())
    assert all(value.dtype == torch.float32 for value in tuned.prompt.head.values())
    assert all(parameter.dtype == torch.bfloat16 for parameter in subject.model.parameters())


@pytest.mark.parametrize("build", [tiny_bert, tiny_roberta])
def test_a_prompt_that_does_not_fit_is_refused(build: Callable[..., PreTrainedModel]) -> None:
    model = build()
    limit = POSITIONS - (PAD + 1 if build is tiny_roberta else 0)
    fits, longer = (tiny_batches(lengths=(5, limit - TOKENS + extra), pad_to=POSITIONS) for extra in (0, 1))
    subject = Classifier(model)
    tuned = tune_prompt(subject, fits, fits, SETTINGS)
    steps: list[tuple[str, int, int]] = []
    with pytest.raises(RecipeError) as refused:
        tune_prompt(subject, fits, longer, SETTINGS, progress=lambda *step: steps.append(step))
    assert not steps
    (problem,) = refused.value.problems
    assert (problem.field, problem.value) == ("scoring.prompt.tokens", "4")
    assert "at most 3 slots fit" in problem.message
    assert f"task.max_length to {limit - TOKENS}" in problem.message
    with pytest.raises(RecipeError, match="at most 3 slots fit"):
        tuned.prepare(longer[0])


def test_the_half_that_reads_has_to_have_the_positions() -> None:
    subject, batches = subject_and_batches("writer", "bert2bert", lengths=(5, POSITIONS - TOKENS + 2))
    with pytest.raises(RecipeError, match=f"the model has {POSITIONS} positions .* at most 2 slots fit"):
        tune_prompt(subject, batches, batches, SETTINGS)


def test_nothing_to_learn_from_is_refused() -> None:
    subject, batches = subject_and_batches("classifier", "bert")
    for train, validation in ((batches, ()), ((), batches)):
        with pytest.raises(DataError, match="needs examples"):
            tune_prompt(subject, train, validation, SETTINGS)


def test_a_loss_that_explodes_is_refused() -> None:
    subject, batches = subject_and_batches("classifier", "bert")
    with torch.no_grad():
        subject.model.classifier.weight.fill_(torch.inf)
    with pytest.raises(DataError, match=r"loss of the soft prompt is not finite in batch \d+; lower .*learning_rate"):
        tune_prompt(subject, batches, batches, SETTINGS)


def test_a_model_with_activations_that_are_not_finite_is_named_by_layer_and_batch() -> None:
    subject, batches = subject_and_batches("classifier", "bert")
    broken = copy.deepcopy(subject)
    with torch.no_grad():
        find_ffns(broken.model)[1].up.bias[3] = torch.nan
    with pytest.raises(DataError, match=r"activations of encoder layer 1 are not finite in batch \d+ \(examples"):
        tune_prompt(broken, batches, batches, SETTINGS)
    with torch.no_grad():
        subject.model.get_input_embeddings().weight[VOCABULARY - 1] = torch.nan
    train = [with_ids(batch, batch.inputs["input_ids"].clamp(max=VOCABULARY - 2)) for batch in batches]
    validation = [*train[:2], with_ids(train[2], torch.full_like(train[2].inputs["input_ids"], VOCABULARY - 1))]
    with pytest.raises(DataError, match=r"activations of encoder layer 0 are not finite in batch 2 \(examples"):
        tune_prompt(subject, train, validation, SETTINGS)


def with_ids(batch: Batch, ids: Tensor) -> Batch:
    return replace(batch, inputs={**batch.inputs, "input_ids": ids})


def test_language_models_need_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    subject, batches = subject_and_batches("verbalizer", "bert")
    with pytest.raises(MissingExtra, match=r"skillprune\[prompts\]"):
        tune_prompt(subject, batches, batches, SETTINGS)
    subject, batches = subject_and_batches("classifier", "bert")
    tune_prompt(subject, batches, batches, SETTINGS)


def test_a_classifier_with_a_decoder_is_refused() -> None:
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=POSITIONS,
    )
    batches = tiny_batches()
    with pytest.raises(UnsupportedArchitecture, match="bart.*encoder or a decoder alone"):
        tune_prompt(Classifier(BartForSequenceClassification(config)), batches, batches, SETTINGS)


@pytest.mark.parametrize(("kind", "family"), [("classifier", "bert"), ("verbalizer", "llama"), ("writer", "bart")])
def test_a_prompt_survives_saving(kind: str, family: str, tmp_path: Path) -> None:
    subject, batches = subject_and_batches(kind, family)
    settings = replace(SETTINGS, seed=3, train_head=kind == "classifier")
    tuned = tune_prompt(subject, batches, batches, settings)
    save_prompt(tuned, tmp_path / "prompt.safetensors")
    loaded = load_prompt(subject, tmp_path / "prompt.safetensors")
    assert torch.equal(loaded.prompt.vectors, tuned.prompt.vectors)
    assert loaded.prompt.settings == settings and loaded.prompt.losses == tuned.prompt.losses
    with torch.no_grad():
        pairs = [(tuned.ask(tuned.prepare(b)).losses(), loaded.ask(loaded.prepare(b)).losses()) for b in batches]
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_prompt_of_another_model_is_refused(tmp_path: Path) -> None:
    subject, batches = subject_and_batches("classifier", "bert")
    path = tmp_path / "prompt.safetensors"
    save_prompt(tune_prompt(subject, batches, batches, replace(SETTINGS, train_head=True)), path)
    with pytest.raises(CheckpointError, match="size 16, the model's embeddings 32"):
        load_prompt(Classifier(tiny_bert(hidden=32)), path)
    with pytest.raises(CheckpointError, match="classifier.bias does not fit"):
        load_prompt(Classifier(tiny_bert(num_labels=3)), path)
    with pytest.raises(CheckpointError, match="classifier of type bert, not to a classifier of type roberta"):
        load_prompt(Classifier(tiny_roberta()), path)
    with pytest.raises(CheckpointError, match="not to a verbalizer"):
        load_prompt(Verbalizer(tiny_bert_masked_lm(), words=WORDS), path)


def test_a_file_without_a_prompt_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"vectors": torch.zeros(1, 16)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("not a prompt")
    subject = Classifier(tiny_bert())
    with pytest.raises(CheckpointError, match="holds no soft prompt"):
        load_prompt(subject, tmp_path / "other.safetensors")
    for name in ("text.safetensors", "nowhere.safetensors"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_prompt(subject, tmp_path / name)


def test_every_step_is_reported() -> None:
    subject, batches = subject_and_batches("classifier", "bert")
    seen: list[tuple[str, int, int]] = []
    tune_prompt(subject, batches, batches, SETTINGS, progress=lambda *step: seen.append(step))
    assert seen == [("soft prompt", done, 2 * len(batches)) for done in range(2 * len(batches) + 1)]
