"""What kept columns and biases become when their neighbours go; which neurons go is the plan's business."""

from skillprune.repair.blocks import Choose, LayerError, choose_and_repair_, prune_and_repair_
from skillprune.repair.methods import METHODS, Statistics, least_squares

__all__ = [
    "METHODS",
    "Choose",
    "LayerError",
    "Statistics",
    "choose_and_repair_",
    "least_squares",
    "prune_and_repair_",
]
