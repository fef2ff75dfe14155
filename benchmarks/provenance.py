"""Where the benchmarks find their model and data, and how they write what they measured: with everything behind it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import skillprune
from skillprune import Recipe, load_recipe
from skillprune.benchmark import environment

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PARTS = RESULTS / "parts"
"""What long measurements have finished, kept with the results so that they can be gone on with anywhere."""
PRUNING = ("families", "surgery.py", "scoring", "planning", "repair")
"""The code that says which neurons stay and what the others become."""
TIMING = ("benchmark", "export", "gating")
"""The code that writes files, times them, and compares times."""
MINILM = HERE / "recipes" / "minilm-sst2.yaml"


def minilm_recipe(*overrides: str) -> Recipe:
    """The recipe of MiniLM on SST-2, with some keys overridden."""
    return load_recipe(MINILM, overrides)


def write_result(name: str, *, seeds: list[int], result: dict[str, Any]) -> None:
    """Writes ``results/NAME.json``: the numbers, the command, the seeds, the machine and the versions."""
    _write(RESULTS / f"{name}.json", _record(seeds, result))


def update_result(name: str, section: str, *, seeds: list[int], result: dict[str, Any]) -> None:
    """Writes one section of ``results/NAME.json``, with its own command, machine and versions; others stay."""
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    sections = {key: value for key, value in found.items() if isinstance(value, dict) and "result" in value}
    sections[section] = _record(seeds, result)
    _write(path, sections)


def kept_row(name: str, make: Callable[[], dict[str, Any]], rooms: Sequence[str] = PRUNING) -> dict[str, Any]:
    """A row that takes minutes: from ``results/parts`` if an earlier run finished it, else made and kept there.

    So interrupted runs continue, on another machine too. The name says all that the row depends on but the code: a row
    that other code made, in the ``rooms`` that matter to it, is told, to be deleted if what is measured has changed.
    """
    path, code = PARTS / "rows" / f"{name}.json", code_fingerprint(rooms)
    if path.is_file():
        kept = dict(json.loads(path.read_text(encoding="utf-8")))
        if kept.get("code") != code:
            print(f"{path.relative_to(HERE.parent)} was made by other code; without the file it is made anew")
        return kept
    row = {**make(), "code": code}
    print(f"{str(row):.1000}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(path, json.dumps(row))
    return row


def code_fingerprint(rooms: Sequence[str] = PRUNING) -> str:
    """Of the code that a part depends on: parts made by other code are told apart by it."""
    package, told = Path(skillprune.__file__).parent, hashlib.sha256()
    for room in rooms:
        for path in sorted((package / room).rglob("*.py")) if (package / room).is_dir() else [package / room]:
            told.update(path.read_bytes())
    return told.hexdigest()[:8]


def over_seeds(rows: Sequence[Mapping[str, Any]], arm: Sequence[str], value: str) -> list[dict[str, Any]]:
    """Mean, lowest and highest ``value`` of every arm; an arm is what has the same values under the keys ``arm``."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in arm), []).append(row[value])
    return [
        {
            **dict(zip(arm, values, strict=True)),
            "seeds": len(all_seeds),
            "mean": fmean(all_seeds),
            "lowest": min(all_seeds),
            "highest": max(all_seeds),
        }
        for values, all_seeds in found.items()
    ]


def _record(seeds: list[int], result: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0], HERE.parent), *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seeds": seeds,
        "environment": environment(),
        "result": result,
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    _write_whole(path, json.dumps(content, indent=2) + "\n")
    print(f"wrote {path.relative_to(HERE.parent)}")


def _write_whole(path: Path, text: str) -> None:
    """Half a file would be in the way of going on."""
    draft = path.with_suffix(".draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
