"""Where skillprune keeps what it made for this user and may need again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """``$SKILLPRUNE_CACHE``, else ``skillprune`` below ``$XDG_CACHE_HOME``, else below ``~/.cache``."""
    own = os.environ.get("SKILLPRUNE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "skillprune"
