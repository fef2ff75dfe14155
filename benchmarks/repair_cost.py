"""What pruning without training costs: in all on MiniLM, per layer as networks get deeper, and in memory when wide.

``whole``: scoring, planning and repair of MiniLM on SST-2 by the defaults, each timed. ``depth``: seconds per layer of
the repair in networks of 4 to 32 layers of one shape, interleaved. ``width``: most memory that scoring and repairing
layers of 14,336 gated neurons take, in a process of their own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
from statistics import median
from time import monotonic
from typing import Any

import torch
from provenance import minilm_recipe, update_result
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from skillprune import KeepRatio, load_source, load_splits, make_batches, plan_pruning, prune_and_repair_, resolve_task
from skillprune.answers import label_names
from skillprune.data import Batch
from skillprune.scoring import Provenance, ScoringData, score_neurons

NAME = "repair-cost"
DEPTHS = (4, 8, 16, 32)
HIDDEN, WIDTH, EXAMPLES, TOKENS = 384, 1536, 512, 32
GATED_HIDDEN, GATED_WIDTH, GATED_LAYERS = 4096, 14_336, 2


def main() -> None:
    """One section or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=["whole", "depth", "width"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(wide()))
        return
    if "whole" in arguments.sections:
        update_result(NAME, "whole", seeds=[0], result=whole(arguments.rounds))
    if "depth" in arguments.sections:
        update_result(NAME, "depth", seeds=[0], result=depth(arguments.rounds))
    if "width" in arguments.sections:
        done = subprocess.run([sys.executable, __file__, "--alone"], check=True, capture_output=True, text=True)
        update_result(NAME, "width", seeds=[0], result=json.loads(done.stdout))


def whole(rounds: int) -> dict[str, Any]:
    """Seconds of every step, round by round."""
    recipe = minilm_recipe()
    source = load_source(recipe.model)
    task = resolve_task(recipe.task, label_names(source.model))
    splits = load_splits(task, examples=2048, seed=0)
    calibration, validation = (
        make_batches(examples, source.tokenizer, max_length=task.max_length, batch_size=32)
        for examples in (splits.calibration, splits.validation)
    )
    rows = []
    for _ in range(rounds):
        model, times = load_source(recipe.model).model, [monotonic()]
        seen = Provenance("", "", len(splits.calibration), "mean", 0)
        (scores,) = score_neurons(model, ScoringData(calibration, validation), criteria=["skill"], provenance=seen)
        times.append(monotonic())
        plan = plan_pruning(model, scores, KeepRatio(0.25))
        times.append(monotonic())
        prune_and_repair_(model, plan, calibration)
        times.append(monotonic())
        parts = [round(after - before, 2) for before, after in zip(times, times[1:], strict=False)]
        rows.append({**dict(zip(("score", "plan", "repair"), parts, strict=True)), "whole": round(sum(parts), 2)})
        print(rows[-1], flush=True)
    return {"sentences": 2048, "keep_ratio": 0.25, "rounds": rows, "median": median(row["whole"] for row in rows)}


def depth(rounds: int) -> dict[str, Any]:
    """Seconds per layer by depth, and the deepest against the shallowest, round by round."""
    torch.manual_seed(0)
    batches = random_batches(EXAMPLES, TOKENS, vocabulary=1000)
    rows: list[dict[str, float]] = []
    for number in range(rounds):
        row = {}
        for layers in random.Random(number).sample(DEPTHS, len(DEPTHS)):
            model = encoder(layers)
            plan = plan_of(model)
            started = monotonic()
            prune_and_repair_(model, plan, batches)
            row[str(layers)] = (monotonic() - started) / layers
        rows.append({key: round(row[key], 3) for key in sorted(row, key=int)})
        print(rows[-1], flush=True)
    ratios = [row[str(DEPTHS[-1])] / row[str(DEPTHS[0])] for row in rows]
    shape = {"hidden": HIDDEN, "width": WIDTH, "examples": EXAMPLES, "tokens": TOKENS}
    return {**shape, "seconds_per_layer": rows, "ratios": [round(each, 3) for each in ratios], "median": median(ratios)}


def wide() -> dict[str, Any]:
    """Peak memory of scoring and of repairing wide gated layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=GATED_HIDDEN,
        intermediate_size=GATED_WIDTH,
        num_hidden_layers=GATED_LAYERS,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_labels=2,
        pad_token_id=0,
    )
    model = LlamaForSequenceClassification(config).eval()
    rows = {"loaded": peak_mib()}
    batches = random_batches(64, TOKENS, vocabulary=1000)
    started = monotonic()
    seen = Provenance("", "", 64, "mean", 0)
    (scores,) = score_neurons(model, ScoringData(batches, batches), criteria=["skill"], provenance=seen)
    rows["scored"], scored = peak_mib(), monotonic()
    prune_and_repair_(model, plan_pruning(model, scores, KeepRatio(0.25)), batches)
    rows["repaired"] = peak_mib()
    return {
        "width": GATED_WIDTH,
        "hidden": GATED_HIDDEN,
        "layers": GATED_LAYERS,
        "peak_rss_mib": rows,
        "seconds": {"score": round(scored - started, 1), "repair": round(monotonic() - scored, 1)},
    }


def encoder(layers: int) -> BertForSequenceClassification:
    """A random encoder of MiniLM's shape."""
    config = BertConfig(
        vocab_size=1000,
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=12,
        max_position_embeddings=TOKENS,
    )
    return BertForSequenceClassification(config).eval()


def plan_of(model: BertForSequenceClassification) -> Any:
    """A quarter of the neurons, by the size of their weights, which takes no time."""
    seen = Provenance("", "", 1, "mean", 0)
    batches = random_batches(2, TOKENS, vocabulary=1000)
    (scores,) = score_neurons(model, ScoringData(batches, batches), criteria=["magnitude"], provenance=seen)
    return plan_pruning(model, scores, KeepRatio(0.25))


def random_batches(examples: int, tokens: int, *, vocabulary: int) -> tuple[Batch, ...]:
    """Random tokens in batches of 32, without padding, labelled in turn."""
    found = []
    for start in range(0, examples, 32):
        count = min(32, examples - start)
        ids = torch.randint(5, vocabulary, (count, tokens))
        found.append(
            Batch(
                inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
                labels=torch.arange(start, start + count) % 2,
                indices=torch.arange(start, start + count),
                special=torch.zeros(count, tokens, dtype=torch.bool),
            )
        )
    return tuple(found)


def peak_mib() -> int:
    """Most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
