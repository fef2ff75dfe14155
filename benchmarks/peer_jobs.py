"""Runs one peer on one task and calibration sample in an environment of its own, and reads back what it answered.

Which arms there are, and what to compare them with, is left to `peers`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from provenance import HERE, PARTS

from skillprune.data import Batch
from skillprune.evaluation import Predictions

SCRIPTS = HERE / "peers"
WORK = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "skillprune-peers")
"""Environments and the samples' tokens; to be deleted to start anew."""


@dataclass(frozen=True)
class Peer:
    """A package to compare with; ``peers/with_NAME.py`` runs it, ``peers/NAME.txt`` pins what it runs on.

    Attributes:
        name: of the two files and in the rows.
        package: what is installed without asking what it needs, as TextPruner insists on a numpy of 2021.
        arms: settings of every arm by name.
        versions: distributions whose versions are recorded.
    """

    name: str
    package: str
    arms: Mapping[str, Mapping[str, Any]]
    versions: tuple[str, ...] = ("torch", "transformers", "numpy")

    @property
    def requirements(self) -> str:
        """Everything to install, a line each, the package last."""
        return (SCRIPTS / f"{self.name}.txt").read_text(encoding="utf-8") + self.package + "\n"


@dataclass(frozen=True)
class Outcome:
    """What became of an arm; kept with the results, so that other machines need not run it again.

    Attributes:
        widths: neurons per layer.
        parameters: left in the whole model.
        seconds: to score, prune and repair, and to answer the test split.
        versions: of what the peer ran on.
        predicted: classes, in the order of the test split.
    """

    widths: tuple[int, ...]
    parameters: int
    seconds: float
    versions: dict[str, str]
    predicted: NDArray[np.int64]


def write_split(batches: Sequence[Batch], path: Path) -> None:
    """Writes token ids, mask and labels in the order of the split, padded on the right to its longest example."""
    total = sum(len(batch) for batch in batches)
    longest = max(batch.mask.shape[1] for batch in batches)
    split = {name: np.zeros((total, longest), np.int64) for name in ("input_ids", "attention_mask")}
    labels = np.zeros(total, np.int64)
    for batch in batches:
        rows = batch.indices.numpy()
        labels[rows] = batch.labels.numpy()
        for name, values in split.items():
            values[rows, : batch.mask.shape[1]] = batch.inputs[name].numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, labels=labels, **split)


def labels_of(folder: Path) -> NDArray[np.int64]:
    """Right classes of the test split."""
    with np.load(folder / "test.npz") as file:
        return np.asarray(file["labels"])


def run_peer(peer: Peer, checkpoint: Path, folder: Path, neurons: Sequence[int]) -> None:
    """Runs every arm that has no outcome yet.

    Args:
        peer: the package.
        checkpoint: folder of the dense classifier.
        folder: the sample's, with ``calibration.npz`` and ``test.npz``.
        neurons: how many to keep in all layers together, for every arm.

    Raises:
        CalledProcessError: the environment could not be made or the peer failed; what it said is on the screen.
    """
    # The cheap arms of all widths come first.
    arms = [(name, count) for name in peer.arms for count in neurons]
    if all(has_outcome(peer, folder, name, count) for name, count in arms):
        return
    job = folder / peer.name / "job.json"
    job.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "checkpoint": str(checkpoint),
        "calibration": str(folder / "calibration.npz"),
        "test": str(folder / "test.npz"),
        "packages": [peer.package.partition("==")[0], *peer.versions],
        "arms": [
            {
                "name": name,
                "neurons": count,
                "settings": dict(peer.arms[name]),
                "folder": str(arm_folder(peer, folder, name, count)),
            }
            for name, count in arms
        ],
    }
    job.write_text(json.dumps(content, indent=2), encoding="utf-8")
    # The peer must see its own packages only.
    surroundings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = SCRIPTS / f"with_{peer.name}.py"
    subprocess.run([interpreter(peer), str(script), str(job)], check=True, env=surroundings)


def arm_folder(peer: Peer, folder: Path, arm: str, neurons: int) -> Path:
    """Where an arm's outcome is; another one for other settings or versions."""
    identity = json.dumps([peer.requirements, dict(peer.arms[arm])], sort_keys=True)
    short = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return PARTS / "peers" / folder.name / peer.name / f"{arm.replace(', ', '-').replace(' ', '-')}-{neurons}-{short}"


def has_outcome(peer: Peer, folder: Path, arm: str, neurons: int) -> bool:
    """Whether an arm is done."""
    return (arm_folder(peer, folder, arm, neurons) / "outcome.json").is_file()


def read_outcome(peer: Peer, folder: Path, arm: str, neurons: int) -> Outcome:
    """What an arm came to."""
    where = arm_folder(peer, folder, arm, neurons)
    found = json.loads((where / "outcome.json").read_text(encoding="utf-8"))
    with np.load(where / "answers.npz") as file:
        predicted = file["predicted"].astype(np.int64)
    return Outcome(tuple(found["widths"]), found["parameters"], found["seconds"], found["versions"], predicted)


def predictions(outcome: Outcome, folder: Path) -> Predictions:
    """The same as skillprune's evaluation takes it."""
    return Predictions(labels_of(folder), outcome.predicted)


def interpreter(peer: Peer) -> str:
    """Python of the peer's environment, which is made if it is missing or was made for other versions."""
    environment = WORK / "environments" / peer.name
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    installed = environment / "installed.txt"
    if not installed.is_file() or installed.read_text(encoding="utf-8") != peer.requirements:
        print(f"making an environment for {peer.package}", flush=True)
        venv.create(environment, clear=True, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "-r", str(SCRIPTS / f"{peer.name}.txt")], check=True)
        subprocess.run([*install, "--no-deps", peer.package], check=True)
        installed.write_text(peer.requirements, encoding="utf-8")
    return str(python)
