"""Registers the checkpoint hook the moment transformers is imported, without importing transformers itself."""

from __future__ import annotations

from types import ModuleType

import wrapt


def register_when_transformers_arrives() -> None:
    """Arranges for `from_pretrained` to understand pruned checkpoints, in whichever order the two are imported."""
    wrapt.register_post_import_hook(_register, "transformers.quantizers.auto")


def _register(_: ModuleType) -> None:
    from skillprune.checkpoint.quantizer import register  # needs transformers, which is there now

    register()
