"""Arrays in files of a temporary folder that is gone when nobody holds them any more."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor


class DiskArrays:
    """Makes tensors that live in files, so that memory holds only the pages in use; all go together."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="skillprune-")
        self._gone = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A new array of zeros.

        Raises:
            OSError: the disk is full.
        """
        count = math.prod(shape)
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
            # A file with holes would crash the process when the disk is full; so say it now, where the system can.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(1, count * dtype.itemsize))
            values = torch.from_file(file.name, shared=True, size=count, dtype=dtype)
        return values.view(*shape)

    def remove(self) -> None:
        """Removes the folder now; arrays that are still held stay readable until they are dropped."""
        self._gone()
