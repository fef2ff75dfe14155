"""ONNX files: the same numbers at every shape, really smaller, and never in the place of a good one when wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from tiny import PAD, TINY, VOCABULARY, tiny_bert
from transformers import BertForSequenceClassification, PreTrainedModel

from skillprune.errors import ParityError, ResourceFailure, VerificationFailed
from skillprune.export import OnnxArtifact, check_parity, export_onnx
from skillprune.planning import Costs, PruningPlan
from skillprune.surgery import prune_

HIDDEN, WIDTH = 16, 32
WIDTHS = {"dense": (WIDTH, WIDTH), "uniform": (8, 8), "uneven": (12, 3), "emptied": (0, 8)}
UNCOUNTED = Costs(0, 0, 0, 0, 0)
Exported = Callable[[str, str], OnnxArtifact]
families = pytest.mark.parametrize("family", sorted(TINY))


def pruned(family: str, shape: str) -> PreTrainedModel:
    widths = WIDTHS[shape]
    keep = {"encoder": tuple(tuple(range(width)) for width in widths)}
    plan = PruningPlan(keep, {"encoder": (WIDTH,) * len(widths)}, "test", {}, 1, UNCOUNTED, UNCOUNTED)
    return prune_(TINY[family](layers=len(widths)), plan)


def padded(batch: int, sequence: int) -> dict[str, NDArray[np.int64]]:
    """Random tokens; the rows are shorter and shorter, down to one token."""
    rng = np.random.default_rng([batch, sequence])
    mask = np.array([[place < max(1, sequence - row) for place in range(sequence)] for row in range(batch)])
    ids = np.where(mask, rng.integers(3, VOCABULARY, mask.shape), PAD)
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}


TRIED = (padded(2, 7), padded(3, 11))


def logits(model: PreTrainedModel, arrays: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = model(
            **{name: torch.from_numpy(array) for name, array in arrays.items()}
        ).logits.numpy()
    return found


def run(path: Path, arrays: dict[str, NDArray[np.int64]]) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, arrays)[0]


def matrices(path: Path) -> list[tuple[int, ...]]:
    """Shapes of the constant matrices that the graph multiplies by."""
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor).shape for tensor in graph.initializer}
    used = [name for node in graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input]
    return sorted(constants[name] for name in used if len(constants.get(name, ())) == 2)


def state_of(model: PreTrainedModel) -> tuple[Any, ...]:
    modes = {name: module.training for name, module in model.named_modules()}
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    return modes, hooks, model.config.to_dict(), model.config._attn_implementation


class Fickle(BertForSequenceClassification):
    """Answers longer inputs differently, by a Python branch that no trace can follow."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if kwargs["input_ids"].shape[1] > 8:
            output.logits = output.logits + 0.5
        return output


def fickle() -> PreTrainedModel:
    model = tiny_bert(layers=1)
    model.__class__ = Fickle
    return model


def broken() -> PreTrainedModel:
    model = tiny_bert(layers=1)
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Each model's file, written once; tests that damage one work on a copy."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def export(family: str, shape: str) -> OnnxArtifact:
        return export_onnx(pruned(family, shape), TRIED, folder / family / shape / "model.onnx")

    return export


@families
@pytest.mark.parametrize("shape", ["uniform", "uneven", "emptied"])
def test_the_file_computes_what_pytorch_does_at_every_shape(exported: Exported, family: str, shape: str) -> None:
    model, artifact = pruned(family, shape), exported(family, shape)
    for batch, sequence in ((1, 1), (1, 3), (5, 40), (2, 7)):
        arrays = padded(batch, sequence)
        np.testing.assert_allclose(run(artifact.path, arrays), logits(model, arrays), rtol=0, atol=1e-5)
    differences = [np.abs(run(artifact.path, arrays) - logits(model, arrays)).max() for arrays in TRIED]
    assert artifact.max_abs_diff == pytest.approx(max(differences), abs=1e-7)
    assert artifact.max_abs_diff <= artifact.tolerance
    assert (artifact.variant, artifact.bytes) == ("fp32", artifact.path.stat().st_size)
    assert list(artifact.path.parent.iterdir()) == [artifact.path]


@families
def test_the_graph_says_its_axes_and_operator_set(exported: Exported, family: str) -> None:
    artifact = exported(family, "uniform")
    model = onnx.load(artifact.path)
    found = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    tokens = ["batch", "sequence"]
    assert found == {"input_ids": tokens, "attention_mask": tokens, "logits": ["batch", 2]}
    assert [(item.domain, item.version) for item in model.opset_import] == [("", artifact.opset)]


