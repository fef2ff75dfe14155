"""Scoring at scale: several processes, offloaded weights, half precision, and memory that does not grow with data."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from runs import LABELS as LABELS_OF
from runs import Output, environment, invoke, make_model, set_up, spawn, write_csv
from safetensors.numpy import load_file
from tiny import LABELS, LENGTHS, tiny_bart, tiny_batches, tiny_bert, tiny_llama
from torch import Tensor, nn
from transformers import PreTrainedModel
from zoo import ZOO

from skillprune.answers import Classifier, TaskModel, Writer
from skillprune.data import Batch
from skillprune.errors import DataError
from skillprune.families import find_ffns
from skillprune.scoring import (
    CRITERIA,
    Criterion,
    NeuronScores,
    Provenance,
    ScoringData,
    prepare_criteria,
    score_neurons,
    settings_for,
)
from skillprune.scoring.engine import observe
from skillprune.scoring.exchange import own_share
from skillprune.scoring.responses import ResponseCriterion

ALL = tuple(CRITERIA)
CLASSLESS = ("skill", "wanda", "fluctuation", "magnitude", "random", "fisher", "gauss_newton", "taylor", "attribution")
"""Criteria that a task without classes has too."""

SEEN = Provenance(model="m", data="d", examples=10, position="mean", seed=7)


# --- several processes -------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """What two processes said, the main one first, and the exit code of their launcher."""

    code: int
    said: tuple[Output, Output]


def torchrun(folder: Path, *arguments: object) -> Group:
    """Runs a command under torchrun with two processes, and keeps apart what each of them says."""
    logs = Path(tempfile.mkdtemp(dir=folder.parent, prefix="logs-"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launcher += ["--redirects", "3", "--log-dir", str(logs), "-m", "skillprune", *map(str, arguments)]
    done = subprocess.run(launcher, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    (attempt,) = logs.glob("*/attempt_0")
    return Group(done.returncode, (_logged(attempt / "0"), _logged(attempt / "1")))


def _logged(folder: Path) -> Output:
    return Output(0, (folder / "stdout.log").read_text(), (folder / "stderr.log").read_text())


class Scored(NamedTuple):
    """A recipe that two processes have scored and planned for together, and one alone."""

    folder: Path
    together: Group
    alone: Output


def everything(examples: int) -> dict[str, Any]:
    """A scoring section with all criteria."""
    return {
        "criterion": "skill",
        "examples": examples,
        "batch_size": 8,
        "also": [name for name in ALL if name != "skill"],
    }


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """37 examples make five batches, the last one of five examples, so the two processes see 21 and 16."""
    folder = tmp_path_factory.mktemp("group") / "work"
    folder.mkdir()
    recipe = set_up(folder, scoring=everything(37))
    together = torchrun(folder, "score", recipe, "--output", "together")
    # In a process of its own too, with as many threads: float32 forward passes depend on them in the last digit.
    return Scored(folder, together, spawn("score", recipe, "--output", "alone", cwd=folder))


def test_two_processes_give_the_scores_of_one(scored: Scored) -> None:
    assert (scored.together.code, scored.alone.code) == (0, 0), scored.together.said
    found = load_file(scored.folder / "together" / "scores.safetensors")
    expected = load_file(scored.folder / "alone" / "scores.safetensors")
    assert found.keys() == expected.keys()
    assert {name.split("/")[0] for name in found} == set(ALL)
    for name, array in found.items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_allclose(array, expected[name], rtol=1e-6 if array.dtype.kind == "f" else 0, err_msg=name)


def test_only_the_main_process_prints(scored: Scored) -> None:
    main, helper = scored.together.said
    assert main.out == scored.alone.out and "linear_probe of 37 examples" in main.out
    assert "scoring" in main.err and (helper.out, helper.err) == ("", "")


@pytest.mark.parametrize("world", [2, 3, 7])
def test_every_batch_belongs_to_one_process(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise equal scores would only show that all processes did everything."""
    batches, shares = tiny_batches(batch_size=2), []
    assert len(batches) == 5
    for rank in range(world):
        monkeypatch.setattr("skillprune.scoring.exchange.processes", lambda rank=rank: (rank, world))
        shares.append([int(batch.indices[0]) for batch in own_share(dict(enumerate(batches))).values()])
    assert sorted(sum(shares, [])) == [0, 2, 4, 6, 8]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_two_processes_plan_without_scoring_again(scored: Scored) -> None:
    directory = scored.folder / "together"
    record, when = directory / ".stages" / "score.json", (directory / "scores.safetensors").stat().st_mtime_ns
    before = record.read_bytes()
    group = torchrun(scored.folder, "plan", "recipe.yaml", "--output", "together")
    assert group.code == 0, group.said
    assert record.read_bytes() == before and (directory / "scores.safetensors").stat().st_mtime_ns == when
    assert "scoring" not in group.said[0].err and (group.said[1].out, group.said[1].err) == ("", "")
    said = invoke("plan", scored.folder / "recipe.yaml", "--output", scored.folder / "alone")
    assert said.code == 0 and group.said[0].out == said.out
    assert (directory / "plan.json").read_bytes() == (scored.folder / "alone" / "plan.json").read_bytes()


