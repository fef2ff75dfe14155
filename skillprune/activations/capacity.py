"""Puts batches that do not fit into a device's memory in halves, or says what to lower where that cannot be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from skillprune.data import Batch
from skillprune.errors import ResourceFailure

_LOGGER = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass
class Capacity:
    """How many examples have turned out to fit.

    Attributes:
        most: examples that are tried at once; None as long as everything fitted.
    """

    most: int | None = None

    def run(self, batch: Batch, work: Callable[[Batch], Result]) -> list[Result]:
        """What ``work`` makes of a batch, or of parts of it, in order, as soon as memory runs out.

        Raises:
            ResourceFailure: not even one example fits.
        """
        if self.most is None or len(batch) <= self.most:
            try:
                return [work(batch)]
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise ResourceFailure(
                        f"one example of {batch.mask.shape[1]} tokens does not fit into the device's memory; "
                        "lower task.max_length, or set model.device_map to auto"
                    ) from error
            # Outside the except clause, where the exception's frames would keep the tensors alive.
            self.most = len(batch) // 2
            torch.cuda.empty_cache()
            _LOGGER.warning("a batch of %d examples does not fit into memory; going on with %d", len(batch), self.most)
        return [result for half in batch.halves() for result in self.run(half, work)]


@contextmanager
def fitting(what: str, advice: str) -> Iterator[None]:
    """Tells of work that cannot go on in smaller pieces what to do when memory runs out.

    Raises:
        ResourceFailure: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        raise ResourceFailure(f"{what} does not fit into the device's memory; {advice}") from error


def _out_of_memory(error: RuntimeError) -> bool:
    known = isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
    return known or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)
