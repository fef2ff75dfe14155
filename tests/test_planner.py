"""What budgets need to have measured: latency tables, trial runs, layer sensitivity, neurons chosen block by block."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from naive import down_modules, lone_examples, score
from numpy.typing import NDArray
from runs import LABELS as RUN_LABELS
from runs import WIDTH, invoke, make_model, make_tokenizer, read_csv, read_json, set_up, write_csv, write_recipe
from test_activations import too_large
from tiny import TINY, VOCABULARY, tiny_batches, tiny_bert, tiny_llama
from torch import nn
from transformers import PreTrainedModel

from skillprune.answers import Classifier
from skillprune.benchmark import Latency, Ratio, measure_latency
from skillprune.checkpoint import load_source, save_pruned
from skillprune.data import Batch
from skillprune.errors import RecipeError, VerificationFailed
from skillprune.evaluation import accuracy
from skillprune.export import BACKENDS
from skillprune.families import find_ffns
from skillprune.pipeline import Run, detection, planner, sensitivity
from skillprune.pipeline import latency_table as latency_tables
from skillprune.pipeline.blockwise import chosen_again
from skillprune.pipeline.candidates import Candidates
from skillprune.pipeline.latency_table import latency_table
from skillprune.pipeline.sensitivity import SHARES, measured_curves
from skillprune.planning import Costs, LatencyTable, PruningPlan, Widths
from skillprune.progress import silent
from skillprune.recipe import BenchmarkSpec, ExportSpec, RepairSpec, load_recipe
from skillprune.repair import prune_and_repair_
from skillprune.scoring import NeuronScores, Provenance, ScoringData, ranking
from skillprune.surgery import prune_

UNCOUNTED = Costs(0, 0, 0, 0, 0)
NEURONS = 32
LENGTHS = (3, 9, 5, 12, 7, 4, 10, 6, 8, 11, 9, 5, 12, 4, 7, 10, 3, 8, 6, 12)
LABELS = (0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0)


def plan_of(*keep: Sequence[int]) -> PruningPlan:
    widths = {"encoder": (NEURONS,) * len(keep)}
    return PruningPlan({"encoder": tuple(map(tuple, keep))}, widths, "test", {}, 1, UNCOUNTED, UNCOUNTED)


def some_scores(layers: int = 3) -> NeuronScores:
    values = tuple(np.random.default_rng(layer).random(NEURONS) for layer in range(layers))
    return NeuronScores("test", {"encoder": values}, Provenance("m", "d", 20, "mean", 0))


# Latency tables


def inputs(batch: int, sequence: int) -> dict[str, NDArray[np.int64]]:
    ids = np.random.default_rng([batch, sequence]).integers(3, VOCABULARY, (batch, sequence))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def tabulated(
    made: list[PreTrainedModel], backends: tuple[str, ...] = ("torchscript",), **changes: Any
) -> LatencyTable:
    def make() -> PreTrainedModel:
        made.append(tiny_bert(width=NEURONS))
        return made[-1]

    spec = BenchmarkSpec(**{"shapes": ((1, 8), (2, 16)), "threads": 1, **changes})
    return latency_table(
        make,
        [inputs(2, 7)],
        inputs,
        spec,
        ExportSpec(backends=backends),
        round_to=4,
        seed=0,
        cache=True,
        progress=silent,
    )


def test_a_latency_table_is_measured_once_per_machine_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKILLPRUNE_CACHE", str(tmp_path))
    made: list[PreTrainedModel] = []
    table = tabulated(made)
    assert table.shapes == ((1, 8), (2, 16))
    assert len(table.dense_ms) == 2 and all(0 < ms < 1000 for ms in table.dense_ms)
    # Multiples of 4 near the shares 0, 1/32, 1/16, 1/8, 1/4, 3/8, 1/2 and 3/4 of 32, and the dense width.
    assert table.widths == {"encoder": (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)}
    for shares in table.shares["encoder"]:
        assert shares[-1] == 1 and 0 < shares[0]
        assert list(shares) == sorted(shares)
    assert len(made) == 7  # every width but the dense one is exported from a model of its own
    widths = {find_ffns(model)[0].width for model in made[1:]}
    assert widths == {0, 4, 8, 12, 16, 24}
    made.clear()
    assert tabulated(made) == table
    assert len(made) == 1  # its config tells whether the table fits
    assert len(list(tmp_path.rglob("*.json"))) == 1
    assert tabulated(made, rounds=12) == table  # how long the final benchmark takes does not matter
    (file,) = tmp_path.rglob("*.json")
    made.clear()
    file.write_text("{")
    tabulated(made)
    assert len(made) == 7  # a damaged file is measured anew
    made.clear()
    tabulated(made, threads=2)
    assert len(made) == 7 and len(list(tmp_path.rglob("*.json"))) == 2


def test_no_exporter_is_needed_as_long_as_one_writes_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("no such operator")

    monkeypatch.setenv("SKILLPRUNE_CACHE", str(tmp_path))
    monkeypatch.setitem(BACKENDS, "native", replace(BACKENDS["native"], write=broken, needs=()))
    made: list[PreTrainedModel] = []
    assert tabulated(made, ("native", "torchscript")).widths["encoder"][-1] == 1.0
    assert len(made) == 7
    with pytest.raises(VerificationFailed, match="native failed"):
        tabulated(made, ("native",))


def test_a_table_of_a_busy_machine_is_used_but_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def restless(*arguments: Any, **options: Any) -> Latency:
        found = measure_latency(*arguments, **options)
        off = tuple(replace(control, ratio=Ratio(1.2, 1.1, 1.3)) for control in found.controls)
        return replace(found, controls=off)

    monkeypatch.setenv("SKILLPRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(latency_tables, "measure_latency", restless)
    assert tabulated([]).widths["encoder"][-1] == 1.0
    assert list(tmp_path.rglob("*.json")) == [] and "this machine is busy" in caplog.text


def test_a_table_that_cannot_be_kept_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    monkeypatch.setenv("SKILLPRUNE_CACHE", str(tmp_path / "cache"))
    assert tabulated([]).widths["encoder"][-1] == 1.0
    assert "times are not kept" in caplog.text


def test_a_dry_run_measures_once_and_prints_what_it_planned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKILLPRUNE_CACHE", str(tmp_path / "cache"))
    real, tables = planner.latency_table, []
    monkeypatch.setattr(planner, "latency_table", lambda *a, **k: tables.append(real(*a, **k)) or tables[-1])
    recipe = set_up(tmp_path, plan={"speedup": 1.01})
    assert invoke("run", recipe, "--dry-run", "--no-cache").code in (0, 1)
    assert len(tables) == 1


# Trials of candidates


def trial_of(repair_: Callable[[PreTrainedModel, PruningPlan], object], metric: str = "accuracy") -> Any:
    def plan_for(widths: Widths) -> PruningPlan:
        return plan_of(*(range(width) for width in widths["encoder"]))

    batches = tiny_batches(lengths=LENGTHS, labels=LABELS)
    return Candidates(changing_its_mind, Classifier, plan_for, repair_, batches, metric, 0, silent)


def changing_its_mind() -> PreTrainedModel:
    """A model that gives both answers, and others when it loses neurons."""
    return tiny_bert(seed=6)


def test_a_candidate_is_judged_by_what_its_answers_lose_on_validation() -> None:
    trials = trial_of(prune_)
    widths = {"encoder": (2, 2, 2)}
    found = trials.try_out(widths)
    dense, small = changing_its_mind(), prune_(changing_its_mind(), plan_of(*[range(2)] * 3))
    right = []
    for model in (dense, small):
        answers = []
        for example in lone_examples(trials.validation):
            with torch.no_grad():
                answers.append(int(model(**example.inputs).logits.argmax()) == example.label)
        right.append(np.array(answers))
    difference = right[0].astype(float) - right[1]
    assert found.drop == pytest.approx(difference.mean())
    assert found.drop != 0
    assert found.margin == pytest.approx(difference.std() / np.sqrt(len(difference)), rel=0.1)
    whole = trials.try_out({"encoder": (NEURONS,) * 3})
    assert (whole.drop, whole.margin) == (0, 0)


def test_a_candidate_is_repaired_before_it_is_judged() -> None:
    calibration = tiny_batches(lengths=LENGTHS, labels=LABELS)
    seen = []

    def repair_(model: PreTrainedModel, plan: PruningPlan) -> None:
        prune_and_repair_(model, plan, calibration)
        with torch.no_grad():
            seen.append(accuracy(np.array(LABELS), model(**one_batch().inputs).logits.argmax(dim=1).numpy()))

    def one_batch() -> Any:
        return tiny_batches(lengths=LENGTHS, labels=LABELS, batch_size=len(LENGTHS))[0]

    found = trial_of(repair_).try_out({"encoder": (4, 4, 4)})
    with torch.no_grad():
        dense = accuracy(np.array(LABELS), changing_its_mind()(**one_batch().inputs).logits.argmax(dim=1).numpy())
    assert found.drop == pytest.approx(dense - seen[0])


# Sensitivity of layers


def test_sensitivity_is_the_rise_of_the_loss_when_a_layer_keeps_its_best() -> None:
    model, scores = tiny_bert(seed=3), some_scores()
    batches = tiny_batches(lengths=LENGTHS, labels=LABELS)
    curves = measured_curves(Classifier(model), scores, batches, silent)

    def mean_loss(of: PreTrainedModel) -> float:
        losses = []
        for example in lone_examples(batches):
            with torch.no_grad():
                losses.append(-float(of(**example.inputs).logits[0].log_softmax(dim=0)[example.label]))
        return float(np.mean(losses))

    for layer in range(3):
        rises = {NEURONS: 0.0}
        for share in SHARES:
            copy = deepcopy(model)
            kept = ranking(scores.values["encoder"][layer])[: round(share * NEURONS)]
            gone = sorted(set(range(NEURONS)) - set(kept.tolist()))
            with torch.no_grad():
                down_modules(copy)["encoder", layer].weight[:, gone] = 0
            width = round(share * NEURONS)
            rises[width] = max(*rises.values(), mean_loss(copy) - mean_loss(model))
        found = curves["encoder", layer]
        np.testing.assert_allclose([found[width] for width in rises], list(rises.values()), rtol=1e-4, atol=1e-7)
        assert found[6] == pytest.approx((found[4] + found[8]) / 2)
    assert any(curves["encoder", layer][0] > 0 for layer in range(3))


def test_sensitivity_is_measured_on_the_first_examples_of_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, scores = Classifier(TINY["bert"]()), some_scores()
    sample = tiny_batches(lengths=LENGTHS, labels=LABELS, batch_size=4)
    few = tiny_batches(lengths=LENGTHS[:6], labels=LABELS[:6], batch_size=4)
    monkeypatch.setattr(sensitivity, "EXAMPLES", 6)
    found, expected = (measured_curves(subject, scores, batches, silent) for batches in (sample[::-1], few))
    for site, curve in expected.items():
        np.testing.assert_allclose(found[site], curve, rtol=1e-4, atol=1e-7)


def test_sensitivity_of_batches_that_do_not_fit_is_measured_in_halves() -> None:
    subject, scores = Classifier(TINY["bert"]()), some_scores()
    batches = tiny_batches(lengths=LENGTHS, labels=LABELS, batch_size=4)
    expected = measured_curves(subject, scores, batches, silent)
    subject.model.bert.encoder.layer[0].register_forward_pre_hook(too_large(2, []))
    for site, curve in measured_curves(subject, scores, batches, silent).items():
        np.testing.assert_allclose(curve, expected[site], rtol=1e-4, atol=1e-7)


# Choosing again in every block


@pytest.mark.parametrize("repair", [{}, {"ridge": 0.5}, {"attention": False}], ids=str)
def test_neurons_chosen_block_by_block_are_those_a_slow_loop_chooses(repair: dict[str, Any]) -> None:
    dense = TINY["bert"]().double()
    data = ScoringData(*[tiny_batches(lengths=LENGTHS, labels=LABELS)] * 2)
    (plain,) = score(dense, data, "skill")
    metric = tuple(np.eye(16) + 0.1 * np.ones((16, 16)) for _ in range(3))
    scores = replace(plain, details={**plain.details, "metric": {"encoder": metric}})
    plan = replace(plan_of(*[range(10)] * 3))
    keep = chosen_again(deepcopy(dense), plan, scores, data.calibration, RepairSpec(**repair), silent)
    for layer in range(3):
        # The layers below as they were chosen and repaired with the same plan; this one is still whole.
        below = {"encoder": (*keep["encoder"][:layer], *[tuple(range(NEURONS))] * (3 - layer))}
        student = deepcopy(dense)
        prune_and_repair_(student, replace(plan, keep=below), data.calibration, **repair)
        mend_whole(student, layer, dense, replace(plan, keep=below), data.calibration, repair)
        fit = [example for example in lone_examples(data.calibration) if example.index % 10 != 9]
        a, y, scale = [], [], []
        for example in fit:
            wanted, seen = stream(dense, layer, example), stream(student, layer, example)
            a.append(seen[0])
            y.append(wanted[1] - seen[2])
            scale.append(wanted[1].std(axis=1, ddof=1))
        stacked = (np.concatenate(each) for each in (a, y, scale))
        assert keep["encoder"][layer] == kept_one_by_one(
            *stacked, down_modules(student)["encoder", layer], metric[layer], 10
        )
    assert keep != {"encoder": tuple(tuple(range(10)) for _ in range(3))}


def mend_whole(
    student: PreTrainedModel,
    layer: int,
    dense: PreTrainedModel,
    below: PruningPlan,
    calibration: Sequence[Batch],
    repair: dict[str, Any],
) -> None:
    """Rewrites what a block is given before its neurons are looked at, which does not depend on which of them go.

    Two repairs in which one neuron goes, not the same, know all rows of the up projection between them.
    """
    mended = student.bert.encoder.layer[layer]
    for gone in (0, NEURONS - 1):
        stay = [neuron for neuron in range(NEURONS) if neuron != gone]
        keep = {"encoder": (*below.keep["encoder"][:layer], tuple(stay), *below.keep["encoder"][layer + 1 :])}
        other = deepcopy(dense)
        prune_and_repair_(other, replace(below, keep=keep), calibration, **repair)
        block = other.bert.encoder.layer[layer]
        mended.attention.load_state_dict(block.attention.state_dict())
        with torch.no_grad():
            mended.intermediate.dense.weight[stay] = block.intermediate.dense.weight
            mended.intermediate.dense.bias[stay] = block.intermediate.dense.bias


def stream(model: PreTrainedModel, layer: int, example: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Activations, the stream after the FFN added to it and the stream before, of one example: ``(tokens, ...)``."""
    block, seen = model.bert.encoder.layer[layer], {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0][0].numpy()}))
        for name, module in (
            ("activations", block.output.dense),
            ("before", block.intermediate.dense),
            ("after", block.output.LayerNorm),
        )
    ]
    with torch.no_grad():
        model(**example.inputs)
    for hook in hooks:
        hook.remove()
    return seen["activations"], seen["after"], seen["before"]