def test_two_processes_check_a_recipe_and_write_nothing(scored: Scored) -> None:
    group = torchrun(scored.folder, "run", "recipe.yaml", "--output", "dry", "--dry-run")
    assert group.code == 0, group.said
    assert group.said[0].out == invoke("run", scored.folder / "recipe.yaml", "--dry-run").out
    assert (group.said[1].out, group.said[1].err) == ("", "")
    assert not (scored.folder / "dry").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_what_fails_in_one_process_is_told_once_and_ends_all(rank: int, tmp_path: Path) -> None:
    """Batches are dealt in turn, by falling length; the one example with the broken word is in the first or second."""
    recipe = set_up(tmp_path, scoring={"criterion": "wanda", "examples": 40, "batch_size": 1})
    model = make_model()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[5] = torch.nan
    model.save_pretrained(tmp_path / "model")
    rows = [(" ".join(["word9"] * (9 - number)), LABELS_OF[number % 2]) for number in range(6)]
    rows[rank] = (" ".join(["word5"] * (9 - rank)), rows[rank][1])
    write_csv(tmp_path / "data" / "train.csv", rows)
    group = torchrun(tmp_path, "score", recipe, "--output", tmp_path / "out")
    main, helper = group.said
    assert group.code != 0 and not (tmp_path / "out" / "scores.safetensors").exists()
    assert main.err.count("error: ") == 1 and f"encoder layer 0 are not finite in batch {rank} " in " ".join(
        main.err.split()
    )
    assert "error: " not in helper.err and "Traceback" not in main.err + helper.err


def test_two_processes_read_the_same_soft_prompts(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    prompt = {"tokens": 3, "trials": 2, "epochs": 2}
    scoring = {"criterion": "wanda", "also": ["predictivity"], "examples": 37, "batch_size": 8, "position": "prompt"}
    recipe = set_up(folder, scoring=scoring | {"prompt": prompt})
    group = torchrun(folder, "score", recipe, "--output", "together")
    assert group.code == 0, group.said
    assert spawn("score", recipe, "--output", "alone", cwd=folder).code == 0
    for name in ("scores.safetensors", *(f"prompts/seed-{seed}.safetensors" for seed in (0, 1))):
        found, expected = (load_file(folder / output / name) for output in ("together", "alone"))
        assert found.keys() == expected.keys()
        for key, array in found.items():
            np.testing.assert_allclose(array, expected[key], rtol=1e-6, err_msg=key)


def test_a_process_without_a_batch_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    recipe = set_up(folder, scoring=everything(24) | {"batch_size": 64})
    group = torchrun(folder, "score", recipe, "--output", "together")
    assert group.code == 0, group.said
    assert spawn("score", recipe, "--output", "alone", cwd=folder).code == 0
    found, expected = (load_file(folder / name / "scores.safetensors") for name in ("together", "alone"))
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-6, err_msg=name)


# --- offloaded weights -------------------------------------------------------------------------------------------


def _classes() -> tuple[TaskModel, ScoringData]:
    return Classifier(tiny_bert()), ScoringData(tiny_batches(), tiny_batches(seed=1))


def _next_tokens() -> tuple[TaskModel, ScoringData]:
    return Writer(tiny_llama()), ScoringData(*_unlabelled("next"))


def _written() -> tuple[TaskModel, ScoringData]:
    return Writer(tiny_bart()), ScoringData(*_unlabelled("written"))


def _routed() -> tuple[TaskModel, ScoringData]:
    """Experts of which some tokens ask some, beside one that all tokens ask."""
    return Writer(ZOO["qwen2_moe"].model()), ScoringData(*_unlabelled("next"))


def _unlabelled(targets: Literal["next", "written"]) -> Iterator[tuple[Batch, ...]]:
    """Both splits of a task without classes."""
    return (tiny_batches(labels=[0] * len(LENGTHS), targets=targets, seed=seed) for seed in (0, 1))


CASES: dict[str, tuple[Callable[[], tuple[TaskModel, ScoringData]], tuple[str, ...]]] = {
    "bert": (_classes, ALL),
    "llama": (_next_tokens, CLASSLESS),
    "bart": (_written, CLASSLESS),
    "qwen2_moe": (_routed, CLASSLESS),
}


