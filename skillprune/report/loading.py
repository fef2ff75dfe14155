"""How a pruned checkpoint is loaded, by the form it is written in: the lines of Python and the words around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from skillprune.recipe import Form

Kind = Literal["text-classification", "masked-lm", "causal-lm", "language-modeling", "seq2seq"]

PIPELINES: dict[Kind, str] = {
    "text-classification": "text-classification",
    "masked-lm": "fill-mask",
    "causal-lm": "text-generation",
    "language-modeling": "text-generation",
    "seq2seq": "text2text-generation",
}
"""Under which name transformers and the hub file models of a kind."""

HEADING = "## How to load it"


@dataclass(frozen=True)
class _Way:
    """What a form asks of whoever loads it.

    Attributes:
        need: what to know or to install first.
        plugin: line of Python before the others, if any.
        option: what the call takes beside the directory.
        limit: what to expect of it.
    """

    need: str
    plugin: str = ""
    option: str = ""
    limit: str = ""


_STOPS = "loading stops on a size mismatch"
_WAYS: dict[Form, _Way] = {
    "uniform": _Way("Plain transformers is enough; skillprune is not needed."),
    "per-layer": _Way(
        "The layers differ in width, which transformers alone cannot load. Install the plugin first:\n\n"
        "```sh\npip install skillprune\n```",
        plugin="import skillprune  # lets from_pretrained rebuild layers of different widths\n",
        limit=f"Without the import {_STOPS}. Programs that do not use skillprune, serving engines among them, cannot "
        "load these widths.",
    ),
    "padded": _Way(
        "Plain transformers is enough; skillprune is not needed.",
        limit="Narrow layers are filled up with neurons that do nothing, to a width that a stock config can say. The "
        "outputs are exact; size and speed are those of the filled layers.",
    ),
    "auto_map": _Way(
        "The layers differ in width. `modeling_skillprune.py` in this directory builds them; read it before you trust "
        "it. skillprune is not needed.",
        option=", trust_remote_code=True",
        limit=f"Without `trust_remote_code=True` {_STOPS}. Programs that run no code of a checkpoint cannot load it.",
    ),
}


def loading_code(form: Form, kind: Kind) -> str:
    """The lines that load a checkpoint with its tokenizer, from the directory that ``model/`` is in."""
    way = _WAYS[form]
    if kind == "seq2seq":  # transformers 5 has no pipeline for it
        return (
            f"{way.plugin}from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n"
            f'tokenizer = AutoTokenizer.from_pretrained("model")\n'
            f'model = AutoModelForSeq2SeqLM.from_pretrained("model"{way.option})\n'
            'written = model.generate(**tokenizer("a text", return_tensors="pt"), max_new_tokens=50)'
        )
    name = PIPELINES[kind]
    return f'{way.plugin}from transformers import pipeline\nmodel = pipeline("{name}", model="model"{way.option})'


def class_code(form: Form, loader: str, directory: str) -> str:
    """The lines that load the bare model through a class of transformers."""
    way = _WAYS[form]
    return f'{way.plugin}from transformers import {loader}\nmodel = {loader}.from_pretrained("{directory}"{way.option})'


def loading_section(form: Form, code: str) -> str:
    """The section of a model card: what is needed, the lines that load it, and what to expect."""
    way = _WAYS[form]
    parts = [HEADING, way.need, f"```python\n{code}\n```", "`model` is this directory, or its id on a hub.", way.limit]
    return "\n\n".join(part for part in parts if part)


def with_loading_section(card: str, section: str) -> str:
    """A model card with this section in the place of the one it has, or behind what it says."""
    before, heading, after = card.partition(f"{HEADING}\n")
    if not heading:
        return f"{card.rstrip()}\n\n{section}\n" if card.strip() else f"{_NO_CARD}\n\n{section}\n"
    _, following, rest = after.partition("\n## ")
    return f"{before}{section}\n{following}{rest}"


_NO_CARD = "---\nlibrary_name: transformers\ntags:\n- skillprune\n- pruned\n---\n\n# Pruned with skillprune"
