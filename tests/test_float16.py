"""float16 files: within the rounding of the type, and float32 where float16 would lose or overflow."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tiny import PAD, VOCABULARY, tiny_bart, tiny_bert, tiny_llama

from skillprune.benchmark import open_writer
from skillprune.errors import CheckpointError
from skillprune.export import Quantised, export_onnx, output_error, to_float16
from skillprune.export.generation import export_decoder, export_encoder_decoder

Array = NDArray[Any]
HALF = 2.0**-11
"""Largest relative error of rounding to float16."""


def run(path: Path, feed: Mapping[str, Array]) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: Array = session.run(None, dict(feed))[0]
    return found


def run_in_float16(path: Path, feed: Mapping[str, Array]) -> Array:
    """Every operator in the type that the file says; ONNX Runtime's CPU provider computes many in float32 instead."""
    found: Array = ReferenceEvaluator(str(path)).run(None, dict(feed))[0]  # type: ignore[index]
    return found


def write(path: Path, nodes: Iterable[Any], constants: Mapping[str, Array], kind: int = TensorProto.FLOAT) -> Path:
    """A graph from ``x (batch, sequence, features)`` to ``y``."""
    graph = helper.make_graph(
        list(nodes),
        "tested",
        [helper.make_tensor_value_info("x", kind, ["batch", "sequence", "features"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


HEAD = [helper.make_node("MatMul", ["h", "w"], ["y"], "head")]


def test_products_are_within_the_rounding_of_float16(tmp_path: Path) -> None:
    weights, x = normal(64, 32), normal(2, 5, 64)
    source = write(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], "only")], {"w": weights})
    made = to_float16(source, tmp_path / "h.onnx")
    assert made == Quantised(tmp_path / "h.onnx", ("only",), ())
    found, exact = run(made.path, {"x": x}), x.astype(float) @ weights.astype(float)
    assert found.dtype == np.float32
    # Both factors and the result are rounded once each; sums are at least as exact.
    bound = 2.1 * HALF * (np.abs(x) @ np.abs(weights)) + HALF * np.abs(exact)
    assert (np.abs(found - exact) <= bound).all()
    assert np.abs(found - exact).max() > 1e-5
    assert source.stat().st_size > made.path.stat().st_size


def test_a_classifier_in_float16_answers_nearly_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = np.arange(11) < np.array([[11], [7], [1]])
    texts = {"input_ids": np.where(mask, rng.integers(3, VOCABULARY, mask.shape), PAD)}
    texts |= {"attention_mask": mask.astype(np.int64)}
    short = {name: array[:2, :8] for name, array in texts.items()}
    source = export_onnx(tiny_bert(layers=2), [texts, short], tmp_path / "m.onnx").path
    made = to_float16(source, tmp_path / "h.onnx")
    assert len(made.quantised) == 2 * 6 + 2 and made.kept == ()
    assert 0 < output_error(source, made.path, [texts, short]) < (20 * HALF) ** 2
    graph = onnx.load(made.path).graph
    assert not [each.name for each in graph.initializer if each.data_type == TensorProto.FLOAT]
    assert {each.type.tensor_type.elem_type for each in graph.output} == {TensorProto.FLOAT}


def test_masks_added_twice_stay_finite(tmp_path: Path) -> None:
    """A row that may look at nothing, as padding in front of a text that is written, must not become NaN."""
    constants = {"w": normal(4, 4), "low": np.array(np.finfo(np.float32).min), "none": np.array(0, np.float32)}
    nodes = [
        helper.make_node("Greater", ["x", "none"], ["seen"]),
        helper.make_node("Where", ["seen", "none", "low"], ["mask"]),
        helper.make_node("MatMul", ["x", "w"], ["scores"], "scores"),
        helper.make_node("Add", ["scores", "mask"], ["once"]),
        helper.make_node("Add", ["once", "mask"], ["twice"]),
        helper.make_node("Softmax", ["twice"], ["y"]),
    ]
    x = np.array([[[1, 1, -1, -1], [-60, -60, -60, -60]]], np.float32)
    made = to_float16(write(tmp_path / "m.onnx", nodes, constants), tmp_path / "h.onnx")
    found = run_in_float16(made.path, {"x": x})
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[0, 0, 2:], 0)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=4 * HALF)


