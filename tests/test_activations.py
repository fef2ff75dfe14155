"""Streaming and pooling of activations and gradients: right values, nothing left behind, whatever happens."""

from __future__ import annotations

import logging
import math
import platform
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, get_args

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import alone, effects_alone, lone_examples, lone_ffn, loss_alone
from tiny import TINY, TINY_ALL, TINY_WIDTHS, batches_for, tiny_bart, tiny_batches, tiny_bert
from torch import Tensor, nn

from skillprune.activations import PLAIN, Capacity, Observation, Position, Reading, Visitor, pool, stream
from skillprune.activations.stream import RELEASE_EVERY
from skillprune.answers import Classifier, TaskModel, Writer
from skillprune.data import Batch
from skillprune.errors import DataError, ResourceFailure
from skillprune.families import Site, find_ffns

families = pytest.mark.parametrize("family", sorted(TINY))
QUANTITIES: dict[str, Any] = {
    "loss": lambda answers, batch: answers.losses(),
    "sampled": lambda answers, batch: answers.sampled(0, batch.indices),
}


def subject_of(family: str, **options: Any) -> TaskModel:
    model = TINY_ALL[family](**options).double()
    return Writer(model) if family in {"llama", "bart"} else Classifier(model)


def visitor(look: Callable[[Observation], None], sites: Sequence[Site], quantity: str = PLAIN) -> Visitor:
    return Visitor(quantity, frozenset(sites), look)


