"""Prunes FFN neurons with TextPruner, in TextPruner's own environment: ``python with_textpruner.py job.json``.

All attention heads are kept. Importance is the first-order Taylor term of the loss on labels, the library's default.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from job import Arm, Batch, Job, answer, load_dense, read_batches, read_job, ups, write_outcome
from textpruner import GeneralConfig, TransformerPruner, TransformerPruningConfig


def main() -> None:
    """Every arm without an outcome."""
    job = read_job()
    calibration, test = (read_batches(path, 32) for path in (job.calibration, job.test))
    for arm in job.open_arms():
        run(job, arm, calibration, test)


def run(job: Job, arm: Arm, calibration: Sequence[Batch], test: Sequence[Batch]) -> None:
    """Prunes the model and answers the test split."""
    since = time.perf_counter()
    model, even = load_dense(job), bool(arm.settings["even"])
    settings = TransformerPruningConfig(
        target_ffn_size=arm.neurons // len(ups(model)),
        target_num_of_heads=model.config.num_attention_heads,
        pruning_method="iterative",
        n_iters=arm.settings["iterations"],
        ffn_even_masking=even,
    )
    # The first scores depend only on whether widths are even, so arms share them through the library's own cache.
    scores = job.scratch / f"scores-{'even' if even else 'uneven'}"
    pruner = TransformerPruner(model, settings, GeneralConfig(use_device="cpu", output_dir=str(scores)))
    pruner.prune([batch.tensors() for batch in calibration], save_model=False, rewrite_cache=False)
    widths = [up.weight.shape[0] for up in ups(model)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    write_outcome(job, arm, answer(model, test), widths=widths, parameters=parameters, since=since)


if __name__ == "__main__":
    main()
