"""Number formats in a run: each is judged on validation against fp32, and mended or refused where it loses too much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from runs import finished, invoke, set_up
from tiny import VOCABULARY, tiny_batches, tiny_bert
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, PreTrainedModel

import skillprune
from skillprune import load_recipe
from skillprune.answers import Classifier
from skillprune.data import Batch
from skillprune.errors import VerificationFailed
from skillprune.export import BACKENDS, Candidates, export_onnx, is_usable
from skillprune.pipeline.onnx_answers import answers
from skillprune.pipeline.results import Tried, Variant
from skillprune.pipeline.tournament import fastest
from skillprune.pipeline.variants import GraphVariants, asked_variants
from skillprune.progress import silent
from skillprune.recipe import BenchmarkSpec, Recipe

INT8 = ("int8-dynamic", "int8-static")
DEFAULT = "onnxruntime-default"


def recipe(**export: object) -> Recipe:
    return load_recipe(finished().recipe, [f"export.{key}={value}" for key, value in export.items()])


def right(path: Path, batches: tuple[Batch, ...]) -> float:
    """Accuracy of a file, by hand."""
    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = {each.name for each in session.get_inputs()}
    hits = [
        session.run(None, {n: t.numpy() for n, t in batch.inputs.items() if n in names})[0].argmax(1)
        == batch.labels.numpy()
        for batch in batches
    ]
    return float(np.concatenate(hits).mean())


def lopsided() -> PreTrainedModel:
    """A classifier with a product that has a huge weight in every column, beside which int8 rounds the others away."""
    model = tiny_bert(layers=2, seed=3)
    dense = model.bert.encoder.layer[0].intermediate.dense
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.output.LayerNorm.weight[0] = 1e-6  # the neuron it reads is silent
        model.bert.encoder.layer[0].attention.output.LayerNorm.bias[0] = 0.0
        dense.weight *= 20
        dense.weight[:, 0] = 1e5
    return model


@pytest.fixture(scope="module")
def batches() -> tuple[Batch, ...]:
    """Inputs with what the lopsided model answers to them."""
    model, rng = lopsided(), np.random.default_rng(0)
    found = []
    for batch in tiny_batches(lengths=tuple(int(each) for each in rng.integers(3, 15, 64)), labels=(0, 1) * 32):
        with torch.no_grad():
            labels = model(**batch.inputs).logits.argmax(1)
        found.append(replace(batch, labels=labels))
    return tuple(found)


@pytest.fixture(scope="module")
def maker(batches: tuple[Batch, ...], tmp_path_factory: pytest.TempPathFactory) -> GraphVariants:
    model = lopsided()
    given = tiny_batches(lengths=tuple(range(3, 15)))
    arrays = [{name: tensor.numpy() for name, tensor in batch.inputs.items()} for batch in given]
    folder = tmp_path_factory.mktemp("variants")
    artifact = export_onnx(model, arrays[:2], folder / "model.onnx")

    def value(path: Path) -> float:
        spec = BenchmarkSpec(threads=1)
        found = answers(path, Classifier(model), batches, "accuracy", spec, what="validation", progress=silent)
        return found.value("accuracy")

    return GraphVariants(recipe(max_drop=0.0), artifact, value, silent, batches, arrays)


@pytest.mark.parametrize("name", INT8)
def test_products_that_hurt_stay_in_fp32_until_the_floor_holds(
    maker: GraphVariants, batches: tuple[Batch, ...], tmp_path: Path, name: str
) -> None:
    made = maker.make(name, tmp_path / name / "model.onnx")
    assert any("layer.0/intermediate" in each for each in made.kept)
    assert made.refused is None and made.validation == right(made.artifact.path, batches) == 1.0
    loose = replace(maker, recipe=recipe(max_drop=1.0)).make(name, tmp_path / "loose" / "model.onnx")
    assert loose.kept == () and loose.validation is not None and loose.validation < 1.0
    assert made.artifact.max_abs_diff < loose.artifact.max_abs_diff


@pytest.mark.parametrize("name", INT8)
def test_inputs_that_a_model_ignores_are_no_obstacle(tmp_path: Path, name: str) -> None:
    """Tokenizers give DeBERTa token types, of which its graph knows nothing; ranges and rankings run the graph."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = DebertaV2Config(**sizes, vocab_size=VOCABULARY, max_position_embeddings=64, type_vocab_size=0)
    torch.manual_seed(0)
    model = DebertaV2ForSequenceClassification(config).eval()
    batches = tuple(
        replace(batch, inputs={**batch.inputs, "token_type_ids": torch.zeros_like(batch.inputs["input_ids"])})
        for batch in tiny_batches()
    )
    arrays = [{name: tensor.numpy() for name, tensor in batch.inputs.items()} for batch in batches]
    artifact = export_onnx(model, arrays[:2], tmp_path / "model.onnx")
    assert "token_type_ids" not in [each.name for each in onnx.load(artifact.path).graph.input]

    def value(path: Path) -> float:
        """As if int8 lost everything, so that its products are ranked."""
        return float(path == artifact.path)

    maker = GraphVariants(recipe(max_drop=0.0), artifact, value, silent, batches, arrays)
    made = maker.attempt(name, tmp_path / name / "model.onnx")
    assert isinstance(made, Variant) and made.refused is not None, made


