"""What a run promises: when it counts as kept, judged on values made by hand."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from skillprune.benchmark import Control, Latency, Measurement, Ratio
from skillprune.evaluation import Comparison
from skillprune.export import OnnxArtifact
from skillprune.pipeline.choice import choose
from skillprune.pipeline.results import Exports, Variant
from skillprune.pipeline.verdict import failed_files, too_wrong, unmet_plan
from skillprune.planning import Costs, PruningPlan
from skillprune.recipe import DemandSpec

COSTS = Costs(sequence=32, parameters=1000, ffn_parameters=500, macs=1000, ffn_macs=500)
SHAPES = ((1, 8), (2, 16))
QUIET = Ratio(1.0, 0.99, 1.01)


def plan(kept: int, width: int = 8) -> PruningPlan:
    return PruningPlan(
        keep={"encoder": (tuple(range(kept)),) * 2},
        width_before={"encoder": (width,) * 2},
        criterion="wanda",
        budget={"keep_ratio": kept / width},
        round_to=1,
        before=COSTS,
        after=COSTS,
    )


def artifact(size: int, variant: str = "fp32") -> OnnxArtifact:
    return OnnxArtifact(variant, Path("model.onnx"), size, "torchscript", 17, 0.0, 1e-4)


def row(subject: str, shape: tuple[int, int], speedup: Ratio, variant: str = "fp32", ran: str = "cpu") -> Measurement:
    return Measurement(subject, variant, "onnxruntime", ran, "cpu", *shape, 1, (1.0,) * 10, speedup)


def latency(*lows: float, control: Ratio = QUIET) -> Latency:
    """Dense and pruned at every shape; the pruned speed-up intervals start at ``lows``."""
    pairs = zip(SHAPES, lows, strict=True)
    rows = [
        row(*each)
        for shape, low in pairs
        for each in (("dense", shape, Ratio(1.0, 1.0, 1.0)), ("pruned", shape, Ratio(low + 0.5, low, low + 1.0)))
    ]
    controls = (Control(*SHAPES[0], QUIET, 6, 12, 0), Control(*SHAPES[1], control, 24, 48, 2))
    return Latency(tuple(rows), controls)


def comparison(difference: float) -> Comparison:
    return Comparison(difference, difference - 0.1, difference + 0.1, p_value=0.5, agreement=0.9, drop=-difference)


def judge(
    demand: DemandSpec | None = None,
    *,
    kept: int = 4,
    sizes: tuple[int, int] = (100, 60),
    measured: Latency | None = None,
    difference: float = -0.5,
) -> tuple[str, ...]:
    return judged(demand or DemandSpec(), plan(kept), sizes, measured or latency(0.5, 0.5), difference)


def judged(
    demand: DemandSpec, planned: PruningPlan, sizes: tuple[int, int], measured: Latency, difference: float = -0.5
) -> tuple[str, ...]:
    dense, pruned = map(artifact, sizes)
    exports = Exports(dense, (Variant(pruned),))
    files = failed_files(demand, planned, exports, measured, choose(exports, measured))
    return (*unmet_plan(planned), *files, *too_wrong(demand, "accuracy", comparison(difference)))


def test_without_a_demand_neither_slowness_nor_a_large_drop_fails_the_run() -> None:
    assert judge(measured=latency(0.1, 0.1), difference=-0.9) == ()


@pytest.mark.parametrize("sizes", [(100, 100), (100, 101)])
def test_a_pruned_file_that_is_not_smaller_fails(sizes: tuple[int, int]) -> None:
    (reason,) = judge(sizes=sizes)
    assert "not smaller" in reason and re.findall(r"\b\d+", reason) == [str(sizes[1]), str(sizes[0])]
    assert judge(sizes=(100, 99)) == ()


def test_keeping_everything_need_not_be_smaller() -> None:
    assert judge(kept=8, sizes=(100, 100)) == ()
    assert judge(kept=7, sizes=(100, 100)) != ()


@pytest.mark.parametrize("ratio", [Ratio(1.2, 1.05, 1.3), Ratio(0.9, 0.8, 0.95)])
def test_an_identical_pair_that_differs_fails_even_without_a_demand(ratio: Ratio) -> None:
    (reason,) = judge(measured=latency(2.0, 2.0, control=ratio))
    assert "2 x 16" in reason and f"{ratio.value:.3f}" in reason and "2 retries" in reason


@pytest.mark.parametrize("ratio", [Ratio(1.2, 1.0, 1.3), Ratio(0.9, 0.8, 1.0)])
def test_a_control_whose_interval_touches_one_is_fine(ratio: Ratio) -> None:
    assert judge(measured=latency(2.0, 2.0, control=ratio)) == ()


def test_the_lower_end_must_reach_the_speedup_at_every_shape() -> None:
    demand = DemandSpec(min_speedup=1.5)
    assert judge(demand, measured=latency(1.5, 1.6)) == ()  # exactly reaching it is reaching it
    (reason,) = judge(demand, measured=latency(2.0, 1.49))
    assert "2 x 16" in reason and "1.490" in reason and "1.5" in reason
    assert len(judge(demand, measured=latency(1.4, 1.4))) == 2


@pytest.mark.parametrize(
    ("asked", "unmet", "told"), [(1.05, None, False), (1.06, None, True), (9.0, "best is 1", False)]
)
def test_a_planned_speed_up_may_be_missed_by_a_twentieth(asked: float, unmet: str | None, told: bool) -> None:
    # The smaller of the two speed-ups, 1.0, is what counts.
    budget = replace(plan(4), budget={"speedup": asked}, unmet=unmet)
    reasons = judged(DemandSpec(), budget, (100, 60), latency(0.5, 0.7), 0)
    assert reasons == ((unmet,) if unmet else (f"a speed-up of {asked:g} was planned, 1.000 was measured",) * told)


def test_only_the_pruned_file_has_to_be_fast() -> None:
    """The dense rows have a speed-up of exactly 1, which no demand above 1 may look at."""
    assert judge(DemandSpec(min_speedup=1.01), measured=latency(1.1, 1.1)) == ()


@pytest.mark.parametrize(("right_before", "right_after"), [(20, 18), (9, 7), (13, 11), (20, 20), (18, 20)])
def test_a_drop_of_exactly_the_limit_is_fine(right_before: int, right_after: int) -> None:
    """Two of twenty: shares of a test set seldom subtract to the round number that the recipe says."""
    assert judge(DemandSpec(max_drop=0.1), difference=right_after / 20 - right_before / 20) == ()


def test_a_larger_drop_fails_and_is_told() -> None:
    (reason,) = judge(DemandSpec(max_drop=0.1), difference=17 / 20 - 20 / 20)
    assert "0.15" in reason and "0.1 " in reason
    assert judge(DemandSpec(max_drop=0.0), difference=-0.05) != ()
    assert judge(DemandSpec(max_drop=0.0), difference=0.0) == ()


def test_every_broken_promise_is_told_at_once() -> None:
    demand = DemandSpec(min_speedup=3.0, max_drop=0.1)
    reasons = judge(demand, sizes=(60, 100), measured=latency(1.0, 1.0, control=Ratio(2.0, 1.9, 2.1)))
    assert len(reasons) == len(set(reasons)) == 5


def of_variants(int8: float, *, refused: str | None = None, size: int = 30) -> tuple[Exports, Latency]:
    """fp32 at 2x and int8-dynamic at ``int8`` times dense, at every shape."""
    files = (Variant(artifact(60)), Variant(artifact(size, "int8-dynamic"), refused=refused))
    speeds = {"fp32": 2.0, "int8-dynamic": int8}
    rows = [
        row("pruned", shape, Ratio(speed, speed - 0.1, speed + 0.1), variant)
        for shape in SHAPES
        for variant, speed in speeds.items()
    ]
    return Exports(artifact(100), files), Latency(tuple(rows), ())


def reasons(exports: Exports, measured: Latency, asked: Collection[str], **demands: float) -> tuple[str, ...]:
    choice = choose(exports, measured)
    return failed_files(DemandSpec(**demands), plan(4), exports, measured, choice, asked=asked)


def test_a_variant_slower_than_fp32_fails_only_if_it_was_asked_for_by_name() -> None:
    (reason,) = reasons(*of_variants(1.9), ("fp32", "int8-dynamic"))
    assert "int8-dynamic" in reason and "1.900x" in reason and "2.000x" in reason
    assert reasons(*of_variants(1.9), ("auto",)) == reasons(*of_variants(2.1), ("fp32", "int8-dynamic")) == ()


def test_a_variant_outside_the_accuracy_floor_fails_only_if_it_was_asked_for_by_name() -> None:
    found = of_variants(3.0, refused="it is worse than fp32 by 0.2")
    (reason,) = reasons(*found, ("int8-dynamic",))
    assert "int8-dynamic" in reason and "0.2" in reason
    assert reasons(*found, ("auto",)) == ()


def test_the_demand_is_put_to_the_best_variant() -> None:
    assert reasons(*of_variants(3.0), ("auto",), min_speedup=2.9) == ()
    assert len(reasons(*of_variants(3.0, refused="worse"), ("auto",), min_speedup=2.9)) == len(SHAPES)


def test_every_variant_must_be_smaller_than_the_dense_file() -> None:
    (reason,) = reasons(*of_variants(3.0, size=100), ("auto",))
    assert "int8-dynamic" in reason and "not smaller" in reason


def test_another_provider_than_the_one_asked_for_fails() -> None:
    exports, measured = of_variants(3.0)
    elsewhere = replace(measured.measurements[0], provider="cuda")
    (reason,) = reasons(exports, replace(measured, measurements=(elsewhere, *measured.measurements[1:])), ("auto",))
    assert "pruned fp32 was to run on cpu and ran on cuda" in reason
