"""Where each architecture keeps its FFN neurons; the only room that knows transformers' module paths.

What is done with the neurons found here (hooking, scoring, repairing) is left to the rooms below.
"""

from skillprune.families.catalogue import Family, StackKind, list_families
from skillprune.families.experts import Mixture
from skillprune.families.ffn import FFN, Addition, copy_of
from skillprune.families.finding import (
    base_model,
    by_stack,
    config_value,
    config_widths,
    find_ffns,
    position_limit,
    set_config_value_,
)
from skillprune.families.matrix import Matrix
from skillprune.families.rows import FAMILIES
from skillprune.families.stack import Routing, Side, Site, Stack

__all__ = [
    "FAMILIES",
    "FFN",
    "Addition",
    "Family",
    "Matrix",
    "Mixture",
    "Routing",
    "Side",
    "Site",
    "Stack",
    "StackKind",
    "base_model",
    "by_stack",
    "config_value",
    "config_widths",
    "copy_of",
    "find_ffns",
    "list_families",
    "position_limit",
    "set_config_value_",
]
