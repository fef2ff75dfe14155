"""Writes a pruned model so that `from_pretrained` reads it again, and proves it in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from skillprune.checkpoint.quantizer import SkillPruneConfig
from skillprune.errors import ParityError, VerificationFailed
from skillprune.families import by_stack, find_ffns

_READ_BACK = """
import json, sys
{imports}
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification
options = {{"dtype": torch.float32, "trust_remote_code": False}}
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], **options).eval()
inputs = {{name: torch.from_numpy(array) for name, array in load_file(sys.argv[2]).items()}}
with torch.inference_mode():
    save_file({{"logits": model(**inputs).logits.numpy()}}, sys.argv[3])
"""


def save_pruned(model: PreTrainedModel, tokenizer: Tokenizer, directory: Path, *, dtype: torch.dtype) -> None:
    """Writes config, safetensors weights and tokenizer, in ``dtype``; casts the model to it in place.

    Layers of equal width make a stock checkpoint that anything loads. Uneven ones are named in the config, and
    ``import skillprune`` is what it takes to load them.
    """
    for parameter in model.parameters():  # not buffers: those that are computed, not stored, would stay rounded
        parameter.data = parameter.data.to(dtype)
    widths = uneven_widths(model)
    if widths:
        model.config.quantization_config = SkillPruneConfig(widths)
    elif hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
        # transformers 4.57 notes this beside it, and then cannot write it as JSON.
        vars(model.config).pop("_pre_quantization_dtype", None)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def uneven_widths(model: PreTrainedModel) -> dict[str, list[int]]:
    """Widths per stack and layer when some stack's layers differ; empty when a stock config can say it all."""
    widths = {name: [ffn.width for ffn in layers] for name, layers in by_stack(find_ffns(model)).items()}
    return widths if any(len(set(layers)) > 1 for layers in widths.values()) else {}


def verify_reload(model: PreTrainedModel, directory: Path, inputs: Mapping[str, NDArray[np.int64]]) -> float:
    """Loads the checkpoint in a fresh process with plain transformers calls and compares logits with ``model``.

    skillprune is imported there only when the widths are uneven, exactly as the model card tells users to.

    Returns:
        The largest absolute difference of a logit.

    Raises:
        VerificationFailed: the process could not load the checkpoint.
        ParityError: logits differ by more than 1e-4 of the largest logit.
    """
    model.float()
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(array).to(model.device) for name, array in inputs.items()}).logits
    found = _logits_of_fresh_process(directory, inputs, with_plugin=bool(uneven_widths(model)))
    difference = float(np.abs(found - expected.cpu().numpy()).max())
    tolerance = 1e-4 * max(1.0, float(expected.abs().max()))
    if not difference <= tolerance:
        raise ParityError(f"{directory} reloaded in a fresh process", difference, tolerance)
    return difference


def _logits_of_fresh_process(
    directory: Path, inputs: Mapping[str, NDArray[np.int64]], *, with_plugin: bool
) -> NDArray[np.float32]:
    script = _READ_BACK.format(imports="import skillprune" if with_plugin else "")
    # -c puts the working directory on the path, not the place skillprune was imported from.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder, "inputs.safetensors"), Path(folder, "logits.safetensors")
        save_file(dict(inputs), given)
        command = [sys.executable, "-c", script, str(directory.resolve()), str(given), str(answer)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise VerificationFailed(f"{directory} does not load in a fresh process:\n{done.stderr.strip()[-2000:]}")
        logits: NDArray[np.float32] = load_file(answer)["logits"]
        return logits
