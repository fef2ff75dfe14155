"""The embedded demo: review sentences from a grammar, and an encoder that skillprune trains on them on first use.

Reading the generated examples through a tokenizer is left to ``data``; nothing here knows about pruning.
"""

from __future__ import annotations

from pathlib import Path

from skillprune.demo.grammar import reviews
from skillprune.progress import Progress, silent

__all__ = ["reviews", "reviews_tiny"]


def reviews_tiny(progress: Progress = silent) -> Path:
    """The checkpoint directory of the demo's encoder, trained on the first call and cached for all later ones.

    Args:
        progress: Told how far the training is, if there is any to do.

    Returns:
        A directory that ``AutoModelForSequenceClassification.from_pretrained`` reads.

    Raises:
        VerificationFailed: if the trained encoder misses the accuracy it is meant to have.
        ResourceFailure: if the cache directory cannot be written.
    """
    from skillprune.demo import encoder  # torch and transformers are not needed to make sentences

    return encoder.cached_checkpoint(progress)
