"""FFN activations and their gradients, streamed out of a running model; what they mean is left to scoring and repair.

A neuron's activation is one coordinate of the input of its down projection, whatever the block around it looks like.
"""

from skillprune.activations.capacity import Capacity, fitting
from skillprune.activations.disk import DiskArrays
from skillprune.activations.hooks import evaluating, inputs_of, joined
from skillprune.activations.memory import free_bytes
from skillprune.activations.observation import Observation
from skillprune.activations.pooling import Position, Reading, pool
from skillprune.activations.stream import PLAIN, Quantity, Visitor, stream

__all__ = [
    "PLAIN",
    "Capacity",
    "DiskArrays",
    "Observation",
    "Position",
    "Quantity",
    "Reading",
    "Visitor",
    "evaluating",
    "fitting",
    "free_bytes",
    "inputs_of",
    "joined",
    "pool",
    "stream",
]