def test_of_a_format_that_cannot_be_judged_no_file_stays(maker: GraphVariants, tmp_path: Path) -> None:
    def value(path: Path) -> float:
        if path != maker.source.path:
            raise ValueError("logits are not finite")
        return 1.0

    path = tmp_path / "fp16" / "model.onnx"
    assert replace(maker, value=value).attempt("fp16", path) == Tried(
        "pruned", "fp16", refused="ValueError: logits are not finite"
    )
    assert list(tmp_path.iterdir()) == []

    def full(path: Path) -> float:
        raise MemoryError

    with pytest.raises(MemoryError):  # is not the format's fault
        replace(maker, value=full).attempt("fp16", path)


def test_a_run_with_half_precision(tmp_path: Path) -> None:
    path = set_up(tmp_path, export={"variants": ["fp32", "fp16"], "backends": "torchscript", "fusion": False})
    report = skillprune.run(load_recipe(path), tmp_path / "out")
    half = report.artifacts[1]
    stored = {each.data_type for each in onnx.load(tmp_path / "out" / half.path).graph.initializer if each.dims}
    assert half.variant == "fp16" and onnx.TensorProto.FLOAT16 in stored and onnx.TensorProto.FLOAT not in stored
    assert 0 < half.max_abs_diff < 0.01
    test = report.quality.test
    assert test.onnx["fp16"] == pytest.approx(test.onnx["fp32"], abs=0.02)


def test_files_of_a_variant_that_are_gone_are_made_again(tmp_path: Path) -> None:
    path = set_up(tmp_path, export={"variants": ["int8-dynamic"], "backends": "torchscript", "fusion": False})
    skillprune.run(load_recipe(path), tmp_path / "out")
    gone = tmp_path / "out" / "onnx" / "int8-dynamic" / "model.onnx"
    gone.unlink()
    report = skillprune.run(load_recipe(path), tmp_path / "out")
    assert gone.is_file()
    cached = {stage.name: stage.cached for stage in report.stages}
    assert cached["prune"] and not cached["export"] and not cached["bench"]


def test_a_run_makes_and_judges_every_variant(tmp_path: Path) -> None:
    path = set_up(tmp_path, export={"variants": "auto", "backends": "torchscript", "fusion": False, "max_drop": 1.0})
    report = skillprune.run(load_recipe(path), tmp_path / "out")
    assert [each.variant for each in report.artifacts] == ["fp32", *INT8]
    assert report.quality.test.onnx.keys() == {"fp32", *INT8}
    timed = {row.variant for row in report.latency if row.subject == "pruned"}
    assert timed == {"fp32", *INT8} and report.best is not None and report.best.variant in timed
    for each in report.artifacts:
        kinds = {node.op_type for node in onnx.load(tmp_path / "out" / each.path).graph.node}
        assert ("QuantizeLinear" in kinds or "DynamicQuantizeLinear" in kinds) == each.variant.startswith("int8")
        assert each.validation is not None and each.bytes < each.dense_bytes
        assert (each.tolerance is None) == (each.variant != "fp32")
    shipped = report.quality.test.onnx[report.best.variant]
    assert report.quality.difference == pytest.approx(shipped - report.quality.test.dense)
    # A variant asked for by name that cannot hold the floor fails the run, where auto only passes it over.
    assert not any("refused" in reason for reason in report.verdict.reasons)


def test_a_format_that_cannot_be_made_is_no_reason_to_stop_unless_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("no such range")

    monkeypatch.setattr("skillprune.pipeline.variants.calibrate", broken)
    spec = {"backends": "torchscript", "fusion": False, "max_drop": 1.0}
    path = set_up(tmp_path, export={**spec, "variants": "auto"})
    report = skillprune.run(load_recipe(path), tmp_path / "out")
    assert [each.variant for each in report.artifacts] == ["fp32", "int8-dynamic"]
    assert ("int8-static", "KeyError: 'no such range'") in [(each.exporter, each.refused) for each in report.candidates]
    assert not any("int8-static" in reason for reason in report.verdict.reasons)
    named = load_recipe(path, ["export.variants=[fp32, int8-static]"])
    reasons = skillprune.run(named, tmp_path / "named").verdict.reasons
    assert any("int8-static could not be made: KeyError" in reason for reason in reasons)


@pytest.mark.parametrize("asked", ["auto", ["torchscript", "native"]])
def test_an_exporter_that_fails_is_no_reason_to_stop_unless_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: object
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("no such operator")

    monkeypatch.setitem(BACKENDS, "native", replace(BACKENDS["native"], write=broken, needs=()))
    path = set_up(tmp_path, export={"backends": asked, "fusion": False})
    report = skillprune.run(load_recipe(path), tmp_path / "out")
    assert report.artifacts[0].backend != "native"
    reasons = [reason for reason in report.verdict.reasons if "native could not be made: the exporter" in reason]
    assert len(reasons) == (asked != "auto")


