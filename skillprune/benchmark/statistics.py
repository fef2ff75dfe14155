"""Turns paired round times into a speed-up with an interval, and two speed-ups into their quotient.

Where the times come from is left to others.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, hypot, log
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skillprune.benchmark.values import Ratio

CONFIDENCE = 0.95
DRAWS = 4000
# Entries of one resampling table: bounds the memory of the bootstrap at a few tens of MiB for any number of rounds.
TABLE_ENTRIES = 1_000_000


def paired_speedup(
    reference_ms: ArrayLike,
    subject_ms: ArrayLike,
    *,
    seed: int | Sequence[int],
    confidence: float = CONFIDENCE,
) -> Ratio:
    """How many times faster the subject is than the reference, from rounds that timed both.

    The estimate is the exponential of the median over all rounds of ``log(reference / subject)``: pairing cancels what
    slowed a whole round, the median ignores rounds in which only one of the two was disturbed. The interval is a
    percentile bootstrap at two levels: openings are drawn with replacement, because what an opening fixes (where memory
    lies) stays through all its rounds; within each, rounds are drawn in circular moving blocks of `block_length`
    rounds, because a machine's bad moments last longer than one round (Politis and Romano, 1992, "A circular
    block-resampling procedure"). The same seed resamples the same rounds, so swapping the pair inverts value and
    interval.

    With few openings and rounds the interval is somewhat optimistic; benchmarks/interval_coverage.py measures by how
    much.

    Args:
        reference_ms: times of the reference, ``(rounds,)`` or ``(openings, rounds)``, positive.
        subject_ms: times of the subject in the same rounds, same shape and unit, positive.
        seed: of the bootstrap.
        confidence: share of the bootstrap distribution inside the interval, in (0, 1).

    Raises:
        ValueError: the two do not have the same shape, there are no rounds, or a time is not positive.
    """
    reference, subject = np.asarray(reference_ms, dtype=np.float64), np.asarray(subject_ms, dtype=np.float64)
    if reference.ndim not in (1, 2) or reference.shape != subject.shape or not reference.size:
        raise ValueError(f"paired rounds need two equal, non-empty tables, got {reference.shape} and {subject.shape}")
    if not (np.all(reference > 0) and np.all(subject > 0)):
        raise ValueError("a round time must be a positive number of milliseconds")
    logs = np.atleast_2d(np.log(reference) - np.log(subject))
    medians = bootstrap_medians(logs, block=block_length(logs.shape[1]), draws=DRAWS, seed=seed)
    tail = (1.0 - confidence) / 2.0
    value, low, high = np.exp([np.median(logs), *np.quantile(medians, [tail, 1.0 - tail])])
    return Ratio(float(value), float(low), float(high))


def quotient(one: Ratio, other: Ratio, *, comparisons: int = 1, confidence: float = CONFIDENCE) -> Ratio:
    """How many times larger one ratio is than another that was measured independently of it.

    The interval recovers each variance from the interval that is given (MOVER: Zou and Donner, 2008, "Construction of
    confidence limits about effect measures: a general approach"): on the log scale the lower half-width of the one and
    the upper of the other are added in squares, and the other way round. Swapping the two inverts value and interval.

    Args:
        one: with an interval of ``confidence``.
        other: likewise, of other rounds.
        comparisons: number of quotients that are looked at together. Half-widths grow by the quotient of the normal
            quantiles at ``tail / comparisons`` and at ``tail`` (Bonferroni), so that all of the intervals together
            miss no more often than a single one does.
        confidence: of the intervals that come in, and of all that come out together, in (0, 1).

    Raises:
        ValueError: there is no comparison, or a ratio is not positive.
    """
    if comparisons < 1 or not all(0 < end for each in (one, other) for end in (each.value, each.low, each.high)):
        raise ValueError(f"a quotient needs two positive ratios and a comparison, got {one}, {other}, {comparisons}")
    tail, normal = (1.0 - confidence) / 2.0, NormalDist()
    widening = normal.inv_cdf(1.0 - tail / comparisons) / normal.inv_cdf(1.0 - tail)
    below, above = zip(_log_half_widths(one), reversed(_log_half_widths(other)), strict=True)
    value = log(one.value / other.value)
    return Ratio(exp(value), exp(value - widening * hypot(*below)), exp(value + widening * hypot(*above)))


def signed_rank_p(reference_ms: ArrayLike, subject_ms: ArrayLike) -> float:
    """How likely paired times differ as much as these when nothing but chance tells reference and subject apart.

    Wilcoxon's signed-rank test, two-sided, on one number per opening: the median over its rounds of ``log(reference /
    subject)``. Rounds of one opening are no independent observations (they follow each other, and share what the
    opening fixed), and a test over all of them would find differences where there are none. So few numbers bound the
    result from below: 6 openings give 0.03 at best. It accompanies the interval of `paired_speedup`, and is not
    corrected for the number of subjects or shapes. Openings without any difference are left out, as Wilcoxon did; 1
    when none is left.

    Args:
        reference_ms: times of the reference, ``(openings, rounds)``, positive.
        subject_ms: times of the subject in the same rounds, same shape and unit, positive.
    """
    from scipy.stats import wilcoxon  # takes longer to import than a worker takes to start

    medians = np.median(np.log(reference_ms) - np.log(subject_ms), axis=1)
    differing = medians[medians != 0]
    return float(wilcoxon(differing).pvalue) if differing.size else 1.0


def block_length(rounds: int) -> int:
    """Rounds per bootstrap block: the cube root of their number rounded up (3 for 10 rounds), the usual growth rate."""
    return int(np.ceil(np.round(np.cbrt(rounds), 9)))


def bootstrap_medians(
    values: NDArray[np.float64], *, block: int, draws: int, seed: int | Sequence[int]
) -> NDArray[np.float64]:
    """Medians of ``draws`` resamples of ``values`` ``(openings, rounds)``; ``(draws,)``.

    A resample has as many openings as ``values``, drawn with replacement, and as many rounds of each, glued from
    circular blocks. Blocks start anywhere and wrap around the end of their opening, so that every round is drawn
    equally often; the last one is cut.
    """
    rng = np.random.default_rng(seed)
    openings, rounds = values.shape
    drawn = rng.integers(0, openings, size=(draws, openings))
    starts = rng.integers(0, rounds, size=(draws, openings, -(-rounds // block)))
    chunks = -(-draws * openings * (rounds + block) // TABLE_ENTRIES)
    parts = zip(np.array_split(drawn, chunks), np.array_split(starts, chunks), strict=True)
    return np.concatenate([_medians(values, *part, block) for part in parts])


def _log_half_widths(ratio: Ratio) -> tuple[float, float]:
    """How far the two ends lie below and above the value; an end on the wrong side of it counts as the value."""
    return max(0.0, log(ratio.value / ratio.low)), max(0.0, log(ratio.high / ratio.value))


def _medians(
    values: NDArray[np.float64], drawn: NDArray[np.int64], starts: NDArray[np.int64], block: int
) -> NDArray[np.float64]:
    rounds = values.shape[1]
    rows = (starts[..., None] + np.arange(block)) % rounds
    rows = rows.reshape(*starts.shape[:2], -1)[..., :rounds]
    resamples = values[drawn[..., None], rows].reshape(len(drawn), -1)
    return np.asarray(np.median(resamples, axis=1), dtype=np.float64)
