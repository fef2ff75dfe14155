"""Writers: one graph that continues a text, or an encoder with two steps of a decoder.

How sessions are opened is the caller's choice; which token is written is left to `greedy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from skillprune.errors import CheckpointError, DataError
from skillprune.generation.running import Tokens, run
from skillprune.generation.signs import Signs, read_signs

Logits = NDArray[np.float32]
Feeds = Mapping[str, Tokens]
OpenSession = Callable[[Path], onnxruntime.InferenceSession]

DECODER = "model.onnx"
ENCODER, FIRST, NEXT = "encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"

_NUMBERS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class State:
    """Where a writer is in its texts.

    Attributes:
        mask: ``(batch, length)``, which of the tokens read are no padding.
        cache: keys and values by the name of the input that takes them; they stay on the device that computes.
    """

    mask: Tokens
    cache: Mapping[str, OrtValue]


class Writer(Protocol):
    """What continues texts token by token, or writes texts about others."""

    @property
    def signs(self) -> Signs:
        """Tokens that are no words."""

    def read(self, feeds: Feeds) -> tuple[Logits, State]:
        """Reads whole texts: how likely each token comes first ``(batch, vocabulary)``."""

    def step(self, tokens: Tokens, state: State) -> tuple[Logits, State]:
        """Reads one more token ``(batch,)`` of each text: how likely each one comes after it."""

    def logits(self, feeds: Feeds) -> Logits:
        """What is said at every place of texts that are known, ``(batch, sequence, vocabulary)``."""


@dataclass(frozen=True)
class DecoderWriter:
    """Continues texts with one graph.

    ``feeds`` are ``input_ids`` and ``attention_mask`` ``(batch, sequence)``, padded on the left; `logits` takes padding
    on either side.
    """

    session: onnxruntime.InferenceSession
    signs: Signs

    def read(self, feeds: Feeds) -> tuple[Logits, State]:
        """See `Writer`."""
        mask = feeds["attention_mask"]
        if not mask[:, -1].all():
            raise DataError("texts to be continued are padded on the left: the last column of attention_mask has zeros")
        return self._run(feeds["input_ids"], State(mask, self._nothing(len(mask))))

    def step(self, tokens: Tokens, state: State) -> tuple[Logits, State]:
        """See `Writer`."""
        mask = np.concatenate([state.mask, np.ones_like(tokens)[:, None]], axis=1)
        return self._run(tokens[:, None], State(mask, state.cache))

    def logits(self, feeds: Feeds) -> Logits:
        """See `Writer`."""
        mask = feeds["attention_mask"]
        given = {"input_ids": feeds["input_ids"], "attention_mask": mask, "position_ids": _positions(mask)}
        everywhere: Logits = run(self.session, {**given, **self._nothing(len(mask))}, {"logits"})["logits"].numpy()
        return everywhere

    def _run(self, ids: Tokens, state: State) -> tuple[Logits, State]:
        positions = _positions(state.mask)[:, -ids.shape[1] :]
        given = {"input_ids": ids, "attention_mask": state.mask, "position_ids": positions}
        found = run(self.session, {**given, **state.cache}, None)
        return found.pop("logits").numpy()[:, -1], State(state.mask, _as_past(found))

    def _nothing(self, batch: int) -> dict[str, OrtValue]:
        """An empty cache."""
        empty = {}
        for given in self.session.get_inputs():
            if given.name.startswith("past_key_values."):
                _, heads, _, size = given.shape
                array = np.zeros((batch, heads, 0, size), dtype=_NUMBERS[given.type])
                empty[given.name] = OrtValue.ortvalue_from_numpy(array)
        return empty


@dataclass(frozen=True)
class EncoderDecoderWriter:
    """Writes texts about others with an encoder and a decoder's first and later steps.

    ``feeds`` are ``input_ids`` and ``attention_mask`` ``(batch, encoder_sequence)``; `logits` also takes
    ``decoder_input_ids``.
    """

    encoder: onnxruntime.InferenceSession
    first: onnxruntime.InferenceSession
    later: onnxruntime.InferenceSession
    signs: Signs

    def read(self, feeds: Feeds) -> tuple[Logits, State]:
        """See `Writer`."""
        mask = feeds["attention_mask"]
        if self.signs.start is None:
            raise DataError("generation_config.json names no decoder_start_token_id, which what is written begins with")
        found = self._begin(feeds, np.full((len(mask), 1), self.signs.start, dtype=np.int64), None)
        return found.pop("logits").numpy()[:, -1], State(mask, _as_past(found))

    def step(self, tokens: Tokens, state: State) -> tuple[Logits, State]:
        """See `Writer`."""
        given = {"input_ids": tokens[:, None], "encoder_attention_mask": state.mask}
        found = run(self.later, {**given, **state.cache}, None)
        said = found.pop("logits").numpy()[:, -1]
        return said, State(state.mask, {**state.cache, **_as_past(found)})

    def logits(self, feeds: Feeds) -> Logits:
        """See `Writer`."""
        everywhere: Logits = self._begin(feeds, feeds["decoder_input_ids"], {"logits"})["logits"].numpy()
        return everywhere

    def _begin(self, feeds: Feeds, written: Tokens, wanted: set[str] | None) -> dict[str, OrtValue]:
        said = run(self.encoder, dict(feeds), None)["last_hidden_state"]
        given = {"input_ids": written, "encoder_attention_mask": feeds["attention_mask"], "encoder_hidden_states": said}
        return run(self.first, given, wanted)


def load_writer(directory: Path, open_session: OpenSession) -> Writer:
    """The writer whose files are in a directory, as skillprune and optimum write them.

    Args:
        directory: holds ``model.onnx``, or ``encoder_model.onnx``, ``decoder_model.onnx`` and
            ``decoder_with_past_model.onnx``; and ``generation_config.json``.
        open_session: opens an ONNX file.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    signs = read_signs(directory)
    if (directory / ENCODER).is_file():
        encoder, first, later = (open_session(directory / name) for name in (ENCODER, FIRST, NEXT))
        return EncoderDecoderWriter(encoder, first, later, signs)
    if not (directory / DECODER).is_file():
        raise CheckpointError(f"{directory} holds neither {DECODER} nor {ENCODER}: export a model that writes first")
    return DecoderWriter(open_session(directory / DECODER), signs)


def _as_past(present: Mapping[str, OrtValue]) -> dict[str, OrtValue]:
    return {name.replace("present", "past_key_values", 1): value for name, value in present.items()}


def _positions(mask: Tokens) -> Tokens:
    """Where each token stands in its text, padding not counted; ``(batch, length)``."""
    places: Tokens = np.maximum(mask.cumsum(axis=1) - 1, 0)
    return places