def kept_one_by_one(
    a: NDArray[Any], y: NDArray[Any], scale: NDArray[Any], down: nn.Linear, metric: NDArray[Any], width: int
) -> Any:
    """Starts from the ridge fit and removes the neuron whose loss costs least, everything solved anew each time."""
    weights = (1 / scale**2) / np.sum(1 / scale**2)
    a, y = a - weights @ a, y - weights @ y
    gram, cross, old = (a.T * weights) @ a, (a.T * weights) @ y, down.weight.detach().numpy().T
    hessian = gram + 0.01 * np.diag(gram).mean() * np.eye(len(gram))
    start = np.linalg.solve(hessian, cross + (hessian - gram) @ old)
    left = list(range(len(gram)))

    def cost(kept: list[int]) -> float:
        gone = [neuron for neuron in range(len(gram)) if neuron not in kept]
        change = np.zeros_like(start)
        change[gone] = -start[gone]
        change[kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], -hessian[np.ix_(kept, gone)] @ change[gone])
        return float(np.trace(metric @ change.T @ hessian @ change))

    while len(left) > width:
        left.remove(min(left, key=lambda neuron: cost([each for each in left if each != neuron])))
    return tuple(left)


# Whole recipes


SKILL = {"criterion": "skill", "examples": 24, "batch_size": 8}


