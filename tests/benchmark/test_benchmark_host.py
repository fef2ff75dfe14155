"""The host's fingerprint, against what other libraries say about the same machine and against written-out cpuinfo."""

from __future__ import annotations

import json
import platform

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
import torch
import transformers

from skillprune.benchmark import environment
from skillprune.benchmark.host import read_cpuinfo

SERVER = """processor\t: 0
model name\t: Some Server CPU @ 2.00GHz: rev 2
flags\t\t: fpu sse avx avx2 avx512f avx512_vnni amx_int8_not
bugs\t\t: spectre_v1

processor\t: 1
model name\t: Some Server CPU @ 2.00GHz: rev 2
flags\t\t: fpu
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (SERVER, ("Some Server CPU @ 2.00GHz: rev 2", "avx2 avx512f avx512_vnni")),
        ("model name : Old\nflags : fpu sse\n", ("Old", "")),
        ("processor : 0\nFeatures : fp asimd\n", (None, None)),
        ("", (None, None)),
    ],
)
def test_cpuinfo_is_read(text: str, found: tuple[str | None, str | None]) -> None:
    assert read_cpuinfo(text) == found


def test_the_fingerprint_is_this_machine() -> None:
    found = environment()
    modules = {"torch": torch, "transformers": transformers, "onnxruntime": onnxruntime, "onnx": onnx, "numpy": np}
    assert {name: found[name] for name in modules} == {name: module.__version__ for name, module in modules.items()}
    assert found["python"] == platform.python_version()
    assert found["cores"] == len(psutil.Process().cpu_affinity() or [])
    assert found["cpu"]
    assert (found["gpu"] is None) == (not torch.cuda.is_available())
    assert json.loads(json.dumps(found)) == found
    assert {"os", "cores_physical", "cpu_flags", "skillprune"} < set(found)
