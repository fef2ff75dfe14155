"""The parts of ``report.json``: every field with its unit; how they make one report is said in the schema.

Ratios and differences are fractions (0.01 is one point), times are in the unit their name ends with, sizes in bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from skillprune.recipe import Form
from skillprune.report.loading import Kind

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Base of every part of the report: frozen, no unknown keys, no NaN or infinity (JSON has neither)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Environment(Section):
    """The machine and the library versions that produced every number."""

    cpu: str = Field(description="Processor name.")
    cores: Size = Field(description="Logical processor cores that the process could use.")
    gpu: str | None = Field(description="Accelerator name; null when there is none.")
    os: str = Field(description="Operating system, its release and machine type.")
    python: str = Field(description="Python version.")
    torch: str = Field(description="PyTorch version.")
    transformers: str = Field(description="transformers version.")
    onnxruntime: str = Field(description="ONNX Runtime version.")
    cpu_flags: str | None = Field(
        default=None, description="Instruction sets that decide speed, separated by spaces. Additional, optional."
    )
    memory_mib: Positive | None = Field(default=None, description="Main memory in MiB. Additional, optional.")
    packages: dict[str, str] = Field(
        default_factory=dict, description="Versions of further packages, by distribution name. Additional, optional."
    )


class StackWidths(Section):
    """FFN widths of one stack of layers (``encoder``, ``decoder``, ...)."""

    name: str = Field(description="Name of the stack.")
    width_before: tuple[Count, ...] = Field(description="Neurons of every layer before pruning, in layer order.")
    width_after: tuple[Count, ...] = Field(description="Neurons of every layer after pruning, in layer order.")

    @model_validator(mode="after")
    def _same_layers(self) -> StackWidths:
        if len(self.width_before) != len(self.width_after):
            raise ValueError(f"width_before names {len(self.width_before)} layers, width_after {len(self.width_after)}")
        return self


class Model(Section):
    """What was pruned, and how much of it is left."""

    source: str = Field(description="Directory as seen from where the run was started, hub id, or built-in name.")
    model_type: str = Field(description="model_type of the transformers config.")
    stacks: tuple[StackWidths, ...] = Field(description="FFN widths per stack.")
    parameters_before: Count = Field(description="Parameters of the whole model before pruning.")
    parameters_after: Count = Field(description="Parameters of the whole model after pruning.")
    ffn_parameters_before: Count = Field(description="Parameters of all FFNs before pruning.")
    ffn_parameters_after: Count = Field(description="Parameters of all FFNs after pruning.")
    macs_before: Count = Field(
        description="Multiply-accumulates before pruning, per token unless macs_sequence is set."
    )
    macs_after: Count = Field(description="Multiply-accumulates after pruning, counted like macs_before.")
    macs_sequence: Size | None = Field(
        default=None,
        description="Tokens of the one example that the MACs count; null: they are per token. Additional, optional.",
    )
    hub_id: str | None = Field(
        default=None, description="Hugging Face hub id when the source is one, else null. Additional, optional."
    )
    fingerprint: str | None = Field(
        default=None, description="Digest of the source's weights and config. Additional, optional."
    )
    checkpoint_format: Form | None = Field(
        default=None,
        description="How the checkpoint is written: uniform, per-layer, padded or auto_map. Additional, optional.",
    )


class SplitSizes(Section):
    """Examples per split; no example is in two of them."""

    calibration: Count = Field(description="Examples used for scores and repair.")
    validation: Count = Field(description="Examples used for choices.")
    test: Count = Field(description="Examples read once, for the numbers under quality.")


class TaskFacts(Section):
    """The task that the model was pruned for."""

    name: str = Field(description="Name of the data.")
    metric: str = Field(description="Metric the recipe asked for: accuracy, macro_f1, exact_match, loss or perplexity.")
    splits: SplitSizes = Field(description="Examples per split.")
    labels: tuple[str, ...] = Field(description="Label names in id order; empty where the task has no classes.")
    type: Kind = Field(default="text-classification", description="Kind of task. Additional, optional.")


class Scoring(Section):
    """How the neurons were ranked."""

    criterion: str = Field(description="Name of the importance criterion that decided.")
    examples: Count = Field(description="Calibration examples that the scores were computed from.")
    seconds: NonNegative = Field(description="Wall time of scoring in seconds.")
    best_per_layer: dict[str, dict[str, tuple[float | None, ...]]] = Field(
        default_factory=dict,
        description="Highest score of every layer, null where it has no neurons; by criterion and stack. Optional.",
    )


class MetricValues(Section):
    """The metric on the test split for each form of the model: a fraction, nats per token, or a perplexity."""

    dense: NonNegative = Field(description="Before pruning.")
    pruned: NonNegative = Field(description="Pruned and repaired, without training, in PyTorch.")
    recovered: NonNegative | None = Field(
        default=None, description="After recovery training, in PyTorch; null without it."
    )
    onnx: dict[str, NonNegative] = Field(
        description="The exported pruned model in ONNX Runtime, by variant; empty where models are not exported."
    )


class ExpectedTime(Section):
    """A time that the plan counted on."""

    batch: Size = Field(description="Inputs at once.")
    sequence: Size = Field(description="Tokens of each.")
    before_ms: Positive = Field(description="Milliseconds of the dense model.")
    after_ms: Positive = Field(description="Milliseconds expected of the pruned one.")


class Planned(Section):
    """What was asked of the plan, and what it expected."""

    budget: str = Field(description="The budget and how neurons were shared out and chosen, in the recipe's words.")
    speedup: Positive | None = Field(default=None, description="The speed-up that was asked for, if one was.")
    unmet: str | None = Field(description="Why the plan is not what was asked for, though the best there is, or null.")
    latency: tuple[ExpectedTime, ...] = Field(description="Expected times, where the budget is a speed-up.")


class Quality(Section):
    """What pruning cost on the test split."""

    metric: str = Field(
        description="Metric of every value here: a fraction, of which higher is better, or loss or perplexity, of "
        "which lower is better."
    )
    test: MetricValues = Field(description="The metric on the test split.")
    difference: float = Field(
        description="What is shipped (the best variant's ONNX file, else the checkpoint) minus dense, in the metric's "
        "unit."
    )
    ci_low: float = Field(description="Lower end of the paired 95 % interval of the difference.")
    ci_high: float = Field(description="Upper end of the paired 95 % interval of the difference.")
    p_value: Share = Field(
        description="Exact McNemar test of right against wrong answers, dense against shipped; of losses, Wilcoxon's "
        "signed-rank test."
    )
    drop: float | None = Field(
        default=None,
        description="How much worse what is shipped is, in the unit of max_drop; negative is better. Additional, "
        "optional.",
    )
    agreement: Share | None = Field(
        default=None, description="Share of test examples that both models answer alike. Additional, optional."
    )
    labels: dict[str, Count] = Field(
        default_factory=dict, description="Test examples per label name. Additional, optional."
    )


class Artifact(Section):
    """One exported variant of the pruned model, beside the dense fp32 file."""

    variant: str = Field(description="fp32, fp16, int8-dynamic, ...")
    path: str = Field(description="Path of the ONNX file relative to the run directory.")
    bytes: Count = Field(description="Bytes of the pruned ONNX file, external data included.")
    dense_bytes: Count = Field(description="Bytes of the dense ONNX file, external data included.")
    backend: str = Field(description="Exporter that made the file.")
    opset: Size = Field(description="ONNX operator set version.")
    max_abs_diff: NonNegative = Field(
        description="Largest absolute difference of an output on the parity shapes: of fp32 against PyTorch, of other "
        "variants against fp32."
    )
    tolerance: NonNegative | None = Field(
        description="Largest difference that would have been accepted; null where the metric on validation decides."
    )
    validation: NonNegative | None = Field(
        default=None, description="The file's metric on validation; null where fp32 is alone. Additional, optional."
    )
    kept_in_fp32: tuple[str, ...] = Field(
        default=(), description="Matrix products left in fp32 because they hurt. Additional, optional."
    )
    refused: str | None = Field(
        default=None, description="Why this variant must not be shipped, or null. Additional, optional."
    )


class CandidateRow(Section):
    """A file that competed to be the fp32 file of the dense or the pruned model; or a format that could not be made."""

    subject: str = Field(description="dense or pruned.")
    exporter: str = Field(description="What wrote it, such as torchscript, or torchscript+attention when fused.")
    speed: Positive | None = Field(
        description="Its speed over that of the kept file, the geometric mean over shapes; null where it was not timed."
    )
    refused: str | None = Field(description="Why it did not compete, or null.")


class Best(Section):
    """The variant that the verdict and the headline numbers speak about."""

    variant: str = Field(description="Name of the chosen variant.")
    why: str = Field(description="Why it was chosen, one sentence.")


Phase = Literal["forward", "first token", "next token"]
_PHASE = (
    "What a run does: forward is one pass; of models that write, first token reads the text, next token is the step "
    "after it. Additional, optional."
)


class _Timed(Section):
    """What was run."""

    batch: Size = Field(description="Examples per batch.")
    sequence: Size = Field(description="Tokens per example.")
    phase: Phase = Field(default="forward", description=_PHASE)

    @property
    def shape(self) -> tuple[int, int, str]:
        """Examples, tokens, and the phase."""
        return self.batch, self.sequence, self.phase


class LatencyRow(_Timed):
    """One subject at one shape. Speed-ups are against the dense fp32 ONNX file, rounds interleaved."""

    subject: str = Field(description="dense, pruned, or another subject such as torch.")
    variant: str = Field(description="fp32, fp16, int8-dynamic, ...")
    runtime: str = Field(description="What executed the model, such as onnxruntime.")
    provider: str = Field(description="Execution provider that really ran.")
    provider_asked: str = Field(description="Execution provider that was asked for.")
    threads: Size = Field(description="Threads given to the runtime.")
    rounds: Size = Field(description="Measured rounds, warm-up not counted.")
    p50_ms: Positive = Field(description="Median time per batch in milliseconds.")
    p90_ms: Positive = Field(description="90th percentile of the time per batch in milliseconds.")
    p99_ms: Positive = Field(description="99th percentile of the time per batch in milliseconds.")
    throughput: Positive = Field(
        description="Examples per second at the median time; of the next token, tokens per second."
    )
    speedup: Positive | None = Field(description="Dense time over this time; null where there is no comparison.")
    speedup_low: Positive | None = Field(description="Lower end of the speed-up's 95 % interval; null like speedup.")
    speedup_high: Positive | None = Field(description="Upper end of the speed-up's 95 % interval; null like speedup.")
    p_value: Share | None = Field(
        default=None,
        description="Wilcoxon's signed-rank test of dense against this, one number per opening; null like speedup. "
        "Additional, optional.",
    )
    peak_rss_mib: Positive | None = Field(
        default=None,
        description="Most memory that the process of this subject held resident in MiB, interpreter and libraries "
        "included; null where it was shared or does not tell. Additional, optional.",
    )
    runtime_version: str | None = Field(default=None, description="Version of the runtime. Additional, optional.")


class ProfileRow(_Timed):
    """What a part of a file takes of a run, by the runtime's own profiler."""

    subject: str = Field(description="dense or pruned.")
    variant: str = Field(description="fp32, fp16, int8-dynamic, ...")
    part: str = Field(description="Such as layer 0 ffn, or embeddings; an operator where a file does not tell more.")
    kind: Literal["attention", "ffn", "layer", "embeddings", "head", "operator"] = Field(
        description="What the part is; layer is of a block, but neither attention nor FFN."
    )
    ms: NonNegative = Field(description="Milliseconds inside operators, the mean over runs.")
    share: Share = Field(description="Of the time of all operators.")


