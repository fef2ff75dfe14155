"""How large an ONNX file is, and its splitting in two where protobuf's limit asks for it."""

from __future__ import annotations

import re
from ast import literal_eval
from pathlib import Path

import onnx

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch notes the modules around a node, outermost first, and then the node itself."""

MODULE_ENDS = re.compile(r"\.(?!\d)")
"""A number belongs to the list it counts in."""

SPLIT_ABOVE = 2_000_000_000
"""Bytes of a graph above which its weights go to a file of their own: protobuf cannot write more than 2 GiB."""


def data_of(path: Path) -> Path:
    """Where the weights of a split file lie."""
    return path.with_name(f"{path.name}.data")


def size_of(path: Path) -> int:
    """Bytes of a file and of its weights."""
    return sum(each.stat().st_size for each in (path, data_of(path)) if each.exists())


def settle(path: Path, *, split_above: int = SPLIT_ABOVE) -> None:
    """Gathers what an exporter wrote to the directory of ``path`` into one file, or two where it is large.

    What exporters note about nodes is dropped, such as paths of source files, but for the module that a node stands in,
    which its name begins with; and shapes of inner tensors: where ONNX Runtime finds them it joins additions and norms,
    and then runs slower on CPUs.
    """
    model = onnx.load(path)
    for each in path.parent.iterdir():
        each.unlink()
    del model.graph.value_info[:]
    for node in model.graph.node:  # the dynamo-based exporters note where in the code each comes from
        node.name = _module_of(node) + node.name
        del node.metadata_props[:]
        node.doc_string = ""
    save(model, path, split_above=split_above)


def _module_of(node: onnx.NodeProto) -> str:
    """``/bert/encoder/layer.0/output/dense/`` of a node with notes, as the TorchScript exporter begins names."""
    notes = {note.key: note.value for note in node.metadata_props}
    *modules, _ = literal_eval(notes.get(SCOPES, "['']"))
    named = [module for module in modules if module and not module.startswith("_")]
    return f"/{MODULE_ENDS.sub('/', named[-1])}/" if named else ""


def save(model: onnx.ModelProto, path: Path, *, split_above: int = SPLIT_ABOVE) -> None:
    """Writes a graph, with its weights beside it where it is large."""
    # Not ByteSize, which fails where protobuf does.
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= split_above:
        onnx.save(model, path)
        return
    # Small constants stay inside: shape inference reads them.
    onnx.save(model, path, save_as_external_data=True, location=data_of(path).name, size_threshold=1024)
