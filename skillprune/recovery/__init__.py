"""Short training after pruning, towards what the dense model answers; which examples are for it is told to it."""

from skillprune.recovery.objective import Labels, Objective
from skillprune.recovery.training import recover_, train_
from skillprune.recovery.values import Epoch, Recovery, RecoverySettings

__all__ = ["Epoch", "Labels", "Objective", "Recovery", "RecoverySettings", "recover_", "train_"]
