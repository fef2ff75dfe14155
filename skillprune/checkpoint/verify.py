"""Proves that a written checkpoint reloads: in a fresh process, the way its model card tells users to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from skillprune.checkpoint.modelling import MODULE
from skillprune.errors import ParityError, VerificationFailed

_READ_BACK = """
import sys
{imports}
import torch, transformers
from safetensors.numpy import load_file, save_file
name, directory, given, answer = sys.argv[1:]
options = {{"dtype": torch.float32, "trust_remote_code": {trust}}}
model = getattr(transformers, name).from_pretrained(directory, **options).eval()
inputs = {{name: torch.from_numpy(array) for name, array in load_file(given).items()}}
with torch.inference_mode():
    save_file({{"first": model(**inputs)[0].contiguous().numpy()}}, answer)
"""


def verify_reload(model: PreTrainedModel, directory: Path, inputs: Mapping[str, NDArray[Any]]) -> float:
    """Loads the checkpoint in a fresh process and compares the first output (logits, mostly) with ``model``'s.

    skillprune is imported there only where the checkpoint needs it, and code is trusted only where skillprune wrote it.

    Returns:
        The largest absolute difference.

    Raises:
        VerificationFailed: the process could not load the checkpoint.
        ParityError: outputs differ by more than 1e-4 of the largest.
    """
    model.float()
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(array).to(model.device) for name, array in inputs.items()})[0]
    found = _output_of_fresh_process(type(model).__name__, directory, inputs)
    difference = float(np.abs(found - expected.cpu().numpy()).max())
    tolerance = 1e-4 * max(1.0, float(expected.abs().max()))
    if not difference <= tolerance:
        raise ParityError(f"{directory} reloaded in a fresh process", difference, tolerance)
    return difference


def _output_of_fresh_process(name: str, directory: Path, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    auto_map = {
        pruned.removeprefix(f"{MODULE}."): auto
        for auto, pruned in config.get("auto_map", {}).items()
        if isinstance(pruned, str) and pruned.startswith(f"{MODULE}.")
    }
    loader = next((auto for pruned, auto in auto_map.items() if pruned == name), name)
    plugin = "import skillprune" if "quantization_config" in config else ""
    script = _READ_BACK.format(imports=plugin, trust=bool(auto_map))
    # -c puts the working directory on the path, not the place skillprune was imported from.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder, "inputs.safetensors"), Path(folder, "first.safetensors")
        save_file({name: np.ascontiguousarray(array) for name, array in inputs.items()}, given)
        if auto_map:  # the copies of the code that transformers makes go with the folder
            environment["HF_MODULES_CACHE"] = folder
        command = [sys.executable, "-c", script, loader, str(directory.resolve()), str(given), str(answer)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise VerificationFailed(f"{directory} does not load in a fresh process:\n{done.stderr.strip()[-2000:]}")
        first: NDArray[np.float32] = load_file(answer)["first"]
        return first