def prepared(folder: Path, **plan: Any) -> Path:
    set_up(folder)
    return write_recipe(folder, scoring=SKILL, plan={"round_to": 8, **plan})


def widths_in(folder: Path) -> list[int]:
    return [len(kept) for kept in read_json(folder / "plan.json")["keep"]["encoder"]]


@pytest.mark.parametrize("allocation", ["global", "sensitivity"])
def test_layers_get_what_they_need(tmp_path: Path, allocation: str) -> None:
    recipe = prepared(tmp_path, keep_ratio=0.4, allocation=allocation)
    done = invoke("plan", recipe, "--output", tmp_path / "out")
    assert done.code == 0, done.text
    widths = widths_in(tmp_path / "out")
    assert sum(widths) == pytest.approx(0.4 * 3 * WIDTH, abs=8)
    assert len(set(widths)) > 1


def test_a_blockwise_plan_has_the_widths_of_the_other_and_other_neurons(tmp_path: Path) -> None:
    once, again = prepared(tmp_path, keep_ratio=0.3), None
    assert invoke("plan", once, "--output", tmp_path / "once").code == 0
    again = write_recipe(
        tmp_path, "again", scoring=SKILL, plan={"round_to": 8, "keep_ratio": 0.3, "selection": "blockwise"}
    )
    assert invoke("plan", again, "--output", tmp_path / "again").code == 0
    first, second = (read_json(tmp_path / name / "plan.json") for name in ("once", "again"))
    assert widths_in(tmp_path / "once") == widths_in(tmp_path / "again")
    assert first["keep"] != second["keep"]


