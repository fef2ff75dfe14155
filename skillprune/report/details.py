"""The lower half of ``report.md``: one function per table; the headline is written in the markdown module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from skillprune.report import facts, metrics, wording
from skillprune.report.schema import Report
from skillprune.report.sections import ProfileRow, StackWidths

KINDS = {
    "attention": "attention",
    "ffn": "FFN",
    "layer": "rest of the layers",
    "embeddings": "embeddings",
    "head": "head",
    "operator": "other operators",
}
"""What the report calls the kinds of parts."""


def widths(report: Report) -> str:
    """Neurons per layer before and after: one sentence per stack where they are all the same, else a table."""
    uniform: list[str] = []
    rows: list[list[str]] = []
    for stack in report.model.stacks:
        same = facts.is_uniform(stack) and len(set(stack.width_before)) == 1
        if same:
            before, after = stack.width_before[0], stack.width_after[0]
            layers = len(stack.width_after)
            all_of_them = "The one layer" if layers == 1 else f"Every one of the {layers} layers"
            uniform.append(f"{all_of_them} of {wording.plain(stack.name)} went from {before} to {after} neurons.")
        else:
            rows.extend(_width_rows(stack))
    parts = [*_asked(report), *(["\n".join(uniform)] if uniform else [])]
    if rows:
        parts.append(wording.table(["stack", "layers", "neurons before", "after", "kept"], rows))
    return "\n\n".join(parts) or "The model has no FFN stack."


def _asked(report: Report) -> Iterator[str]:
    """The budget in words and, if it was a speed-up, what was expected and what came of it."""
    if report.plan is None:
        return
    sentences = [f"Asked for: {wording.plain(report.plan.budget)}."]
    for expected in report.plan.latency:
        shape = (expected.batch, expected.sequence)
        rows = [row for row in facts.headline_rows(report) if (row.batch, row.sequence) == shape]
        measured = ", ".join(wording.ratio(row.speedup) for row in rows if row.speedup is not None)
        planned = wording.ratio(expected.before_ms / expected.after_ms)
        sentences.append(f"At {wording.shape(*shape)} {planned} was planned, {measured} measured.")
    if report.plan.unmet is not None:
        sentences.append(f"Not met: {wording.plain(report.plan.unmet)}.")
    yield " ".join(sentences)


def _width_rows(stack: StackWidths) -> Iterator[list[str]]:
    pairs = enumerate(zip(stack.width_before, stack.width_after, strict=True))
    for (before, after), run in groupby(pairs, key=lambda item: item[1]):
        layers = [layer for layer, _ in run]
        span = str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
        kept = wording.percent(after / before) if before else "-"
        yield [wording.plain(stack.name), span, str(before), str(after), kept]


def repair(report: Report) -> str:
    """Reconstruction error of every layer, sliced only and repaired."""
    rows = [
        [
            wording.plain(stack),
            str(row.layer),
            wording.significant(row.error_before),
            wording.significant(row.error_after),
        ]
        for stack, layers in report.repair.items()
        for row in layers
    ]
    if not rows:
        return "Nothing was repaired."
    method = "" if report.repair_method is None else f" Method: {wording.plain(report.repair_method)}."
    text = (
        "Share of the variance of the wanted FFN output that each layer misses, on calibration examples that the "
        f"repair did not see.{method}"
    )
    return f"{text}\n\n{wording.table(['stack', 'layer', 'sliced only', 'repaired'], rows)}"


def recovery(report: Report) -> str:
    """What training after pruning changed on validation, and the soft prompts that were tuned again."""
    parts = []
    if (training := report.recovery) is not None:
        what = "all parameters" if training.trained == "all" else "the kept FFN neurons"
        metric = training.metric or report.quality.metric
        name = f"{wording.metric_name(metric)} on validation"
        found = (training.validation_before, training.validation_after)
        before, after = (metrics.value(metric, value) for value in found)
        losses = [wording.significant(value) for value in (training.loss_before, training.loss_after)]
        text = (
            f"Trained {what} on {training.examples} examples to answer as the dense model does. Of {training.epochs} "
            f"epochs the shipped weights are those of epoch {training.best_epoch}; 0 is before training."
        )
        rows = [[name, before, after], ["distillation loss on validation", *losses]]
        parts.append(f"{text}\n\n{wording.table(['', 'pruned', 'recovered'], rows)}")
    if report.prompts:
        tuned = [
            [str(number), wording.significant(prompt.loss_before), wording.significant(prompt.loss_after)]
            for number, prompt in enumerate(report.prompts)
        ]
        table = wording.table(["soft prompt", "as it was", "tuned again"], tuned)
        parts.append(f"Mean loss on validation of the soft prompts in front of the pruned model.\n\n{table}")
    return "\n\n".join(parts) or "There was no training after pruning."


def skills(report: Report) -> str:
    """The best neuron of every layer as a one-neuron classifier, when predictivity was computed."""
    rows = [
        [wording.plain(stack), str(layer), f"{best:.3f}"]
        for stack, layers in report.scoring.best_per_layer.get("predictivity", {}).items()
        for layer, best in enumerate(layers)
        if best is not None
    ]
    if not rows:
        return "Not measured; `scoring: {also: [predictivity]}` finds the skill neurons."
    text = (
        "How well the best single neuron of each layer tells a class: balanced accuracy on the validation split, 0.5 "
        "is chance. The skill neurons stand in scores.safetensors; they are a finding, not the removal rule."
    )
    return f"{text}\n\n{wording.table(['stack', 'layer', 'best predictivity'], rows)}"


def artifacts(report: Report) -> str:
    """Exported files with exporter, sizes and parity, and the files that competed to be the fp32 ones."""
    metric = report.quality.metric
    rows = [
        [
            wording.plain(file.path),
            wording.size(file.bytes),
            wording.size(file.dense_bytes),
            f"{wording.plain(file.backend)}, opset {file.opset}",
            f"{file.max_abs_diff:.1e}",
            "-" if file.tolerance is None else f"{file.tolerance:.1e}",
            "-" if file.validation is None else metrics.value(metric, file.validation),
        ]
        for file in report.artifacts
    ]
    if not rows:
        return "Nothing was exported."
    header = ["path", "size", "dense size", "exporter", "largest difference", "accepted", "on validation"]
    text = (
        "Differences of outputs are those of fp32 from PyTorch and of other variants from fp32; what decides about the "
        f"latter is {wording.metric_name(metric)} on validation."
    )
    parts = [text, wording.table(header, rows), *_mixed(report), *_candidates(report)]
    return "\n\n".join(parts)


def _mixed(report: Report) -> Iterator[str]:
    """Variants that are refused, or not what their name says throughout."""
    for file in report.artifacts:
        name = wording.plain(file.variant)
        if file.kept_in_fp32:
            kept = ", ".join(map(wording.plain, file.kept_in_fp32))
            yield f"{name}: {len(file.kept_in_fp32)} products are left in fp32: {kept}."
        if file.refused is not None:
            yield f"{name} is refused: {wording.plain(file.refused)}."


def _candidates(report: Report) -> Iterator[str]:
    rows = [
        [
            wording.plain(row.subject),
            wording.plain(row.exporter),
            "-" if row.speed is None else f"{row.speed:.3f}",
            wording.plain(row.refused or ""),
        ]
        for row in report.candidates
    ]
    if rows:
        text = "Files that competed to be the fp32 ones: their speed, with that of the kept file as 1; and what failed."
        yield f"{text}\n\n{wording.table(['model', 'exporter', 'speed', 'refused'], rows)}"


def latency(report: Report) -> str:
    """Every measured row: median and tails, throughput, speed-up, what ran it."""
    rows = [
        [
            f"{wording.plain(row.subject)} {wording.plain(row.variant)}",
            wording.shape(*row.shape),
            *(wording.milliseconds(value) for value in (row.p50_ms, row.p90_ms, row.p99_ms)),
            wording.significant(row.throughput),
            facts.speed_with_interval(row),
            "-" if row.p_value is None else wording.significant(row.p_value),
            "-" if row.peak_rss_mib is None else wording.mebibytes(row.peak_rss_mib),
            f"{wording.plain(row.runtime)} {wording.plain(row.provider)}",
            str(row.threads),
            str(row.rounds),
        ]
        for row in report.latency
    ]
    if not rows:
        return "Nothing was timed."
    header = ["model", "batch x tokens", "p50", "p90", "p99", "per second", "speed-up", "p", "peak memory"]
    text = (
        "Time per batch; examples per second, and where a run is the next token, tokens. Speed-ups against dense fp32 "
        "with 95 % intervals; rounds interleaved in random order. p is Wilcoxon's, of one median per opening; memory "
        "is the most that the whole process held, outside any GPU."
    )
    shared = [] if report.isolation is None else [f"Timed with {wording.plain(report.isolation)}."]
    table = wording.table([*header, "ran on", "threads", "rounds"], rows)
    return "\n\n".join([text, table, *shared, *_against_references(report)])


def _against_references(report: Report) -> Iterator[str]:
    """How many times faster the shipped file is than the dense model in other runtimes."""
    shipped = {row.shape: row for row in facts.headline_rows(report)}
    found: dict[str, list[str]] = {}
    for row in report.latency:
        best = shipped.get(row.shape)
        if row.runtime != "onnxruntime" and best and best.speedup and row.speedup:
            times = wording.ratio(best.speedup / row.speedup)
            found.setdefault(row.runtime, []).append(f"{times} at {wording.shape(*row.shape)}")
    for runtime, ratios in found.items():
        yield f"The shipped file against the dense model in {wording.plain(runtime)}: {', '.join(ratios)}."


def profile(report: Report) -> str:
    """Where the time of the dense and of the shipped file goes, by kind of part; a table for every phase."""
    text = (
        "By ONNX Runtime's profiler; it slows every operator down a little. The report's JSON has it layer by layer. "
        "Of what an optimiser fused, operators tell the part."
    )
    if any(row.provider == "cuda" for row in report.latency):
        text += " On CUDA this is the time to launch kernels, not the time they take."
    tables = [_profile_table(shape, list(rows)) for shape, rows in groupby(report.profile, lambda row: row.shape)]
    return "\n\n".join([text, *tables])


def _profile_table(shape: tuple[int, int, str], profile: Sequence[ProfileRow]) -> str:
    found: dict[str, dict[str, list[ProfileRow]]] = {}
    for row in profile:
        found.setdefault(KINDS[row.kind], {}).setdefault(row.subject, []).append(row)
    rows = [
        [kind, *(_taken(times.get(subject, [])) for subject in ("dense", "pruned"))] for kind, times in found.items()
    ]
    return wording.table([f"part at {wording.shape(*shape)}", "dense", "pruned"], rows)


def _taken(rows: Sequence[ProfileRow]) -> str:
    time, share = sum(row.ms for row in rows), sum(row.share for row in rows)
    return f"{wording.milliseconds(time)}, {wording.percent(share)}"


def controls(report: Report) -> str:
    """The identical-pair control of every shape."""
    rows = [
        [
            wording.shape(*row.shape),
            wording.ratio(row.ratio),
            wording.interval(row.low, row.high),
            str(row.retries),
            "yes" if row.ok else "NO",
        ]
        for row in report.controls
    ]
    if not rows:
        return "No control was run."
    text = (
        "The dense file timed against its own copy. Where the interval excludes 1.00x the shape is measured again, "
        "with twice the rounds; where it still does, do not believe the speed-up."
    )
    return f"{text}\n\n{wording.table(['batch x tokens', 'ratio', 'interval', 'retries', 'believable'], rows)}"


def environment(report: Report) -> str:
    """Machine, versions, seed and date."""
    env = report.environment
    rows = [["CPU", f"{wording.plain(env.cpu)}, {env.cores} cores"], ["GPU", wording.plain(env.gpu or "none")]]
    if env.memory_mib is not None:
        rows.append(["memory", wording.mebibytes(env.memory_mib)])
    rows.append(["OS", wording.plain(env.os)])
    versions = {
        "python": env.python,
        "torch": env.torch,
        "transformers": env.transformers,
        "onnxruntime": env.onnxruntime,
    }
    rows.extend([wording.plain(name), wording.plain(value)] for name, value in {**versions, **env.packages}.items())
    rows.append(["skillprune", wording.plain(report.skillprune_version)])
    rows.append(["seed", str(report.seed)])
    rows.append(["written", f"{report.created:%Y-%m-%d %H:%M %Z}"])
    return wording.table(["", "value"], rows)


def stages(report: Report) -> str:
    """Time and memory of every stage; cached ones do not count towards the total."""
    rows = [
        [
            wording.plain(stage.name),
            wording.seconds(stage.seconds),
            wording.mebibytes(stage.peak_rss_mib),
            "cached" if stage.cached else "",
        ]
        for stage in report.stages
    ]
    total = wording.seconds(sum(stage.seconds for stage in report.stages if not stage.cached))
    return f"The stages of this run took {total}.\n\n{wording.table(['stage', 'time', 'peak memory', ''], rows)}"
