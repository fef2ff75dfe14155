"""Importing the package is cheap, silent and complete; checked in fresh interpreters, where nothing is loaded yet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

REPORT = """
import json, sys
{statements}
heavy = ("torch", "transformers", "onnx", "onnxruntime", "datasets", "sklearn", "scipy", "accelerate")
print(json.dumps({{"heavy": [name for name in heavy if name in sys.modules], "value": {value}}}))
"""


def fresh(statements: str, value: str = "None") -> dict[str, Any]:
    """Runs statements in a new interpreter: which heavy packages they loaded, and what an expression is afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT.format(statements=statements, value=value)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, f"an import printed {lines[:-1]}"
    return dict(json.loads(lines[0]))


def test_a_heavy_import_is_seen() -> None:
    assert "scipy" in fresh("import scipy")["heavy"]


@pytest.mark.parametrize("module", ["skillprune", "skillprune.errors", "skillprune.recipe", "skillprune.tasks"])
def test_import_is_lean(module: str) -> None:
    assert fresh(f"import {module}")["heavy"] == []


def test_import_is_silent() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import skillprune"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_listing_the_names_is_lean() -> None:
    found = fresh("import skillprune", "sorted(set(skillprune.__all__) - set(dir(skillprune)))")
    assert found == {"heavy": [], "value": []}


def test_the_public_names_are_sorted_and_unique() -> None:
    names = fresh("import skillprune", "skillprune.__all__")["value"]
    assert names
    assert names == sorted(set(names))


def test_every_public_name_resolves() -> None:
    missing = "[name for name in skillprune.__all__ if getattr(skillprune, name, None) is None]"
    assert fresh("import skillprune", missing)["value"] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    outcome = "hasattr(skillprune, 'no_such_name')"
    assert fresh("import skillprune", outcome) == {"heavy": [], "value": False}


def test_star_import_gives_the_public_names() -> None:
    outcome = "sorted(set(skillprune.__all__) - set(globals()))"
    assert fresh("import skillprune\nfrom skillprune import *", outcome)["value"] == []
