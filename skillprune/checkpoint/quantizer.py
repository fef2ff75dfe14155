"""The hook that lets `from_pretrained` build narrower layers, spoken through transformers' quantizer registry.

A checkpoint whose layers differ in width carries ``quantization_config: {quant_method: skillprune, widths: ...}``. That
is the one place transformers asks, in both its lines, before it copies weights into the skeleton. Without skillprune
the method is unknown and loading stops with a size mismatch: never a silently wrong model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from skillprune.errors import PlanMismatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHOD = "skillprune"


class SkillPruneConfig(QuantizationConfigMixin):
    """Widths of a pruned checkpoint, per stack and layer; never module paths, which differ between versions."""

    def __init__(self, widths: Mapping[str, Sequence[int]], **_: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # a name outside their enum
        self.widths = {stack: list(layers) for stack, layers in widths.items()}

    def to_dict(self) -> dict[str, Any]:
        """What stands in config.json."""
        return {"quant_method": METHOD, "widths": {stack: list(layers) for stack, layers in self.widths.items()}}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: nothing here is a default (transformers 4.57 asks for this to print a config)."""
        return self.to_dict()


class SkillPruneQuantizer(HfQuantizer):
    """Shrinks the skeleton before weights arrive; no number is quantised."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        config = self.quantization_config
        assert isinstance(config, SkillPruneConfig)  # the registry pairs them
        narrow_(model, config.widths)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        return model

    def postprocess_model(self, model: PreTrainedModel, **kwargs: Any) -> Any:
        """Lets the model pass as the ordinary floating-point model it is: ``.half()`` and the like are allowed."""
        processed = super().postprocess_model(model, **kwargs)
        vars(model)["is_quantized"] = False
        return processed

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Saving it again is fine (4.57 passes a keyword, 5.x nothing)."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Training it is fine."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """The Trainer of 4.57 asks this too."""
        return True


def register() -> None:
    """Makes `from_pretrained` understand pruned checkpoints; safe to call more than once."""
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, SkillPruneConfig)
    auto.AUTO_QUANTIZER_MAPPING.setdefault(METHOD, SkillPruneQuantizer)


def narrow_(model: PreTrainedModel, widths: Mapping[str, Sequence[int]]) -> None:
    """Gives every FFN of a model skeleton its width; parameters stay uninitialised, on the device they are on.

    Raises:
        PlanMismatch: the widths name other stacks or another number of layers than the model has.
    """
    # transformers is only half imported when this module is; by now it is whole.
    from skillprune.families import by_stack, find_ffns

    stacks = by_stack(find_ffns(model))
    if {name: len(layers) for name, layers in stacks.items()} != {name: len(w) for name, w in widths.items()}:
        found = {name: [ffn.width for ffn in layers] for name, layers in stacks.items()}
        raise PlanMismatch(f"the checkpoint's widths {dict(widths)} do not fit a model with {found}")
    for name, layers in stacks.items():
        for ffn, width in zip(layers, widths[name], strict=True):
            ffn.resize_(width)
