"""Which two-sided tests predictivity makes of a neuron when there are several classes; pure arithmetic on weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from skillprune.errors import DataError
from skillprune.scoring.criterion import Settings, Split

MOST_PAIRWISE_CLASSES = 20
NEUTRAL = "neutral"

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClassTests:
    """Tests "the neuron fires above its baseline, so the answer is yes"; all arrays are ``(tests, classes)``.

    With ``m_k`` the mean activation of class ``k`` in calibration and ``F_k`` the share of class ``k`` in validation
    that fires above the baseline, ``baseline_t = sum_k baselines[t, k] m_k`` and the accuracy is
    ``sum_k yes[t, k] F_k + no[t, k] (1 - F_k)``.

    Attributes:
        names: what a yes means.
        baselines: weights of class means.
        yes: weights of the classes that should fire.
        no: weights of the classes that should not.
    """

    names: tuple[str, ...]
    baselines: Matrix
    yes: Matrix
    no: Matrix


def class_tests(settings: Settings) -> ClassTests:
    """The tests that the settings ask for.

    Raises:
        DataError: the scheme does not fit the labels.
    """
    names, *calibration = _sides(settings, "calibration")
    _, *validation = _sides(settings, "validation")
    return ClassTests(names, calibration[0] + calibration[1], *validation)


def _sides(settings: Settings, split: Split) -> tuple[tuple[str, ...], Matrix, Matrix]:
    pairs = _SCHEMES[settings.multiclass](settings, split)
    yes, no = (np.stack([pair[column] for pair in pairs]).astype(np.float64) for column in (1, 2))
    weigh = _balanced if settings.balanced else _plain
    return (tuple(name for name, _, _ in pairs), *weigh(yes, no, _counts(settings, split)))


_Pair = tuple[str, Matrix, Matrix]
"""A name, and the weights of the classes on either side, which sum to 1 on each."""


def _one_versus_rest(settings: Settings, split: Split) -> list[_Pair]:
    """Every class against the others, which count alike."""
    classes = len(settings.labels)
    eye = np.eye(classes)
    return [(name, eye[number], (1 - eye[number]) / (classes - 1)) for number, name in enumerate(settings.labels)]


def _pairwise(settings: Settings, split: Split) -> list[_Pair]:
    """Every class against every other one; examples of the rest are left out."""
    labels = settings.labels
    if len(labels) > MOST_PAIRWISE_CLASSES:
        raise DataError(
            f"{len(labels)} classes make {len(labels) * (len(labels) - 1) // 2} pairs; multiclass: pairwise is for "
            f"{MOST_PAIRWISE_CLASSES} classes at most, use ovr"
        )
    eye = np.eye(len(labels))
    return [(f"{labels[b]} / {labels[a]}", eye[b], eye[a]) for a, b in combinations(range(len(labels)), 2)]


def _reference(settings: Settings, split: Split) -> list[_Pair]:
    """Positive against negative, and neutral against all others, as in the code of Wang, Wen et al. 2022."""
    names = [name.lower() for name in settings.labels]
    if not {"negative", NEUTRAL, "positive"} <= set(names) or len(names) > 4:
        raise DataError(
            "multiclass: reference needs labels named negative, neutral and positive, and at most one more (found: "
            f"{', '.join(settings.labels)}); use ovr"
        )
    eye, neutral = np.eye(len(names)), names.index(NEUTRAL)
    counts = _counts(settings, split) * (1 - eye[neutral])
    return [
        ("positive / negative", eye[names.index("positive")], eye[names.index("negative")]),
        (NEUTRAL, eye[neutral], counts / counts.sum()),
    ]


_SCHEMES: dict[str, Callable[[Settings, Split], list[_Pair]]] = {
    "ovr": _one_versus_rest,
    "pairwise": _pairwise,
    "reference": _reference,
}


def _balanced(yes: Matrix, no: Matrix, counts: Matrix) -> tuple[Matrix, Matrix]:
    """Both sides of a test weigh one half."""
    return 0.5 * yes, 0.5 * no


def _plain(yes: Matrix, no: Matrix, counts: Matrix) -> tuple[Matrix, Matrix]:
    """Every example that takes part weighs the same."""
    taking_part = counts * ((yes > 0) | (no > 0))
    share = taking_part / taking_part.sum(axis=1, keepdims=True)
    return share * (yes > 0), share * (no > 0)


def _counts(settings: Settings, split: Split) -> Matrix:
    return np.array(settings.class_counts[split], dtype=np.float64)


def refuse_rare_classes(criterion: str, settings: Settings, splits: Sequence[Split], least: int) -> None:
    """Sees to it that every class can be told from the others.

    Raises:
        DataError: the task has no classes, or one of them has fewer than ``least`` examples in a split.
    """
    if not settings.labels:
        raise DataError(f"{criterion} tells classes apart, and this task has none; choose a criterion of another kind")
    for split in splits:
        rare = [
            f"{name!r} ({count})"
            for name, count in zip(settings.labels, settings.class_counts[split], strict=True)
            if count < least
        ]
        if rare:
            more = f" and {len(rare) - 10} more" if len(rare) > 10 else ""
            raise DataError(
                f"{criterion}: too few {split} examples of {', '.join(rare[:10])}{more}; every class needs {least}: "
                "add examples, raise scoring.examples, or choose another criterion"
            )
