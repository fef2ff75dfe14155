"""Sessions and whole measurements, on real ONNX Runtime and tiny graphs whose work is known."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import pytest
from ffn import HIDDEN, weights, write_ffn
from numpy.typing import NDArray

from skillprune.benchmark import Control, Latency, Measurement, Ratio, Subject, measure_latency, open_session
from skillprune.benchmark.runtimes import open_here
from skillprune.benchmark.sessions import OpenedFile
from skillprune.errors import CheckpointError, DataError, ProviderUnavailable

NARROW, WIDE = 16, 512  # 32 times the work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    write_ffn(folder / "wide.onnx", WIDE)
    write_ffn(folder / "narrow.onnx", NARROW)
    return folder


def feeds(batch: int, sequence: int) -> Mapping[str, NDArray[np.generic]]:
    """Inputs of the graphs above, and one that they do not have."""
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(batch, sequence, HIDDEN)).astype(np.float32), "token_type_ids": np.zeros(3)}


SHAPES = ((1, 64), (2, 64))


@pytest.fixture(scope="module")
def latency(folder: Path) -> Latency:
    subjects = [
        Subject("dense", "fp32", folder / "wide.onnx"),
        Subject("pruned", "fp32", folder / "narrow.onnx"),
    ]
    return measure_latency(subjects, [*SHAPES, SHAPES[0]], feeds, threads=1, provider="cpu", rounds=12, seed=0)


def test_a_session_computes_the_graph_with_the_settings_asked_for(folder: Path) -> None:
    session = open_session(folder / "wide.onnx", threads=2, provider="cpu")
    x = np.random.default_rng(0).normal(size=(2, 3, HIDDEN)).astype(np.float32)
    up, down = weights(WIDE)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], np.maximum(x @ up, 0) @ down, atol=1e-5)
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_far_less_work_is_reported_as_faster_with_its_whole_interval(latency: Latency) -> None:
    for dense, pruned in zip(latency.measurements[::2], latency.measurements[1::2], strict=True):
        assert dense.speedup == Ratio(1.0, 1.0, 1.0)
        assert 1.0 < pruned.speedup.low <= pruned.speedup.value <= pruned.speedup.high


def test_measurements_say_what_ran(latency: Latency) -> None:
    rows = [(m.batch, m.sequence, m.subject) for m in latency.measurements]
    assert rows == [(*shape, name) for shape in SHAPES for name in ("dense", "pruned")]
    for row in latency.measurements:
        assert (row.variant, row.runtime, row.provider, row.provider_asked) == ("fp32", "onnxruntime", "cpu", "cpu")
        assert row.threads == 1
        assert min(row.round_ms) > 0


def test_every_shape_has_its_control_and_as_many_rounds_as_it_says(latency: Latency) -> None:
    assert [(each.batch, each.sequence) for each in latency.controls] == list(SHAPES)
    for control in latency.controls:
        assert (control.openings, control.rounds) == (6 * 2**control.retries, 12 * 2**control.retries)
        rows = [m for m in latency.measurements if (m.batch, m.sequence) == (control.batch, control.sequence)]
        assert [len(row.round_ms) for row in rows] == [control.rounds] * 2
        assert len({row.repeats for row in rows}) == 1
        assert control.ratio.low <= control.ratio.high


def test_speedups_follow_from_the_rounds(latency: Latency) -> None:
    for dense, pruned in zip(latency.measurements[::2], latency.measurements[1::2], strict=True):
        logs = [math.log(a / b) for a, b in zip(dense.round_ms, pruned.round_ms, strict=True)]
        assert math.isclose(pruned.speedup.value, math.exp(statistics.median(logs)))


def test_progress_counts_the_rounds_of_every_shape(folder: Path) -> None:
    said: list[tuple[str, int, int]] = []
    subject = Subject("dense", "fp32", folder / "narrow.onnx")
    found = measure_latency(
        [subject],
        [(1, 2)],
        feeds,
        threads=1,
        provider="cpu",
        rounds=10,
        seed=1,
        progress=lambda *each: said.append(each),
    )
    last = found.controls[0].rounds
    assert said[-last - 1 :] == [("measuring 1 x 2", done, last) for done in range(last + 1)]


def test_percentiles_and_throughput() -> None:
    rounds = tuple(float(ms) for ms in reversed(range(1, 102)))
    row = Measurement("dense", "fp32", "onnxruntime", "cpu", "cpu", 8, 128, 2, rounds, Ratio(1.0, 1.0, 1.0))
    assert (row.p50_ms, row.p90_ms, row.p99_ms, row.throughput) == (51.0, 91.0, 100.0, 8 / 0.051)
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.batch = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("low", "high", "ok"),
    [
        (0.9, 1.1, True),
        (1.0, 1.1, True),
        (0.9, 1.0, True),
        (1.001, 1.1, False),
        (0.8, 0.999, False),
    ],
)
def test_a_control_is_ok_when_its_interval_contains_one(low: float, high: float, ok: bool) -> None:
    assert Control(1, 32, Ratio((low + high) / 2, low, high), 6, 60, 0).ok is ok


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="ONNX Runtime has CUDA")
def test_a_provider_that_is_not_installed_is_named_with_advice(folder: Path) -> None:
    with pytest.raises(ProviderUnavailable, match=r"cuda .*pip install 'skillprune\[gpu\]'"):
        open_session(folder / "narrow.onnx", threads=1, provider="cuda")


@pytest.mark.gpu
def test_cuda_is_what_runs(folder: Path) -> None:
    subject = Subject("dense", "fp32", folder / "wide.onnx")
    found = measure_latency([subject], [(1, 8)], feeds, threads=1, provider="cuda", rounds=10, seed=0)
    assert found.measurements[0].provider == "cuda"


def test_an_unknown_provider_is_refused(folder: Path) -> None:
    with pytest.raises(ProviderUnavailable, match="'tpu'.*cpu.*cuda"):
        open_session(folder / "narrow.onnx", threads=1, provider="tpu")


def test_a_missing_file_is_named(folder: Path) -> None:
    subject = Subject("dense", "fp32", folder / "absent.onnx")
    with pytest.raises(CheckpointError, match=r"absent\.onnx: no such ONNX file"):
        measure_latency([subject], [(1, 2)], feeds, threads=1, provider="cpu", rounds=10, seed=0)


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[: len(raw) // 2], lambda raw: b"no protobuf" * 9])
def test_a_broken_file_is_named(folder: Path, tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    (tmp_path / "broken.onnx").write_bytes(damage((folder / "narrow.onnx").read_bytes()))
    with pytest.raises(CheckpointError, match=r"broken\.onnx: ONNX Runtime cannot open"):
        open_session(tmp_path / "broken.onnx", threads=1, provider="cpu")


def test_external_data_that_is_gone_is_a_broken_file(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(str(folder / "wide.onnx"))
    onnx.save(model, str(tmp_path / "split.onnx"), save_as_external_data=True, location="split.data", size_threshold=0)
    open_session(tmp_path / "split.onnx", threads=1, provider="cpu")
    (tmp_path / "split.data").unlink()
    with pytest.raises(CheckpointError, match=r"split\.onnx: ONNX Runtime cannot open"):
        open_session(tmp_path / "split.onnx", threads=1, provider="cpu")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"ids": np.zeros(3)}, r"needs the inputs \['x'\], only \['ids'\]"),
        ({"x": np.zeros((1, 2, HIDDEN + 1), np.float32)}, "cannot run this shape"),
        ({"x": np.zeros((1, 2, HIDDEN), np.float64)}, "cannot run this shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(folder: Path, inputs: dict[str, NDArray[np.generic]], message: str) -> None:
    subject = Subject("dense", "fp32", folder / "narrow.onnx")
    with pytest.raises(DataError, match=rf"narrow\.onnx at 1 x 2: .*{message}"):
        measure_latency([subject], [(1, 2)], lambda *_: inputs, threads=1, provider="cpu", rounds=10, seed=0)


@pytest.mark.parametrize(("names", "rounds"), [([], 10), (["dense", "dense"], 10), (["dense"], 0)])
def test_a_measurement_of_nothing_is_refused(folder: Path, names: list[str], rounds: int) -> None:
    subjects = [Subject(name, "fp32", folder / "narrow.onnx") for name in names]
    with pytest.raises(ValueError, match="uniquely named subjects and at least one round"):
        measure_latency(subjects, [(1, 2)], feeds, threads=1, provider="cpu", rounds=rounds, seed=0)


def test_a_default_session_is_left_as_it_comes(folder: Path) -> None:
    opened = (
        open_here(Subject("dense", "fp32", folder / "wide.onnx", runtime), threads=1, provider="cpu")
        for runtime in ("onnxruntime", "onnxruntime-default")
    )
    ours, default = map(cast, (OpenedFile, OpenedFile), opened)
    assert [each.session.get_session_options().intra_op_num_threads for each in (ours, default)] == [1, 0]
    assert (ours.spins, default.spins) == (False, True)
    outputs = [each.feed(feeds(2, 8), "a file", "forward")() for each in (ours, default)]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5)
