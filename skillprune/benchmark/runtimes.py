"""Opens a subject in this process with what it says runs it; timing the runs is left to others."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib import import_module
from typing import Protocol

import psutil

from skillprune.benchmark.messages import Arrays
from skillprune.benchmark.values import Phase, Subject
from skillprune.errors import DataError, ResourceFailure

# What libraries say: ONNX Runtime's arenas and CUDA, PyTorch's allocators, C++.
OUT_OF_MEMORY = re.compile(r"out of memory|allocate memory|bad[_ ]alloc", re.IGNORECASE)

Once = Callable[[], object]


class Opened(Protocol):
    """A model that is ready to run.

    Attributes:
        provider: what really runs it, in the recipe's words.
        version: of the library that runs it.
        spins: whether idle threads go on busily waiting for a while after a run.
    """

    @property
    def provider(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def spins(self) -> bool: ...

    def feed(self, inputs: Arrays, what: str, phase: Phase) -> Once:
        """A callable that runs the model once on these inputs and waits for all outputs, after a run that worked.

        Args:
            inputs: name to array; those that the model does not know are left out.
            what: names model and shape in errors.
            phase: what a run is.

        Raises:
            DataError: an input is missing, or the model refuses the inputs.
            ResourceFailure: memory ran out.
            ValueError: the model has no such phase.
        """
        ...


DEFAULT = "onnxruntime-default"  # with every option of a session as ONNX Runtime sets it, threads included

# Modules of this package, each with a function `open_subject(subject, threads, provider)`; imported when asked for, so
# that a process that times one library does not hold the other in memory.
RUNTIMES = {"onnxruntime": "sessions", DEFAULT: "sessions", "torch": "eager", "torch-compile": "eager"}


def default_threads() -> int:
    """Threads of a session that is left to itself: by ONNX Runtime's documentation one for every physical core."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def only_forward(phase: Phase, what: str) -> None:
    """Refuses phases of models that write.

    Raises:
        ValueError: it is one.
    """
    if phase != "forward":
        raise ValueError(f"{what}: only the directories of ONNX writers write tokens, so nothing else has a {phase}")


def refusal(what: str, library: str, error: Exception) -> DataError | ResourceFailure:
    """What to raise when a library did not run ``what``: the inputs are to blame, unless memory ran out."""
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
        return ResourceFailure(f"{what}: {library} ran out of memory, choose smaller shapes: {error}")
    return DataError(f"{what}: {library} cannot run this shape: {error}")


def open_here(subject: Subject, *, threads: int, provider: str) -> Opened:
    """Opens a subject in this process.

    Args:
        subject: what to open, with one of `RUNTIMES`.
        threads: threads that compute inside one operator.
        provider: ``cpu`` or ``cuda``.

    Raises:
        ProviderUnavailable: the provider is unknown, not installed, or not the one that runs.
        CheckpointError: the file or directory is missing or unreadable.
    """
    writes = subject.runtime == "onnxruntime" and subject.path.is_dir()
    module = import_module(f"skillprune.benchmark.{'writers' if writes else RUNTIMES[subject.runtime]}")
    opened: Opened = module.open_subject(subject, threads, provider)
    return opened
