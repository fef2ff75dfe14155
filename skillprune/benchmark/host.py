"""Describes the machine and the libraries that produced a number; comparing two machines is left to the gate."""

from __future__ import annotations

import os
import platform
import warnings
from importlib import metadata
from pathlib import Path

import psutil

# The GPU build of ONNX Runtime is the same module under another distribution name.
DISTRIBUTIONS = {
    "torch": ("torch",),
    "transformers": ("transformers",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnx": ("onnx",),
    "numpy": ("numpy",),
    "skillprune": ("skillprune",),
}
# What decides how fast fp32 and int8 matrix products can be.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
CPUINFO = Path("/proc/cpuinfo")


def environment() -> dict[str, str | int | None]:
    """Host and versions, with None for what this machine does not have or does not tell.

    Returns:
        ``cpu`` (name), ``cores`` (logical ones this process may use), ``cores_physical`` (of the machine),
        ``cpu_flags`` (those of `FLAGS` that are present, separated by spaces), ``gpu`` (name of the first CUDA device),
        ``os``, ``python``, and the version of every key of `DISTRIBUTIONS`.
    """
    name, flags = read_cpuinfo(CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else "")
    return {
        "cpu": name or platform.processor() or platform.machine(),
        "cores": _usable_cores(),
        "cores_physical": psutil.cpu_count(logical=False),
        "cpu_flags": flags,
        "gpu": _gpu(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: _version(names) for package, names in DISTRIBUTIONS.items()},
    }


def read_cpuinfo(text: str) -> tuple[str | None, str | None]:
    """The model name and the flags of interest in the text of Linux's ``/proc/cpuinfo``; None where it has none."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    present = fields["flags"].split() if "flags" in fields else None
    return fields.get("model name"), None if present is None else " ".join(each for each in FLAGS if each in present)


def _usable_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _gpu() -> str | None:
    import torch  # nothing else here needs it, and it is slow to import

    with warnings.catch_warnings():
        # torch warns when a driver is too old or broken: then there is no GPU to name, and that is the answer.
        warnings.simplefilter("ignore")
        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _version(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
