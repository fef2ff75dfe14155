"""A PyTorch model timed in a process of its own, whose threads and memory are nobody else's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skillprune.benchmark.values import Subject
from skillprune.errors import CheckpointError, DataError, ProviderUnavailable, SkillPruneError

# What the process says went wrong, by the word it says.
ERRORS: dict[str, type[SkillPruneError]] = {
    "provider": ProviderUnavailable,
    "checkpoint": CheckpointError,
    "inputs": DataError,
}
LONGEST_REPORT = 400


class TorchProcess:
    """Holds a model open and runs it when told; ends when nobody refers to it any more.

    Attributes:
        provider: the device that really runs, in the recipe's word.
    """

    def __init__(
        self, subject: Subject, inputs: Mapping[str, NDArray[np.generic]], *, threads: int, provider: str, what: str
    ) -> None:
        """Starts the process and waits until the model has run once.

        Args:
            subject: a checkpoint directory, the class that loads it, and ``torch`` or ``torch-compile``.
            inputs: of every run, by name.
            threads: threads that compute inside one operator.
            provider: ``cpu`` or ``cuda``.
            what: names subject and shape in errors.

        Raises:
            ProviderUnavailable: PyTorch has no such device.
            CheckpointError: the model cannot be loaded.
            DataError: the model cannot run the inputs.
        """
        self._what = what
        request = {
            "checkpoint": str(subject.path),
            "model_class": subject.model_class,
            "compiled": subject.runtime == "torch-compile",
            "threads": threads,
            "device": provider,
        }
        with TemporaryDirectory() as folder:
            given = Path(folder, "inputs.npz")
            np.savez(given, **inputs)  # type: ignore[arg-type]
            request["inputs"] = str(given)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "skillprune.benchmark.torch_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )
            weakref.finalize(self, _end, self._process)
            self.provider = str(self._ask(json.dumps(request))["device"])

    def run(self, repeats: int) -> int:
        """Nanoseconds of so many runs, as the process itself measures them."""
        return int(self._ask(str(repeats))["nanoseconds"])

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None  # it is a pipe
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except OSError as gone:
            raise DataError(f"{self._what}: PyTorch's process ended: {self._last_words()}") from gone
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # it is a pipe
        line = self._process.stdout.readline()
        if not line:
            raise DataError(f"{self._what}: PyTorch's process ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ERRORS[answer["error"]](f"{self._what}: {answer['message']}")
        return answer

    def _last_words(self) -> str:
        assert self._process.stderr is not None  # it is a pipe
        self._process.kill()
        return self._process.stderr.read().strip()[-LONGEST_REPORT:] or "it said nothing"


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):  # what could not be written any more
                pipe.close()
