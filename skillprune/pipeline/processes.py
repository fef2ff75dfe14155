"""The processes that torchrun started: all of them score, the main one alone does everything else."""

from __future__ import annotations

import atexit
import os
from typing import Any

import torch.distributed as distributed
from accelerate import PartialState

from skillprune.scoring import processes


def join_processes() -> None:
    """Makes this process one of a group when torchrun (or another launcher) started it; alone, nothing happens."""
    if several_processes() and not distributed.is_initialized():
        atexit.register(PartialState().destroy_process_group)


def several_processes() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether this process writes and prints."""
    return processes()[0] == 0


def agree(value: Any) -> Any:
    """What the main process says, on all of them; they wait for it."""
    if processes()[1] == 1:
        return value
    said = [value]
    distributed.broadcast_object_list(said, src=0)
    return said[0]
