"""Real worker processes: what they answer, how they fail, and that none outlives who started it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
from ffn import HIDDEN, write_ffn
from tiny import tiny_bert

from skillprune.benchmark import Point, Subject, measure_latency
from skillprune.benchmark.messages import receive, send
from skillprune.benchmark.processes import Facts, Inputs, open_worker
from skillprune.benchmark.runtimes import DEFAULT
from skillprune.benchmark.timing import Prepare
from skillprune.errors import CheckpointError, DataError, ProviderUnavailable, ResourceFailure, SkillPruneError

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of processes")
MATCHING = Inputs(Point(1, 8), {"x": np.ones((1, 8, HIDDEN), np.float32)})
LONG = Inputs(Point(64, 64), {"x": np.ones((64, 64, HIDDEN), np.float32)})
GONE_AFTER_S = 60


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ffn(tmp_path_factory.mktemp("onnx") / "ffn.onnx", 512)


@contextmanager
def worker(
    path: Path, facts: Facts, *, shapes: tuple[Inputs, ...] = (MATCHING,), provider: str = "cpu", threads: int = 1
) -> Iterator[Prepare]:
    with open_worker(Subject("dense", "fp32", path), shapes, facts, threads=threads, provider=provider) as prepare:
        yield prepare


def children() -> list[psutil.Process]:
    """Processes that this one started, zombies included; those that Python keeps for itself are not meant."""
    return [each for each in psutil.Process().children() if "skillprune" in " ".join(command(each))]


def command(process: psutil.Process) -> list[str]:
    return process.cmdline() or ["skillprune, a zombie"]


def test_messages_arrive_as_they_were_sent_one_after_the_other() -> None:
    arrays = {"ids": np.arange(6).reshape(2, 3), "x": np.full((0, 4), 1.5, np.float16), "b": np.array(True)}
    stream = io.BytesIO()
    send(stream, {"do": "feed", "what": "modèle"}, arrays)
    send(stream, {"do": "run", "repeats": 3})
    stream.seek(0)
    first, second = receive(stream), receive(stream)
    assert first is not None and second is not None
    assert (first.header, second) == ({"do": "feed", "what": "modèle"}, ({"do": "run", "repeats": 3}, {}))
    assert list(first.arrays) == list(arrays)
    for name, array in arrays.items():
        assert first.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(first.arrays[name], array)
    assert receive(stream) is None


def test_a_message_that_breaks_off_is_not_taken_for_a_whole_one() -> None:
    stream = io.BytesIO()
    send(stream, {"do": "feed"}, {"x": np.arange(9)})
    whole = stream.getvalue()
    for length in range(1, len(whole)):
        with pytest.raises(EOFError):
            receive(io.BytesIO(whole[:length]))


def test_no_object_is_pickled() -> None:
    with pytest.raises(ValueError, match="allow_pickle=False"):
        send(io.BytesIO(), {}, {"x": np.array([object()])})


def test_a_worker_times_itself_and_says_what_it_runs_with(file: Path) -> None:
    facts = Facts()
    with worker(file, facts, shapes=(MATCHING, LONG)) as prepare:
        assert (prepare(0)(1) > 0, facts.provider, facts.version) == (True, "cpu", onnxruntime.__version__)
        few, many = (min(run(repeats) for _ in range(3)) for run in [prepare(1)] for repeats in (1, 30))
    assert many > 5 * few  # thirty times the work
    assert sorted(facts.peaks_mib) == [0, 1]


@pytest.mark.parametrize(
    ("name", "inputs", "provider", "expected"),
    [
        ("absent.onnx", MATCHING, "cpu", CheckpointError(r"absent\.onnx: no such ONNX file")),
        ("broken.onnx", MATCHING, "cpu", CheckpointError(r"broken\.onnx: ONNX Runtime cannot open this file")),
        ("ffn.onnx", MATCHING, "tpu", ProviderUnavailable("unknown provider 'tpu'")),
        ("ffn.onnx", Inputs(Point(1, 2), {}), "cpu", DataError(r"ffn\.onnx at 1 x 2: the graph needs the")),
        ("ffn.onnx", Inputs(Point(1, 2), {"x": np.zeros(3, np.float32)}), "cpu", DataError("cannot run this shape")),
        pytest.param(
            "ffn.onnx", MATCHING, "cuda", ProviderUnavailable("cuda is not in this ONNX Runtime"),
            marks=pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA"),
        ),
    ],
)  # fmt: skip
def test_an_error_inside_is_the_same_error_outside(
    file: Path, name: str, inputs: Inputs, provider: str, expected: SkillPruneError
) -> None:
    file.with_name("broken.onnx").write_bytes(file.read_bytes()[:100])
    with pytest.raises(type(expected), match=str(expected)) as raised:
        with worker(file.with_name(name), Facts(), shapes=(inputs,), provider=provider) as prepare:
            prepare(0)
    assert type(raised.value) is type(expected)
    assert children() == []


@LINUX
def test_a_worker_holds_no_library_but_the_one_it_times(file: Path) -> None:
    with worker(file, Facts()) as prepare:
        prepare(0)
        (process,) = children()
        held = Path(f"/proc/{process.pid}/maps").read_text()
    assert "onnxruntime" in held
    assert "libtorch" not in held and "/scipy/" not in held


def test_a_worker_ends_with_its_context_whatever_happens_in_it(file: Path) -> None:
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            with worker(file, Facts()) as prepare:
                prepare(0)
                assert len(children()) == 1
                raise error
        assert children() == []
    with worker(file, Facts()):  # ends before it has opened anything
        pass
    assert children() == []


def test_ctrl_c_does_not_disturb_a_worker_before_its_parent_decides(file: Path) -> None:
    with worker(file, Facts()) as prepare:
        run = prepare(0)
        (process,) = children()
        process.send_signal(signal.SIGINT)
        assert run(2) > 0


def test_a_worker_that_dies_is_told_with_its_last_words(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with worker(file, Facts()) as prepare:
        run = prepare(0)
        children()[0].kill()
        with pytest.raises(ResourceFailure, match=r"ffn\.onnx: the process that timed it ended with signal 9"):
            run(1)
    monkeypatch.setattr("skillprune.benchmark.processes.WORKER", "skillprune.no_such_module")
    with pytest.raises(ResourceFailure, match=r"exit code 1: .*No module named skillprune\.no_such_module"):
        with worker(file, Facts()) as prepare:
            prepare(0)


PARENT = """
import sys, time
from pathlib import Path
import numpy as np, psutil
from skillprune.benchmark import Point, Subject
from skillprune.benchmark.processes import Facts, Inputs, open_worker
shapes = [Inputs(Point(1, 8), {{"x": np.ones((1, 8, {hidden}), np.float32)}})]
with open_worker(Subject("dense", "fp32", Path({path!r})), shapes, Facts(), threads=1, provider="cpu") as prepare:
    prepare(0)
    print(psutil.Process().children()[0].pid, flush=True)
    time.sleep(600)