def test_files_that_cannot_run_a_shape_do_not_compete(tmp_path: Path) -> None:
    model, batches = tiny_bert(layers=1), [{n: t.numpy() for n, t in b.inputs.items()} for b in tiny_batches()[:2]]
    made = export_onnx(model, batches, tmp_path / "right.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    files = (replace(made, backend="right"), replace(made, path=tmp_path / "broken.onnx", backend="broken"))

    def feeds(batch: int, sequence: int) -> dict[str, NDArray[np.int64]]:
        ids = np.full((batch, sequence), 5, np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    spec = BenchmarkSpec(shapes=((1, 8),), threads=1)
    best, tried = fastest("dense", Candidates(files, ()), feeds, spec, seed=0, progress=silent)
    assert best.backend == "right" and [each.exporter for each in tried] == ["right", "broken"]
    assert tried[1].refused is not None and "cannot open this file" in tried[1].refused
    too_long = BenchmarkSpec(shapes=((1, 8), (1, 4096)), threads=1)  # there are fewer positions
    with pytest.raises(VerificationFailed, match="right: .*1 x 4096"):
        fastest("dense", Candidates(files, ()), feeds, too_long, seed=0, progress=silent)


def test_auto_asks_for_what_suits_the_provider() -> None:
    assert asked_variants(recipe(variants="auto")) == INT8
    cuda = load_recipe(finished().recipe, ["export.variants=auto", "benchmark.provider=cuda"])
    assert asked_variants(cuda) == ("fp16",)
    assert asked_variants(recipe(variants="[int8-static, fp32]")) == ("int8-static",)


def test_the_fastest_file_is_kept_and_all_are_told(tmp_path: Path) -> None:
    files = []
    for layers, name in ((24, "slow"), (1, "quick")):
        model = tiny_bert(layers=layers, hidden=32, width=64)
        batches = [{n: t.numpy() for n, t in batch.inputs.items()} for batch in tiny_batches()[:2]]
        files.append(replace(export_onnx(model, batches, tmp_path / f"{name}.onnx"), backend=name))

    def feeds(batch: int, sequence: int) -> dict[str, NDArray[np.int64]]:
        ids = np.full((batch, sequence), 5, np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    spec = BenchmarkSpec(shapes=((1, 8),), threads=1)
    best, tried = fastest("dense", Candidates(tuple(files), ()), feeds, spec, seed=0, progress=silent)
    assert best.backend == "quick"
    assert [each.exporter for each in tried] == ["quick", "slow"] and tried[0].speed == 1.0
    assert tried[1].speed is not None and tried[1].speed < 1.0
    only, alone = fastest("dense", Candidates((files[0],), ()), feeds, spec, seed=0, progress=silent)
    assert only.backend == "slow" and alone[0].speed is None


def test_an_exporter_that_is_not_installed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    missing = [name for name in BACKENDS if not is_usable(name)]
    if not missing:
        pytest.skip("every exporter is installed")
    path = set_up(tmp_path, export={"backends": missing[0]})
    found = invoke("run", path, "--output", tmp_path / "out")
    assert found.code == 2 and f"skillprune[{BACKENDS[missing[0]].extra}]" in found.text
    assert not (tmp_path / "out").exists()


def test_an_operator_set_is_written_or_refused_before_anything_is(tmp_path: Path) -> None:
    recipe_of = {"backends": "torchscript", "fusion": False}
    path = set_up(tmp_path, export={**recipe_of, "opset": 18})
    report = skillprune.run(load_recipe(path), tmp_path / "out")
    assert [each.opset for each in report.artifacts] == [18]
    standard = next(
        each for each in onnx.load(tmp_path / "out" / report.artifacts[0].path).opset_import if not each.domain
    )
    assert standard.version == 18
    found = invoke("run", path, "--set", "export.opset=9", "--output", tmp_path / "other")
    assert found.code == 2 and "torchscript writes operator sets 14 to 20, not 9" in found.text, found.text
    assert not (tmp_path / "other").exists()


def test_a_reference_is_timed_and_told(tmp_path: Path) -> None:
    benchmark = {"shapes": [[2, 16]], "threads": 1, "rounds": 10, "references": ["torch", DEFAULT]}
    report = skillprune.run(load_recipe(set_up(tmp_path, benchmark=benchmark)), tmp_path / "out")
    assert [(row.subject, row.runtime) for row in report.latency] == [
        ("dense", "onnxruntime"),
        ("pruned", "onnxruntime"),
        ("torch", "torch"),
        (DEFAULT, DEFAULT),
    ]
    _, pruned, torch_, _ = (row.speedup for row in report.latency)
    assert pruned is not None and torch_ is not None
    told = f"The shipped file against the dense model in torch: {pruned / torch_:.2f}x at 2 x 16."
    assert told in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
