"""Prunes FFN neurons with onnxsim, in onnxsim's own environment: ``python with_onnxsim.py job.json``.

The graph is exported with an operator set that has `Gelu`, without which onnxsim leaves every FFN as it is, and is not
simplified before, which would have the same effect. onnxsim cuts every chain it recognises, here also the pooler; the
pooler is kept by making its output a graph output while pruning. Calibration batches hold examples of one length, as
onnxsim knows no padding.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxsim
import torch
from job import Arm, Batch, Job, in_order, load_dense, read_batches, read_job, write_outcome
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

OPSET = 20
NAMES = ("input_ids", "attention_mask")


class Logits(nn.Module):
    """Positional inputs, one output."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Any:
        """Logits, ``(batch, classes)``."""
        return self.model(**dict(zip(NAMES, inputs, strict=True))).logits


def main() -> None:
    """Every arm without an outcome."""
    job = read_job()
    test = read_batches(job.test, 32)
    open_arms = list(job.open_arms())
    dense = export(job) if open_arms else None
    pruned: dict[int, tuple[onnx.ModelProto, float]] = {}
    for arm in open_arms:
        if arm.neurons not in pruned:
            pruned[arm.neurons] = prune(dense, job, arm)
        run(job, arm, dense, *pruned[arm.neurons], test)


def export(job: Job) -> onnx.ModelProto:
    """The dense classifier as a graph with dynamic axes."""
    example = tuple(torch.ones(2, 9, dtype=torch.long) for _ in NAMES)
    axes = {name: {0: "batch", 1: "sequence"} for name in NAMES} | {"logits": {0: "batch"}}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        path = Path(folder, "dense.onnx")
        torch.onnx.export(
            Logits(load_dense(job)).eval(),
            example,
            str(path),
            input_names=list(NAMES),
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
        return onnx.load(path)


def prune(dense: onnx.ModelProto, job: Job, arm: Arm) -> tuple[onnx.ModelProto, float]:
    """The same share of every FFN cut, and the seconds that took."""
    since = time.perf_counter()
    guarded, widths = onnx.ModelProto(), ffn_widths(dense)
    guarded.CopyFrom(dense)
    (pooled,) = (node.output[0] for node in dense.graph.node if node.op_type == "Tanh")
    guarded.graph.output.append(onnx.helper.make_tensor_value_info(pooled, onnx.TensorProto.FLOAT, None))
    pruned = onnxsim.apply_structured_wanda_pruning(
        guarded, calibration_data=calibration(job), sparsity=1 - arm.neurons / sum(widths)
    )
    (extra,) = (each for each in pruned.graph.output if each.name == pooled)
    pruned.graph.output.remove(extra)
    return pruned, time.perf_counter() - since


def calibration(job: Job, examples: int | None = None) -> list[dict[str, NDArray[np.int64]]]:
    """Batches without padding, as large as lengths allow: onnxsim opens a session for each."""
    return [batch.inputs for batch in read_batches(job.calibration, 4096, padded=False, examples=examples)]


def run(
    job: Job, arm: Arm, dense: onnx.ModelProto, pruned: onnx.ModelProto, seconds: float, test: Sequence[Batch]
) -> None:
    """Repairs if the arm asks for it, and answers the test split in ONNX Runtime."""
    since = time.perf_counter() - seconds
    if examples := arm.settings.get("finetune_examples"):
        # Its products are plain loops in double precision over activations that it holds all at once.
        pruned = onnxsim.apply_pruning_finetune(dense, pruned, calibration_data=calibration(job, examples))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(pruned.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits = in_order([session.run(None, batch.inputs)[0] for batch in test], test)
    write_outcome(job, arm, logits, widths=ffn_widths(pruned), parameters=parameters(pruned), since=since)


def ffn_widths(model: onnx.ModelProto) -> list[int]:
    """Neurons of every layer: rows of the matrix that multiplies what a `Gelu` returns."""
    shapes = {each.name: list(each.dims) for each in model.graph.initializer}
    active = {node.output[0] for node in model.graph.node if node.op_type == "Gelu"}
    downs = (node for node in model.graph.node if node.op_type == "MatMul" and node.input[0] in active)
    return [shapes[node.input[1]][0] for node in downs]


def parameters(model: onnx.ModelProto) -> int:
    """Numbers in floating-point weights."""
    return sum(int(np.prod(each.dims)) for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT)


if __name__ == "__main__":
    main()
