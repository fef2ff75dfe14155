"""What kept columns and biases become when their neighbours go; which neurons go is the plan's business."""

from skillprune.repair.blocks import Choose, choose_and_repair_, prune_and_repair_
from skillprune.repair.calibration import refuse_unwalkable
from skillprune.repair.lessons import Lessons, lessons_if_room
from skillprune.repair.methods import METHODS, Statistics, least_squares
from skillprune.repair.rewriting import LayerError

__all__ = [
    "METHODS",
    "Choose",
    "LayerError",
    "Lessons",
    "Statistics",
    "choose_and_repair_",
    "least_squares",
    "lessons_if_room",
    "prune_and_repair_",
    "refuse_unwalkable",
]