"""


def test_a_worker_does_not_outlive_a_parent_that_is_killed(file: Path) -> None:
    code = PARENT.format(hidden=HIDDEN, path=str(file))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert orphan.pid != os.getpid()
    try:
        orphan.wait(timeout=GONE_AFTER_S)
    except psutil.TimeoutExpired:
        assert orphan.status() == psutil.STATUS_ZOMBIE  # whoever inherited it does not collect the dead


@pytest.mark.parametrize("runtime", ["onnxruntime", DEFAULT, "torch"])
def test_a_worker_that_waits_burns_nothing(file: Path, tmp_path: Path, runtime: str) -> None:
    burnt, subject, inputs = 0.0, Subject("dense", "fp32", file, runtime), LONG
    if runtime == "torch":
        tiny_bert(layers=2, hidden=64, width=256).save_pretrained(tmp_path)
        ids = np.ones((16, 64), np.int64)
        subject = Subject("dense", "fp32", tmp_path, runtime)
        inputs = Inputs(Point(16, 64), {"input_ids": ids, "attention_mask": ids})
    with open_worker(subject, (inputs,), Facts(), threads=4, provider="cpu") as prepare:
        run = prepare(0)
        (process,) = children()
        for _ in range(10):
            run(1)
            before = process.cpu_times()
            time.sleep(0.1)
            after = process.cpu_times()
            burnt += after.user + after.system - before.user - before.system
    assert burnt <= 0.2  # of a second that it waited


@LINUX
def test_the_peak_is_of_the_process_of_the_subject_and_grows_with_its_weights(tmp_path: Path) -> None:
    width = 2**17  # two matrices of 32 MiB each
    small, large = write_ffn(tmp_path / "small.onnx", 16), write_ffn(tmp_path / "large.onnx", width)
    peaks = []
    for path in (small, large):
        facts = Facts()
        with worker(path, facts) as prepare:
            prepare(0)(1)
        peak = facts.peak_mib(0)
        assert peak is not None
        peaks.append(peak)
    weights = 2 * width * HIDDEN * 4 / 2**20
    assert peaks[1] - peaks[0] > 0.9 * weights
    assert peaks[0] < psutil.Process().memory_info().rss / 2**20  # this process holds PyTorch, and hands nothing down


def test_the_peak_of_a_shape_is_that_of_the_opening_that_ran_nothing_larger_before() -> None:
    facts = Facts(peaks_mib={0: [90.0, 50.0, None], 1: [80.0, 95.0, 85.0], 2: [None]})
    assert [facts.peak_mib(shape) for shape in range(4)] == [50.0, 80.0, None, None]


def test_shared_and_isolated_measurements_say_which_they_are(file: Path) -> None:
    def feeds(batch: int, sequence: int) -> dict[str, np.ndarray]:
        return {"x": np.ones((batch, sequence, HIDDEN), np.float32)}

    subject = Subject("dense", "fp32", file)
    shared, isolated = (
        measure_latency([subject], [(1, 4)], feeds, threads=1, provider="cpu", rounds=1, seed=0, isolated=isolated)
        for isolated in (False, True)
    )
    assert isolated.isolation == "one process per subject, its idle threads asleep between runs"
    assert shared.isolation == "all subjects in one process, their idle threads asleep between runs"
    for found in (shared, isolated):
        assert found.measurements[0].runtime_version == onnxruntime.__version__
        assert found.measurements[0].p_value is None
    assert shared.measurements[0].peak_rss_mib is None
    assert (isolated.measurements[0].peak_rss_mib or 0) > 0
    for wrong in ("torch", "tpu"):
        with pytest.raises(ValueError, match=rf"\['{wrong}'\] cannot be timed with isolated=False"):
            measure_latency(
                [Subject("dense", "fp32", file, runtime=wrong)], [(1, 4)], feeds,
                threads=1, provider="cpu", rounds=1, seed=0, isolated=False,
            )  # fmt: skip