def test_blockwise_needs_the_criterion_that_can(tmp_path: Path) -> None:
    recipe = set_up(tmp_path, plan={"keep_ratio": 0.3, "selection": "blockwise"})
    refused = invoke("run", recipe, "--output", tmp_path / "out")
    assert refused.code == 2
    assert "plan.selection" in refused.text and "skill" in refused.text
    assert not (tmp_path / "out").exists()


def test_a_speed_up_beyond_reach_prunes_all_it_can_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLPRUNE_CACHE", str(tmp_path / "cache"))
    recipe = prepared(tmp_path, speedup=50)
    done = invoke("run", recipe, "--output", tmp_path / "out", "--json")
    assert done.code == 1, done.text
    report = json.loads(done.out)
    assert report["verdict"]["ok"] is False
    assert any("50 was asked for" in reason for reason in report["verdict"]["reasons"])
    assert report["model"]["stacks"][0]["width_after"] == [0, 0, 0]
    assert report["artifacts"][0]["max_abs_diff"] <= report["artifacts"][0]["tolerance"]
    planned = invoke("plan", recipe, "--output", tmp_path / "out")
    assert planned.code == 1 and "not met" in planned.text


def test_a_loose_floor_empties_the_model(tmp_path: Path) -> None:
    loose = prepared(tmp_path, max_drop=1.0)
    assert invoke("plan", loose, "--output", tmp_path / "loose").code == 0
    assert widths_in(tmp_path / "loose") == [0, 0, 0]


