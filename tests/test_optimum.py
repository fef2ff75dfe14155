"""optimum reads pruned checkpoints and the ONNX files of models that write; only where optimum-onnx is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel
from zoo import ZOO
from zoo_checks import pruned

from skillprune.checkpoint import save_pruned
from skillprune.export.generation import export_decoder, export_encoder_decoder

pytest.importorskip("optimum.onnxruntime", reason="needs optimum-onnx, which needs transformers 4.57")

from optimum.onnxruntime import (  # noqa: E402
    ORTModelForCausalLM,
    ORTModelForSeq2SeqLM,
    ORTModelForSequenceClassification,
)

# optimum traces with the exporter that torch calls legacy, which announces every shape it cannot follow.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")

ROOT = Path(__file__).resolve().parents[1]
CLASSES = {"bert": ORTModelForSequenceClassification, "llama": ORTModelForCausalLM, "bart": ORTModelForSeq2SeqLM}


def saved(name: str, directory: Path) -> PreTrainedModel:
    """A model with layers of different widths, and its checkpoint."""
    model = pruned(ZOO[name])
    save_pruned(model, None, directory, dtype=torch.float32)
    return model


def logits(model: Any, name: str) -> np.ndarray:
    """Of every real token; optimum gives a decoder no mask of its own, so that padding that is written is read."""
    given = ZOO[name].inputs()
    with torch.no_grad():
        found = model(**given).logits.numpy()
    real = given["decoder_attention_mask" if name == "bart" else "attention_mask"].numpy() == 1
    return found if name == "bert" else found[real]


def left(name: str) -> dict[str, torch.Tensor]:
    """Texts padded on the left, as they are continued; on the right, where they are rewritten."""
    texts = {key: value for key, value in ZOO[name].inputs().items() if not key.startswith("decoder_")}
    return texts if name == "bart" else {key: value.flip(1) for key, value in texts.items()}


@pytest.mark.parametrize("name", CLASSES)
def test_a_pruned_checkpoint_is_exported_by_optimum(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    found = logits(CLASSES[name].from_pretrained(tmp_path, export=True), name)
    np.testing.assert_allclose(found, logits(model, name), atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_files_of_a_writer_are_read_by_optimum(name: str, tmp_path: Path) -> None:
    model = pruned(ZOO[name])
    export = export_encoder_decoder if name == "bart" else export_decoder
    export(model, [{key: value.numpy().copy() for key, value in left(name).items()}], tmp_path)
    reader = CLASSES[name].from_pretrained(tmp_path)
    asked = {"max_new_tokens": 6, "do_sample": False, "num_beams": 1}
    assert torch.equal(reader.generate(**left(name), **asked), model.generate(**left(name), **asked))


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the distribution beside this one installs."""
    folder = tmp_path_factory.mktemp("plugin")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder)]
    done = subprocess.run([*command, str(ROOT / "plugins" / "skillprune-optimum")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert files == ["optimum/commands/register/register_skillprune.py"]
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.parametrize("installed", [True, False])
def test_the_command_line_of_optimum_reads_pruned_checkpoints(installed: bool, plugin: Path, tmp_path: Path) -> None:
    model = saved("bert", tmp_path / "model")
    places = [str(ROOT), *([str(plugin)] if installed else [])]
    done = subprocess.run(
        [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "onnx", "--model", str(tmp_path / "model")]
        + ["--task", "text-classification", str(tmp_path / "onnx")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if not installed:  # so it is the plug-in that makes the difference
        assert done.returncode != 0 and "size mismatch" in done.stderr + done.stdout
        return
    assert done.returncode == 0, done.stderr
    found = logits(CLASSES["bert"].from_pretrained(tmp_path / "onnx"), "bert")
    np.testing.assert_allclose(found, logits(model, "bert"), atol=1e-4)
