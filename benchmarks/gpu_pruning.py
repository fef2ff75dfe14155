"""What pruning without training costs on a GPU, in seconds and memory, and how fast neurons are scored there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from gpu_models import KEEP, SEED, Bench, Parts, Sizes, Texts, arrays, batches, bert, llama, watched
from transformers import LlamaForCausalLM, PreTrainedModel

from skillprune import (
    KeepRatio,
    Provenance,
    ScoringData,
    plan_pruning,
    prune_and_repair_,
    save_pruned,
    score_neurons,
)
from skillprune.answers import Classifier, TaskModel, Writer

CRITERIA = ("wanda", "skill")
ROUNDS = 3
MOST_SECONDS = 180
"""The goal for seven billion parameters: scoring, planning and repair together."""


def large_model(name: str, bench: Bench) -> Parts:
    """Seven billion parameters in bfloat16, by the criterion without gradients and by the default one."""
    return {f"{name}, pruning, {criterion}": partial(_seven, criterion, bench) for criterion in CRITERIA}


def saved_model(name: str, bench: Bench) -> Parts:
    """A billion parameters in bfloat16, up to a checkpoint that was read again."""
    return {f"{name}, pruning, {criterion}": partial(_billion, criterion, bench) for criterion in CRITERIA}


def scoring(name: str, bench: Bench) -> Parts:
    """Scoring of BERT-base beside bare forward passes."""
    return {f"{name}, {criterion}": partial(throughput, criterion, bench) for criterion in CRITERIA}


def _seven(criterion: str, bench: Bench) -> dict[str, Any]:
    _, found = pruned(criterion, bench.scale.seven, bench.scale.long, bench.device)
    return {**found, "goal": {"seconds_at_most": MOST_SECONDS, "met": found["seconds"] <= MOST_SECONDS}}


def _billion(criterion: str, bench: Bench) -> dict[str, Any]:
    model, found = pruned(criterion, bench.scale.billion, bench.scale.short, bench.device)
    return found | saved_again(model, bench.folder / f"checkpoint-{criterion}", bench.device)


def pruned(criterion: str, sizes: Sizes, texts: Texts, device: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A pruned and repaired language model, with what every stage took; making the model does not count."""
    make = partial(llama, LlamaForCausalLM, sizes, device=device, dtype=torch.bfloat16, attention="sdpa")
    model, made = watched(device, make)
    parameters, given = model.num_parameters(), batches(texts, sizes["vocab_size"])
    scores, scored = watched(device, lambda: scores_of(Writer(model), given, criterion))
    plan, planned = watched(device, lambda: plan_pruning(model, scores, KeepRatio(KEEP)))
    errors, repaired = watched(device, lambda: prune_and_repair_(model, plan, given))
    stages = {"scoring": scored, "planning": planned, "repair": repaired}
    return model, {
        "criterion": criterion,
        "keep_ratio": KEEP,
        "sizes": dict(sizes),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": {"dense": parameters, "pruned": model.num_parameters()},
        "calibration_tokens": texts.all_tokens,
        "seconds": round(sum(stage["seconds"] or 0 for stage in stages.values()), 3),
        "stages": {"making": made, **stages},
        "output_missed": {
            "sliced": fmean(error.before for error in errors),
            "repaired": fmean(error.after for error in errors),
        },
    }


def scores_of(subject: TaskModel, given: Any, criterion: str) -> Any:
    """Of one criterion; none of those here reads validation examples."""
    seen = Provenance("", "", sum(map(len, given)), "mean", SEED)
    (scores,) = score_neurons(subject, ScoringData(given, given[:1]), criteria=[criterion], provenance=seen)
    return scores


def saved_again(model: PreTrainedModel, folder: Path, device: str) -> dict[str, Any]:
    """What writing a checkpoint and reading it takes, and how far its answers are from those before."""
    given = arrays(model.config.vocab_size, 2, 16)
    inputs = {name: torch.from_numpy(array).to(device) for name, array in given.items()}
    form, saved = watched(device, lambda: save_pruned(model, None, folder, dtype=model.dtype))
    read, loaded = watched(
        device,
        lambda: LlamaForCausalLM.from_pretrained(folder, dtype=model.dtype, attn_implementation="sdpa").to(device),
    )
    with torch.inference_mode():
        difference = (read.eval()(**inputs).logits - model(**inputs).logits).abs().max()
    size = sum(file.stat().st_size for file in folder.iterdir())
    return {
        "saved": {"form": form, "bytes": size, **saved},
        "loaded": {**loaded, "largest_difference": float(difference)},
    }


def throughput(criterion: str, bench: Bench) -> dict[str, Any]:
    """Examples per second from model to scores, in rounds that alternate with bare forward passes."""
    texts, device = bench.scale.sentences, bench.device
    model = bert(bench.scale.base).to(device)
    given = batches(texts, model.config.vocab_size)
    work: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(model, given, device),
        "scoring": lambda: scores_of(Classifier(model), given, criterion),
    }
    work["bare"]()
    rounds = [{name: watched(device, each)[1] for name, each in work.items()} for _ in range(ROUNDS)]
    seconds = {name: median(each[name]["seconds"] or 0 for each in rounds) for name in work}
    return {
        "criterion": criterion,
        "examples": texts.count,
        "tokens": texts.tokens,
        "examples_per_second": {name: texts.count / took for name, took in seconds.items()},
        "ratio_to_bare_forward": seconds["scoring"] / seconds["bare"],
        "rounds": rounds,
    }


def bare(model: PreTrainedModel, given: Any, device: str) -> None:
    """The forward passes that scoring cannot do without."""
    with torch.inference_mode():
        for batch in given:
            model(**batch.to(device).inputs)
