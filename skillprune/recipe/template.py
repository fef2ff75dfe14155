"""What a prompt template says and what can be wrong with it; filling it in is left to tasks."""

from __future__ import annotations

import string
from collections.abc import Sequence

MASK = "mask"
"""Name of the placeholder that a masked language model fills in."""


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """The template as literal texts, each with the name of the placeholder that follows it, or none.

    Braces mean what they mean to ``str.format``; doubled ones are literal. A placeholder is its name and nothing else.

    Raises:
        ValueError: A brace is never closed or never opened.
    """
    parts = []
    for literal, name, form, conversion in string.Formatter().parse(template):
        written = f"{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
        parts.append((literal, None if name is None else written))
    return parts


def check_template(template: str, columns: Sequence[str], *, masked: bool) -> str:
    """``template`` unchanged.

    Args:
        template: Literal text with placeholders in braces.
        columns: The text columns; each needs its placeholder.
        masked: Whether there must be a ``{mask}``.

    Raises:
        ValueError: A placeholder is unknown, missing or repeated, or braces do not match.
    """
    try:
        given = [name for _, name in template_parts(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"cannot be read: {error}; literal braces are doubled: {{{{ }}}}") from error
    if masked and MASK in columns:
        raise ValueError(f"cannot tell the text column {MASK!r} from the mask; rename the column")
    wanted = [*columns, MASK] if masked else list(columns)
    for name in given:
        if name == MASK and name not in wanted:
            raise ValueError(f"has a {{{MASK}}}, but the answer of a causal language model follows the end; remove it")
        if name not in wanted:
            known = ", ".join(f"{{{each}}}" for each in wanted)
            raise ValueError(f"unknown placeholder {{{name}}}; there is {known}")
    for name in wanted:
        if given.count(name) != 1:
            found = "has no" if name not in given else f"has {given.count(name)} times"
            raise ValueError(f"{found} {{{name}}}; should have it once")
    return template