def always_right(folder: Path, strength: float = 1.0) -> Path:
    """A recipe whose dense model is right about every example and is lost without neurons; how loud they are."""
    recipe = prepared(folder, max_drop=0.0)
    model, tokenizer = make_model(seed=13), make_tokenizer()
    with torch.no_grad():
        for ffn in find_ffns(model):
            ffn.down.weight.mul_(strength)
    model.save_pretrained(folder / "model")
    for split in ("train", "validation"):
        path = folder / "data" / f"{split}.csv"
        texts = [text for text, _ in read_csv(path)]
        with torch.no_grad():
            answers = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(dim=1).tolist()
        write_csv(path, [(text, RUN_LABELS[answer]) for text, answer in zip(texts, answers, strict=True)])
    return recipe


def test_a_floor_that_every_candidate_breaks_leaves_the_model_whole_and_ends_with_1(tmp_path: Path) -> None:
    recipe = always_right(tmp_path, strength=100.0)
    careless = ("--set", "repair.method=zero", "--set", "scoring.criterion=random")
    done = invoke("plan", recipe, "--output", tmp_path / "out", *careless)
    assert (done.code, widths_in(tmp_path / "out")) == (1, [WIDTH] * 3), done.text
    assert "not met: a drop of at most 0 was asked for" in done.text