class ControlRow(_Timed):
    """The dense file timed against itself (A/A): an interval away from 1.0 says that the machine was too restless."""

    ratio: Positive = Field(description="Time of one copy over time of the other.")
    low: Positive = Field(description="Lower end of the ratio's interval, corrected for the number of shapes.")
    high: Positive = Field(description="Upper end of the ratio's interval, corrected for the number of shapes.")
    openings: Size | None = Field(
        default=None, description="Times that all sessions were opened anew. Additional, optional."
    )
    rounds: Size | None = Field(
        default=None, description="Measured rounds, all openings together. Additional, optional."
    )
    ok: bool = Field(default=True, description="Whether the interval contains 1.0. Additional, optional.")
    retries: Count = Field(default=0, description="Times it was measured again with more rounds. Additional, optional.")


class LayerRepair(Section):
    """Reconstruction error of one layer on calibration examples that the repair did not see."""

    layer: Count = Field(description="Index of the layer in its stack.")
    error_before: NonNegative = Field(
        description="Share of the variance of the wanted FFN output that is missed when the layer is only sliced."
    )
    error_after: NonNegative = Field(description="The same share after the repair.")


class Training(Section):
    """Training after pruning, towards what the dense model answers; validation decides, test is not looked at."""

    epochs: Count = Field(description="Epochs trained; fewer than asked for when it stopped early.")
    best_epoch: Count = Field(description="Epoch whose weights are shipped; 0 are those before training.")
    trained: Literal["all", "neurons"] = Field(
        description="What was trained: all parameters, or the kept FFN neurons alone."
    )
    examples: Count = Field(description="Examples it was trained on.")
    metric: str | None = Field(
        default=None, description="What validation was measured by; null: the task's metric. Additional, optional."
    )
    validation_before: float = Field(description="Metric on validation before training.")
    validation_after: float = Field(description="Metric on validation of the best epoch.")
    loss_before: NonNegative = Field(description="Distillation loss on validation before training.")
    loss_after: NonNegative = Field(description="Distillation loss on validation of the best epoch.")


