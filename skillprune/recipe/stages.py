"""The recipe sections that say how a model is pruned, exported and judged; carrying them out is left to others."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    StrictBool,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from skillprune.recipe.base import Spec, StrictFloat, StrictInt, without_repeats

Criterion = Literal[
    "skill",
    "wanda",
    "fluctuation",
    "magnitude",
    "random",
    "fisher",
    "gauss_newton",
    "taylor",
    "predictivity",
    "attribution",
    "average_precision",
    "linear_probe",
]
Positive = Annotated[StrictInt, Field(ge=1)]


class PromptSpec(Spec):
    """Soft prompts that are tuned before scoring, with the model frozen."""

    tokens: Positive = Field(default=16, description="Soft-prompt slots.")
    trials: Positive = Field(default=3, description="Prompts to tune, each from its own seed; scores are combined.")
    combine: Literal["mean", "min"] = Field(
        default="mean", description="How predictivity makes one number of its trials; other criteria take the mean."
    )
    epochs: Positive = Field(default=4, description="Passes over the calibration examples.")
    learning_rate: Annotated[StrictFloat, Field(gt=0)] = Field(default=0.001, description="Step size of Adam.")


class ScoringSpec(Spec):
    """How neurons are scored."""

    criterion: Criterion = Field(default="skill", description="Importance score that decides which neurons are kept.")
    examples: Positive = Field(default=2048, description="Calibration examples, drawn from train by seed.")
    prompt: PromptSpec | None = Field(
        default=None, description="Soft prompts to tune and to score with; null scores the model as it is."
    )
    position: Literal["prompt", "mask", "cls", "last", "mean", "max"] = Field(
        default="mean",
        description="How a text's token activations become one number: every soft-prompt slot by itself, the token "
        "that answers a template, first or last token, mean or maximum over tokens.",
    )
    include_special: bool = Field(
        default=True, description="Whether `mean` and `max` read special tokens, as published methods do."
    )
    include_prompt: bool = Field(default=False, description="Whether `mean` and `max` read soft-prompt slots.")
    multiclass: Literal["ovr", "pairwise", "reference"] = Field(
        default="ovr",
        description="Tests that predictivity makes of more than two classes: each against the rest, all pairs, or "
        "those of the published code for labels named negative, neutral and positive.",
    )
    reduce: Literal["max", "mean"] = Field(default="max", description="How predictivity makes one number of its tests.")
    balanced: bool = Field(
        default=True, description="Whether predictivity weighs classes alike, however many examples they have."
    )
    also: Annotated[tuple[Criterion, ...], AfterValidator(without_repeats)] = Field(
        default=(), description="Further criteria to compute in the same passes.", examples=[["predictivity"]]
    )
    batch_size: Positive = Field(default=32, description="Examples per forward pass.")

    @field_validator("position")
    @classmethod
    def _needs_a_prompt(cls, position: str, info: ValidationInfo) -> str:
        if position == "prompt" and "prompt" in info.data and info.data["prompt"] is None:
            raise ValueError("needs soft prompts; add scoring.prompt, for example {tokens: 16, trials: 3}")
        return position

    @field_validator("also")
    @classmethod
    def _not_the_criterion(cls, also: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        criterion = info.data.get("criterion")
        if criterion in also:
            raise ValueError(f"repeats the criterion {criterion!r}, which is computed anyway; remove it")
        return also


def _kind_of_layers(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        return "<layers>"
    return "<share>" if isinstance(value, (int, float)) and not isinstance(value, bool) else None


LAYER_KINDS = ("<layers>", "<share>")
_LayersField = Annotated[
    Annotated[tuple[StrictInt, ...], AfterValidator(without_repeats), Tag("<layers>")]
    | Annotated[StrictFloat, Field(ge=0, lt=1), Tag("<share>")],
    Discriminator(
        _kind_of_layers,
        custom_error_type="layer_forms",
        custom_error_message="should be a list of layer numbers, or one share of the layers in [0, 1)",
    ),
]


BUDGETS = ("keep_ratio", "parameters", "macs", "speedup", "max_drop")
"""Keys of `plan` that say how much to prune; exactly one of them counts."""


def _share_or_count(limit: float) -> float:
    if limit > 1 and limit != int(limit):
        raise ValueError("should be a share, at most 1, or a whole number above 1")
    return limit


_AtMost = Annotated[StrictFloat, Field(gt=0), AfterValidator(_share_or_count)]


class PlanSpec(Spec):
    """How many neurons are kept, and where; one of `keep_ratio`, `parameters`, `macs`, `speedup` and `max_drop`."""

    keep_ratio: Annotated[StrictFloat, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Share of FFN neurons that stay in the layers that are pruned; 0.25 where no budget is given.",
        examples=[0.5],
    )
    parameters: _AtMost | None = Field(
        default=None, description="Most parameters of the whole model; up to 1 a share of those it has.", examples=[0.6]
    )
    macs: _AtMost | None = Field(
        default=None,
        description="Most multiply-accumulates of the whole model for a sequence of 128 tokens; up to 1 a share of "
        "those it needs.",
        examples=[0.5],
    )
    speedup: Annotated[StrictFloat, Field(gt=1)] | None = Field(
        default=None,
        description="Speed-up over the dense model in ONNX Runtime, at every shape of the benchmark.",
        examples=[1.8],
    )
    max_drop: Annotated[StrictFloat, Field(ge=0)] | None = Field(
        default=None,
        description="Smallest model whose metric on validation gets worse by no more than this, with one standard "
        "error to spare: shares fall by so much, `loss` rises by so many nats, `perplexity` by such a share of itself.",
        examples=[0.01],
    )
    allocation: Literal["uniform", "global", "sensitivity"] = Field(
        default="uniform",
        description="How neurons are shared out: the same share in every layer, where the criterion says they cost "
        "least, or where silencing them was measured to cost least. The last two may empty a layer.",
    )
    selection: Literal["once", "blockwise"] = Field(
        default="once",
        description="Whether neurons are chosen once on the dense network, or anew in every block on the network "
        "pruned so far, which takes longer and needs the criterion `skill`.",
    )
    round_to: Positive = Field(default=16, description="Kept widths are multiples of this, which fast kernels like.")
    keep_layers: _LayersField = Field(
        default=(),
        description="Layers left untouched: their numbers (negative ones count from the end), "
        "or one number in [0, 1), the first share of the layers.",
        examples=[[0, -1], 0.25],
    )

    @model_validator(mode="before")
    @classmethod
    def _one_budget(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        budgets = [name for name in BUDGETS if given.get(name) is not None]
        if len(budgets) > 1:
            raise ValueError(f"names {len(budgets)} budgets, {' and '.join(budgets)}; keep one and set others to null")
        return given if budgets else {**given, "keep_ratio": 0.25}

    @field_validator("selection")
    @classmethod
    def _not_under_a_floor(cls, selection: str, info: ValidationInfo) -> str:
        if selection == "blockwise" and info.data.get("max_drop") is not None:
            raise ValueError("cannot be combined with max_drop, whose trials choose once; remove one of them")
        return selection


class RepairSpec(Spec):
    """What the remaining weights become."""

    method: Literal["zero", "mean", "least_squares"] = Field(
        default="least_squares",
        description="`zero` only slices, `mean` folds the pruned neurons' mean into the bias, "
        "`least_squares` refits the projections around them.",
    )
    ridge: Annotated[StrictFloat, Field(gt=0)] | None = Field(
        default=None,
        description="Relative ridge of the least-squares fit; null takes what misses least on held-out examples.",
    )
    sequential: StrictBool = Field(
        default=True,
        description="Whether every layer is fitted on the network pruned so far, and so mends errors of those below; "
        "without, on the dense network, in less time.",
    )
    attention: StrictBool = Field(
        default=True,
        description="Whether least squares also mends the projections of attention above pruned layers, which keep "
        "their shape; needs `sequential`.",
    )


Form = Literal["uniform", "per-layer", "padded", "auto_map"]
"""How a pruned checkpoint is written."""

FORMS: tuple[Form, ...] = get_args(Form)

Format = Literal["auto", Form]
"""``auto`` is ``uniform`` where the config can say every width, and ``per-layer`` elsewhere."""


class CheckpointSpec(Spec):
    """How the pruned checkpoint is written; it can be converted later."""

    format: Format = Field(
        default="auto",
        description="`uniform` is a stock checkpoint and wants layers of one width, `per-layer` has any widths and is "
        "loaded after `import skillprune`, `padded` fills narrow layers with zeros to be a stock checkpoint, "
        "`auto_map` brings its own code to be trusted; `auto` is `uniform` where the widths allow it, else "
        "`per-layer`.",
    )


Variant = Literal["fp32", "fp16", "int8-dynamic", "int8-static"]
"""A number format of ONNX files."""

VARIANTS: tuple[Variant, ...] = get_args(Variant)

Backend = Literal["torchscript", "optimum", "native"]
"""An exporter that writes ONNX files."""

_AutoOrVariant = Literal["auto", "fp32", "fp16", "int8-dynamic", "int8-static"]
_AutoOrBackend = Literal["auto", "torchscript", "optimum", "native"]

Runtime = Literal["torch", "torch-compile", "onnxruntime-default"]
"""What the dense model can run in beside sessions with the recipe's options."""


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _auto_alone(names: tuple[str, ...]) -> tuple[str, ...]:
    if "auto" in names and len(names) > 1:
        raise ValueError("auto stands alone; remove the other names, or auto")
    return names


