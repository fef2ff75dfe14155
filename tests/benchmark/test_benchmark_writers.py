"""What is timed of models that write: each phase against PyTorch without a cache, again and again the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import VOCABULARY, tiny_bert, tiny_llama

from skillprune.benchmark import Subject, measure_latency
from skillprune.benchmark.runtimes import open_here
from skillprune.benchmark.values import Phase, Point
from skillprune.errors import CheckpointError, DataError, ProviderUnavailable
from skillprune.export import export_onnx
from skillprune.export.generation import export_decoder

Feeds = dict[str, NDArray[np.int64]]


def texts(batch: int, sequence: int) -> Feeds:
    ids = np.random.default_rng([batch, sequence]).integers(3, VOCABULARY, (batch, sequence))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("writer") / "fp32"
    export_decoder(tiny_llama(layers=2), [texts(2, 5), texts(3, 8)], directory)
    return directory


def logits(ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """What PyTorch says comes after these tokens."""
    with torch.no_grad():
        found: NDArray[np.float32] = tiny_llama(layers=2).eval()(torch.from_numpy(ids), use_cache=False).logits.numpy()
    return found


@pytest.mark.parametrize("phase", ["forward", "first token", "next token"])
def test_every_phase_runs_what_its_name_says_however_often(writer: Path, phase: Phase) -> None:
    opened = open_here(Subject("dense", "fp32", writer), threads=1, provider="cpu")
    given = texts(2, 6)
    once = opened.feed(given, "a writer", phase)
    whole = logits(given["input_ids"])
    following = np.concatenate([given["input_ids"], whole[:, -1:].argmax(axis=2)], axis=1)
    expected = {"forward": whole, "first token": whole[:, -1], "next token": logits(following)[:, -1]}[phase]
    for _ in range(3):
        found: Any = once()
        np.testing.assert_allclose(found if phase == "forward" else found[0], expected, atol=1e-5)


def test_both_phases_are_measured_at_every_shape(writer: Path) -> None:
    subjects = [Subject("dense", "fp32", writer), Subject("pruned", "fp32", writer)]
    phases: list[Phase] = ["first token", "next token"]
    found = measure_latency(
        subjects, [(1, 4), (2, 6)], texts, threads=1, provider="cpu", rounds=6, seed=0, phases=phases
    )
    points = [Point(*shape, phase) for shape in ((1, 4), (2, 6)) for phase in phases]
    assert [control.point for control in found.controls] == points
    assert [row.point for row in found.measurements] == [point for point in points for _ in subjects]
    assert {row.provider for row in found.measurements} == {"cpu"}
    assert str(points[1]) == "1 x 4, next token" and str(Point(1, 4)) == "1 x 4"


def test_what_does_not_write_has_no_phases(tmp_path: Path) -> None:
    export_onnx(tiny_bert(), [texts(2, 5), texts(3, 8)], tmp_path / "bert.onnx")
    opened = open_here(Subject("dense", "fp32", tmp_path / "bert.onnx"), threads=1, provider="cpu")
    with pytest.raises(ValueError, match="only the directories of ONNX writers write"):
        opened.feed(texts(2, 5), "a graph", "next token")


def test_what_cannot_be_read_or_run_says_so(writer: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="generation_config"):
        open_here(Subject("dense", "fp32", tmp_path), threads=1, provider="cpu")
    with pytest.raises(ProviderUnavailable):
        open_here(Subject("dense", "fp32", writer), threads=1, provider="tpu")
    opened = open_here(Subject("dense", "fp32", writer), threads=1, provider="cpu")
    odd = {**texts(2, 5), "input_ids": np.full((2, 5), VOCABULARY + 1)}
    with pytest.raises(DataError, match="a writer"):
        opened.feed(odd, "a writer", "first token")
