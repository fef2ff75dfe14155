"""What kept columns and biases become when their neighbours go; which neurons go is the plan's business."""

from skillprune.repair.blocks import LayerError, prune_and_repair_
from skillprune.repair.methods import METHODS

__all__ = ["METHODS", "LayerError", "prune_and_repair_"]
