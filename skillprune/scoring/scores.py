"""`NeuronScores`: one importance number per neuron, with where it came from; written to and read from safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.stats import spearmanr

from skillprune.errors import DataError, PlanMismatch

Vector = NDArray[np.float64]

_FORMAT = "skillprune-scores-2"

_OF_WHAT = {"model": "model", "data": "task or sample of its examples"}


@dataclass(frozen=True)
class Provenance:
    """What scores were computed from.

    Attributes:
        model: fingerprint of the checkpoint.
        data: fingerprint of the task and its examples.
        examples: number of calibration examples.
        position: which position of a sequence a pooled criterion reads.
        seed: seed of the calibration sample and of the `random` criterion.
    """

    model: str
    data: str
    examples: int
    position: str
    seed: int


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """Importance of every FFN neuron under one criterion; higher means keep.

    Attributes:
        criterion: name in the table of criteria.
        values: per stack, one vector ``(neurons,)`` per layer; layers may differ in width.
        provenance: model, data, sizes and seed behind the numbers.
        details: further arrays by name, then per stack and layer like ``values``; the criterion says what they mean.
    """

    criterion: str
    values: Mapping[str, tuple[Vector, ...]]
    provenance: Provenance
    details: Mapping[str, Mapping[str, tuple[NDArray[Any], ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for stack, layers in self.values.items():
            for layer, vector in enumerate(layers):
                if not np.isfinite(vector).all():
                    raise DataError(
                        f"{self.criterion}: the scores of {stack} layer {layer} are not finite; "
                        "look for NaN or infinite activations in that layer"
                    )

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Neurons per stack and layer."""
        return {stack: tuple(map(len, layers)) for stack, layers in self.values.items()}

    def best_per_layer(self) -> dict[str, tuple[float | None, ...]]:
        """The highest score of every layer; none where a layer has no neurons left."""
        return {
            stack: tuple(float(vector.max()) if len(vector) else None for vector in layers)
            for stack, layers in self.values.items()
        }

    def top(self, share: float) -> dict[str, tuple[NDArray[np.int64], ...]]:
        """The best ``int(share * width)`` neurons of every layer, sorted by index; ties go to the lower index.

        With `predictivity` these are the skill neurons (Wang, Wen et al. 2022, section 4).
        """
        return {
            stack: tuple(np.sort(ranking(vector)[: int(share * len(vector))]) for vector in layers)
            for stack, layers in self.values.items()
        }

    def compare(self, other: NeuronScores) -> dict[str, tuple[float, ...]]:
        """Spearman rank correlation with other scores of the same model, per stack and layer.

        Not a number where one of the two gives every neuron of a layer the same score, or the layer has none.

        Raises:
            PlanMismatch: the two describe different widths.
            DataError: they are of different models.
        """
        if self.widths != other.widths:
            raise PlanMismatch(f"scores of widths {self.widths} cannot be compared with {other.widths}")
        self.refuse_others(replace(other, provenance=replace(other.provenance, data=self.provenance.data)))
        return {
            stack: tuple(_rank_correlation(*pair) for pair in zip(layers, other.values[stack], strict=True))
            for stack, layers in self.values.items()
        }

    def refuse_others(self, other: NeuronScores | Provenance) -> None:
        """Sees to it that two sets of scores, or scores and what is at hand, are of one model and task.

        Raises:
            DataError: they are not.
        """
        found = other.provenance if isinstance(other, NeuronScores) else other
        for what in ("model", "data"):
            mine, theirs = getattr(self.provenance, what), getattr(found, what)
            if mine != theirs:
                raise DataError(
                    f"the {self.criterion} scores are of another {_OF_WHAT[what]} (fingerprint {mine[:12]}, not "
                    f"{theirs[:12]}); score again"
                )

    def __str__(self) -> str:
        lines = [f"{self.criterion} of {self.provenance.examples} examples (seed {self.provenance.seed})"]
        for stack, layers in self.values.items():
            for layer, vector in enumerate(layers):
                lines.append(f"  {stack} {layer:>2}  {len(vector):>6} neurons{_span(vector)}")
        return "\n".join(lines)


def ranking(vector: Vector) -> NDArray[np.int64]:
    """Neuron indices from most to least important; ties go to the lower index, so rankings are reproducible."""
    return np.argsort(-vector, kind="stable").astype(np.int64)


def _span(vector: Vector) -> str:
    if not len(vector):
        return ""
    low, middle, high = np.quantile(vector, [0, 0.5, 1])
    return f"  lowest {low:.4g}  median {middle:.4g}  highest {high:.4g}"


def _rank_correlation(first: Vector, second: Vector) -> float:
    if not len(first) or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second).statistic)


def save_scores(scores: Sequence[NeuronScores], path: Path) -> None:
    """Writes scores of one model, one tensor per criterion, stack and layer; what they are stands in the header."""
    tensors = {
        f"{score.criterion}/{stack}/{layer}": np.ascontiguousarray(vector)
        for score in scores
        for stack, layers in score.values.items()
        for layer, vector in enumerate(layers)
    }
    tensors |= {
        f"{score.criterion}/{stack}/{layer}/{name}": np.ascontiguousarray(array)
        for score in scores
        for name, stacks in score.details.items()
        for stack, layers in stacks.items()
        for layer, array in enumerate(layers)
    }
    header = {score.criterion: json.dumps(asdict(score.provenance)) for score in scores}
    orders = {
        "criteria": json.dumps([score.criterion for score in scores]),
        "stacks": json.dumps(list(scores[0].values) if scores else []),
    }
    save_file(tensors, path, metadata={"format": _FORMAT, **orders, **header})


def load_scores(path: Path) -> tuple[NeuronScores, ...]:
    """Reads what `save_scores` wrote.

    Raises:
        DataError: the file is missing or is not a scores file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = dict(file.metadata() or {})
            if header.pop("format", "") != _FORMAT:
                raise DataError(f"{path} is a safetensors file, but not one this version of skillprune wrote scores to")
            # The header is an unordered map, so orders are written down.
            names, stacks = json.loads(header["criteria"]), json.loads(header["stacks"])
            return tuple(_read(file, name, stacks, json.loads(header[name])) for name in names)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as broken:
        raise DataError(f"{path} cannot be read as scores: {broken}") from broken


def _read(file: safe_open, criterion: str, stacks: Sequence[str], provenance: dict[str, object]) -> NeuronScores:
    # The scores themselves have no fourth part in their name.
    keys = [name.split("/") for name in file.keys() if name.startswith(f"{criterion}/")]
    places = sorted((stacks.index(stack), int(layer), "".join(name)) for _, stack, layer, *name in keys)
    found: dict[str, dict[str, tuple[NDArray[Any], ...]]] = {}
    for stack, layer, name in places:
        array = file.get_tensor("/".join([criterion, stacks[stack], str(layer), *([name] if name else [])]))
        layers = found.setdefault(name, {})
        layers[stacks[stack]] = (*layers.get(stacks[stack], ()), array)
    seen = Provenance(**provenance)  # type: ignore[arg-type]  # as save_scores wrote it
    return NeuronScores(criterion, found.pop(""), seen, found)
