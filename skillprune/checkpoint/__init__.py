"""Loading what a recipe names, writing what was pruned, and the hook that reads uneven widths back.

Names resolve on use: `import skillprune` imports this package for the hook, and must not pull in torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skillprune.checkpoint.load import Attention, Source, fingerprint, load_model, load_source
    from skillprune.checkpoint.save import save_pruned, uneven_widths, verify_reload

__all__ = [
    "Attention",
    "Source",
    "fingerprint",
    "load_model",
    "load_source",
    "save_pruned",
    "uneven_widths",
    "verify_reload",
]

_HOME = {name: "load" for name in __all__[:5]} | {name: "save" for name in __all__[5:]}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"skillprune.checkpoint.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
