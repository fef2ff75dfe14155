"""Forward passes of the repair end where nothing more is wanted, and leave nothing behind; what full memory says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from test_mixtures import model_of
from test_zoo_repair import batches_of
from torch import Tensor, nn
from zoo import ZOO
from zoo_checks import plan_of

from skillprune.errors import ResourceFailure
from skillprune.families import find_ffns
from skillprune.repair import choose_and_repair_, prune_and_repair_
from skillprune.repair.moments import Moments

HEADS = {
    "bert": "classifier",
    "albert": "classifier",
    "gpt2": "lm_head",
    "llama": "lm_head",
    "t5": "lm_head",
    "bart": "lm_head",
    "mixtral": "lm_head",
    "qwen2_moe": "lm_head",
}
FEW = (16, 8, 16)


def refuse(*_: object) -> None:
    raise AssertionError("nobody wants to know")


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_the_head_never_runs(name: str, sequential: bool) -> None:
    model, plan = model_of(name), plan_of(ZOO[name], FEW)
    handle = model.get_submodule(HEADS[name]).register_forward_pre_hook(refuse)
    errors = prune_and_repair_(model, plan, batches_of(name, range(4)), ridge=0.01, sequential=sequential)
    assert len(errors) == sum(map(len, plan.keep.values()))
    handle.remove()
    with torch.no_grad():
        assert bool(model(**ZOO[name].inputs()).logits.isfinite().all())


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_blocks_above_the_mixture_that_is_fitted_do_not_run(name: str) -> None:
    model, batches, runs = model_of(name), batches_of(name, range(4)), Counter[int]()
    for layer, block in enumerate(model.model.layers):
        block.register_forward_pre_hook(lambda *_, layer=layer: runs.update([layer]))
    prune_and_repair_(model, plan_of(ZOO[name], FEW), batches, method="zero")
    stacks = len(ZOO[name].widths)
    assert runs == {layer: (3 - layer) * stacks * len(batches) for layer in range(3)}


def test_a_shared_ffn_is_seen_in_every_layer_also_where_it_takes_its_tokens_in_chunks() -> None:
    whole, chunked = model_of("albert"), model_of("albert")
    for module in chunked.modules():
        if hasattr(module, "chunk_size_feed_forward"):
            module.chunk_size_feed_forward = 3
    batches, plan = batches_of("albert", range(0, 16, 2)), plan_of(ZOO["albert"], FEW)
    (mine,), (theirs,) = (prune_and_repair_(model, plan, batches, ridge=0.01) for model in (chunked, whole))
    assert mine.after == pytest.approx(theirs.after, rel=1e-4)
    for (name, found), expected in zip(chunked.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("name", "wanted"), [("llama", "output_hidden_states"), ("mixtral", "output_router_logits")])
def test_forwards_that_a_pass_replaces_are_put_back(name: str, wanted: str) -> None:
    """Those of transformers 4.57 stay behind when a pass does not come to its end."""
    model = model_of(name)
    setattr(model.config, wanted, True)
    prune_and_repair_(model, plan_of(ZOO[name], FEW), batches_of(name, range(4)), ridge=0.01)
    assert [path for path, module in model.named_modules() if "forward" in vars(module)] == []


def full(*_: object) -> None:
    raise torch.OutOfMemoryError("no memory left")


@pytest.mark.parametrize("name", ["llama", "bart", "albert", "mixtral"])
def test_a_batch_that_finds_no_memory_is_a_resource_failure(name: str) -> None:
    model = model_of(name)
    find_ffns(model)[-1].block.register_forward_pre_hook(full)
    with pytest.raises(ResourceFailure, match=r"the repair does not fit .*lower scoring\.batch_size"):
        prune_and_repair_(model, plan_of(ZOO[name], FEW), batches_of(name, range(4)))


@pytest.mark.parametrize("name", ["llama", "albert"])
def test_statistics_that_find_no_memory_are_a_resource_failure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Moments, "add", full)
    with pytest.raises(ResourceFailure, match=r"lower scoring\.batch_size"):
        prune_and_repair_(model_of(name), plan_of(ZOO[name], FEW), batches_of(name, range(4)))


def test_choosing_again_without_memory_is_a_resource_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Moments, "add", full)
    widths = plan_of(ZOO["llama"], FEW).width_after
    with pytest.raises(ResourceFailure, match=r"lower scoring\.batch_size"):
        choose_and_repair_(model_of("llama"), widths, lambda *_: range(16), batches_of("llama", range(4)))


def test_other_errors_of_the_model_come_through_as_they_are() -> None:
    def break_down(_: nn.Module, __: tuple[Any, ...]) -> Tensor:
        raise RuntimeError("something else")

    model = model_of("llama")
    model.model.layers[1].register_forward_pre_hook(break_down)
    with pytest.raises(RuntimeError, match="something else"):
        prune_and_repair_(model, plan_of(ZOO["llama"], FEW), batches_of("llama", range(4)))
    assert [path for path, module in model.named_modules() if "forward" in vars(module)] == []
