"""Where the time of ONNX files goes, by layer and part; comparing two subjects is left to others."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime

from skillprune.benchmark.binding import bind
from skillprune.benchmark.messages import Arrays
from skillprune.benchmark.runtimes import Once, only_forward
from skillprune.benchmark.sessions import open_session
from skillprune.benchmark.values import Phase
from skillprune.benchmark.writers import OpenedWriter
from skillprune.generation import load_writer

WARM_UP_RUNS = 10
MICROSECONDS_PER_MS = 1000.0
RUN, NODE = "model_run", "Node"  # ONNX Runtime's words for events
SUFFIX = "_kernel_time"

# Exporters name operators by the modules they stand in: /model/bert/encoder/layer.0/intermediate/dense/MatMul. Families
# call the parts of a block many names; every module in a block that is not of attention belongs to the FFN.
LAYER = re.compile(r"/(?:layers?|blocks?|h)\.(\d+)/(?:(.*)/)?")
ATTENTION = re.compile(
    r"^(?!post_attention_layernorm).*(?:attention|attn)"
    # norms before or after attention, and what T5 numbers instead of naming it
    r"|^(?:sa_layer_norm|layernorm_before|input_layernorm|ln_1|layer\.0)\b",
    re.IGNORECASE,
)
EMBEDDINGS = re.compile(r"/[^/]*(?:embed|wte|wpe|shared)[^/]*/", re.IGNORECASE)
HEAD = re.compile(r"/(?:\w*classifier|cls|lm_head|score|pooler|vocab_\w+|qa_outputs|\w*predictions)/")

# Fused operators have names of their own, which tell no part; what they compute does.
FUSED = {
    **dict.fromkeys(("Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention"), "attention"),
    **dict.fromkeys(("BiasGelu", "FastGelu", "QuickGelu"), "ffn"),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), "layer"),
    "EmbedLayerNormalization": "embeddings",
}


class Part(NamedTuple):
    """A part of a model, and its kind: attention, ffn, layer, embeddings, head or operator."""

    name: str
    kind: str


@dataclass(frozen=True)
class LayerTime:
    """What a part of a model takes of a run.

    Attributes:
        name: ``layer 0 attention``, ``layer 0 ffn``, ``embeddings``, ``head``; the operator (``Cast``, ``BiasGelu``)
            where its name in the graph does not tell the part, as for what an optimiser fused or another exporter
            wrote.
        kind: ``attention``, ``ffn``, ``layer`` (of a block, but neither), ``embeddings``, ``head`` or ``operator``.
        ms: milliseconds per run inside operators, the mean over runs.
        share: of all operators' time, between 0 and 1.
    """

    name: str
    kind: str
    ms: float
    share: float


@dataclass(frozen=True)
class _Profiled:
    """Sessions whose operators are timed, each in a file of its own.

    Attributes:
        folder: for the times.
        threads: threads that compute inside one operator.
        provider: ``cpu`` or ``cuda``.
        sessions: those that are open.
    """

    folder: Path
    threads: int
    provider: str
    sessions: list[onnxruntime.InferenceSession] = field(default_factory=list)

    def open(self, path: Path) -> onnxruntime.InferenceSession:
        place = self.folder / str(len(self.sessions))
        session = open_session(path, threads=self.threads, provider=self.provider, profile=place)
        self.sessions.append(session)
        return session

    def feed(self, path: Path, feeds: Arrays, phase: Phase) -> Once:
        """A run of a graph, or of the directory of a writer."""
        if path.is_dir():
            return OpenedWriter(load_writer(path, self.open), self.provider).feed(feeds, str(path), phase)
        only_forward(phase, str(path))
        return bind(self.open(path), feeds, str(path))

    def events(self) -> Iterator[list[dict[str, Any]]]:
        """What happened in each session, which ends its profiling."""
        for session in self.sessions:
            yield json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))


def profile_layers(
    path: Path, feeds: Arrays, *, threads: int, provider: str, runs: int, phase: Phase = "forward"
) -> tuple[LayerTime, ...]:
    """Time of every part of ONNX files, in the order in which the parts first run.

    Profiling slows every operator down by some microseconds, so shares are distorted in small models, and the sum is
    the time inside operators, not the latency of a run. On CUDA it is the time to launch the kernels.

    Args:
        path: the ONNX file, or the directory of a writer, all graphs of which are looked at that run in the phase.
        feeds: input name to array.
        threads: threads that compute inside one operator.
        provider: ``cpu`` or ``cuda``.
        runs: runs that are averaged, after `WARM_UP_RUNS` others.
        phase: what a run is, see `Point`.

    Raises:
        ValueError: there are no runs, or a file is to write.
        ProviderUnavailable: the provider is unknown, not installed, or not the one that runs.
        CheckpointError: a file is missing or unreadable.
        DataError: the graph does not take the inputs.
    """
    if runs < 1:
        raise ValueError(f"a profile needs at least one run, got {runs}")
    totals: defaultdict[Part, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        profiled = _Profiled(Path(folder), threads, provider)
        once = profiled.feed(path, feeds, phase)
        for _ in range(WARM_UP_RUNS + runs):
            once()
        for events in profiled.events():
            # A graph that only prepares a phase ran once: the encoder, where a run is one more token.
            if sum(each["name"] == RUN for each in events) > WARM_UP_RUNS:
                for name, operator, ms in operator_times(events, runs):
                    totals[part_of(name, operator)] += ms / runs
    whole = sum(totals.values())
    return tuple(LayerTime(*part, ms, ms / whole) for part, ms in totals.items())


def operator_times(events: Sequence[dict[str, Any]], runs: int) -> Iterator[tuple[str, str, float]]:
    """Name in the graph, operator and milliseconds of everything that ran in the last ``runs`` runs, in order of time.

    Args:
        events: the profiler's, with times in microseconds.
        runs: runs to look at.
    """
    start = sorted(each["ts"] for each in events if each["name"] == RUN)[-runs]
    nodes = [each for each in events if each.get("cat") == NODE and each["ts"] >= start]
    for each in sorted(nodes, key=lambda node: int(node["ts"])):
        yield each["name"].removesuffix(SUFFIX), each["args"]["op_name"], each["dur"] / MICROSECONDS_PER_MS


def part_of(name: str, operator: str) -> Part:
    """The part of a model that an operator belongs to, by its name in the graph."""
    scope = name[name.find("/") :] if "/" in name else ""  # optimisers put words before it
    layer = LAYER.search(scope)
    if layer:
        stack = "decoder layer" if "/decoder/" in scope[: layer.start() + 1] else "layer"
        kind = _kind(layer[2])
        return Part(f"{stack} {layer[1]}" if kind == "layer" else f"{stack} {layer[1]} {kind}", kind)
    for kind, places in (("embeddings", EMBEDDINGS), ("head", HEAD)):
        if places.search(scope):
            return Part(kind, kind)
    return Part(operator, FUSED.get(operator, "operator"))


def _kind(inside: str | None) -> str:
    """The kind of a part by the path of modules inside a block; None for what stands in the block itself."""
    if inside is None:
        return "layer"
    return "attention" if ATTENTION.search(inside) else "ffn"
