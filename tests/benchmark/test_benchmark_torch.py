"""PyTorch models in processes of their own: real processes, real models, and what goes wrong with either."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from tiny import tiny_bert

from skillprune.benchmark import Subject, measure_latency
from skillprune.benchmark.torch_process import TorchProcess
from skillprune.errors import CheckpointError, DataError, ProviderUnavailable
from skillprune.export import export_onnx

CLASS = "BertForSequenceClassification"


def feeds(batch: int, sequence: int) -> dict[str, NDArray[np.int64]]:
    ids = np.arange(batch * sequence, dtype=np.int64).reshape(batch, sequence) % 50 + 3
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_bert(layers=2).save_pretrained(folder)
    return folder


def start(
    path: Path, inputs: dict[str, NDArray[Any]] | None = None, *, name: str = CLASS, on: str = "cpu"
) -> TorchProcess:
    subject = Subject("torch", "fp32", path, "torch", name)
    return TorchProcess(subject, inputs or feeds(2, 5), threads=1, provider=on, what="tiny at 2 x 5")


def of_ours() -> list[psutil.Process]:
    """Workers of this process that run."""
    children = psutil.Process().children()
    return [each for each in children if each.is_running() and "skillprune.benchmark.torch_worker" in each.cmdline()]


def test_more_runs_take_longer_and_the_process_ends_with_its_owner(checkpoint: Path) -> None:
    process = start(checkpoint)
    assert process.provider == "cpu" and len(of_ours()) == 1
    once, often = min(process.run(1) for _ in range(5)), process.run(100)
    assert 0 < 20 * once < often
    del process
    gc.collect()
    assert of_ours() == []


def test_what_goes_wrong_in_the_process_is_told_here(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tiny at 2 x 5: .*"):
        start(tmp_path)
    with pytest.raises(CheckpointError, match="NoSuchModel"):
        start(checkpoint, name="NoSuchModel")
    with pytest.raises(DataError, match="tiny at 2 x 5: "):
        start(checkpoint, {"input_ids": np.full((2, 5), 10**6)})
    if not torch.cuda.is_available():
        with pytest.raises(ProviderUnavailable, match="no CUDA device"):
            start(checkpoint, on="cuda")
    assert of_ours() == []


def test_a_process_that_was_killed_is_no_riddle(checkpoint: Path) -> None:
    process = start(checkpoint)
    (worker,) = of_ours()
    worker.kill()
    worker.wait()
    with pytest.raises(DataError, match="PyTorch's process ended"):
        process.run(1)


def test_models_of_both_runtimes_are_timed_side_by_side(checkpoint: Path, tmp_path: Path) -> None:
    model = tiny_bert(layers=2)
    artifact = export_onnx(model, [feeds(2, 5), feeds(3, 8)], tmp_path / "model.onnx")
    subjects = [Subject("dense", "fp32", artifact.path), Subject("torch", "fp32", checkpoint, "torch", CLASS)]
    found = measure_latency(subjects, [(2, 6)], feeds, threads=1, provider="cpu", rounds=6, seed=0)
    assert [(row.subject, row.runtime, row.provider) for row in found.measurements] == [
        ("dense", "onnxruntime", "cpu"),
        ("torch", "torch", "cpu"),
    ]
    assert len(found.measurements[1].round_ms) == len(found.measurements[0].round_ms) and of_ours() == []
    ratios = np.array(found.measurements[0].round_ms) / np.array(found.measurements[1].round_ms)
    assert found.measurements[1].speedup.value == pytest.approx(np.median(ratios), rel=0.05)