@families
@pytest.mark.parametrize("shape", ["uniform", "uneven", "emptied"])
def test_matrices_have_the_pruned_widths_and_the_file_is_smaller(exported: Exported, family: str, shape: str) -> None:
    dense, small = exported(family, "dense"), exported(family, shape)
    others = [found for found in matrices(dense.path) if WIDTH not in found]
    assert len(matrices(dense.path)) == len(others) + 2 * len(WIDTHS[shape])
    # Of a layer without neurons nothing is left, not even empty matrices.
    ffns = [found for width in WIDTHS[shape] if width for found in ((HIDDEN, width), (width, HIDDEN))]
    assert matrices(small.path) == sorted([*others, *ffns])
    removed = 4 * sum(WIDTH - width for width in WIDTHS[shape]) * (2 * HIDDEN + 1)
    more = dense.bytes - small.bytes - removed
    assert abs(more) < 0.1 * removed or (more > 0 and 0 in WIDTHS[shape])  # with a layer its nodes go too


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(tmp_path: Path, fails: bool, training: bool) -> None:
    model = (fickle() if fails else tiny_bert(layers=1)).train(training)
    before, weights = state_of(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ParityError) if fails else nullcontext():
        export_onnx(model, TRIED, tmp_path / "model.onnx")
    assert state_of(model) == before
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("make", [fickle, broken])
def test_a_file_that_fails_never_replaces_an_older_one(exported: Exported, tmp_path: Path, make: Any) -> None:
    path = tmp_path / "model.onnx"
    older = exported("bert", "dense").path.read_bytes()
    path.write_bytes(older)
    with pytest.raises(ParityError, match="exceeds the tolerance"):
        export_onnx(make(), TRIED, path)
    assert path.read_bytes() == older
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_first_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ParityError) as caught:
        export_onnx(fickle(), TRIED, tmp_path / "model.onnx")
    assert caught.value.difference == pytest.approx(0.5, abs=1e-4)
    assert list(tmp_path.iterdir()) == []


def test_parity_with_the_file_of_another_model_fails(exported: Exported) -> None:
    path, other = exported("bert", "dense").path, tiny_bert(layers=2, seed=1)
    expected = float(np.abs(run(path, TRIED[0]) - logits(other, TRIED[0])).max())
    with pytest.raises(ParityError, match=r"\(2, 7\)") as caught:
        check_parity(other, path, TRIED)
    assert caught.value.difference == pytest.approx(expected, rel=1e-4)
    assert caught.value.tolerance == pytest.approx(1e-4 * max(1.0, np.abs(logits(other, TRIED[0])).max()))


def test_the_tolerance_grows_with_the_logits(tmp_path: Path) -> None:
    model = tiny_bert(layers=1)
    with torch.no_grad():
        model.classifier.bias.fill_(1000.0)
    artifact = export_onnx(model, TRIED, tmp_path / "model.onnx")
    assert artifact.tolerance == pytest.approx(1e-4 * max(logits(model, arrays).max() for arrays in TRIED))


@pytest.mark.parametrize("below", ["model.onnx", "folder/model.onnx"])
def test_a_place_that_cannot_be_written_is_no_fault_of_the_user(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ResourceFailure, match="could not be written"):
        export_onnx(tiny_bert(layers=1), TRIED, tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_directory_in_the_place_of_the_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(ResourceFailure, match="could not be written"):
        export_onnx(tiny_bert(layers=1), TRIED, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]


@pytest.mark.parametrize("damage", ["garbage", "truncated", "missing"])
def test_a_broken_file_is_found(exported: Exported, tmp_path: Path, damage: str) -> None:
    path, content = tmp_path / "model.onnx", exported("bert", "dense").path.read_bytes()
    if damage != "missing":
        path.write_bytes(b"\x00 not a graph" * 9 if damage == "garbage" else content[: len(content) // 2])
    with pytest.raises(VerificationFailed, match="is not a graph ONNX Runtime can run"):
        check_parity(tiny_bert(layers=2), path, TRIED)


def test_an_artifact_prints_what_was_proven() -> None:
    text = str(OnnxArtifact("fp32", Path("m.onnx"), 1234, "torchscript", 17, 2.5e-7, 1e-4))
    assert "1,234 bytes" in text and "2.5e-07" in text and "0.0001" in text
