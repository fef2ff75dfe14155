"""The process in which a PyTorch model is timed: loads it, runs it when told, and tells how long that took.

It is told by a line of JSON that says what to load, then by lines with a number of runs, and answers each with a line
of JSON; anything that libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np
import torch
import transformers

# Threads of OpenMP go on spinning for a while after a run; whoever is timed next should have the cores to itself.
UNTIL_THREADS_SLEEP = 0.01  # seconds


def main() -> None:
    """Serves until the parent says no more."""
    told, say = _private_pipes()
    request = json.loads(told.readline())
    try:
        run = _prepared(request)
    except _Refused as refused:
        say({"error": refused.kind, "message": str(refused)})
        return
    say({"device": request["device"]})
    for line in told:
        start = time.perf_counter_ns()
        for _ in range(int(line)):
            run()
        took = time.perf_counter_ns() - start
        time.sleep(UNTIL_THREADS_SLEEP)
        say({"nanoseconds": took})


class _Refused(Exception):
    """Something cannot be done; ``kind`` is a word that the parent knows."""

    def __init__(self, kind: str, message: object) -> None:
        super().__init__(str(message))
        self.kind = kind


def _private_pipes() -> tuple[TextIO, Callable[[dict[str, Any]], None]]:
    """Lines of the parent, and what writes lines to it; from now on what anybody prints goes to standard error."""
    told, private = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        private.write(json.dumps(answer) + "\n")
        private.flush()

    return told, say


def _prepared(request: dict[str, Any]) -> Callable[[], object]:
    """A callable that runs the model once and fetches its first result, after a first run that worked."""
    device = request["device"]
    if device == "cuda" and not torch.cuda.is_available():
        raise _Refused("provider", "this PyTorch sees no CUDA device; choose provider: cpu")
    torch.set_num_threads(request["threads"])
    try:
        model = getattr(transformers, request["model_class"]).from_pretrained(request["checkpoint"])
    except Exception as failed:
        raise _Refused("checkpoint", f"{type(failed).__name__}: {failed}") from failed
    model = model.float().eval().to(device)
    with np.load(request["inputs"]) as arrays:
        inputs = {name: torch.from_numpy(arrays[name]).to(device) for name in arrays.files}
    forward = torch.compile(model) if request["compiled"] else model

    def run() -> object:
        with torch.inference_mode():
            return forward(**inputs)[0].cpu()

    try:
        run()
    except Exception as failed:
        raise _Refused("inputs", f"{type(failed).__name__}: {failed}") from failed
    return run


if __name__ == "__main__":
    main()
