"""Recovery: the loss is the one on paper, the best epoch stays bit for bit, and interruptions leave no trace."""

from __future__ import annotations

import copy
import errno
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from naive import lone_examples
from safetensors import safe_open
from tiny import TINY_ALL, batches_for, tiny_batches, tiny_bert, tiny_bert_masked_lm
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from skillprune.answers import ClassAnswers, Classifier, TaskModel, TokenAnswers, Verbalizer, Writer
from skillprune.data import NO_TARGET, Batch
from skillprune.errors import DataError, PlanMismatch, ResourceFailure
from skillprune.families import find_ffns
from skillprune.progress import Progress, silent
from skillprune.recovery import Epoch, Labels, Recovery, RecoverySettings, recover_, train_, training
from skillprune.recovery import state as recovery_state
from skillprune.recovery.objective import Distance, answer_loss, hidden_loss
from skillprune.recovery.teacher import Teacher
from skillprune.recovery.training import pace
from skillprune.surgery import record_widths_

EPOCHS = 4
SETTINGS = RecoverySettings(epochs=EPOCHS, learning_rate=3e-3, patience=EPOCHS)
TRAIN, VALIDATION = tiny_batches(), tiny_batches(seed=1)


class Stopped(Exception):
    """Somebody pulled the plug."""


def stop_at(word: str, done: int) -> Progress:
    """Pulls the plug when a piece of work is that far."""

    def progress(what: str, reached: int, total: int) -> None:
        if word in what and reached == done:
            raise Stopped

    return progress