def test_angles_of_far_positions_are_exact(tmp_path: Path) -> None:
    """float16 tells only every fourth position apart beyond 4096, and angles of 1000 to within half a turn of 1/6."""
    frequencies = (10000.0 ** -np.linspace(0, 1, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["place"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["place", "f"], ["angles"], "angles"),
        helper.make_node("Cos", ["angles"], ["h"]),
        *HEAD,
    ]
    source = write(
        tmp_path / "m.onnx", nodes, {"f": frequencies[None], "w": np.eye(4, dtype=np.float32)}, TensorProto.INT64
    )
    positions = np.arange(4000, 4100)[None, :, None]
    made = to_float16(source, tmp_path / "h.onnx")
    assert (made.quantised, made.kept) == (("head",), ("angles",))
    np.testing.assert_allclose(run(made.path, {"x": positions}), np.cos(positions * frequencies), atol=1e-3)


def test_only_the_size_of_a_text_enters_its_angles(tmp_path: Path) -> None:
    """Exporters take the length from what was looked up, which is no reason to keep the table in float32."""
    constants = {"table": normal(9, 4), "w": normal(4, 4)}
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["found"]),
        helper.make_node("Shape", ["found"], ["size"]),
        helper.make_node("Cast", ["size"], ["length"], to=TensorProto.FLOAT),
        helper.make_node("Sin", ["length"], ["angles"]),
        helper.make_node("Add", ["found", "angles"], ["h"]),
        *HEAD,
    ]
    made = to_float16(write(tmp_path / "m.onnx", nodes, constants, TensorProto.INT64), tmp_path / "h.onnx")
    kinds = {each.name: each.data_type for each in onnx.load(made.path).graph.initializer}
    assert kinds == dict.fromkeys(("table", "w"), TensorProto.FLOAT16)
    tokens = np.array([[[3], [8]], [[0], [5]], [[1], [1]]])
    expected = (constants["table"][tokens] + np.sin([3.0, 2.0, 1.0, 4.0])) @ constants["w"]
    np.testing.assert_allclose(run(made.path, {"x": tokens}), expected, atol=20 * HALF)


def test_mean_squares_beyond_float16_do_not_overflow(tmp_path: Path) -> None:
    constants = {"w": normal(8, 8), "two": np.array(2, np.float32), "small": np.array(1e-6, np.float32)}
    nodes = [
        helper.make_node("Pow", ["x", "two"], ["squares"]),
        helper.make_node("ReduceMean", ["squares"], ["mean"], axes=[-1]),
        helper.make_node("Add", ["mean", "small"], ["more"]),
        helper.make_node("Sqrt", ["more"], ["root"]),
        helper.make_node("Div", ["x", "root"], ["h"]),
        *HEAD,
    ]
    source = write(tmp_path / "m.onnx", nodes, constants)
    x = 2000 * normal(1, 3, 8)
    found = run_in_float16(to_float16(source, tmp_path / "h.onnx").path, {"x": x})
    expected = (x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True))) @ constants["w"]
    np.testing.assert_allclose(found, expected, atol=10 * HALF)


def test_weights_stored_beside_the_source_stay_beside(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], "only")], {"w": normal(64, 64)})
    outside = tmp_path / "out" / "m.onnx"
    outside.parent.mkdir()
    onnx.save_model(onnx.load(source), outside, save_as_external_data=True, location="m.onnx.data")
    inside_made, outside_made = (to_float16(path, path.with_name("h.onnx")) for path in (source, outside))
    x = normal(1, 2, 64)
    np.testing.assert_array_equal(run(inside_made.path, {"x": x}), run(outside_made.path, {"x": x}))
    assert {path.name for path in outside.parent.iterdir()} == {"m.onnx", "m.onnx.data", "h.onnx", "h.onnx.data"}
    assert outside_made.path.with_name("h.onnx.data").stat().st_size == 2 * 64 * 64


def test_a_float16_file_is_not_made_smaller_again(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], "only")], {"w": normal(4, 4)})
    with pytest.raises(CheckpointError, match="no float32 weights"):
        to_float16(to_float16(source, tmp_path / "h.onnx").path, tmp_path / "again.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "h.onnx"}


@pytest.mark.parametrize("name", ["decoder", "encoder-decoder"])
def test_a_writers_cache_is_float16_and_it_says_nearly_the_same(tmp_path: Path, name: str) -> None:
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (2, 9))
    texts = [{"input_ids": part, "attention_mask": np.ones_like(part)} for part in (ids[:, :5], ids)]
    whole, half = tmp_path / "fp32", tmp_path / "fp16"
    if name == "decoder":
        export_decoder(tiny_llama(layers=2), texts, whole)
    else:
        export_encoder_decoder(tiny_bart(layers=2), texts, whole)
    half.mkdir()
    shutil.copy(whole / "generation_config.json", half)
    for graph in whole.glob("*.onnx"):
        to_float16(graph, half / graph.name)
        ends = onnx.load(half / graph.name).graph
        types = {each.name: each.type.tensor_type.elem_type for each in (*ends.input, *ends.output)}
        for end, kind in types.items():
            cached = end.startswith(("past_key_values.", "present."))
            assert (kind == TensorProto.FLOAT16) == cached, end
    one, other = (open_writer(each, threads=1) for each in (whole, half))
    (said, mine), (found, its) = one.read(texts[1]), other.read(texts[1])
    for _ in range(3):
        assert 0 < np.abs(said - found).max() < 1e-2 * np.abs(said).max()
        tokens = said.argmax(axis=1)
        (said, mine), (found, its) = one.step(tokens, mine), other.step(tokens, its)