def test_all_trials_use_the_scores_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, scored, tried = always_right(tmp_path), [], []
    real_score, real_repair = detection.score_neurons, planner.prune_and_repair_
    monkeypatch.setattr(detection, "score_neurons", lambda *a, **k: scored.append(1) or real_score(*a, **k))
    monkeypatch.setattr(planner, "prune_and_repair_", lambda *a, **k: tried.append(1) or real_repair(*a, **k))
    assert invoke("plan", recipe, "--output", tmp_path / "out").code in (0, 1)
    assert len(scored) == 1 and len(tried) > 2
    assert sum(widths_in(tmp_path / "out")) > 0


@pytest.mark.parametrize("repair", [{"ridge": 0.5}, {"sequential": False}, {"attention": False}, {"method": "mean"}])
def test_repair_is_what_the_recipe_asks_for(tmp_path: Path, repair: dict[str, Any]) -> None:
    recipe = load_recipe(set_up(tmp_path, repair=repair))
    with Run(recipe, tmp_path / "out") as run:
        model, expected, other = (load_source(recipe.model).model for _ in range(3))
        run._planner.repair_(model, run.plan)
        prune_and_repair_(expected, run.plan, run._detection.data.calibration, **repair)
        prune_and_repair_(other, run.plan, run._detection.data.calibration)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert any(not torch.equal(tensor, other.state_dict()[name]) for name, tensor in expected.state_dict().items())


@pytest.mark.parametrize(("section", "key"), [("plan", "speedup"), ("demand", "min_speedup")])
def test_what_needs_a_measured_time_is_refused_for_tasks_that_are_not_exported(
    tmp_path: Path, section: str, key: str
) -> None:
    make_masked_model(tmp_path)
    task = {
        "type": "language-modeling",
        "data": {split: f"data/{split}.csv" for split in ("train", "validation", "test")},
        "text": "text",
        "max_length": 32,
    }
    recipe = write_recipe(tmp_path, task=task, scoring=SKILL, **{section: {key: 1.5}})
    advice = "text-classification" if section == "plan" else "export: {variants: [fp32]}"
    for command in (["validate", recipe], ["run", recipe, "--output", tmp_path / "out"]):
        refused = invoke(*command)
        assert refused.code == 2 and key in refused.text and advice in refused.text, refused.text
    assert not (tmp_path / "out").exists()


def make_masked_model(folder: Path) -> None:
    """A model that writes, in the place of the classifier."""
    set_up(folder)
    shutil.rmtree(folder / "model")
    tiny_llama().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")


def test_blockwise_and_a_repair_in_one_shot_exclude_each_other(tmp_path: Path) -> None:
    set_up(tmp_path)
    plan = {"keep_ratio": 0.5, "selection": "blockwise"}
    recipe = write_recipe(tmp_path, scoring=SKILL, plan=plan, repair={"sequential": False})
    refused = invoke("plan", recipe, "--output", tmp_path / "out")
    assert refused.code == 2 and "plan.selection" in refused.text and "repair.sequential" in refused.text


