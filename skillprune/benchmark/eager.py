"""Opens checkpoint directories in PyTorch, as they are or compiled; timing them is left to others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from skillprune.benchmark.messages import Arrays
from skillprune.benchmark.runtimes import Once, only_forward, refusal
from skillprune.benchmark.values import Phase, Subject
from skillprune.checkpoint import read_record
from skillprune.checkpoint.reading import unpad_, without_code_
from skillprune.errors import CheckpointError, ProviderUnavailable

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class OpenedModel:
    """A loaded model, ready for inputs.

    Attributes:
        model: tells which inputs there are.
        call: what is run: the model, or what the compiler made of it.
    """

    model: PreTrainedModel
    call: Any

    @property
    def provider(self) -> str:
        """The kind of device where the weights lie."""
        return str(self.model.device.type)

    @property
    def version(self) -> str:
        """Version of PyTorch."""
        return str(torch.__version__)

    @property
    def spins(self) -> bool:
        """OpenMP's threads do."""
        return True

    def feed(self, inputs: Arrays, what: str, phase: Phase) -> Once:
        """Runs on inputs that lie on the model's device; a run returns the model's outputs, see `Opened.feed`."""
        only_forward(phase, what)
        known = set(inspect.signature(self.model.forward).parameters)
        tensors = {
            name: torch.from_numpy(array).to(self.model.device) for name, array in inputs.items() if name in known
        }
        run = self._on(tensors)
        try:
            run()
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise refusal(what, "PyTorch", error) from error
        return run

    def _on(self, tensors: Mapping[str, torch.Tensor]) -> Once:
        @torch.inference_mode()
        def run() -> object:
            return self.call(**tensors)

        @torch.inference_mode()
        def run_and_wait() -> object:
            outputs = self.call(**tensors)
            torch.cuda.synchronize()
            return outputs

        return run_and_wait if self.provider == "cuda" else run


def open_subject(subject: Subject, threads: int, provider: str) -> OpenedModel:
    """Loads the checkpoint of a subject in its own dtype, for a process of its own; see `runtimes.open_here`.

    Sets how many threads PyTorch computes with in this process.
    """
    if provider not in DEVICES:
        raise ProviderUnavailable(f"unknown provider {provider!r}, choose one of {sorted(DEVICES)}")
    if provider == "cuda" and not torch.cuda.is_available():
        raise ProviderUnavailable("this PyTorch finds no CUDA device: install a CUDA build and a driver, or choose cpu")
    torch.set_num_threads(threads)
    model = load(subject.path, subject.model_class).to(provider)  # type: ignore[arg-type]  # its stub wants a model
    call = torch.compile(model, dynamic=False) if subject.runtime == "torch-compile" else model
    return OpenedModel(model, call)


def load(directory: Path, model_class: str) -> PreTrainedModel:
    """A checkpoint in its own dtype and with its real widths; code that it carries is not run.

    Args:
        directory: the checkpoint.
        model_class: of transformers, such as ``AutoModelForMaskedLM``; empty for the one the config names.

    Raises:
        CheckpointError: the directory is no whole checkpoint, or there is no such class.
    """
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory}: no checkpoint directory")
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        name = model_class or (config.architectures or [""])[0]
        if not hasattr(transformers, name):
            raise CheckpointError(f"{directory}: transformers has no class {name!r} to load it with")
        model, report = getattr(transformers, name).from_pretrained(
            directory, config=without_code_(config), dtype="auto", use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, TypeError, RuntimeError) as unreadable:
        raise CheckpointError(f"{directory} cannot be loaded: {unreadable}") from unreadable
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{directory} has no weights for {', '.join(missing[:5])}: it is not whole")
    record = read_record(directory)
    if record is not None and record.form == "padded":
        unpad_(model, record)
    loaded: PreTrainedModel = model.eval()
    return loaded
