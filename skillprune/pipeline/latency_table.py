"""Measures what FFN width costs in the runtime that will serve the model, once per machine and configuration."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel

from skillprune.benchmark import Feeds, Latency, Measurement, Subject, environment, measure_latency
from skillprune.cache import cache_home
from skillprune.errors import (
    ResourceFailure,
    SkillPruneError,
    UnsupportedArchitecture,
    UnsupportedExport,
    VerificationFailed,
)
from skillprune.export import Arrays, export_onnx, usable_of
from skillprune.families import by_stack, find_ffns
from skillprune.pipeline.directory import write_text
from skillprune.planning import LatencyTable
from skillprune.progress import Progress
from skillprune.recipe import BenchmarkSpec, ExportSpec
from skillprune.surgery import record_widths_

logger = logging.getLogger(__name__)

SHARES = (0.0, 0.03125, 0.0625, 0.125, 0.25, 0.375, 0.5, 0.75)
"""Widths that are measured, as shares of each layer's own; between them times are interpolated."""

ROUNDS = 36

MakeModel = Callable[[], PreTrainedModel]


def latency_table(
    make_model: MakeModel,
    traced: Sequence[Arrays],
    feeds: Feeds,
    spec: BenchmarkSpec,
    export: ExportSpec,
    *,
    round_to: int,
    seed: int,
    cache: bool,
    progress: Progress,
) -> LatencyTable:
    """The table of this machine, from the user's cache directory if it was measured before.

    Args:
        make_model: loads the dense model anew, ready to be exported.
        traced: inputs to export and to compare with.
        feeds: inputs of a batch and a sequence length to time.
        spec: shapes, threads and provider.
        export: exporters, of which the first that can write the model does, and the operator set.
        round_to: widths are multiples of this.
        seed: of inputs and orders.
        cache: off, it is measured again whatever is there.
        progress: told about exports and rounds.

    Raises:
        VerificationFailed: no exporter wrote a file that computes what PyTorch does.
    """
    model, exporters = make_model(), usable_of(None if "auto" in export.backends else export.backends)
    timed = spec.model_dump(exclude={"rounds"})
    written = [exporters, export.opset, model.config.to_diff_dict()]
    asked = [environment(), timed, round_to, SHARES, ROUNDS, *written]
    key = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
    adapter = TypeAdapter(LatencyTable)
    cached = cache_home() / "latency" / f"{key}.json"
    if cache and cached.is_file():
        with suppress(ValidationError):  # a damaged file is measured anew
            return adapter.validate_json(cached.read_bytes())
    bench = _Bench(make_model, traced, feeds, spec, exporters, export.opset, round_to, seed, progress)
    measured, steady = bench.table(model)
    if steady:
        _keep(cached, measured)
    else:
        logger.warning("times of the latency table are uncertain, as this machine is busy; it will be measured again")
    return measured


def _keep(path: Path, measured: LatencyTable) -> None:
    try:
        write_text(path, json.dumps(asdict(measured), indent=1))
    except ResourceFailure as failed:
        logger.warning("times are not kept for further runs: %s", failed)


@dataclass(frozen=True)
class _Bench:
    """Exports and times narrowed copies of a model."""

    make_model: MakeModel
    traced: Sequence[Arrays]
    feeds: Feeds
    spec: BenchmarkSpec
    exporters: Sequence[str]
    opset: int | None
    round_to: int
    seed: int
    progress: Progress

    def table(self, model: PreTrainedModel) -> tuple[LatencyTable, bool]:
        """The table, and whether the machine was quiet enough to believe it."""
        with TemporaryDirectory() as folder:
            dense = Subject("dense", "fp32", Path(folder, "dense.onnx"))
            exporter = self._first_that_writes(model, dense.path)
            widest = {
                stack: max(layer.width for layer in layers) for stack, layers in by_stack(find_ffns(model)).items()
            }
            found = {stack: self._timed(stack, dense, width, exporter) for stack, width in widest.items()}
        shapes, first = self.spec.shapes, next(iter(found.values()))
        dense_ms = tuple(_of_shape(first, shape, dense=True)[0].p50_ms for shape in shapes)
        widths = {stack: (*(count / width for count in self._counts(width)), 1.0) for stack, width in widest.items()}
        shares = {stack: tuple(_shares_of_time(latency, shape) for shape in shapes) for stack, latency in found.items()}
        steady = all(control.ok for latency in found.values() for control in latency.controls)
        return LatencyTable(shapes, dense_ms, widths, shares), steady

    def _first_that_writes(self, model: PreTrainedModel, path: Path) -> str:
        """Writes the model, and names the exporter that could."""
        refusals: list[SkillPruneError] = []
        for name in self.exporters:
            try:
                export_onnx(model, self.traced, path, backend=name, opset=self.opset)
                return name
            except (VerificationFailed, UnsupportedArchitecture, UnsupportedExport) as refused:
                refusals.append(refused)
        raise refusals[0]

    def _timed(self, stack: str, dense: Subject, widest: int, exporter: str) -> Latency:
        """One stack at every narrower width, beside the dense model."""
        what, subjects, counts = f"latency table ({stack}: export)", [dense], self._counts(widest)
        for done, count in enumerate(counts):
            self.progress(what, done, len(counts))
            subjects.append(Subject(str(count), "fp32", dense.path.with_name(f"{stack}-{count}.onnx")))
            model = _narrowed(self.make_model(), stack, count / widest)
            export_onnx(model, self.traced, subjects[-1].path, backend=exporter, opset=self.opset)
        self.progress(what, len(counts), len(counts))
        return measure_latency(
            subjects,
            self.spec.shapes,
            self.feeds,
            threads=self.spec.threads,
            provider=self.spec.provider,
            rounds=ROUNDS,
            seed=self.seed,
            progress=self.progress,
            isolated=False,
        )

    def _counts(self, widest: int) -> list[int]:
        rounded = {round(share * widest / self.round_to) * self.round_to for share in SHARES}
        return sorted(count for count in rounded if count < widest)


def _shares_of_time(found: Latency, shape: tuple[int, int]) -> tuple[float, ...]:
    """What every width takes of the dense model's time; noise must not make a wider model faster."""
    shares = [1 / each.speedup.value for each in _of_shape(found, shape, dense=False)]
    return (*(float(share) for share in np.minimum(list(accumulate(shares, max)), 1.0)), 1.0)


def _of_shape(found: Latency, shape: tuple[int, int], *, dense: bool) -> list[Measurement]:
    """Measurements of one shape: that of the dense model, or those of all others in the order they were given."""
    return [
        each
        for each in found.measurements
        if (each.batch, each.sequence) == shape and (each.subject == "dense") is dense
    ]


def _narrowed(model: PreTrainedModel, stack: str, share: float) -> PreTrainedModel:
    """The model with the first neurons of every layer of one stack; which ones does not matter for time."""
    for ffn in by_stack(find_ffns(model))[stack]:
        ffn.keep_(range(round(share * ffn.width)))
    record_widths_(model)
    return model
