"""Writes recipe-reference.md from the schema of recipes; what the keys mean is said in the schema, nowhere else.

python docs/generate_recipe_reference.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skillprune.recipe import recipe_schema

PAGE = Path(__file__).with_name("recipe-reference.md")

HEAD = """\
# Recipe reference

Every key of a recipe, generated from its schema by `docs/generate_recipe_reference.py`. `skillprune schema` prints the
schema itself, which editors use to complete and check YAML. `skillprune validate RECIPE` checks a recipe and prints it
with every default filled in. The [guide](guide.md) says how to choose.

Unknown keys, wrong types and values out of range are errors with file, line and column, all at once. Relative paths are
relative to the recipe file, those given with `--set key.path=value` to the working directory.
"""

FORMS = {
    "ModelSpec": "`model` as a mapping; a plain string is its `name`.",
    "FileData": "`task.data` as files.",
    "HubData": "`task.data` as a data set of the Hugging Face hub.",
    "HubSplits": "`task.data.splits` of a hub data set: split expressions of the datasets library.",
    "HubSplit": "`recovery.data` as one split of a data set of the Hugging Face hub.",
}
"""Sections that are one of several forms of their key, by the name of their definition."""

KINDS = {"FileData": "files", "HubData": "hub data set"}
"""What tells sections of the same key apart."""

Schema = Mapping[str, Any]


_PLAIN = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
    "null": "null",
}


def render() -> str:
    """The whole page, ending with a newline."""
    schema = recipe_schema()
    parts = [HEAD, f"## Top level\n\n{_table(schema, schema)}\n"]
    for path, name in _sections(schema, schema, ""):
        section = schema["$defs"][name]
        parts.append(f"## {path}\n\n{FORMS.get(name, section['description'])}\n\n{_table(section, schema)}\n")
    return "\n".join(parts)


def _sections(section: Schema, root: Schema, above: str) -> Iterator[tuple[str, str]]:
    """Title and definition of every section below ``section``, in the order of the schema."""
    for key, field in section["properties"].items():
        names = [form["$ref"].rpartition("/")[2] for form in _forms(field) if "$ref" in form]
        for name in names:
            suffix = f" ({KINDS[name]})" if len(names) > 1 else ""
            yield f"{above}{key}{suffix}", name
            yield from _sections(root["$defs"][name], root, f"{above}{key}.")


def _forms(field: Schema) -> list[Schema]:
    choices = field.get("anyOf") or field.get("oneOf")
    return [field] if choices is None else [form for choice in choices for form in _forms(choice)]


def _table(section: Schema, root: Schema) -> str:
    required = section.get("required", ())
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in section["properties"].items():
        default = "required" if key in required else _default(field)
        rows.append(f"| `{key}` | {_type(field)} | {default} | {_meaning(field, root)} |")
    return "\n".join(rows)


def _default(field: Schema) -> str:
    return f"`{_yaml(field['default'])}`" if "default" in field else "see below"


def _meaning(field: Schema, root: Schema) -> str:
    text: str = field.get("description") or root["$defs"][field["$ref"].rpartition("/")[2]]["description"]
    examples = ", ".join(f"`{_yaml(example)}`" for example in field.get("examples", ()))
    return _cell(f"{text} For example {examples}." if examples else text)


def _type(field: Schema) -> str:
    return _cell(" or ".join(dict.fromkeys(_form(form) for form in _forms(field))))


def _form(form: Schema) -> str:
    if "$ref" in form:
        return "mapping"
    if "const" in form:
        return f"`{_yaml(form['const'])}`"
    if "enum" in form:
        return ", ".join(f"`{choice}`" for choice in form["enum"])
    if form["type"] == "array":
        return _array(form)
    plain = _PLAIN[form["type"]]
    plain = "path" if form.get("format") == "path" else plain
    return f"{plain}{_bounds(form)}"


def _array(form: Schema) -> str:
    if "prefixItems" in form:
        return f"[{', '.join(_form(item) for item in form['prefixItems'])}]"
    least, most = form.get("minItems", 0), form.get("maxItems")
    number = f" ({least} to {most})" if most else f" (at least {least})" if least else ""
    return f"list{number}, each {_form(form['items'])}"


def _bounds(form: Schema) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {form[key]}" for key, sign in words.items() if key in form)
    return f" {bounds}" if bounds else ""


def _yaml(value: Any) -> str:
    """A value as it would stand in a recipe, in flow style."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
