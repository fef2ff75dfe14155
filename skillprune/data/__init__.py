"""Examples of a task, separated into splits and batched; what is computed from them is left to others."""

from skillprune.data.batch import NO_TARGET, Batch
from skillprune.data.batches import make_batches
from skillprune.data.examples import Example
from skillprune.data.label_words import label_word_ids
from skillprune.data.splits import Splits, fingerprint, load_splits, recovery_examples

__all__ = [
    "NO_TARGET",
    "Batch",
    "Example",
    "Splits",
    "fingerprint",
    "label_word_ids",
    "load_splits",
    "make_batches",
    "recovery_examples",
]
