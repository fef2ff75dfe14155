"""Writes and reads ``report.json``, and writes files whole; what stands in it is decided by the schema."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import from_json

from skillprune.errors import OutputError, ResourceFailure
from skillprune.report.schema import SCHEMA_VERSION, Report

SHOWN_PROBLEMS = 5


def write_json(report: Report, path: Path) -> None:
    """Writes ``report`` as indented JSON. Readers see the old file or the whole new one, never a part.

    Raises:
        ResourceFailure: the file could not be written (directory missing, disk full, no permission).
    """
    write_text(path, report.model_dump_json(indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, readable by whoever may read its directory.

    Raises:
        ResourceFailure: the file could not be written (directory missing, disk full, no permission).
    """
    # A plain sibling, because tempfile's files are readable by their owner only.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise ResourceFailure(f"{path}: could not be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)


def read_report(path: Path) -> Report:
    """Reads a ``report.json``, or the one in the run directory ``path``.

    Raises:
        OutputError: the file is missing, is not JSON, has another schema_version, or does not fit the schema.
    """
    file = path / "report.json" if path.is_dir() else path
    content = _bytes(file)
    try:
        value = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise OutputError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(value, dict) or "schema_version" not in value:
        raise OutputError(
            f"{file}: not a skillprune report; a JSON object with schema_version {SCHEMA_VERSION} is expected"
        )
    if value["schema_version"] != SCHEMA_VERSION:
        raise OutputError(
            f"{file}: schema_version is {value['schema_version']!r}, this skillprune reads {SCHEMA_VERSION}; "
            "read it with the skillprune version that wrote it, or run the recipe again"
        )
    try:
        return Report.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise OutputError(f"{file}: does not fit the report schema\n{_problems(error)}") from error


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise OutputError(
            f"{file}: no such file; `skillprune run` writes report.json into its output directory"
        ) from error
    except OSError as error:
        raise OutputError(f"{file}: cannot be read ({error.strerror or error})") from error


def _problems(error: ValidationError) -> str:
    found = error.errors(include_url=False)
    lines = [f"  {'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in found[:SHOWN_PROBLEMS]]
    if len(found) > SHOWN_PROBLEMS:
        lines.append(f"  and {len(found) - SHOWN_PROBLEMS} more")
    return "\n".join(lines)