def collect(
    subject: TaskModel, batches: Sequence[Batch], *quantities: str, layers: Sequence[int] = (0, 1, 2), **options: Any
) -> list[tuple[str, Observation]]:
    """What visitors for the quantities see, in the order they see it."""
    seen: list[tuple[str, Observation]] = []
    ffns = [ffn for ffn in find_ffns(subject.model) if ffn.layer in layers]
    visitors = [
        visitor(lambda one, name=name: seen.append((name, one)), [ffn.site for ffn in ffns], name)
        for name in quantities or (PLAIN,)
    ]
    stream(subject, ffns, dict(enumerate(batches)), visitors, quantities=QUANTITIES, **options)
    return seen


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("family", sorted(TINY_ALL))
def test_visits_give_what_down_reads_batch_by_batch_and_bottom_up(family: str) -> None:
    subject, batches = subject_of(family), batches_for(family, batch_size=4)
    seen = [one for _, one in collect(subject, batches)]
    sites = [(stack, layer) for stack, widths in TINY_WIDTHS[family].items() for layer in range(len(widths))]
    assert [one.ffn.site for one in seen] == sites * len(batches)
    examples = lone_examples(batches)
    for number, one in enumerate(seen):
        batch = batches[number // len(sites)]
        assert torch.equal(one.batch.indices, batch.indices) and one.number == number // len(sites)
        assert one.gradients is None and one.output_gradients is None
        for row, index in enumerate(batch.indices.tolist()):
            with torch.no_grad():
                expected = alone(subject.model, examples[index])[1][one.ffn.site]
            torch.testing.assert_close(one.activations[row][one.mask[row]], expected, rtol=1e-7, atol=1e-8)


@families
@pytest.mark.parametrize("chunk", [1, 3, 12])
def test_a_chunked_feed_forward_gives_the_same_activations_and_gradients(family: str, chunk: int) -> None:
    batches = tiny_batches(pad_to=12)
    calls: list[int] = []
    chunked = subject_of(family, chunk=chunk)
    find_ffns(chunked.model)[0].down.module.register_forward_hook(lambda *_: calls.append(1))
    names = (PLAIN, "loss", "sampled")
    whole, parts = collect(subject_of(family), batches, *names), collect(chunked, batches, *names)
    assert len(calls) == len(batches) * 12 // chunk
    assert len(parts) == len(whole) == 3 * 3 * len(batches)
    for (expected_name, expected), (name, one) in zip(whole, parts, strict=True):
        assert name == expected_name
        torch.testing.assert_close(one.activations, expected.activations, rtol=1e-10, atol=1e-12)
        if name != PLAIN:
            torch.testing.assert_close(one.gradients, expected.gradients, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(one.output_gradients, expected.output_gradients, rtol=1e-9, atol=1e-12)
    plain = collect(chunked, batches)
    for (_, one), (_, expected) in zip(plain, [pair for pair in whole if pair[0] == PLAIN], strict=True):
        torch.testing.assert_close(one.activations, expected.activations, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_effects_are_derivatives_of_a_mask_and_every_quantity_has_its_own(family: str) -> None:
    subject, batches = subject_of(family), batches_for(family, batch_size=4)
    seen = collect(subject, batches, "sampled", "loss", PLAIN)
    expected = effects_alone(subject.model, batches, loss_alone)
    sites = sum(map(len, TINY_WIDTHS[family].values()))
    assert [name for name, _ in seen] == ([PLAIN] * sites + ["loss"] * sites + ["sampled"] * sites) * len(batches)
    for name, one in seen:
        if name == "loss":
            theirs = torch.from_numpy(expected[one.ffn.site])[one.batch.indices]
            torch.testing.assert_close(one.effects, theirs, rtol=1e-7, atol=1e-9)
            assert one.output_gradients.shape == (*one.activations.shape[:2], 16)


def test_only_the_layers_asked_for_are_visited_by_those_who_ask() -> None:
    model, seen = tiny_bert(), []
    visitors = [
        visitor(lambda one: seen.append(("first", one.ffn.layer)), [("encoder", 2)]),
        visitor(lambda one: seen.append(("second", one.ffn.layer)), [("encoder", 0), ("encoder", 2)], "loss"),
    ]
    stream(
        Classifier(model),
        find_ffns(model),
        dict(enumerate(tiny_batches(batch_size=10))),
        visitors,
        quantities=QUANTITIES,
    )
    assert seen == [("first", 2), ("second", 0), ("second", 2)]
    assert [one.ffn.layer for _, one in collect(Classifier(model), tiny_batches(batch_size=10), layers=(1,))] == [1]


@pytest.mark.parametrize("quantity", [PLAIN, "loss"])
def test_activations_carry_no_gradient_and_a_batch_at_a_time_is_reported(quantity: str) -> None:
    told: list[tuple[str, int, int]] = []
    seen = collect(
        Classifier(tiny_bert()), tiny_batches(), quantity, what="reading", progress=lambda *news: told.append(news)
    )
    assert told == [("reading", done, 3) for done in range(4)]
    assert not any(one.activations.requires_grad for _, one in seen)
    assert all(one.gradients is None or not one.gradients.requires_grad for _, one in seen)


@pytest.mark.parametrize("chunk", [0, 4])
def test_without_gradients_one_layer_is_alive_at_a_time(chunk: int) -> None:
    model = tiny_bert(chunk=chunk)
    earlier: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def look(one: Observation) -> None:
        alive.append(sum(reference() is not None for reference in earlier))
        earlier.append(weakref.ref(one.activations))

    ffns = find_ffns(model)
    visitors = [visitor(look, [ffn.site for ffn in ffns])]
    stream(Classifier(model), ffns, dict(enumerate(tiny_batches(pad_to=12))), visitors, quantities={})
    assert alive == [0] * 9


class Stop(Exception):
    pass


def stop(*_: object) -> None:
    raise Stop


def ignore(*_: object) -> None:
    return None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("quantity", [PLAIN, "loss"])
@pytest.mark.parametrize("failing", ["nothing", "visit", "progress", "model", "memory"])
def test_hooks_are_gone_and_modes_and_flags_are_back_whatever_happens(
    training: bool, quantity: str, failing: str
) -> None:
    model = tiny_bert().train(training)
    model.bert.encoder.layer[0].train(not training)
    model.bert.embeddings.requires_grad_(False)
    modes: list[bool] = []
    watched = model.bert.encoder.layer[1]
    ours = watched.register_forward_hook(lambda module, _args, _output: modes.append(module.training))
    if failing == "memory":
        watched.register_forward_pre_hook(too_large(0, []))
    batches = tiny_batches()
    if failing == "model":
        batches[1].inputs["input_ids"][0, 0] = 10_000
    state = [(module.training, hooks_of(module)) for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    ffns = find_ffns(model)
    look = stop if failing == "visit" else ignore
    try:
        stream(
            Classifier(model),
            ffns,
            dict(enumerate(batches)),
            [visitor(look, [ffn.site for ffn in ffns], quantity)],
            quantities=QUANTITIES,
            progress=stop if failing == "progress" else ignore,
        )
    except (Stop, IndexError, ResourceFailure):
        assert failing != "nothing"
    else:
        assert failing == "nothing"
    assert [(module.training, hooks_of(module)) for module in model.modules()] == state
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    ours.remove()
    assert not any(modes)


def too_large(most: int, sizes: list[int]) -> Callable[..., None]:
    """A hook for a module that has memory for ``most`` examples; it writes down how many it was given."""

    def refuse(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) > most:
            raise torch.OutOfMemoryError("no memory left")

    return refuse


def by_example(seen: list[tuple[str, Observation]]) -> dict[tuple[str, Site, int], list[Observation]]:
    found: dict[tuple[str, Site, int], list[Observation]] = {}
    for name, one in seen:
        for index in one.batch.indices.tolist():
            found.setdefault((name, one.ffn.site, index), []).append(one)
    return found


@pytest.mark.parametrize("quantities", [(PLAIN,), ("loss",), (PLAIN, "loss", "sampled")], ids=str)
@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("where", [1, 2])
def test_out_of_memory_halves_batches_and_shows_nobody_an_example_twice(
    quantities: tuple[str, ...], most: int, where: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Lower layers were already shown when the middle one finds no room."""
    subject, sizes = subject_of("bert"), []
    batches = tiny_batches(batch_size=5)
    whole = by_example(collect(subject, batches, *quantities))
    subject.model.bert.encoder.layer[where].register_forward_pre_hook(too_large(most, sizes))
    with caplog.at_level(logging.WARNING):
        parts = by_example(collect(subject, batches, *quantities))
    assert "does not fit into memory" in caplog.text
    assert parts.keys() == whole.keys() and len(whole) == 10 * 3 * len(quantities)
    for key, found in parts.items():
        assert len(found) == len(whole[key]) == 1
        for what in ("activations", "gradients", "output_gradients"):
            mine, theirs = (
                value if (value := getattr(one, what)) is None else value[one.batch.indices.tolist().index(key[2])]
                for one in (found[0], whole[key][0])
            )
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_after_running_out_of_memory_the_next_batches_go_in_pieces_at_once() -> None:
    subject, sizes = subject_of("bert"), []
    subject.model.bert.encoder.layer[1].register_forward_pre_hook(too_large(2, sizes))
    seen = collect(subject, tiny_batches(lengths=(5,) * 16, batch_size=8), "loss")
    assert sizes[0] == 8 and max(sizes[1:]) == 4 and sizes.count(2) == 8
    assert sizes[-4:] == [2] * 4
    assert sorted(one.number for _, one in seen) == [0] * 12 + [1] * 12


@pytest.mark.parametrize("quantity", [PLAIN, "loss"])
def test_one_example_that_does_not_fit_is_a_resource_failure(quantity: str) -> None:
    subject, sizes = subject_of("bert"), []
    subject.model.bert.encoder.layer[1].register_forward_pre_hook(too_large(0, sizes))
    with pytest.raises(ResourceFailure, match="one example of 12 tokens does not fit.*task.max_length"):
        collect(subject, tiny_batches(batch_size=4), quantity)
    assert sizes == [4, 2, 1]


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "HIP out of memory. Tried to allocate 2.00 GiB.",
    ],
)
def test_lack_of_memory_has_several_names(message: str) -> None:
    def work(batch: Batch) -> list[int]:
        if len(batch) > 3:
            raise RuntimeError(message)
        return batch.indices.tolist()

    (batch,) = tiny_batches(batch_size=10)
    capacity = Capacity()
    assert capacity.run(batch, work) == [[0, 1], [2], [3, 4], [5, 6], [7], [8, 9]]
    assert capacity.most == 2


def test_other_errors_of_the_model_are_not_taken_for_a_lack_of_memory() -> None:
    subject = subject_of("bert")
    subject.model.bert.encoder.layer[1].register_forward_pre_hook(stop)
    with pytest.raises(Stop):
        collect(subject, tiny_batches())


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_observations_that_are_not_finite_name_stack_layer_and_batch(family: str) -> None:
    subject, batches = subject_of(family), batches_for(family, batch_size=4)
    ffn = find_ffns(subject.model)[-1]
    with torch.no_grad():
        ffn.up.weight[3, 4] = torch.nan
    name = f"{ffn.stack.name} layer {ffn.layer}"
    for one in (one for _, one in collect(subject, batches) if one.ffn.site == ffn.site):
        with pytest.raises(DataError, match=f"activations of {name} are not finite in batch {one.number} "):
            _ = one.tokens
    with pytest.raises(DataError, match=f"activations of {name} are not finite in batch 0 "):
        collect(subject, batches, "loss")  # though all gradients below are not finite either


def test_gradients_that_are_not_finite_name_stack_layer_and_batch() -> None:
    ffn, batch = find_ffns(tiny_bert())[1], tiny_batches()[0]
    fine, broken = torch.ones(*batch.mask.shape, 32), torch.full((*batch.mask.shape, 32), torch.inf)
    one = Observation(ffn, batch, 5, Reading(), fine, broken, broken)
    for what in ("effects", "output_tokens"):
        with pytest.raises(DataError, match="gradients of encoder layer 1 are not finite in batch 5 "):
            getattr(one, what)


def naive_pool(tokens: list[list[float]], position: str) -> list[float]:
    columns = list(zip(*tokens, strict=True))
    if position == "cls":
        return [column[0] for column in columns]
    if position == "last":
        return [column[-1] for column in columns]
    if position == "mean":
        return [math.fsum(column) / len(column) for column in columns]
    return [max(column) for column in columns]


@st.composite
def marked(draw: st.DrawFn) -> Batch:
    """Padding on either side or both, special tokens and a soft prompt anywhere, at least one plain token per row."""
    rows, columns, slots = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(0, 2))
    shape = rows, columns + slots
    mask, special, prompt = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
    for row in range(rows):
        start = draw(st.integers(0, columns - 1))
        end = draw(st.integers(start + 1, columns)) + slots
        mask[row, start:end] = True
        plain = draw(st.permutations(range(start, end)))
        prompt[row, list(plain[:slots])] = True
        special[row, list(plain[slots + 1 : slots + 1 + draw(st.integers(0, 2))])] = True
    inputs = {"attention_mask": mask.long()}
    labels, indices = torch.zeros(rows, dtype=torch.long), torch.arange(rows)
    return Batch(inputs, labels, special, indices, prompt=prompt if slots else None)


@pytest.mark.parametrize("position", ["cls", "last", "mean", "max"])
@settings(deadline=None, max_examples=60)
@given(
    batch=marked(),
    seed=st.integers(0, 1000),
    shift=st.sampled_from([0.0, -5.0]),
    special=st.booleans(),
    prompt=st.booleans(),
    poison=st.sampled_from([1e6, math.inf, math.nan]),
)
def test_pooling_equals_a_loop_and_padding_never_counts(
    position: Position, batch: Batch, seed: int, shift: float, special: bool, prompt: bool, poison: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    activations = torch.randn(*batch.mask.shape, 3, generator=generator, dtype=torch.float64) + shift
    poisoned = activations.masked_fill(~batch.mask.unsqueeze(-1), poison)
    expected = []
    for row, example in enumerate(activations.tolist()):
        tokens = [
            token
            for place, token in enumerate(example)
            if batch.mask[row, place]
            and (special or position in {"cls", "last"} or not batch.special[row, place])
            and (batch.prompt is None or not batch.prompt[row, place] or (prompt and position in {"mean", "max"}))
        ]
        expected.append([naive_pool(tokens, position)])
    found = pool(poisoned, batch, Reading(position, include_special=special, include_prompt=prompt))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_effects_leave_padding_out_even_where_it_is_not_finite() -> None:
    (batch,) = tiny_batches(lengths=(3, 5), batch_size=2)
    padding = ~batch.mask.unsqueeze(-1)
    values, gradients = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ffn = lone_ffn(4)
    seen = Observation(
        ffn, batch, 0, Reading(), values.masked_fill(padding, math.inf), gradients.masked_fill(padding, 0)
    )
    expected = [
        [
            sum(values[row, place, neuron] * gradients[row, place, neuron] for place in range(length))
            for neuron in range(4)
        ]
        for row, length in enumerate(batch.mask.sum(dim=1).tolist())
    ]
    torch.testing.assert_close(seen.effects, torch.tensor(expected, dtype=torch.float64))


def test_prompt_slots_are_read_one_by_one_in_order_wherever_they_stand() -> None:
    prompt = torch.tensor([[True, True, False, False], [False, False, True, True]])
    ones = torch.ones(2, 4, dtype=torch.long)
    batch = Batch({"attention_mask": ones}, torch.zeros(2), prompt & False, torch.arange(2), prompt=prompt)
    values = torch.arange(8.0).view(2, 4, 1)
    assert pool(values, batch, Reading("prompt")).tolist() == [[[0.0], [1.0]], [[6.0], [7.0]]]


def test_the_mask_position_is_that_of_the_answer() -> None:
    (batch,) = tiny_batches(lengths=(3, 5), batch_size=2)
    asked = Batch(batch.inputs, batch.labels, batch.special, batch.indices, answer=torch.tensor([2, 1]))
    values = torch.arange(10.0).view(2, 5, 1)
    assert pool(values, asked, Reading("mask")).tolist() == [[[2.0]], [[6.0]]]


def test_a_decoder_is_read_at_the_tokens_it_writes() -> None:
    model, batches = tiny_bart().double(), batches_for("bart", batch_size=10, pad_to=14)
    with torch.no_grad():
        expected = [alone(model, example)[1] for example in lone_examples(batches)]
    for _, one in collect(Writer(model), batches, reading=Reading("last")):
        for row, index in enumerate(one.batch.indices.tolist()):
            torch.testing.assert_close(one.pooled[row, 0], expected[index][one.ffn.site][-1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("position", sorted(set(get_args(Position)) & {"prompt", "mask"}))
def test_positions_that_a_batch_does_not_have_are_refused(position: Any) -> None:
    (batch,) = tiny_batches(batch_size=10)
    values = torch.zeros(*batch.mask.shape, 2)
    with pytest.raises(DataError, match="soft-prompt" if position == "prompt" else "template"):
        pool(values, batch, Reading(position))
    (both,) = batches_for("bart", batch_size=10)
    full = Batch(both.inputs, both.labels, both.special, both.indices, torch.zeros(10), both.targets, both.mask)
    with pytest.raises(DataError):
        pool(values, full, Reading(position), "output")


def test_special_tokens_count_unless_told_otherwise_and_cannot_be_all_there_is() -> None:
    batch = tiny_batches(lengths=(2,), labels=(0,))[0]
    assert bool(batch.special.all())
    values = torch.tensor([[[1.0], [3.0]]])
    assert pool(values, batch, Reading("mean")).tolist() == [[[2.0]]]
    with pytest.raises(DataError, match="nothing but special tokens"):
        pool(values, batch, Reading("mean", include_special=False))


def test_a_constant_neuron_has_exactly_the_same_mean_at_every_length() -> None:
    lengths = tuple(range(1, 60))
    (batch,) = tiny_batches(lengths=lengths, batch_size=len(lengths))
    for dtype in (torch.float32, torch.float64):
        values = torch.full((*batch.mask.shape, 1), 0.1, dtype=dtype)
        assert len(set(pool(values, batch, Reading("mean")).flatten().tolist())) == 1


def test_half_precision_is_pooled_in_single_precision() -> None:
    (batch,) = tiny_batches(lengths=(50,), batch_size=1)
    values = torch.linspace(0, 100, 50).to(torch.bfloat16).view(1, 50, 1)
    found = pool(values, batch, Reading("mean"))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(values.double().mean()), rel=1e-6)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 6e4), (torch.float32, 3e38)])
def test_activations_whose_sum_overflows_are_not_called_broken(dtype: torch.dtype, size: float) -> None:
    ffn, batch = find_ffns(tiny_bert())[0], tiny_batches()[0]
    values = torch.full((*batch.mask.shape, 32), size, dtype=dtype)
    assert values.isfinite().all()
    assert not values.sum(dtype=dtype).isfinite()
    tokens = Observation(ffn, batch, 0, Reading(), values).tokens
    assert torch.equal(tokens, torch.full((int(batch.mask.sum()), 32), values[0, 0, 0].item()))
    values[0, 0, 0] = torch.inf
    with pytest.raises(DataError, match="not finite"):
        Observation(ffn, batch, 0, Reading(), values).check()


def test_activations_may_lie_in_memory_in_any_order() -> None:
    ffn, batch = find_ffns(tiny_bert())[0], tiny_batches(pad_to=15)[0]
    values = torch.randn(*batch.mask.shape, 32)
    turned = values.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not turned.is_contiguous()
    plain, other = (Observation(ffn, batch, 0, Reading(), each, each) for each in (values, turned))
    for name in ("tokens", "pooled", "effects"):
        torch.testing.assert_close(getattr(other, name), getattr(plain, name))


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="a call of glibc")
def test_memory_freed_in_the_middle_of_the_heap_is_given_back_while_streaming() -> None:
    subject = subject_of("bert")
    ffn, block = find_ffns(subject.model)[0], 64 * 1024
    resident: list[int] = []

    def look(_: Observation) -> None:
        pieces = [bytearray(block) for _ in range(4000)] if not resident else []
        pinned.extend(pieces[::100])  # what lives on keeps the heap from shrinking at its end
        resident.append(psutil.Process().memory_info().rss)

    pinned: list[bytearray] = []
    batches = dict(enumerate(tiny_batches(batch_size=1)[:1] * (RELEASE_EVERY + 2)))
    stream(subject, [ffn], batches, [visitor(look, [ffn.site])], quantities={})
    assert min(resident[1:RELEASE_EVERY]) > resident[0] - 1000 * block  # not by itself, or this would show nothing
    assert resident[-1] < resident[0] - 3000 * block
