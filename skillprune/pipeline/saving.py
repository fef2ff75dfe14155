"""Writes the checkpoint of a run: proven to reload before it takes its place, with all that goes with it."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from skillprune.checkpoint import Source, save_pruned, verify_reload
from skillprune.data import Batch
from skillprune.errors import Problem, RecipeError
from skillprune.families import find_ffns
from skillprune.pipeline.directory import replacing
from skillprune.pipeline.history import history_of
from skillprune.planning import PruningPlan
from skillprune.progress import Progress
from skillprune.recipe import Recipe

TARGET_TOKENIZER = "target_tokenizer"
"""Directory, inside the checkpoint, of the tokenizer that writes its targets, if that is another one."""

_EXAMPLES = 3


def check_form(recipe: Recipe, model: PreTrainedModel) -> None:
    """Whether a model's pruned layers can be written in the form that a recipe asks for.

    Raises:
        RecipeError: no stock config can say their widths.
    """
    unsaid = [ffn.stack.name for ffn in find_ffns(model) if ffn.stack.width_attribute is None]
    if recipe.checkpoint.format == "uniform" and unsaid:
        wanted = (
            f"no config of {model.config.model_type} can say how wide the layers of its {unsaid[0]} are; choose "
            "per-layer, padded or auto_map, or auto"
        )
        raise RecipeError([Problem("checkpoint.format", "uniform", wanted)])


def save_checkpoint(
    model: PreTrainedModel,
    path: Path,
    recipe: Recipe,
    source: Source,
    plan: PruningPlan,
    batch: Batch,
    progress: Progress,
) -> None:
    """Writes a checkpoint; the model is in float32 afterwards.

    Args:
        model: what to write.
        path: where to; what is there is replaced when everything is written.
        recipe: in which form.
        source: what it was made from, with its tokenizers, number format and history.
        plan: what was pruned.
        batch: examples on which a fresh process must compute the same.
        progress: told about it.

    Raises:
        CheckpointError: what was written does not load, or does not compute what the model does.
    """
    with replacing(path) as fresh:
        form, history = recipe.checkpoint.format, history_of(recipe, source, plan)
        save_pruned(model, source.tokenizer, fresh, dtype=source.dtype, form=form, history=history)
        if source.target_tokenizer is not None:
            source.target_tokenizer.save_pretrained(fresh / TARGET_TOKENIZER)
        progress("reload in a fresh process", 0, 1)
        few = {name: tensor[:_EXAMPLES].numpy() for name, tensor in batch.inputs.items()}
        verify_reload(model, fresh, few)
        progress("reload in a fresh process", 1, 1)
