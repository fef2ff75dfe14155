"""The run directory: claimed by one recipe, filled stage by stage, resumed where it was left; nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter
from safetensors import SafetensorError

from skillprune.errors import OutputError, ResourceFailure
from skillprune.pipeline.memory import PeakMemory
from skillprune.recipe import Recipe, dump_recipe

Value = TypeVar("Value")

_RECORDS = ".stages"


@dataclass(frozen=True)
class StageRecord:
    """How one stage went.

    Attributes:
        name: the stage.
        seconds: wall time of the run that did the work.
        peak_rss_mib: most resident memory the process held during it.
        cached: whether an earlier run did it.
    """

    name: str
    seconds: float
    peak_rss_mib: float
    cached: bool


class RunDirectory:
    """Where one recipe's results go. Stages leave files here and a record each; a finished stage is not done twice."""

    def __init__(self, path: Path, recipe: Recipe, *, cache: bool = True) -> None:
        """Looks whether ``path`` may be written to, without writing.

        Raises:
            OutputError: it is a file, holds something else, or belongs to another recipe.
        """
        self.path = path
        self.records: list[StageRecord] = []
        self._recipe = dump_recipe(recipe)
        self._cache = cache
        self._inputs = ""
        self._refuse_foreign()

    def depend_on(self, *fingerprints: str) -> None:
        """Names what the results depend on beside the recipe; stages done with other inputs are done again."""
        self._inputs = _digest(self._recipe, version("skillprune"), *fingerprints)

    def stage(
        self,
        name: str,
        kind: Any,
        compute: Callable[[], Value],
        outputs: Sequence[Path] = (),
        *,
        is_whole: Callable[[Value], bool] = lambda value: True,
    ) -> Value:
        """Returns what ``compute`` returned, now or in an earlier run with the same recipe and inputs.

        Args:
            name: unique in the run.
            kind: type of the value, something pydantic can write as JSON and read back.
            compute: does the work and leaves ``outputs`` behind.
            outputs: files or directories without which an earlier run does not count.
            is_whole: whether what else an earlier run left behind, by what it returned, is still there.

        Raises:
            ResourceFailure: the disk failed.
        """
        adapter: TypeAdapter[Value] = TypeAdapter(kind)
        record = self.path / _RECORDS / f"{name}.json"
        done = self._finished(record, outputs)
        if done is not None and is_whole(adapter.validate_python(done["value"], strict=False)):
            self.records.append(StageRecord(name, done["seconds"], done["peak_rss_mib"], cached=True))
            self._inputs = _digest(self._inputs, done["made"])
            return adapter.validate_python(done["value"], strict=False)
        start = time.perf_counter()
        with self._claimed(), PeakMemory() as memory:
            value = compute()
        self.records.append(StageRecord(name, time.perf_counter() - start, memory.peak_mib, cached=False))
        # Later stages depend on this very result: done again, it makes what was made from the older one stale.
        made = str(time.time_ns())
        fields = {"inputs": self._inputs, "made": made, "seconds": self.records[-1].seconds}
        fields |= {"peak_rss_mib": memory.peak_mib, "value": adapter.dump_python(value, mode="json")}
        write_text(record, json.dumps(fields))
        self._inputs = _digest(self._inputs, made)
        return value

    def depend_further_on(self, fingerprint: str) -> None:
        """Names what stages from here on depend on, and those before do not."""
        self._inputs = _digest(self._inputs, fingerprint)

    def unfinished(self, name: str) -> Path:
        """A file for a stage to keep in it what an interrupted run can go on from; not there without the cache."""
        path = self._unfinished(name)
        if not self._cache:
            path.unlink(missing_ok=True)
        return path

    def finish(self, name: str) -> None:
        """Removes what a stage kept to go on from, now that its results are written."""
        self._unfinished(name).unlink(missing_ok=True)

    def _unfinished(self, name: str) -> Path:
        return self.path / _RECORDS / f"{name}.safetensors"

    def is_done(self, name: str, outputs: Sequence[Path] = ()) -> bool:
        """Whether an earlier run with the same recipe and inputs left this stage behind."""
        return self._finished(self.path / _RECORDS / f"{name}.json", outputs) is not None

    def _finished(self, record: Path, outputs: Sequence[Path]) -> dict[str, Any] | None:
        done = self._read(record)
        return done if all(path.exists() for path in outputs) else None

    def _read(self, record: Path) -> dict[str, Any] | None:
        if not (self._cache and record.is_file()):
            return None
        done: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return done if done["inputs"] == self._inputs else None

    def _refuse_foreign(self) -> None:
        for place in (self.path, *self.path.parents):
            if place.exists() and not place.is_dir():
                raise OutputError(f"{place} is a file; name a directory with --output")
        recipe = self.path / "recipe.yaml"
        if recipe.is_file():
            if recipe.read_bytes() != self._recipe.encode():
                raise OutputError(
                    f"{self.path} holds the results of another recipe (see {recipe}); "
                    "choose another --output, or remove it if it is no longer needed"
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise OutputError(f"{self.path} is not empty and was not made by skillprune; choose another --output")

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """The recipe is written first, so that nobody takes the files for somebody else's; and goes if no file came."""
        recipe = self.path / "recipe.yaml"
        existed = self.path.is_dir()
        if not recipe.is_file():
            write_text(recipe, self._recipe)
        try:
            yield
        except BaseException:
            if [*self.path.iterdir()] == [recipe]:
                recipe.unlink()
                if not existed:
                    self.path.rmdir()
            raise


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        ResourceFailure: the disk failed; an older file is intact.
    """
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary sibling to fill (file or directory) and puts it in the place of ``path`` when all went well.

    Raises:
        ResourceFailure: the disk failed; what was at ``path`` is intact.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            fresh = Path(folder, path.name)
            yield fresh
            if path.is_dir():
                _exchange(fresh, path, Path(folder, "old"))
            else:
                os.replace(fresh, path)
    except OSError as failed:
        raise ResourceFailure(f"{path} could not be written: {failed.strerror or failed}") from failed
    except SafetensorError as failed:
        raise ResourceFailure(f"{path} could not be written: {failed}") from failed


def _exchange(fresh: Path, path: Path, old: Path) -> None:
    """Puts one directory in the place of another; if that fails in between, the other one comes back."""
    path.rename(old)
    try:
        fresh.rename(path)
    except BaseException:
        old.rename(path)
        raise


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