def score(subject: TaskModel, data: ScoringData, criteria: Sequence[str]) -> tuple[NeuronScores, ...]:
    options = {} if isinstance(subject, Classifier) else {"labels": ()}
    found = settings_for(subject, data, seed=SEEN.seed, **options)
    return score_neurons(subject, data, criteria=criteria, provenance=SEEN, settings=found)


@cache
def in_memory(name: str) -> tuple[NeuronScores, ...]:
    make, criteria = CASES[name]
    return score(*make(), criteria)


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("name", CASES)
def test_offloaded_models_get_the_scores_of_models_in_memory(name: str, where: str, tmp_path: Path) -> None:
    make, criteria = CASES[name]
    subject, data = make()
    if where == "cpu":
        cpu_offload(subject.model, execution_device=torch.device("cpu"))
    else:
        disk_offload(subject.model, str(tmp_path), execution_device=torch.device("cpu"))
    assert all(parameter.device.type == "meta" for parameter in subject.model.parameters())
    found = score(subject, data, criteria)
    assert all(parameter.device.type == "meta" for parameter in subject.model.parameters())
    for mine, theirs in zip(found, in_memory(name), strict=True):
        assert mine.widths == theirs.widths
        for stack, layers in mine.values.items():
            for layer, vector in enumerate(layers):
                where_ = f"{mine.criterion} {stack} {layer}"
                np.testing.assert_allclose(vector, theirs.values[stack][layer], rtol=1e-5, err_msg=where_)


def test_states_of_offloaded_layers_are_counted_where_they_compute() -> None:
    for model in (tiny_bert(), ZOO["qwen2_moe"].model()):
        cpu_offload(model, execution_device=torch.device("cpu"))
        ffns = find_ffns(model)
        assert {weight.device.type for ffn in ffns for weight in ffn.down.weights} == {"meta"}
        assert {ffn.device.type for ffn in ffns} == {"cpu"}


# --- half precision ----------------------------------------------------------------------------------------------


class Hooked(NamedTuple):
    """What a bfloat16 model did with one example of a batch at one down projection, in float64."""

    site: tuple[str, int]
    label: int
    activations: Tensor  # (tokens, neurons)
    gradients: Tensor  # of the loss, (tokens, neurons)


@cache
def half() -> tuple[PreTrainedModel, ScoringData]:
    return tiny_bert().bfloat16(), ScoringData(tiny_batches(), tiny_batches(seed=1))


def hooked(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Hooked]:
    """Every example at every down projection; the model runs on the batches as they are."""
    found = []
    for batch in batches:
        read: dict[tuple[str, int], Tensor] = {}
        with ExitStack() as stack, torch.enable_grad():
            for layer, block in enumerate(model.bert.encoder.layer):

                def remember(_: nn.Module, args: tuple[Tensor], layer: int = layer, read: Any = read) -> None:
                    args[0].retain_grad()
                    read["encoder", layer] = args[0]

                stack.callback(block.output.dense.register_forward_pre_hook(remember).remove)
            logits = model(**batch.inputs).logits
            nn.functional.cross_entropy(logits.float(), batch.labels, reduction="sum").backward()
        model.zero_grad()
        for site, values in read.items():
            assert values.dtype == torch.bfloat16 and values.grad is not None
            for row, mask in enumerate(batch.mask):
                kept = values[row, mask].detach().double(), values.grad[row, mask].double()
                found.append(Hooked(site, int(batch.labels[row]), *kept))
    return found


