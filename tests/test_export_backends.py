"""Every exporter on every kind of head: the file takes what the model takes and gives what the model gives."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime import InferenceSession
from runs import environment
from test_export import TRIED, fickle, padded, pruned, state_of
from tiny import TINY, tiny_bert, tiny_llama_classifier
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from skillprune.errors import MissingExtra, ResourceFailure, UnsupportedExport, VerificationFailed
from skillprune.export import (
    BACKENDS,
    FUSIONS,
    check_parity,
    export_candidates,
    export_onnx,
    fuse_onnx,
    is_usable,
    largest_difference,
)

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "attn_implementation": "eager",
}
TEXT: dict[str, Any] = {**SMALL, "vocab_size": 60, "max_position_embeddings": 64, "num_labels": 3}
usable = pytest.mark.parametrize("backend", [name for name in BACKENDS if is_usable(name)])


def images(batch: int, _: int) -> dict[str, NDArray[Any]]:
    return {"pixel_values": np.random.default_rng(batch).standard_normal((batch, 3, 16, 16), np.float32)}


def choices(batch: int, sequence: int) -> dict[str, NDArray[Any]]:
    rows = padded(batch * 3, sequence)
    return {name: array.reshape(batch, 3, sequence) for name, array in rows.items()}


def typed(batch: int, sequence: int) -> dict[str, NDArray[Any]]:
    arrays = padded(batch, sequence)
    return {**arrays, "token_type_ids": (np.arange(sequence) > sequence // 2) * np.ones_like(arrays["input_ids"])}


HEADS: dict[str, tuple[Any, Any, list[str]]] = {
    "classifier": (lambda: BertForSequenceClassification(BertConfig(**TEXT)), padded, ["logits"]),
    "question-answering": (
        lambda: BertForQuestionAnswering(BertConfig(**{**TEXT, "num_labels": 2})), typed, ["start_logits", "end_logits"]
    ),
    "token-classification": (lambda: BertForTokenClassification(BertConfig(**TEXT)), typed, ["logits"]),
    "multiple-choice": (lambda: BertForMultipleChoice(BertConfig(**TEXT)), choices, ["logits"]),
    "no-head": (lambda: BertModel(BertConfig(**TEXT)), typed, ["last_hidden_state", "pooler_output"]),
    "disentangled": (
        lambda: DebertaV2ForSequenceClassification(
            DebertaV2Config(**TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"], max_relative_positions=32)
        ),
        padded,
        ["logits"],
    ),
    "image": (
        lambda: ViTForImageClassification(ViTConfig(**SMALL, image_size=16, patch_size=4, num_labels=3)),
        images,
        ["logits"],
    ),
}  # fmt: skip


def made(head: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = HEADS[head][0]().eval()
    return model


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backend", ["torchscript", "native"])  # optimum makes up inputs of its own
def test_a_graph_has_the_models_inputs_and_results_and_runs_at_other_sizes(
    tmp_path: Path, backend: str, head: str
) -> None:
    if not is_usable(backend):
        pytest.skip(f"{backend} is not installed")
    model, (_, make, outputs) = made(head), HEADS[head]
    artifact = export_onnx(model, [make(2, 7), make(3, 11)], tmp_path / "model.onnx", backend=backend)
    session = InferenceSession(str(artifact.path), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == outputs
    assert {each.name for each in session.get_inputs()} == set(make(2, 7))
    for sizes in ((1, 4), (5, 30)):
        arrays = make(*sizes)
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        for name, found in zip(outputs, session.run(None, arrays), strict=True):
            np.testing.assert_allclose(found, expected[name].numpy(), rtol=0, atol=1e-5)


@usable
@pytest.mark.parametrize("shape", ["uneven", "emptied"])
def test_every_exporter_writes_what_pytorch_computes(tmp_path: Path, backend: str, shape: str) -> None:
    model = pruned("roberta", shape)
    before = state_of(model), set(vars(model))
    artifact = export_onnx(model, TRIED, tmp_path / "model.onnx", backend=backend)
    assert (state_of(model), set(vars(model))) == before
    assert str(Path(torch.__file__).parent).encode() not in artifact.path.read_bytes()
    assert (artifact.backend, artifact.variant, artifact.opset) == (backend, "fp32", BACKENDS[backend].opset)
    assert [each.version for each in onnx.load(artifact.path).opset_import if not each.domain] == [artifact.opset]
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    session = InferenceSession(str(artifact.path), providers=["CPUExecutionProvider"])
    arrays = padded(5, 23)
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(array) for name, array in arrays.items()}).logits.numpy()
    np.testing.assert_allclose(session.run(["logits"], arrays)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("fusion", "operators"), [("attention", {"Attention": 2}), ("fused", None)])
def test_fused_graphs_compute_the_same_with_masks_of_any_kind(
    tmp_path: Path, fusion: str, operators: dict[str, int] | None
) -> None:
    model = made("classifier")
    plain = export_onnx(model, TRIED, tmp_path / "plain.onnx")
    found = fuse_onnx(model, plain, TRIED, tmp_path / "fused.onnx", fusion)
    assert found is not None and found.backend == f"torchscript+{fusion}"
    counts = Counter(node.op_type for node in onnx.load(found.path).graph.node if node.domain == "com.microsoft")
    assert counts == operators if operators else {"Attention", "SkipLayerNormalization"} <= set(counts)
    left = padded(3, 9)
    holed = {**left, "attention_mask": np.array([[0, 1] * 4 + [1], [1, 1, 0] * 3, [0] * 8 + [1]])}
    assert largest_difference(plain.path, found.path, [left, holed]) < 1e-5


def test_where_nothing_can_be_fused_there_is_no_candidate(tmp_path: Path) -> None:
    model = made("disentangled")
    plain = export_onnx(model, TRIED, tmp_path / "plain.onnx")
    assert fuse_onnx(model, plain, TRIED, tmp_path / "fused.onnx", "attention") is None
    assert [each.name for each in tmp_path.iterdir()] == ["plain.onnx"]


def test_candidates_are_all_files_that_pass(tmp_path: Path) -> None:
    found = export_candidates(made("classifier"), TRIED, tmp_path, backends=["torchscript"])
    assert [each.backend for each in found.passed] == ["torchscript", *(f"torchscript+{each}" for each in FUSIONS)]
    assert all(each.path == tmp_path / each.backend / "model.onnx" and each.path.exists() for each in found.passed)
    plain = export_candidates(tiny_bert(layers=1), TRIED, tmp_path / "plain", backends=["torchscript"], fusions=())
    assert [each.backend for each in plain.passed] == ["torchscript"]


def test_one_exporter_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    if not is_usable("native"):
        pytest.skip("needs a second exporter")
    # Only the dynamo-based exporter refuses an operator set this old.
    found = export_candidates(
        tiny_bert(layers=1), TRIED, tmp_path, backends=["native", "torchscript"], fusions=(), opset=15
    )
    assert [each.backend for each in found.passed] == ["torchscript"]
    (refused,) = found.failed
    assert refused.name == "native" and "18 to 23" in refused.why


@pytest.mark.parametrize("error", [OSError("no such file in the hub"), AttributeError("layers"), KeyError("cache")])
def test_an_exporter_may_fail_in_any_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setitem(BACKENDS, "broken", replace(BACKENDS["torchscript"], write=broken))
    found = export_candidates(tiny_bert(layers=1), TRIED, tmp_path, backends=["broken", "torchscript"], fusions=())
    assert [each.backend for each in found.passed] == ["torchscript"]
    (refused,) = found.failed
    assert refused.name == "broken" and type(error).__name__ in refused.why and str(error) in refused.why


def test_a_disk_that_fills_up_stops_all_exporters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setitem(BACKENDS, "broken", replace(BACKENDS["torchscript"], write=full))
    with pytest.raises(ResourceFailure, match="no space left"):
        export_candidates(tiny_bert(layers=1), TRIED, tmp_path, backends=["broken", "torchscript"], fusions=())


def test_without_any_right_file_every_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed, match="torchscript: .*exceeds the tolerance"):
        export_candidates(fickle(), TRIED, tmp_path, backends=["torchscript"])


def test_an_operator_set_out_of_reach_is_a_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedExport, match="torchscript writes operator sets 14 to 20, not 9"):
        export_onnx(tiny_bert(layers=1), TRIED, tmp_path / "model.onnx", opset=9)
    with pytest.raises(UnsupportedExport):
        export_candidates(tiny_bert(layers=1), TRIED, tmp_path, backends=["torchscript"], opset=9)
    assert list(tmp_path.iterdir()) == []
    assert export_onnx(tiny_bert(layers=1), TRIED, tmp_path / "model.onnx", opset=16).opset == 16


def test_exporters_that_are_not_there(tmp_path: Path) -> None:
    for name in BACKENDS:
        if not is_usable(name):
            with pytest.raises(MissingExtra, match=rf"the exporter {name} .*skillprune\[{BACKENDS[name].extra}\]"):
                export_onnx(tiny_bert(layers=1), TRIED, tmp_path / "model.onnx", backend=name)
    with pytest.raises(ValueError, match="no exporter is called 'keras'"):
        export_onnx(tiny_bert(layers=1), TRIED, tmp_path / "model.onnx", backend="keras")


def test_a_graph_that_runs_at_one_size_only_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(tiny_bert(layers=1), TRIED, path)
    graph = onnx.load(path)
    for given in graph.graph.input:
        given.type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(graph, path)
    with pytest.raises(VerificationFailed, match=r"does not run at .*\(3, 11\).*may have fixed an axis"):
        check_parity(tiny_bert(layers=1), path, TRIED)


def test_a_damaged_weight_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(tiny_bert(layers=1), TRIED, path)
    graph = onnx.load(path)
    (weights,) = (each for each in graph.graph.initializer if each.name.endswith("classifier.weight"))
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) + 0.01, weights.name))
    onnx.save(graph, path)
    with pytest.raises(VerificationFailed, match="exceeds the tolerance"):
        check_parity(tiny_bert(layers=1), path, TRIED)


def test_large_files_keep_their_weights_beside_them(tmp_path: Path) -> None:
    model, path = tiny_bert(layers=2, width=64), tmp_path / "model.onnx"
    split = export_onnx(model, TRIED, path, split_above=1000)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert split.bytes == sum(each.stat().st_size for each in tmp_path.iterdir())
    whole = export_onnx(model, TRIED, tmp_path / "whole" / "model.onnx")
    assert largest_difference(whole.path, path, TRIED) == 0.0
    again = export_onnx(model, TRIED, path)
    assert [each.name for each in tmp_path.glob("model*")] == ["model.onnx"] and again.bytes == whole.bytes


FULL_DISK = """
import resource, sys
from pathlib import Path
from test_export import TRIED
from tiny import tiny_bert
from skillprune.errors import ResourceFailure
from skillprune.export import export_onnx
model = tiny_bert(layers=2, hidden=64, width=256)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    export_onnx(model, TRIED, Path(sys.argv[1]))
except ResourceFailure as failed:
    print("refused:", failed)
"""


def test_a_disk_that_is_full_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("older")
    here = str(Path(__file__).parent)
    where = environment()
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, signal; sys.path.insert(0, {here!r})\n"
         "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + FULL_DISK, str(path)],
        env=where, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "refused:" in done.stdout and "could not be written" in done.stdout, done.stderr
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_a_directory_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ResourceFailure, match="could not be written"):
        export_candidates(tiny_bert(layers=1), TRIED, tmp_path / "file", backends=["torchscript"])


def test_a_classifier_that_reads_forwards(tmp_path: Path) -> None:
    """The exporter that needs nothing else writes it on either line of transformers."""
    model = tiny_llama_classifier(layers=2)
    model.set_attn_implementation("eager")  # as runs do
    found = export_candidates(model, TRIED, tmp_path, fusions=())
    assert "torchscript" in [each.backend for each in found.passed], found.failed


def test_the_families_of_the_table_are_tried(tmp_path: Path) -> None:
    for family in TINY:
        assert export_onnx(pruned(family, "uniform"), TRIED, tmp_path / family / "model.onnx").bytes > 0