_Variants = Annotated[
    tuple[_AutoOrVariant, ...],
    AfterValidator(without_repeats),
    AfterValidator(_auto_alone),
    BeforeValidator(_listed, json_schema_input_type=_AutoOrVariant | list[_AutoOrVariant]),
]
_Backends = Annotated[
    tuple[_AutoOrBackend, ...],
    Field(min_length=1),
    AfterValidator(without_repeats),
    AfterValidator(_auto_alone),
    BeforeValidator(_listed, json_schema_input_type=_AutoOrBackend | list[_AutoOrBackend]),
]


class ExportSpec(Spec):
    """Which ONNX files are written."""

    variants: _Variants | None = Field(
        default=None,
        description="Number formats of the ONNX files; none at all (`[]`) exports nothing and times nothing. Null is "
        "`fp32` for `text-classification`, and none for the other kinds of task. `fp32` is always written, as what the "
        "others are made from. The fastest one that holds `max_drop` is named best; one that was asked for by name and "
        "is refused fails the run. `auto` tries those that suit the provider: int8 on CPUs, fp16 on GPUs.",
        examples=["auto", ["fp32", "int8-dynamic"], []],
    )
    backends: _Backends = Field(
        default=("auto",),
        description="Exporters to try; the fastest file that computes what PyTorch computes is kept. `auto` tries all "
        "that are installed: `torchscript`, `optimum` (needs optimum-onnx), `native` (needs onnxscript).",
        examples=["auto", ["torchscript"]],
    )
    fusion: StrictBool = Field(
        default=True,
        description="Whether graphs with operators fused by ONNX Runtime's optimizer are tried too, and kept where "
        "they are faster.",
    )
    opset: Positive | None = Field(
        default=None,
        description="ONNX operator set of the files; null is every exporter's own. Of `backends: auto`, exporters that "
        "cannot write it are left out.",
        examples=[20],
    )
    max_drop: Annotated[StrictFloat, Field(ge=0)] = Field(
        default=0.01,
        description="How much worse than fp32 a smaller number format may be on validation, in the unit of "
        "`demand.max_drop`. Products that hurt most are left in fp32 until it holds; of models that write, which have "
        "several graphs, a format that loses more is refused as a whole.",
    )


