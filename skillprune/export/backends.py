"""The table of exporters: who they are, what they need, which operator sets they write; nothing else names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from skillprune.errors import MissingExtra, UnsupportedExport
from skillprune.export import native, optimum_onnx, torchscript
from skillprune.export.signature import Signature

Write = Callable[[PreTrainedModel, Mapping[str, Tensor], Signature, Path, int], None]


@dataclass(frozen=True)
class Backend:
    """One exporter.

    Attributes:
        write: writes a graph to a path, in the directory of which nothing else lies.
        needs: packages that must be installed.
        extra: the extra of this package that brings them.
        opset: operator set it writes unless asked for another.
        opsets: the oldest and the newest one it can write.
    """

    write: Write
    needs: tuple[str, ...]
    extra: str
    opset: int
    opsets: tuple[int, int]

    def choose_opset(self, name: str, asked: int | None) -> int:
        """The operator set to write.

        Raises:
            UnsupportedExport: it cannot write the one asked for.
        """
        oldest, newest = self.opsets
        if asked is None or oldest <= asked <= newest:
            return self.opset if asked is None else asked
        raise UnsupportedExport(f"the exporter {name} writes operator sets {oldest} to {newest}, not {asked}")


BACKENDS: dict[str, Backend] = {
    "torchscript": Backend(torchscript.write_graph, (), "", torchscript.OPSET, (14, 20)),
    "optimum": Backend(
        optimum_onnx.write_graph,
        ("optimum.exporters.onnx", "optimum.onnxruntime"),
        "optimum",
        18,
        (14, 20),
    ),
    "native": Backend(native.write_graph, ("onnxscript",), "native", 18, (18, 23)),
}
"""Exporters by the name a recipe uses, in the order they are tried."""


def check_opset(backends: Mapping[str, Backend], opset: int | None) -> None:
    """Refuses an operator set that no exporter can write.

    Raises:
        UnsupportedExport: none of them can.
    """
    ranges = {name: backend.opsets for name, backend in backends.items()}
    if opset is not None and not any(oldest <= opset <= newest for oldest, newest in ranges.values()):
        told = ", ".join(f"{name} {oldest} to {newest}" for name, (oldest, newest) in ranges.items())
        raise UnsupportedExport(f"no exporter here writes operator set {opset}; {told}: choose another export.opset")


def is_usable(name: str) -> bool:
    """Whether what an exporter needs is installed."""
    return all(map(_is_installed, BACKENDS[name].needs))


def usable_of(names: Sequence[str] | None) -> tuple[str, ...]:
    """The named exporters, or all that are installed.

    Raises:
        MissingExtra: one that was named is not installed.
        ValueError: there is none of that name.
    """
    if names is None:
        return tuple(name for name in BACKENDS if is_usable(name))
    for name in names:
        find_backend(name)
    return tuple(names)


def find_backend(name: str) -> Backend:
    """The exporter of that name.

    Raises:
        MissingExtra: it is not installed.
        ValueError: there is none of that name.
    """
    if name not in BACKENDS:
        raise ValueError(f"no exporter is called {name!r}; there are {', '.join(BACKENDS)}")
    if not is_usable(name):
        raise MissingExtra(f"the exporter {name}", BACKENDS[name].extra)
    return BACKENDS[name]


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package that it would be part of
        return False
