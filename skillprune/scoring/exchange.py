"""Brings together what several processes saw, each of its own share of the batches; alone, nothing happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as distributed

from skillprune.data import Batch
from skillprune.errors import SkillPruneError
from skillprune.families import FFN
from skillprune.scoring.criterion import Criterion, Split, State


def processes() -> tuple[int, int]:
    """Rank of this process and how many there are; (0, 1) outside of a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def own_share(batches: Sequence[Batch]) -> dict[int, Batch]:
    """The batches of this process by their number; every one belongs to exactly one, so no example is seen twice."""
    rank, world = processes()
    return dict(list(enumerate(batches))[rank::world])


@contextmanager
def failing_together() -> Iterator[None]:
    """When the work inside fails in one process, all raise that error, so that nobody waits for what never comes."""
    failure: SkillPruneError | None = None
    try:
        yield
    except SkillPruneError as error:
        failure = error
    failures = [failure]
    if processes()[1] > 1:
        failures = [None] * processes()[1]
        distributed.all_gather_object(failures, failure)
    for found in failures:
        if found is not None:
            raise found


def merge_processes(criterion: Criterion, ffns: Sequence[FFN], split: Split) -> None:
    """Gives every process the sums of all, merged in order of rank, so that all end with the same numbers.

    One FFN's state travels at a time, so memory grows by one state and not by the number of processes.
    """
    rank, world = processes()
    if world == 1:
        return
    for ffn in ffns:
        own = criterion.state(ffn, split)
        merged = criterion.start(ffn, split, torch.device("cpu"))
        criterion.replace(ffn, split, merged)
        for source in range(world):
            criterion.merge(ffn, split, _broadcast(own, source, is_source=rank == source))


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
