"""Plans: which widths and neurons, what they are predicted to save against real counts, and the file they travel in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY_ALL, TINY_WIDTHS, tiny_bert
from torch import Tensor, nn
from transformers import BartForSequenceClassification, PreTrainedModel

from skillprune.errors import PlanMismatch, RecipeError
from skillprune.families import by_stack, find_ffns
from skillprune.planning import (
    MAC_SEQUENCE,
    Budget,
    Costs,
    KeepLayers,
    KeepRatio,
    PruningPlan,
    load_plan,
    model_costs,
    plan_from_json,
    plan_pruning,
    plan_to_json,
    predict_plan,
)
from skillprune.planning.layers import Layer, untouched_layers
from skillprune.planning.path import nearest_widths
from skillprune.scoring import NeuronScores, Provenance
from skillprune.surgery import prune_

COSTS = Costs(sequence=32, parameters=1000, ffn_parameters=600, macs=9000, ffn_macs=5000)
SEEN = Provenance(model="m", data="d", examples=10, position="mean", seed=0)


def scores_of(model: PreTrainedModel, seed: int = 0) -> NeuronScores:
    """Few distinct values, so that ties occur."""
    rng = np.random.default_rng(seed)
    values = {
        stack: tuple(rng.integers(0, 9, size=ffn.width).astype(np.float64) for ffn in ffns)
        for stack, ffns in by_stack(find_ffns(model)).items()
    }
    return NeuronScores("wanda", values, SEEN)


def attentions(model: PreTrainedModel) -> int:
    """Attentions of the model: one per layer, and one more per layer of a decoder beside an encoder."""
    stacks = by_stack(find_ffns(model))
    return sum(len(ffns) * (2 if name == "decoder" and len(stacks) == 2 else 1) for name, ffns in stacks.items())


def rotations(model: PreTrainedModel, tokens: int) -> int:
    """Products of positions and frequencies, which transformers 4.57 writes as a matrix product."""
    if model.config.model_type != "llama" or not transformers.__version__.startswith("4."):
        return 0
    return tokens * model.config.head_dim // 2


def counted(model: PreTrainedModel, tokens: int) -> tuple[int, int, int, int]:
    """Parameters, those in FFNs, MACs of one sequence, those in FFNs; an attention adds 2 S S d to its Linears."""
    macs: dict[nn.Module, int] = {}

    def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        rows = output.numel() // output.shape[-1]
        macs[module] = macs.get(module, 0) + rows * module.weight.shape[0] * module.weight.shape[1]

    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(count) for module in linears]
    with torch.no_grad():
        model(input_ids=torch.full((1, tokens), 5))
    for hook in hooks:
        hook.remove()
    ffns = find_ffns(model)
    hidden = ffns[0].down.weight.shape[0]
    gates = [block.mlp.gate_proj for block in model.model.layers] if model.config.model_type == "llama" else []
    ours = [*gates, *(matrix.module for ffn in ffns for matrix in (ffn.up, ffn.down))]
    return (
        sum(parameter.numel() for parameter in {id(each): each for each in model.parameters()}.values()),
        sum(parameter.numel() for linear in ours for parameter in linear.parameters()),
        sum(macs.values()) + attentions(model) * 2 * tokens * tokens * hidden + rotations(model, tokens),
        sum(macs[linear] for linear in ours),
    )


def layer_of(width: int, round_to: int) -> Layer:
    """A layer that may have any multiple below its width, or none."""
    return Layer(("encoder", 0), (width, *range((width - 1) // round_to * round_to, -1, -round_to)), 1, 1)


def widths_at(model: PreTrainedModel, budget: Budget, **options: Any) -> tuple[int, ...]:
    """Where a budget stops on the even path of a model with one stack."""
    (widths,) = predict_plan(model, budget, **options).width_after.values()
    return widths


def parts(costs: Costs) -> tuple[int, int, int, int]:
    return costs.parameters, costs.ffn_parameters, costs.macs, costs.ffn_macs


@pytest.mark.parametrize(
    ("width", "ratio", "round_to", "expected"),
    [(3072, 0.02, 16, 64), (3072, 0.02, 1, 61), (1536, 0.25, 16, 384), (100, 0.25, 16, 32), (10, 0.1, 16, 10)],
)
def test_rounded_widths_by_hand(width: int, ratio: float, round_to: int, expected: int) -> None:
    assert widths_at(tiny_bert(width=width, layers=1), KeepRatio(ratio), round_to=round_to) == (expected,)


@pytest.mark.parametrize(
    ("ratio", "round_to", "keep_layers", "expected", "told"),
    [
        (0.25, 64, (), 64, "the fewest that widths may have are 192 of 300, 64.0%"),
        (0.33, 64, (), 64, None),
        (0.02, 16, (), 16, "2.0% of the neurons was asked for; the fewest that widths may have are 48 of 300"),
        (0.2, 400, (), 100, "the fewest that widths may have are 300 of 300"),
        (0.5, 16, (0, 1, 2), 100, "no layer may be narrowed"),
        (1.0, 16, (0, 1, 2), 100, None),
    ],
)
def test_a_share_that_widths_cannot_have_is_told(
    ratio: float, round_to: int, keep_layers: KeepLayers, expected: int, told: str | None
) -> None:
    found = predict_plan(tiny_bert(width=100), KeepRatio(ratio), round_to=round_to, keep_layers=keep_layers)
    assert found.width_after == {"encoder": (expected,) * 3}
    assert found.unmet is None if told is None else told in str(found.unmet)


@settings(deadline=None, max_examples=200)
@given(width=st.integers(1, 5000), ratio=st.floats(0, 1, exclude_min=True), round_to=st.integers(1, 128))
def test_a_rounded_width_is_the_nearest_multiple_that_fits(width: int, ratio: float, round_to: int) -> None:
    (found,) = nearest_widths(layer_of(width, round_to), np.array([ratio])).tolist()
    assert 1 <= found <= width
    assert found % round_to == 0 or found == width
    allowed = {*range(round_to, width, round_to), width}
    assert abs(found - ratio * width) == min(abs(each - ratio * width) for each in allowed)


@settings(deadline=None)
@given(
    width=st.integers(1, 5000), ratios=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)), round_to=st.integers(1, 64)
)
def test_a_larger_ratio_never_keeps_fewer(width: int, ratios: tuple[float, float], round_to: int) -> None:
    layer = layer_of(width, round_to)
    low, high = nearest_widths(layer, np.array([min(ratios), max(ratios)])).tolist()
    assert low <= high


@pytest.mark.parametrize(
    ("keep_layers", "expected"),
    [
        ((), set()),
        ([], set()),
        ((0, 2), {0, 2}),
        ((-1,), {5}),
        ((-6, 5, 5), {0, 5}),
        (0.0, set()),
        (0.5, {0, 1, 2}),
        (0.33, {0, 1}),
        (0.9, {0, 1, 2, 3, 4}),
    ],
)
def test_untouched_layers_by_index_from_the_end_and_by_share(keep_layers: KeepLayers, expected: set[int]) -> None:
    assert untouched_layers(keep_layers, 6) == expected


@pytest.mark.parametrize("index", [6, -7, 100])
def test_a_layer_that_does_not_exist_is_a_recipe_error(index: int) -> None:
    with pytest.raises(RecipeError, match=rf"plan\.keep_layers.*-6 to 5.*found {index}"):
        untouched_layers([0, index], 6)
    with pytest.raises(RecipeError):
        plan_pruning(tiny_bert(), scores_of(tiny_bert()), KeepRatio(0.5), keep_layers=[index])


def test_widths_leave_the_layers_named_alone() -> None:
    model = tiny_bert(width=32)
    for keep_layers, expected in [((1,), (8, 32, 8)), ((-1,), (8, 8, 32)), (0.34, (32, 8, 8)), ((), (8, 8, 8))]:
        assert widths_at(model, KeepRatio(0.25), round_to=8, keep_layers=keep_layers) == expected
    assert widths_at(model, KeepRatio(0.25), round_to=8, keep_layers=(0, 1, 2)) == (32, 32, 32)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8, 1.0])
def test_the_best_neurons_stay_and_ties_go_to_the_lower_index(ratio: float) -> None:
    model = tiny_bert(width=40)
    scores = scores_of(model)
    plan = plan_pruning(model, scores, KeepRatio(ratio), round_to=4, keep_layers=[2])
    for layer, (kept, vector) in enumerate(zip(plan.keep["encoder"], scores.values["encoder"], strict=True)):
        width = 40 if layer == 2 else round(ratio * 40)
        order = sorted(range(40), key=lambda neuron, vector=vector: (-vector[neuron], neuron))
        assert kept == tuple(sorted(order[:width]))
    assert (plan.criterion, plan.round_to) == ("wanda", 4)
    assert plan.budget == {"keep_ratio": ratio, "keep_layers": [2]}
    assert plan.width_before == {"encoder": (40, 40, 40)}
    assert [ffn.width for ffn in find_ffns(model)] == [40, 40, 40]


def test_scores_of_another_model_are_refused_with_both_widths() -> None:
    with pytest.raises(PlanMismatch, match=r"\(24, 24, 24\).*\(32, 32, 32\)"):
        plan_pruning(tiny_bert(width=32), scores_of(tiny_bert(width=24)), KeepRatio(0.5))


@pytest.mark.parametrize("family", sorted(TINY_ALL))
@pytest.mark.parametrize(
    ("ratio", "round_to", "keep_layers"), [(0.25, 8, ()), (0.4, 1, (1,)), (0.7, 16, 0.3), (1.0, 16, ())]
)
def test_predicted_costs_are_those_counted_before_and_after_pruning(
    family: str, ratio: float, round_to: int, keep_layers: KeepLayers
) -> None:
    model = TINY_ALL[family](width=48)
    arguments: dict[str, Any] = {"round_to": round_to, "keep_layers": keep_layers}
    predicted = predict_plan(model, KeepRatio(ratio), **arguments)
    plan = plan_pruning(model, scores_of(model), KeepRatio(ratio), **arguments)
    assert (plan.before, plan.after, plan.width_after) == (predicted.before, predicted.after, predicted.width_after)
    assert parts(plan.before) == counted(model, plan.before.sequence)
    prune_(model, plan)
    assert parts(plan.after) == counted(model, plan.after.sequence)
    assert plan.after == model_costs(model)
    found = {stack: tuple(ffn.width for ffn in ffns) for stack, ffns in by_stack(find_ffns(model)).items()}
    assert found == plan.width_after
    assert plan.width_before == {
        stack: tuple(48 if width == 32 else width for width in widths) for stack, widths in TINY_WIDTHS[family].items()
    }


def test_a_bart_classifier_is_counted_although_it_answers_at_an_end_token() -> None:
    model = BartForSequenceClassification(TINY_ALL["bart"]().config).eval()
    costs = model_costs(model)
    written = model_costs(model.model)
    head = model.classification_head
    assert costs.macs - written.macs == head.dense.weight.numel() + head.out_proj.weight.numel()
    assert costs.ffn_macs == costs.sequence * 2 * 16 * (3 * 32 + 2 * 24)


def test_costs_are_counted_for_one_sequence_that_the_model_can_read() -> None:
    short, long = tiny_bert(), tiny_bert()
    long.bert.embeddings.position_embeddings = nn.Embedding(512, 16)
    long.bert.embeddings.register_buffer("position_ids", torch.arange(512).unsqueeze(0), persistent=False)
    long.bert.embeddings.register_buffer("token_type_ids", torch.zeros(1, 512, dtype=torch.long), persistent=False)
    long.config.max_position_embeddings = 512
    assert model_costs(short).sequence <= 64
    assert model_costs(long).sequence == MAC_SEQUENCE
    assert parts(model_costs(long)) == counted(long, MAC_SEQUENCE)


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_model_as_it_was(training: bool) -> None:
    model = tiny_bert().train(training)
    model_costs(model)
    assert all(module.training is training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_plan_and_its_prediction_print_widths_and_shares() -> None:
    model = tiny_bert(width=32)
    plan = plan_pruning(model, scores_of(model), KeepRatio(0.5), keep_layers=[0])
    text = str(plan)
    assert str(predict_plan(model, KeepRatio(0.5), keep_layers=[0])) in text
    assert "plan by wanda" in text
    assert [line.split() for line in text.splitlines()[1:4]] == [
        ["encoder", "0", "32", "->", "32", "neurons"],
        ["encoder", "1", "32", "->", "16", "neurons"],
        ["encoder", "2", "32", "->", "16", "neurons"],
    ]
    share = plan.after.parameters / plan.before.parameters
    assert f"{plan.before.parameters:,} -> " in text
    assert f"({100 * share:.1f}%)" in text


@st.composite
def plans(draw: st.DrawFn) -> PruningPlan:
    widths = draw(
        st.dictionaries(
            st.text(min_size=1, max_size=8), st.lists(st.integers(1, 12), min_size=1, max_size=4), max_size=3
        )
    )
    keep = {
        stack: tuple(tuple(sorted(draw(st.sets(st.integers(0, width - 1), min_size=1)))) for width in layers)
        for stack, layers in widths.items()
    }
    counts = st.integers(0, 10**12)
    before, after = (draw(st.builds(Costs, counts, counts, counts, counts, counts)) for _ in range(2))
    budget = {
        "keep_ratio": draw(st.floats(0.001, 1)),
        "keep_layers": draw(st.lists(st.integers(-3, 3)) | st.floats(0, 1)),
    }
    before_widths = {stack: tuple(layers) for stack, layers in widths.items()}
    return PruningPlan(keep, before_widths, draw(st.text()), budget, draw(st.integers(1, 64)), before, after)


@settings(deadline=None)
@given(plans())
def test_a_plan_survives_json(plan: PruningPlan) -> None:
    text = plan_to_json(plan)
    assert plan_from_json(text) == plan
    fields = json.loads(text)
    assert fields["keep"] == {stack: [list(kept) for kept in layers] for stack, layers in plan.keep.items()}
    for layers in plan.keep.values():
        assert all(
            json.dumps(list(kept)) in [line.strip().rstrip(",") for line in text.splitlines()] for kept in layers
        )


def plan_of(keep: Sequence[Sequence[int]], widths: Sequence[int] = (4, 4)) -> PruningPlan:
    kept = {"encoder": tuple(map(tuple, keep))}
    return PruningPlan(kept, {"encoder": tuple(widths)}, "wanda", {"keep_ratio": 0.5}, 1, COSTS, COSTS)


def test_a_plan_is_read_back_from_a_file(tmp_path: Path) -> None:
    plan = plan_of([(0, 2), (1, 3)])
    (tmp_path / "plan.json").write_text(plan_to_json(plan), encoding="utf-8")
    assert load_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    "keep", [[(2, 0), (1,)], [(0, 0), (1,)], [(0,), (4,)], [(-1, 0), (1,)], [(0,)], [(0,), (1,), (2,)]]
)
def test_a_plan_that_contradicts_itself_cannot_be_made(keep: list[tuple[int, ...]]) -> None:
    with pytest.raises(PlanMismatch):
        plan_of(keep)
    with pytest.raises(PlanMismatch):
        replace(plan_of([(0,), (1,)]), keep={"encoder": tuple(keep)})


def test_stacks_must_agree() -> None:
    with pytest.raises(PlanMismatch, match="different stacks or layers"):
        replace(plan_of([(0,), (1,)]), width_before={"decoder": (4, 4)})


def changed(**fields: Any) -> str:
    whole = {"format": "skillprune-plan-1", **asdict(plan_of([(0, 2), (1, 3)])), **fields}
    return json.dumps({name: value for name, value in whole.items() if value is not None})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        "{}",
        changed(format="skillprune-plan-2"),
        changed(keep=None),
        changed(before=None),
        changed(colour="red"),
        changed(before={"sequence": 1}),
        changed(keep={"encoder": [["0", "2"], [1]]}),
        changed(keep={"encoder": [[0.5, 2.0], [1]]}),
        changed(keep={"encoder": [3, 4]}),
        changed(keep=[[0], [1]]),
        changed(keep={"encoder": [[0, 2], [7]]}),
        changed(keep={"encoder": [[0, 2]]}),
        changed(width_before={"encoder": 4}),
    ],
)
def test_text_that_is_no_plan_is_refused(text: str) -> None:
    assert plan_from_json(changed()) == plan_of([(0, 2), (1, 3)])
    with pytest.raises(PlanMismatch):
        plan_from_json(text, "plan.json")


@pytest.mark.parametrize("wrong", ["missing", "folder", "binary", "text"])
def test_a_file_that_is_no_plan_is_an_error_that_names_it(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "plan.json"
    if wrong == "folder":
        path.mkdir()
    elif wrong == "binary":
        path.write_bytes(b"\x80\xff\xfe" * 10)
    elif wrong == "text":
        path.write_text("keep everything", encoding="utf-8")
    with pytest.raises(PlanMismatch, match=r"plan\.json"):
        load_plan(path)
