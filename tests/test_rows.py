"""Every row of the family table against a tiny model of its architecture: what it says is what the model computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, here

from skillprune.errors import RecipeError, UnsupportedArchitecture
from skillprune.families import FFN, by_stack, find_ffns
from skillprune.planning.costs import model_costs, predict_costs
from skillprune.planning.layers import layers_of

MIXTURES = {"mixtral", "olmoe", "qwen2_moe", "qwen3_moe"}
PLAIN = [name for name in here() if name not in MIXTURES]

specimens = pytest.mark.parametrize("name", here())
plain = pytest.mark.parametrize("name", PLAIN)
walked = pytest.mark.parametrize("name", [name for name in PLAIN if not ZOO[name].shared])


@dataclass
class Seen:
    """What went through an FFN and around it in one forward pass."""

    entering: list[Tensor] = field(default_factory=list)
    leaving: list[Tensor] = field(default_factory=list)
    residual: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    read: list[Tensor] = field(default_factory=list)
    fired: list[Tensor] = field(default_factory=list)
    written: list[Tensor] = field(default_factory=list)


def first(output: Any) -> Tensor:
    return (output[0] if isinstance(output, tuple) else output).detach().clone()


@contextmanager
def watched(ffn: FFN) -> Iterator[Seen]:
    seen, module = Seen(), ffn.block.get_submodule

    def before(where: nn.Module, found: list[Tensor]) -> None:
        def remember(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(first(args or (kwargs["hidden_states"],)))

        handles.append(where.register_forward_pre_hook(remember, with_kwargs=True))

    def after(where: nn.Module, found: list[Tensor]) -> None:
        handles.append(where.register_forward_hook(lambda _, __, output: found.append(first(output))))

    handles: list[Any] = []
    before(ffn.block, seen.entering)
    before(module(ffn.stack.residual), seen.residual)
    before(ffn.into[0].module, seen.read)
    before(ffn.down.module, seen.fired)
    after(module(ffn.stack.attention), seen.attention)
    after(ffn.down.module, seen.written)
    after(ffn.block, seen.leaving)
    yield seen
    for handle in handles:
        handle.remove()


def run(name: str) -> list[tuple[FFN, Seen]]:
    model = ZOO[name].model()
    with ExitStack() as stack, torch.no_grad():
        seen = [(ffn, stack.enter_context(watched(ffn))) for ffn in find_ffns(model)]
        model(**ZOO[name].inputs())
    return seen


@specimens
def test_the_row_finds_every_ffn_with_its_width(name: str) -> None:
    found = {
        stack: tuple(ffn.width for ffn in layers) for stack, layers in by_stack(find_ffns(ZOO[name].model())).items()
    }
    expected = {stack: widths[:1] if ZOO[name].shared else widths for stack, widths in ZOO[name].widths.items()}
    assert found == expected


@plain
def test_firing_is_what_the_down_projection_reads(name: str) -> None:
    for ffn, seen in run(name):
        assert len(seen.fired) == ffn.uses
        for read, fired in zip(seen.read, seen.fired, strict=True):
            torch.testing.assert_close(ffn.fire(read), fired, atol=1e-5, rtol=1e-4)


@walked
def test_what_down_writes_joins_the_stream_as_the_row_says(name: str) -> None:
    for ffn, seen in run(name):
        entering = seen.entering[0]
        residual, attended, written = (
            found[0].view(entering.shape) for found in (seen.residual, seen.attention, seen.written)
        )
        if ffn.stack.parallel:
            residual = ffn.attention_addition.sum(residual, attended)
        torch.testing.assert_close(ffn.handed_on(residual, written), seen.leaving[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in here() if ZOO[name].reads in {"text", "text to text"}])
def test_costs_predicted_are_the_costs_of_the_model_once_it_is_cut(name: str) -> None:
    model = ZOO[name].model()
    ffns, before = find_ffns(model), model_costs(model)
    widths = {stack: [8 + 8 * (ffn.layer % 2) for ffn in layers] for stack, layers in by_stack(ffns).items()}
    predicted = predict_costs(before, ffns, widths)
    for ffn in ffns:
        ffn.keep_(range(widths[ffn.stack.name][ffn.layer]))
    assert model_costs(model) == predicted
    assert predicted.macs < before.macs


@pytest.mark.parametrize("name", [name for name in here() if ZOO[name].reads not in {"text", "text to text"}])
def test_costs_of_what_reads_images_or_sound_are_not_made_up(name: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match="nothing but text"):
        model_costs(ZOO[name].model())


def test_widths_that_kernels_for_experts_cannot_compute_are_refused() -> None:
    ffns = find_ffns(ZOO["mixtral"].model())
    assert layers_of(ffns, round_to=8, keep_layers=())[0].widths == (32, 24, 16, 8, 0)
    with pytest.raises(RecipeError, match="multiple of 8"):
        layers_of(ffns, round_to=4, keep_layers=())
    assert layers_of(find_ffns(ZOO["llama"].model()), round_to=4, keep_layers=())