@pytest.mark.parametrize("plan", [{"max_drop": 0.01}, {"keep_ratio": 0.5, "selection": "blockwise"}], ids=str)
def test_a_plan_that_cuts_on_trial_is_refused_where_weights_are_kept_elsewhere(
    tmp_path: Path, plan: dict[str, Any]
) -> None:
    set_up(tmp_path)
    recipe = load_recipe(write_recipe(tmp_path, scoring=SKILL, plan=plan))
    with Run(recipe, tmp_path / "out") as run:
        cpu_offload(run.source.model, execution_device=torch.device("cpu"))
        with pytest.raises(RecipeError, match=rf"plan\.{list(plan)[-1]}.*no weight may be kept outside"):
            run._planner.check()


def test_blockwise_and_a_floor_exclude_each_other(tmp_path: Path) -> None:
    recipe = prepared(tmp_path, max_drop=0.1, selection="blockwise")
    refused = invoke("plan", recipe, "--output", tmp_path / "out")
    assert refused.code == 2 and "plan.selection" in refused.text and "max_drop" in refused.text


@pytest.mark.parametrize("plan", [{"selection": "blockwise"}, {"allocation": "global"}])
def test_what_several_prompts_cannot_say_is_refused(tmp_path: Path, plan: dict[str, str]) -> None:
    set_up(tmp_path)
    scoring = {**SKILL, "prompt": {"tokens": 2, "trials": 2}}
    recipe = write_recipe(tmp_path, scoring=scoring, plan={"keep_ratio": 0.5, **plan})
    refused = invoke("plan", recipe, "--output", tmp_path / "out")
    assert refused.code == 2 and "scoring.prompt.trials" in refused.text, refused.text


@pytest.mark.parametrize("round_to", [64, 80, 128])
def test_widths_may_be_rounded_to_more_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, round_to: int
) -> None:
    monkeypatch.setenv("SKILLPRUNE_CACHE", str(tmp_path / "cache"))
    recipe = set_up(tmp_path, plan={"keep_ratio": 0.5, "round_to": round_to})
    done = invoke("run", recipe, "--dry-run", "--json")
    assert done.code == 0, done.text
    assert json.loads(done.out)["width_after"] == {"encoder": [64 if round_to == 64 else 80] * 3}


@pytest.mark.parametrize("allocation", ["uniform", "global", "sensitivity"])
def test_a_model_with_an_emptied_layer_can_be_pruned_again(tmp_path: Path, allocation: str) -> None:
    recipe = prepared(tmp_path, keep_ratio=0.4)
    model = make_model()
    find_ffns(model)[1].keep_(())
    save_pruned(model, make_tokenizer(), tmp_path / "model", dtype=torch.float32)
    done = invoke("prune", recipe, "--output", tmp_path / "out", "--set", f"plan.allocation={allocation}")
    assert done.code == 0, done.text
    widths = widths_in(tmp_path / "out")
    assert widths[1] == 0 and 0 < sum(widths) < 2 * WIDTH


def test_a_run_of_a_model_with_an_emptied_layer_reports_it(tmp_path: Path) -> None:
    recipe = prepared(tmp_path, keep_ratio=0.4)
    model = make_model()
    find_ffns(model)[1].keep_(())
    save_pruned(model, make_tokenizer(), tmp_path / "model", dtype=torch.float32)
    done = invoke("score", recipe, "--output", tmp_path / "out")
    assert done.code == 0 and "encoder  1       0 neurons\n" in done.out, done.text
    done = invoke("run", recipe, "--output", tmp_path / "out", "--json")
    assert done.code == 0, done.text
    below, emptied, above = json.loads(done.out)["scoring"]["best_per_layer"]["skill"]["encoder"]
    assert below > 0 and emptied is None and above > 0
