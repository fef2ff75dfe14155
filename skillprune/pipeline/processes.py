"""The processes that torchrun started: all of them score, the main one alone does everything else."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta

import torch.distributed as distributed
from accelerate import PartialState

from skillprune.scoring import processes

_PATIENCE = timedelta(days=7)
"""How long helpers wait while the main process works alone, tuning prompts for example."""


def join_processes() -> None:
    """Makes this process one of a group when torchrun (or another launcher) started it; alone, nothing happens."""
    if several_processes() and not distributed.is_initialized():
        atexit.register(PartialState(timeout=_PATIENCE).destroy_process_group)


def several_processes() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether this process writes and prints."""
    return processes()[0] == 0
