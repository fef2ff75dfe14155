"""Brings together what several processes saw, each of its own share of the batches; alone, nothing happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as distributed

from skillprune.data import Batch
from skillprune.errors import DataError, ResourceFailure
from skillprune.families import FFN
from skillprune.scoring.criterion import Criterion, Split, State

Value = TypeVar("Value")


def processes() -> tuple[int, int]:
    """Rank of this process and how many there are; (0, 1) outside of a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def own_share(batches: Mapping[int, Batch]) -> dict[int, Batch]:
    """The batches of this process by their number; every one belongs to exactly one, so no example is seen twice."""
    rank, world = processes()
    return dict(list(batches.items())[rank::world])


def of_main(value: Value) -> Value:
    """What the main process has, on all of them."""
    if processes()[1] == 1:
        return value
    said = [value]
    distributed.broadcast_object_list(said, src=0)
    return said[0]


@contextmanager
def failing_together() -> Iterator[None]:
    """When the work inside fails in one process, it fails in all, so that nobody waits for what never comes.

    Raises:
        DataError: another process found the data or the model unusable.
        ResourceFailure: something else failed in another process.
    """
    rank, world = processes()
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    said: list[tuple[int, str] | None] = [None] * world
    if world > 1:
        own = failure and (getattr(failure, "exit_code", 3), f"process {rank}: {failure}")
        distributed.all_gather_object(said, own)
    if failure is not None:
        raise failure
    for found in said:
        if found is not None:
            raise (DataError if found[0] == DataError.exit_code else ResourceFailure)(found[1])


def merge_processes(criterion: Criterion, ffns: Sequence[FFN], split: Split) -> None:
    """Gives every process the sums of all, merged in order of rank, so that all end with the same numbers.

    One piece of one FFN's state travels at a time, so memory does not grow with the number of processes.
    """
    rank, world = processes()
    if world == 1:
        return
    for ffn in ffns:
        own = criterion.state(ffn, split)
        merged = criterion.start(ffn, split, torch.device("cpu"))
        criterion.replace(ffn, split, merged)
        for source in range(world):
            for piece in criterion.pieces(own):
                criterion.merge(ffn, split, _broadcast(piece, source, is_source=rank == source))


def _broadcast(own: State, source: int, *, is_source: bool) -> State:
    """The state of the process ``source``, on all of them; states of one FFN have the same shapes everywhere."""
    # NCCL moves only what is on a GPU, gloo what is anywhere.
    device = torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
    sent: State = {}
    for key, value in own.items():
        buffer = (value.to(device, copy=True) if is_source else torch.empty_like(value, device=device)).contiguous()
        buffer = buffer.to(torch.uint8) if buffer.dtype == torch.bool else buffer
        distributed.broadcast(buffer, src=source)
        sent[key] = buffer.cpu()
    return sent
