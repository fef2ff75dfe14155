"""Inputs and outputs that stay on a device: the same answers as copies give, and memory that is written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ffn import HIDDEN, weights, write_ffn
from onnx import TensorProto, helper

from skillprune.benchmark import Latency, Subject, measure_latency, open_session
from skillprune.benchmark.binding import bind, bind_on_device
from skillprune.errors import DataError, ProviderUnavailable, ResourceFailure

WIDTH = 32


def inputs(batch: int, sequence: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(batch).normal(size=(batch, sequence, HIDDEN)).astype(np.float32)}


def expected(x: np.ndarray) -> np.ndarray:
    up, down = weights(WIDTH)
    return np.maximum(x @ up, 0) @ down


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ffn(tmp_path_factory.mktemp("onnx") / "ffn.onnx", WIDTH)


def test_both_bindings_answer_what_the_graph_computes_shape_by_shape(file: Path) -> None:
    session = open_session(file, threads=1, provider="cpu")
    for batch, sequence in ((2, 3), (5, 7)):
        given = inputs(batch, sequence)
        on_device: Any = bind_on_device(session, {**given, "mask": np.ones(1)}, "", device="cpu", capture=False)
        copied: Any = bind(session, given, "")
        np.testing.assert_allclose(copied()[0], expected(given["x"]), atol=1e-5)
        np.testing.assert_allclose(on_device()[0].numpy(), expected(given["x"]), atol=1e-5)


def test_every_run_writes_the_outputs_anew(file: Path) -> None:
    session = open_session(file, threads=1, provider="cpu")
    run: Any = bind_on_device(session, inputs(2, 3), "", device="cpu", capture=False)
    (output,) = run()
    output.update_inplace(np.zeros((2, 3, HIDDEN), np.float32))
    np.testing.assert_allclose(run()[0].numpy(), expected(inputs(2, 3)["x"]), atol=1e-5)


@pytest.mark.parametrize(("wrong", "message"), [({}, "needs the inputs"), ({"x": np.ones(3)}, "cannot run this shape")])
def test_inputs_that_do_not_fit_are_refused_on_a_device(file: Path, wrong: dict[str, np.ndarray], message: str) -> None:
    session = open_session(file, threads=1, provider="cpu")
    with pytest.raises(DataError, match=f"ffn at 1 x 3: .*{message}"):
        bind_on_device(session, wrong, "ffn at 1 x 3", device="cpu", capture=False)


def test_memory_that_runs_out_is_no_fault_of_the_inputs(tmp_path: Path) -> None:
    """The graph makes as many zeros as it is told to: sixteen, or more than there is memory."""
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [1])
    zeros = helper.make_tensor_value_info("zeros", TensorProto.FLOAT, ["many"])
    graph = helper.make_graph([helper.make_node("ConstantOfShape", ["shape"], ["zeros"])], "", [shape], [zeros])
    path = tmp_path / "zeros.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)

    def measure(many: int) -> Latency:
        feeds = {"shape": np.array([many], dtype=np.int64)}
        return measure_latency(
            [Subject("dense", "fp32", path)], [(1, 1)], lambda *_: feeds, threads=1, provider="cpu", rounds=1, seed=0
        )

    assert measure(16).measurements
    with pytest.raises(ResourceFailure, match="1 x 1: ONNX Runtime ran out of memory, choose smaller shapes"):
        measure(2**44)


def test_only_cuda_captures(file: Path) -> None:
    with pytest.raises(ProviderUnavailable, match="only provider cuda captures"):
        open_session(file, threads=1, provider="cpu", capture=True)


@pytest.mark.gpu
@pytest.mark.parametrize("capture", [False, True])
def test_captured_and_plain_runs_answer_the_same_on_cuda(file: Path, capture: bool) -> None:
    session = open_session(file, threads=1, provider="cuda", capture=capture)
    runs: list[Any] = [
        bind_on_device(session, inputs(*shape), "", device="cuda", capture=capture) for shape in ((2, 3), (5, 7))
    ]
    for run, given in zip(runs * 3, [inputs(2, 3), inputs(5, 7)] * 3, strict=True):
        np.testing.assert_allclose(run()[0].numpy(), expected(given["x"]), atol=1e-3)


@pytest.mark.gpu
def test_a_captured_subject_is_timed_beside_a_plain_one(file: Path) -> None:
    subjects = [Subject("dense", "fp32", file), Subject("dense", "graph", file, capture=True)]
    found = measure_latency(subjects, [(1, 8), (2, 8)], inputs, threads=1, provider="cuda", rounds=6, seed=0)
    assert {each.provider for each in found.measurements} == {"cuda"}
