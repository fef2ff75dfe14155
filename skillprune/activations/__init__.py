"""FFN activations and their gradients, streamed out of a running model; what they mean is left to scoring and repair.

A neuron's activation is one coordinate of the input of its down projection, whatever the block around it looks like.
"""

from skillprune.activations.hooks import evaluating, inputs_of, joined
from skillprune.activations.observation import Observation
from skillprune.activations.pooling import Position, Reading, pool
from skillprune.activations.room import Room
from skillprune.activations.stream import PLAIN, Quantity, Visitor, stream

__all__ = [
    "PLAIN",
    "Observation",
    "Position",
    "Quantity",
    "Reading",
    "Room",
    "Visitor",
    "evaluating",
    "inputs_of",
    "joined",
    "pool",
    "stream",
]
