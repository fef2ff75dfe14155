"""The repair in every architecture that reads text: nearer to the dense model than a cut, nothing where all stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from zoo import ZOO, here
from zoo_checks import plan_of

from skillprune.data import NO_TARGET, Batch
from skillprune.families import FFN, by_stack, find_ffns
from skillprune.progress import silent
from skillprune.repair import prune_and_repair_, states
from skillprune.repair.calibration import can_be_walked
from skillprune.repair.carry import advance, trace
from skillprune.surgery import prune_

WRITTEN = [name for name in here() if ZOO[name].reads in {"text", "text to text"}]
specimens = pytest.mark.parametrize("name", WRITTEN)


def batches_of(name: str, seeds: range) -> list[Batch]:
    found = []
    for seed in seeds:
        inputs, indices = ZOO[name].inputs(seed), torch.arange(3) + 3 * seed
        mask = inputs["attention_mask"].bool()
        written, real = (
            (inputs["decoder_input_ids"], inputs["decoder_attention_mask"].bool())
            if "decoder_input_ids" in inputs
            else (inputs["input_ids"], mask)
        )
        targets = torch.where(real, written, NO_TARGET) if ZOO[name].writes else None
        found.append(Batch(inputs, indices % 2, mask & False, indices, targets=targets))
    return found


def answers(model: PreTrainedModel, batches: list[Batch]) -> Tensor:
    """Logits where they count, ``(tokens or examples, classes)``."""
    with torch.no_grad():
        found = [(model(**batch.inputs).logits, batch.targets) for batch in batches]
    return torch.cat(
        [logits.flatten(0, -2)[slice(None) if t is None else (t != NO_TARGET).flatten()] for logits, t in found]
    )


@specimens
def test_the_repaired_model_is_nearer_to_the_dense_one_on_texts_it_has_not_seen(name: str) -> None:
    specimen, unseen, near, far = ZOO[name], batches_of(name, range(100, 110)), 0.0, 0.0
    plan = plan_of(specimen, (16, 8, 16))
    for seed in range(3):
        dense, cut, repaired = specimen.model(seed), prune_(specimen.model(seed), plan), specimen.model(seed)
        errors = prune_and_repair_(repaired, plan, batches_of(name, range(30)))
        assert len(errors) == sum(len(layers) for layers in plan.keep.values())
        assert sum(error.after for error in errors) < sum(error.before for error in errors)
        assert [ffn.width for ffn in find_ffns(repaired)] == [ffn.width for ffn in find_ffns(cut)]
        wanted = answers(dense, unseen)
        near += float((answers(repaired, unseen) - wanted).norm())
        far += float((answers(cut, unseen) - wanted).norm())
    assert near < far


@pytest.mark.parametrize("name", ["t5", "t5-gated"])
def test_a_down_projection_kept_in_float32_is_repaired_in_a_model_in_float16(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specimen, batches = ZOO[name], batches_of(name, range(12))
    specimen.model().save_pretrained(tmp_path)
    plan, found = plan_of(specimen, (16, 8, 16)), []
    for dtype, share in ((torch.float32, 0.1), (torch.float16, 0.1), (torch.float16, 0.0)):
        monkeypatch.setattr(states, "MEMORY_SHARE", share)
        model = type(specimen.model()).from_pretrained(tmp_path, dtype=dtype).eval()
        assert find_ffns(model)[0].down.weight.dtype == torch.float32
        errors = prune_and_repair_(model, plan, batches)
        found.append([(error.before, error.after) for error in errors])
    whole, in_memory, on_disk = found
    assert in_memory == on_disk
    for half, full in zip(in_memory, whole, strict=True):
        assert half == pytest.approx(full, rel=0.05)


@specimens
def test_where_every_neuron_stays_nothing_changes(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.model()
    assert prune_and_repair_(model, plan_of(specimen, (10**6,) * 3), batches_of(name, range(4))) == ()
    for (key, value), (_, expected) in zip(model.named_parameters(), specimen.model().named_parameters(), strict=True):
        assert torch.equal(value, expected), key


@pytest.mark.parametrize("name", [name for name in WRITTEN if can_be_walked(find_ffns(ZOO[name].model()))])
def test_carried_states_are_those_of_a_forward_pass_whatever_the_lengths(name: str) -> None:
    model = ZOO[name].model().eval()
    batches = batches_of(name, range(3))
    assert len({str(batch.mask.tolist()) for batch in batches}) == len(batches)
    for ffns in by_stack(find_ffns(model)).values():
        traced = trace(model, ffns, batches, silent)
        for number, batch in enumerate(batches):
            with torch.no_grad(), leaving(ffns) as real:
                model(**batch.inputs)
            hidden = traced.hidden[number]
            for layer, ffn in enumerate(ffns):
                hidden = advance(ffn, hidden, traced.calls[layer][number])
                torch.testing.assert_close(hidden, real[layer], atol=1e-5, rtol=1e-4)


@contextmanager
def leaving(ffns: Sequence[FFN]) -> Iterator[list[Tensor]]:
    """What leaves every block, bottom to top."""
    found: list[Tensor] = []
    with ExitStack() as hooks:
        for ffn in ffns:
            hooks.callback(
                ffn.block.register_forward_hook(
                    lambda _, __, given: found.append((given[0] if isinstance(given, tuple) else given).clone())
                ).remove
            )
        yield found
