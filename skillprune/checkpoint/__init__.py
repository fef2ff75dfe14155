"""Loading what a recipe names, writing what was pruned, and the hook that reads uneven widths back.

Names resolve on use: `import skillprune` imports this package for the hook, and must not pull in torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skillprune.checkpoint.formats import uneven_widths
    from skillprune.checkpoint.load import Attention, Source, fingerprint, load_model, load_source
    from skillprune.checkpoint.modelling import loader_of
    from skillprune.checkpoint.record import Record, read_record
    from skillprune.checkpoint.save import save_pruned
    from skillprune.checkpoint.stored import load_stored
    from skillprune.checkpoint.verify import verify_reload

__all__ = [
    "Attention",
    "Record",
    "Source",
    "fingerprint",
    "load_model",
    "load_source",
    "load_stored",
    "loader_of",
    "read_record",
    "save_pruned",
    "uneven_widths",
    "verify_reload",
]

_HOME = {
    **dict.fromkeys(("Attention", "Source", "fingerprint", "load_model", "load_source"), "load"),
    "load_stored": "stored",
    "loader_of": "modelling",
    "uneven_widths": "formats",
    **dict.fromkeys(("Record", "read_record"), "record"),
    "save_pruned": "save",
    "verify_reload": "verify",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"skillprune.checkpoint.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
