"""PyTorch as a runtime: what it loads, what it computes, and how it is timed in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_bert, tiny_distilbert
from transformers import PreTrainedModel

from skillprune.benchmark import Point, Subject
from skillprune.benchmark.eager import load, open_subject
from skillprune.benchmark.processes import Facts, Inputs, open_worker
from skillprune.checkpoint import save_pruned
from skillprune.errors import CheckpointError, DataError, ProviderUnavailable
from skillprune.planning import Costs, PruningPlan
from skillprune.surgery import prune_


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def inputs(batch: int = 2, sequence: int = 7) -> dict[str, np.ndarray]:
    """Real inputs, and one that no model has."""
    ids = np.random.default_rng(0).integers(3, 60, (batch, sequence))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "nothing": np.zeros(3)}


def answers(model: PreTrainedModel, given: dict[str, np.ndarray]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(*(torch.from_numpy(given[name]) for name in ("input_ids", "attention_mask"))).logits
    assert isinstance(logits, torch.Tensor)
    return logits


def saved(model: PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("model_class", ["", "AutoModelForSequenceClassification"])
@pytest.mark.parametrize("make", [tiny_bert, tiny_distilbert])
def test_a_run_answers_what_the_model_answers(make: Any, model_class: str, tmp_path: Path) -> None:
    model = make()
    subject = Subject("dense", "fp32", saved(model, tmp_path), "torch", model_class)
    opened = open_subject(subject, 1, "cpu")
    run: Any = opened.feed(inputs(), "", "forward")
    torch.testing.assert_close(run().logits, answers(model, inputs()))
    assert (opened.provider, opened.version, torch.get_num_threads()) == ("cpu", torch.__version__, 1)
    assert not run().logits.requires_grad


def test_a_compiled_model_answers_the_same(tmp_path: Path) -> None:
    model = tiny_bert(layers=1)
    opened = open_subject(Subject("dense", "fp32", saved(model, tmp_path), "torch-compile"), 1, "cpu")
    assert type(opened.call).__name__ == "OptimizedModule"
    with torch.compiler.set_stance("force_eager"):  # what the compiler makes of it is PyTorch's to test, and slow
        run: Any = opened.feed(inputs(), "", "forward")
        torch.testing.assert_close(run().logits, answers(model, inputs()), atol=1e-5, rtol=1e-4)


def test_weights_stay_in_their_own_dtype(tmp_path: Path) -> None:
    assert load(saved(tiny_bert().to(torch.bfloat16), tmp_path), "").dtype == torch.bfloat16


def test_another_head_is_loaded_when_asked_for_and_missing_weights_are_told(tmp_path: Path) -> None:
    saved(tiny_bert(), tmp_path)
    assert type(load(tmp_path, "AutoModel")).__name__ == "BertModel"
    with pytest.raises(CheckpointError, match="has no weights for cls"):
        load(tmp_path, "AutoModelForMaskedLM")
    with pytest.raises(CheckpointError, match="no class 'AutoModelForMagic'"):
        load(tmp_path, "AutoModelForMagic")


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent: no checkpoint directory"):
        load(tmp_path / "absent", "")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load(tmp_path, "")


def test_inputs_that_do_not_fit_and_providers_that_are_not_there_are_refused(tmp_path: Path) -> None:
    subject = Subject("dense", "fp32", saved(tiny_bert(), tmp_path), "torch")
    opened = open_subject(subject, 1, "cpu")
    for wrong in ({}, {"input_ids": np.full((1, 4), 10**6)}, inputs(1, 500)):
        with pytest.raises(DataError, match="dense at 1 x 4: PyTorch cannot run this shape"):
            opened.feed(wrong, "dense at 1 x 4", "forward")
    with pytest.raises(ProviderUnavailable, match="unknown provider 'tpu'"):
        open_subject(subject, 1, "tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ProviderUnavailable, match="finds no CUDA device"):
            open_subject(subject, 1, "cuda")


def test_a_worker_times_pytorch(tmp_path: Path) -> None:
    facts = Facts()
    subject = Subject("dense", "fp32", saved(tiny_bert(layers=1), tmp_path), "torch")
    with open_worker(subject, [Inputs(Point(2, 7), inputs())], facts, threads=2, provider="cpu") as prepare:
        assert prepare(0)(3) > 0
    assert (facts.provider, facts.version) == ("cpu", torch.__version__)
    assert facts.peak_mib(0) is None or facts.peak_mib(0) > 100  # PyTorch alone is larger


def test_a_padded_checkpoint_is_timed_with_its_real_widths(tmp_path: Path) -> None:
    model = tiny_bert(layers=2, width=32)
    keep = tuple(tuple(range(count)) for count in (8, 20))
    prune_(model, PruningPlan({"encoder": keep}, {"encoder": (32, 32)}, "test", {}, 1, *[Costs(0, 0, 0, 0, 0)] * 2))
    save_pruned(model, None, tmp_path, dtype=torch.float32, form="padded")
    loaded: Any = load(tmp_path, "")
    assert [len(layer.intermediate.dense.weight) for layer in loaded.bert.encoder.layer] == [8, 20]
    torch.testing.assert_close(answers(loaded, inputs()), answers(model, inputs()))