class RetunedPrompt(Section):
    """A soft prompt that was tuned again in front of the pruned model."""

    loss_before: NonNegative = Field(description="Mean loss on validation as it came from the dense model.")
    loss_after: NonNegative = Field(description="Mean loss on validation after it was tuned again.")


class Stage(Section):
    """One step of the run."""

    name: str = Field(description="Name of the stage.")
    seconds: NonNegative = Field(description="Wall time in seconds; of the original run when cached.")
    peak_rss_mib: NonNegative = Field(description="Most resident memory of the process during the stage in MiB.")
    cached: bool = Field(description="Whether an earlier run's result was reused.")


class Demand(Section):
    """What the recipe demanded; null where it demanded nothing."""

    min_speedup: Positive | None = Field(
        default=None,
        description="The lower end of the best variant's speed-up interval must reach this at every shape.",
    )
    max_drop: NonNegative | None = Field(
        default=None,
        description="How much worse the test metric of what is shipped may be: a fraction, nats, or a share of the "
        "dense model's perplexity.",
    )


class Verdict(Section):
    """Whether the run kept its promises."""

    ok: bool = Field(description="True when every demand and every verification was met.")
    reasons: tuple[str, ...] = Field(description="One sentence per demand or verification not met; empty when ok.")
    demand: Demand = Field(default_factory=Demand, description="What the recipe demanded. Additional, optional.")
