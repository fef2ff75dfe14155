"""Runs the checks of tests/zoo_checks.py over every family and writes what passed to skillprune/families/verified.json.

    python docs/verify_families.py

It speaks for the transformers that is installed and leaves the other line's entries alone; run it once with each.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import transformers  # noqa: E402
from zoo import ZOO  # noqa: E402
from zoo_checks import CHECKS, LINE, Check, known, prepare  # noqa: E402

from skillprune.families import FAMILIES  # noqa: E402

TARGET = ROOT / "skillprune" / "families" / "verified.json"


def passes(check: Check, name: str, folder: Path) -> bool:
    """Whether a specimen passes a check; says what is wrong with it if not."""
    try:
        check.run(ZOO[name], folder)
    except Exception as failed:  # whatever it is, it is not verified
        print(f"{name}: {type(failed).__name__}: {failed}", file=sys.stderr)
        return False
    return True


def verified(folder: Path) -> dict[str, list[str]]:
    """Names of the checks that passed for every specimen of a ``model_type`` that they apply to."""
    prepare(known(), folder)
    found: dict[str, list[str]] = {}
    for model_type in FAMILIES:
        names = [name for name in known() if ZOO[name].model_type == model_type]
        for title, check in CHECKS.items():
            meant = [name for name in names if check.applies(ZOO[name])]
            if meant and all(passes(check, name, folder) for name in meant):
                found.setdefault(model_type, []).append(title)
    return found


def main() -> None:
    """Checks and writes."""
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        here = verified(Path(folder))
    before = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.is_file() else {}
    lines = {}
    for model_type in sorted(FAMILIES):
        entry = {**before.get(model_type, {}), LINE: here.get(model_type, [])}
        lines[model_type] = {line: checks for line, checks in sorted(entry.items()) if checks}
    TARGET.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
