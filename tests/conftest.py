"""What every test shares: no network, a cache of its own, and where the data beside the repository is found."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported, so it comes before any other import

if "SKILLPRUNE_CACHE" not in os.environ:  # processes that this one starts share its cache
    os.environ["SKILLPRUNE_CACHE"] = tempfile.mkdtemp(prefix="skillprune-cache-")
    atexit.register(shutil.rmtree, os.environ["SKILLPRUNE_CACHE"], ignore_errors=True)

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # workers share the cores, and so do the processes they start
    share = CORES // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import pytest  # noqa: E402


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` stands for: a worker for every core this process may use, however many the machine has."""
    return CORES


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data beside the repository; tests that need it are skipped where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SKILLPRUNE_SHARED", beside))
    if not (folder / "models").is_dir() or not (folder / "data").is_dir():
        pytest.skip(f"no folder of shared models and data at {folder} (SKILLPRUNE_SHARED names another place)")
    return folder