class BenchmarkSpec(Spec):
    """How latency is measured."""

    shapes: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1), AfterValidator(without_repeats)] = (
        Field(
            default=((1, 32), (1, 128), (8, 128)),
            description="Input shapes to time, each [batch, sequence length in tokens].",
            examples=[[[1, 32], [8, 128]]],
        )
    )
    threads: Positive = Field(default=2, description="Threads of a session.")
    provider: Literal["cpu", "cuda"] = Field(default="cpu", description="Execution provider of ONNX Runtime.")
    rounds: Annotated[StrictInt, Field(ge=10)] = Field(default=60, description="Timed rounds per shape; at least 10.")
    references: Annotated[tuple[Runtime, ...], AfterValidator(without_repeats)] = Field(
        default=(),
        description="What the dense model is timed in as well, for comparison: `torch` (PyTorch as it is) and "
        "`torch-compile` (compiled with its default settings), and `onnxruntime-default` (its ONNX file in a session "
        "with all options left as they are, the number of threads too).",
        examples=[["torch"]],
    )


class DemandSpec(Spec):
    """What must hold for the run to count as a success."""

    min_speedup: Annotated[StrictFloat, Field(gt=0)] | None = Field(
        default=None, description="Speed-up over the dense model that every shape must reach.", examples=[1.3]
    )
    max_drop: Annotated[StrictFloat, Field(ge=0)] | None = Field(
        default=None,
        description="How much worse the metric may be on the test split: shares (`accuracy`, `macro_f1`, "
        "`exact_match`) may fall by so much, `loss` may rise by so many nats per token, `perplexity` by such a share "
        "of itself.",
        examples=[0.02],
    )