def naive(criterion: str, site: tuple[str, int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The formula of a criterion, in float64 from beginning to end."""
    model, data = half()
    calibration, validation = ([one for one in hooked(model, s) if one.site == site] for s in _splits(data))
    down = model.bert.encoder.layer[site[1]].output.dense.weight.detach().double()
    tokens = torch.cat([one.activations for one in calibration])
    if criterion == "wanda":
        return (tokens.square().sum(dim=0).sqrt() * down.abs().sum(dim=0)).numpy()
    if criterion == "fluctuation":
        return (tokens.var(dim=0, correction=0) * down.square().sum(dim=0)).numpy()
    if criterion == "fisher":
        effects = [(one.activations * one.gradients).sum(dim=0) for one in calibration]
        return torch.stack(effects).square().mean(dim=0).numpy()
    means = [torch.stack([one.activations.mean(dim=0) for one in calibration if one.label == c]) for c in (0, 1)]
    baseline = (means[0].mean(dim=0) + means[1].mean(dim=0)) / 2
    fires = [
        torch.stack([one.activations.mean(dim=0) > baseline for one in validation if one.label == c]) for c in (0, 1)
    ]
    accuracy = (1 - fires[0].double().mean(dim=0) + fires[1].double().mean(dim=0)) / 2
    return torch.maximum(accuracy, 1 - accuracy).numpy()


def _splits(data: ScoringData) -> tuple[Sequence[Batch], Sequence[Batch]]:
    return data.calibration, data.validation


@pytest.mark.parametrize("criterion", ["wanda", "fluctuation", "predictivity", "fisher"])
def test_statistics_of_a_bfloat16_model_are_exact_in_its_activations(criterion: str) -> None:
    """A statistic that is itself computed in bfloat16 is wrong by 1e-3 at least; what float32 explains is 1e-5."""
    (found,) = score(Classifier(half()[0]), half()[1], [criterion])
    for layer, vector in enumerate(found.values["encoder"]):
        expected = naive(criterion, ("encoder", layer))
        np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-5 * expected.mean())


@contextmanager
def observed(model: PreTrainedModel, data: ScoringData) -> Iterator[list[Criterion]]:
    """All criteria after everything was seen and before anything was finished."""
    subject, ffns = Classifier(model), find_ffns(model)
    found = settings_for(subject, data, seed=SEEN.seed)
    workers = prepare_criteria(ffns, ALL, found)
    observe(subject, data, [(worker, tuple(ffns)) for worker in workers], found.reading)
    yield workers
    for worker in workers:
        for ffn in ffns:
            worker.forget(ffn)


def tensors_of(worker: Criterion) -> dict[tuple[object, ...], Tensor]:
    """Everything a criterion keeps, by site, split and name."""
    return {(*key, name): value for key, state in worker._states.items() for name, value in state.items()}


def test_no_sum_over_a_bfloat16_model_has_less_than_float32() -> None:
    with observed(*half()) as workers:
        seen = {worker.name: tensors_of(worker) for worker in workers}
    assert {name for name, tensors in seen.items() if not tensors} == {"magnitude", "random"}
    for name, tensors in seen.items():
        for key, tensor in tensors.items():
            precise = not tensor.is_floating_point() or tensor.dtype in (torch.float32, torch.float64)
            assert precise, f"{name} {key}: {tensor.dtype}"


# --- memory ------------------------------------------------------------------------------------------------------


def test_states_do_not_grow_with_the_number_of_examples() -> None:
    def sizes(examples: int) -> dict[str, dict[tuple[object, ...], tuple[object, ...]]]:
        options = {"lengths": LENGTHS * (examples // len(LENGTHS)), "labels": LABELS * (examples // len(LABELS))}
        data = ScoringData(tiny_batches(**options), tiny_batches(seed=1, **options))
        with observed(tiny_bert(), data) as workers:
            return {
                worker.name: {
                    key: (tensor.shape, tensor.dtype, tensor.untyped_storage().nbytes())
                    for key, tensor in tensors_of(worker).items()
                }
                for worker in workers
                if not isinstance(worker, ResponseCriterion)
            }

    few, many = sizes(10), sizes(200)
    assert few == many and set(few) == set(ALL) - {"average_precision", "linear_probe"}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary files of this process go to."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_responses_lie_in_temporary_files_that_are_gone_after_scoring(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    update = ResponseCriterion.update

    def look(self: ResponseCriterion, *args: Any) -> None:
        update(self, *args)
        sizes.append(sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file()))

    monkeypatch.setattr(ResponseCriterion, "update", look)
    found = score(*_classes(), ("linear_probe", "average_precision"))
    # Three layers of 32 float32 responses to ten examples; one of the two criteria reads both splits.
    assert len(found) == 2 and max(sizes) == 3 * (3 * 32 * 10 * 4)
    assert list(temporary.iterdir()) == []


def test_temporary_files_are_gone_when_scoring_fails_even_while_the_error_is_looked_at(temporary: Path) -> None:
    subject, data = _classes()
    with torch.no_grad():
        subject.model.bert.encoder.layer[1].intermediate.dense.weight[3, 2] = torch.nan
    with pytest.raises(DataError, match=r"encoder layer 1 .* batch 0") as failed:
        score(subject, data, ("linear_probe",))
    assert failed.tb is not None and list(temporary.iterdir()) == []


def test_a_full_disk_is_an_error_before_anything_is_written_to_memory(temporary: Path) -> None:
    """A limit on the size of files stands in for the disk; files with holes would pass, and crash when holes fill."""
    subject, data = _classes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            score(subject, data, ("average_precision",))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(temporary.iterdir()) == []


def test_checking_data_leaves_no_temporary_files(temporary: Path) -> None:
    subject, data = _classes()
    workers = prepare_criteria(find_ffns(subject.model), ALL, settings_for(subject, data))
    assert len(workers) == len(ALL) and list(temporary.iterdir()) == []