def halved(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with every second neuron."""
    student = copy.deepcopy(model)
    for ffn in find_ffns(student):
        ffn.keep_(range(0, ffn.width, 2))
    record_widths_(student)
    return student


def put(family: str, model: PreTrainedModel) -> TaskModel:
    return Writer(model) if family in ("llama", "bart") else Classifier(model)


def values(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of tensors that are not equal bit for bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def recovered(
    settings: RecoverySettings = SETTINGS, *, checkpoint: Path | None = None, progress: Progress = silent
) -> tuple[Recovery, PreTrainedModel]:
    """A halved classifier after recovery by the one it was cut from."""
    dense = tiny_bert()
    student = halved(dense)
    done = recover_(
        Classifier(student),
        Classifier(dense),
        TRAIN,
        VALIDATION,
        settings,
        checkpoint=checkpoint,
        progress=progress,
    )
    return done, student


@pytest.mark.parametrize(("fits", "what"), [(0, "validation on batch 0"), (2 * len(VALIDATION), "training on batch")])
def test_a_batch_without_memory_is_a_resource_failure(fits: int, what: str) -> None:
    """Student and teacher answer the validation batches before training begins."""
    dense, runs = tiny_bert(), count()
    student = halved(dense)

    def refuse(*_: object) -> None:
        if next(runs) >= fits:
            raise torch.OutOfMemoryError("no memory left")

    for model in (student, dense):
        model.register_forward_pre_hook(refuse)
    with pytest.raises(ResourceFailure, match=rf"{what}.* does not fit .*lower scoring\.batch_size"):
        recover_(Classifier(student), Classifier(dense), TRAIN, VALIDATION, SETTINGS)


# ---- the loss


def naive_divergence(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """``T^2 KL(teacher || student)`` written out, mean over rows."""
    total = 0.0
    for said, wanted in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(logit / temperature) for logit in logits] for logits in (wanted, said))
        p, q = [each / sum(p) for each in p], [each / sum(q) for each in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_answer_loss_is_the_divergence_on_paper(temperature: float) -> None:
    student, teacher = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(6, dtype=torch.long)
    loss = answer_loss(ClassAnswers(student, labels), ClassAnswers(teacher, labels), temperature)
    assert float(loss) == pytest.approx(naive_divergence(student, teacher, temperature), rel=1e-5)
    assert float(answer_loss(ClassAnswers(teacher, labels), ClassAnswers(teacher, labels), temperature)) == 0.0


@pytest.mark.parametrize("family", ["bert", "llama", "bart"])
def test_right_answers_add_their_cross_entropy_per_answer(family: str) -> None:
    dense = TINY_ALL[family]()
    student, teacher = put(family, halved(dense)), put(family, dense)
    batch = batches_for(family)[0]
    with torch.no_grad():
        plain, answers = Distance(student, Teacher(teacher), SETTINGS).on(batch)
        mixed, _ = Distance(student, Teacher(teacher), replace(SETTINGS, label_weight=0.5)).on(batch)
        added = 0.5 * float(answers.losses().sum()) / len(answers.choices())
    assert added > 0
    assert float(mixed - plain) == pytest.approx(added, rel=1e-4)


def test_tokens_without_a_target_do_not_count_as_answers() -> None:
    student, teacher = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 2, NO_TARGET, NO_TARGET], [3, NO_TARGET, 0, NO_TARGET]])
    wanted = targets != NO_TARGET
    loss = answer_loss(TokenAnswers.of(student, targets), TokenAnswers.of(teacher, targets), 2.0)
    assert float(loss) == pytest.approx(naive_divergence(student[wanted], teacher[wanted], 2.0), rel=1e-5)


def test_the_hidden_loss_is_the_share_of_variance_that_is_missed() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, noise = torch.randn(2, 3, 5, 4, generator=generator).double()
    real = torch.ones(3, 5, dtype=torch.bool)
    flat = teacher.reshape(-1, 4).numpy()
    expected = float((noise.numpy() ** 2).sum() / ((flat - flat.mean(axis=0)) ** 2).sum())
    once = hidden_loss([teacher + noise], [teacher], [real])
    assert float(once) == pytest.approx(expected, rel=1e-5)
    # A layer whose states are a thousand times as large counts the same.
    layers = [teacher, 1000 * teacher]
    both = hidden_loss([teacher + noise, 1000 * (teacher + 2 * noise)], layers, [real, real])
    assert float(both) == pytest.approx((expected + 4 * expected) / 2, rel=1e-5)
    mean = teacher.reshape(-1, 4).mean(dim=0).expand_as(teacher)
    assert float(hidden_loss([mean], [teacher], [real])) == pytest.approx(1.0)


def test_one_token_has_a_hidden_loss_too() -> None:
    teacher = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[True, False, False]])
    assert bool(hidden_loss([teacher + 1], [teacher], [real]).isfinite())


@pytest.mark.parametrize("family", TINY_ALL)
@pytest.mark.parametrize(("room", "forwards"), [(0, 4), (None, 2)])
def test_a_teacher_is_asked_once_where_there_is_room_and_says_the_same(
    family: str, room: int | None, forwards: int
) -> None:
    dense, batches = TINY_ALL[family](), batches_for(family)[:2]
    teacher, asked = Teacher(put(family, dense), room), []
    dense.register_forward_hook(lambda *_: asked.append(1))
    first, second = ([teacher.on(batch) for batch in batches] for _ in range(2))
    assert len(asked) == forwards
    for before, after in zip(first, second, strict=True):
        assert all(map(torch.equal, before.states, after.states))
        assert torch.equal(before.answers.choices(), after.answers.choices())


def test_a_teacher_remembers_no_more_than_there_is_room_for() -> None:
    dense, batches = tiny_bert(), tiny_batches()
    room = Teacher(Classifier(dense)).on(batches[0]).bytes
    teacher, asked = Teacher(Classifier(dense), room), []
    dense.register_forward_hook(lambda *_: asked.append(1))
    for _ in range(3):
        for batch in batches:
            teacher.on(batch)
    assert len(asked) == 1 + 3 * (len(batches) - 1)


@pytest.mark.parametrize("family", TINY_ALL)
def test_padding_has_no_part_in_the_loss(family: str) -> None:
    dense = TINY_ALL[family]()
    objective = Distance(put(family, halved(dense)), Teacher(put(family, dense)), SETTINGS)
    narrow, wide = (batches_for(family, pad_to=width)[0] for width in (0, 20))
    assert narrow.mask.shape != wide.mask.shape
    with torch.no_grad():
        assert float(objective.on(wide)[0]) == pytest.approx(float(objective.on(narrow)[0]), rel=1e-4)


@pytest.mark.parametrize("family", TINY_ALL)
def test_hidden_states_are_those_that_transformers_names(family: str) -> None:
    """With answers left out of the sum, the objective is the loss of what ``output_hidden_states`` gives."""
    dense = TINY_ALL[family]()
    student = halved(dense)
    (batch, *_) = batches_for(family)
    answers, both = (
        Distance(put(family, student), Teacher(put(family, dense)), replace(SETTINGS, hidden_weight=weight))
        for weight in (0.0, 1.0)
    )
    with torch.no_grad():
        difference = float(both.on(batch)[0]) - float(answers.on(batch)[0])
        states = []
        for model in (student, dense):
            last: list[Tensor] = []
            if family == "llama":  # what it calls its last hidden states is normalised once more, after the last block
                model.model.norm.register_forward_pre_hook(lambda _, args, last=last: last.append(args[0]))
            output = model(**batch.inputs, output_hidden_states=True)
            kinds = ("encoder_hidden_states", "decoder_hidden_states") if family == "bart" else ("hidden_states",)
            found = [layer for kind in kinds for layer in output[kind][1:]]
            states.append([*found[: len(found) - len(last)], *last])
    sides = [ffn.stack.side for ffn in find_ffns(dense)]
    real = [batch.mask_of(side) for side in sides]
    assert difference == pytest.approx(float(hidden_loss(*states, real)), rel=1e-3)


@pytest.mark.parametrize("train", ["all", "neurons"])
@pytest.mark.parametrize("family", TINY_ALL)
def test_training_brings_the_student_nearer_to_its_teacher(family: str, train: Any) -> None:
    dense = TINY_ALL[family]()
    student, before = halved(dense), values(dense)
    done = recover_(
        put(family, student),
        put(family, dense),
        batches_for(family),
        batches_for(family, seed=1),
        replace(SETTINGS, train=train),
        metric="loss" if family in ("llama", "bart") else "accuracy",
    )
    assert len(done.epochs) == EPOCHS + 1
    assert done.epochs[-1].loss < 0.9 * done.epochs[0].loss
    assert differing(before, values(dense)) == set()


def test_a_task_of_label_words_is_recovered_too() -> None:
    dense = tiny_bert_masked_lm()
    train, validation = (
        tuple(replace(batch, answer=torch.ones(len(batch), dtype=torch.long)) for batch in batches)
        for batches in (TRAIN, VALIDATION)
    )
    done = recover_(Verbalizer(halved(dense), (7, 11)), Verbalizer(dense, (7, 11)), train, validation, SETTINGS)
    assert done.epochs[-1].loss < done.epochs[0].loss


# ---- which parameters


@pytest.mark.parametrize("family", TINY_ALL)
def test_neurons_alone_leave_everything_else_bit_for_bit(family: str) -> None:
    dense = TINY_ALL[family]()
    student = halved(dense)
    before = values(student)
    settings, batches = replace(SETTINGS, train="neurons"), batches_for(family)
    # Stopped after an epoch: at the end an epoch that changed nothing could have been the best one.
    with pytest.raises(Stopped):
        subjects = put(family, student), put(family, dense)
        recover_(*subjects, batches, batches, settings, metric="loss", progress=stop_at("validation, epoch 1 ", 0))
    own = set()
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    for ffn in find_ffns(student):
        own |= {names[id(parameter)] for matrix in ffn.into for parameter in matrix.parameters}
        own.add(names[id(ffn.down.weight)])
    assert differing(before, values(student)) == own
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_frozen_parameter_stays_and_stays_frozen() -> None:
    dense = tiny_bert()
    student = halved(dense)
    student.get_input_embeddings().weight.requires_grad_(False)
    before = values(student)
    recover_(Classifier(student), Classifier(dense), TRAIN, TRAIN, replace(SETTINGS, epochs=1))
    changed = differing(before, values(student))
    assert changed and "bert.embeddings.word_embeddings.weight" not in changed
    assert not student.get_input_embeddings().weight.requires_grad


def test_modes_and_accelerate_are_left_as_they_were() -> None:
    dense = tiny_bert()
    student = halved(dense).train()
    recover_(Classifier(student), Classifier(dense), TRAIN, VALIDATION, replace(SETTINGS, epochs=1))
    assert student.training and not dense.training
    assert all(parameter.requires_grad for parameter in dense.parameters())
    assert all(parameter.grad is None for parameter in (*student.parameters(), *dense.parameters()))
    assert not is_initialized()


def test_accelerate_that_was_there_stays() -> None:
    Accelerator(mixed_precision="no")
    try:
        recovered(replace(SETTINGS, epochs=1))
        assert is_initialized()
        with pytest.raises(ValueError, match="mixed_precision"):
            recovered(replace(SETTINGS, epochs=1, precision="bf16"))
    finally:
        AcceleratorState._reset_state()


def test_bfloat16_trains_float32_parameters() -> None:
    done, student = recovered(replace(SETTINGS, precision="bf16"))
    exact, reference = recovered()
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert differing(values(student), values(reference))
    assert done.epochs[-1].loss == pytest.approx(exact.epochs[-1].loss, rel=0.1)


# ---- epochs


def test_the_best_epoch_is_kept_exactly() -> None:
    """A step size that ruins the model later on: what is left is what shorter training on the same schedule had."""
    seen: list[dict[str, Tensor]] = []
    dense = tiny_bert()
    student = halved(dense)

    def remember(what: str, done: int, total: int) -> None:
        if "validation" in what and done == 0:
            seen.append(values(student))

    settings = replace(SETTINGS, learning_rate=0.3)
    done = recover_(Classifier(student), Classifier(dense), TRAIN, VALIDATION, settings, progress=remember)
    assert len(seen) == len(done.epochs)
    order = [(epoch.metric, -epoch.loss) for epoch in done.epochs]
    assert order[done.best] == max(order) and order.index(max(order)) == done.best
    assert done.best < EPOCHS, "the last epoch is the best one: this shows nothing"
    assert differing(seen[done.best], values(student)) == set()
    assert differing(seen[-1], values(student))


def test_a_model_that_training_only_harms_stays_as_it_was() -> None:
    dense = tiny_bert()
    student = copy.deepcopy(dense)  # nothing can be nearer to the teacher than the teacher
    before = values(student)
    settings = replace(SETTINGS, learning_rate=0.1, patience=2)
    done = recover_(Classifier(student), Classifier(dense), TRAIN, VALIDATION, settings)
    assert done.best == 0 and done.epochs[0].loss == 0.0
    assert len(done.epochs) == 1 + 2, "it stops when patience is over"
    assert differing(before, values(student)) == set()


@pytest.mark.parametrize("family", ["bert", "llama", "bart"])
def test_the_distance_on_validation_is_the_mean_over_all_answers_however_batches_share_them(family: str) -> None:
    dense, batches = TINY_ALL[family](), batches_for(family)
    student, settings = halved(dense), replace(SETTINGS, epochs=0, hidden_weight=0.0)
    done = recover_(put(family, student), put(family, dense), batches, batches, settings, metric="loss")
    total, answered = 0.0, 0
    for batch in batches:
        real = slice(None) if batch.targets is None else batch.targets != NO_TARGET
        with torch.no_grad():
            said, wanted = (model(**batch.inputs).logits[real] for model in (student, dense))
        total += len(said) * naive_divergence(said, wanted, settings.temperature)
        answered += len(said)
    assert done.epochs[0].loss == pytest.approx(total / answered, rel=1e-4)


def test_without_epochs_it_only_looks() -> None:
    dense = tiny_bert()
    student = halved(dense)
    before = values(student)
    done = recover_(Classifier(student), Classifier(dense), TRAIN, VALIDATION, replace(SETTINGS, epochs=0))
    assert (len(done.epochs), done.best) == (1, 0)
    assert differing(before, values(student)) == set()


def test_the_metric_decides_and_the_loss_breaks_ties() -> None:
    assert Epoch(0.9, 5.0).beats(Epoch(0.8, 0.1))
    assert Epoch(0.9, 0.1).beats(Epoch(0.9, 0.2))
    assert not Epoch(0.9, 0.1).beats(Epoch(0.9, 0.1))


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "loss"])
def test_validation_is_measured_by_the_metric(metric: str) -> None:
    dense = tiny_bert()
    student = Classifier(halved(dense))
    settings = replace(SETTINGS, epochs=0)
    done = recover_(student, Classifier(dense), TRAIN, VALIDATION, settings, metric=metric)
    with torch.no_grad():
        logits = torch.cat([student.model(**batch.inputs).logits for batch in VALIDATION])
    labels = torch.cat([batch.labels for batch in VALIDATION])
    right, answered = logits.argmax(dim=1) == labels, logits.argmax(dim=1)
    sizes = [int((labels == label).sum() + (answered == label).sum()) for label in (0, 1)]
    hits = [int((right & (labels == label)).sum()) for label in (0, 1)]
    expected = {
        "accuracy": float(right.double().mean()),
        "macro_f1": sum(2 * hit / size for hit, size in zip(hits, sizes, strict=True)) / 2,
        "loss": -float(torch.nn.functional.cross_entropy(logits, labels)),
    }
    assert done.epochs[0].metric == pytest.approx(expected[metric], rel=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    (first, one), (second, two), (_, three) = recovered(), recovered(), recovered(replace(SETTINGS, seed=1))
    assert first == second
    assert differing(values(one), values(two)) == set()
    assert differing(values(one), values(three))


def test_the_step_size_rises_and_falls_to_almost_nothing() -> None:
    paces = [pace(step, 100) for step in range(100)]
    assert paces[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert max(paces) == 1.0 and paces[9:] == sorted(paces[9:], reverse=True)
    assert 0 < paces[-1] < 0.02
    assert pace(0, 1) == 1.0


def test_every_step_has_its_size_and_no_gradient_is_larger_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rates, norms = [], []

    class Watched(AdamW):
        def step(self, closure: Any = None) -> Any:
            (group,) = self.param_groups
            rates.append(group["lr"])
            gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
            return super().step(closure)

    monkeypatch.setattr(training, "AdamW", Watched)
    recovered(replace(SETTINGS, hidden_weight=1000.0))
    total = EPOCHS * len(TRAIN)
    assert rates == pytest.approx([SETTINGS.learning_rate * pace(step, total) for step in range(total)])
    assert norms == pytest.approx([1.0] * total, rel=1e-3)


# ---- going on


@pytest.mark.parametrize("train", ["all", "neurons"])
@pytest.mark.parametrize("where", [("(epoch 1 ", 1), ("(epoch 3 ", 2), ("validation, epoch 3 ", 0), ("(epoch 4 ", 0)])
def test_an_interruption_leaves_no_trace(tmp_path: Path, where: tuple[str, int], train: Any) -> None:
    settings, checkpoint = replace(SETTINGS, train=train), tmp_path / "deep" / "recovery.safetensors"
    with pytest.raises(Stopped):
        recovered(settings, checkpoint=checkpoint, progress=stop_at(*where))
    seen: list[str] = []
    done, student = recovered(settings, checkpoint=checkpoint, progress=lambda what, *_: seen.append(what))
    expected, reference = recovered(settings)
    assert done == expected
    assert differing(values(reference), values(student)) == set()
    assert [*tmp_path.rglob("*.*")] == [checkpoint]  # the caller's to remove, once the model is saved
    resumed_from = int(where[0].strip().split()[-1]) - 1
    epochs = {int(what.split("(epoch ")[1].split()[0]) for what in seen if "(epoch " in what}
    assert epochs == set(range(resumed_from + 1, EPOCHS + 1)), "finished epochs are not trained again"
    seen.clear()
    again, student = recovered(settings, checkpoint=checkpoint, progress=lambda what, *_: seen.append(what))
    assert (again, seen) == (expected, [])
    assert differing(values(reference), values(student)) == set()


def interrupted(path: Path) -> Path:
    with pytest.raises(Stopped):
        recovered(checkpoint=path, progress=stop_at("(epoch 3 ", 0))
    assert path.is_file()
    return path


def test_the_file_holds_tensors_and_json_only(tmp_path: Path) -> None:
    path = interrupted(tmp_path / "state.safetensors")
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert len(json.loads(metadata["recovery"])["epochs"]) == 3
    assert [each.name for each in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_damaged_file_is_told_and_training_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = interrupted(tmp_path / "state.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    done, student = recovered(checkpoint=checkpoint)
    expected, reference = recovered()
    assert done == expected and differing(values(reference), values(student)) == set()
    assert "state.safetensors is damaged" in caplog.text


@pytest.mark.parametrize("other", ["settings", "teacher", "batches"])
def test_what_another_recovery_left_is_not_gone_on_from(tmp_path: Path, other: str) -> None:
    checkpoint = interrupted(tmp_path / "state.safetensors")
    settings = replace(SETTINGS, temperature=3.0) if other == "settings" else SETTINGS
    train = tiny_batches(seed=2) if other == "batches" else TRAIN
    results = []
    for path in (checkpoint, None):
        dense = tiny_bert()
        student = halved(dense)
        if other == "teacher":
            with torch.no_grad():
                dense.classifier.bias.add_(1)
        done = recover_(Classifier(student), Classifier(dense), train, VALIDATION, settings, checkpoint=path)
        results.append((done, values(student)))
    (found, mine), (expected, others) = results
    assert found == expected and differing(mine, others) == set()


def test_a_full_disk_is_named_and_the_older_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = interrupted(tmp_path / "state.safetensors")
    older = checkpoint.read_bytes()

    def half_a_file(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(older[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recovery_state, "save_file", half_a_file)
    with pytest.raises(ResourceFailure, match=r"state.safetensors could not be written: .*No space left"):
        recovered(checkpoint=checkpoint)
    assert checkpoint.read_bytes() == older
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceFailure, match="could not be written"):
        recovered(checkpoint=tmp_path / "file" / "state.safetensors")


# ---- refusals


@pytest.mark.parametrize(("train", "validation"), [((), VALIDATION), (TRAIN, ())])
def test_both_splits_are_needed(train: tuple[Batch, ...], validation: tuple[Batch, ...]) -> None:
    dense = tiny_bert()
    with pytest.raises(DataError, match="needs examples"):
        recover_(Classifier(halved(dense)), Classifier(dense), train, validation, SETTINGS)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DataError, match=r"not finite in batch \d; lower recovery.learning_rate"):
        recovered(replace(SETTINGS, learning_rate=1e30))


def half_precision(model: PreTrainedModel) -> None:
    model.bfloat16()


def all_frozen(model: PreTrainedModel) -> None:
    model.requires_grad_(False)


@pytest.mark.parametrize(("spoil", "words"), [(half_precision, "needs float32"), (all_frozen, "nothing to train")])
def test_what_cannot_be_trained_is_refused(spoil: Callable[[PreTrainedModel], None], words: str) -> None:
    dense = tiny_bert()
    student = halved(dense)
    spoil(student)
    with pytest.raises(ValueError, match=words):
        recover_(Classifier(student), Classifier(dense), TRAIN, VALIDATION, SETTINGS)


def test_other_layers_and_the_same_model_are_refused() -> None:
    dense = tiny_bert()
    with pytest.raises(PlanMismatch, match="pairs them one to one"):
        recover_(Classifier(tiny_bert(layers=2)), Classifier(dense), TRAIN, VALIDATION, SETTINGS)
    with pytest.raises(ValueError, match="same model"):
        recover_(Classifier(dense), Classifier(dense), TRAIN, VALIDATION, SETTINGS)
    with pytest.raises(ValueError, match="unknown metric 'f1'; there are accuracy, macro_f1 and loss"):
        recover_(Classifier(halved(dense)), Classifier(dense), TRAIN, VALIDATION, SETTINGS, metric="f1")


# ---- labels


def test_plain_fine_tuning_lowers_the_loss_of_the_labels_and_keeps_the_best_epoch() -> None:
    model = tiny_bert(seed=6)
    before = values(model)
    done = train_(Labels(Classifier(model)), TRAIN, TRAIN, replace(SETTINGS, learning_rate=1e-2), metric="loss")
    losses = []
    for example in lone_examples(TRAIN):
        with torch.no_grad():
            losses.append(-float(model(**example.inputs).logits[0].log_softmax(dim=0)[example.label]))
    assert sum(losses) / len(losses) == pytest.approx(-max(epoch.metric for epoch in done.epochs), rel=1e-4)
    assert done.epochs[done.best].metric > done.epochs[0].metric + 0.05
    assert differing(before, values(model))
