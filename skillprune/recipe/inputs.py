"""The recipe sections that name the model and the examples; reading either of them is left to others."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from skillprune.recipe.base import DATA_SUFFIXES, Name, Spec, absolute, looks_like_path

BUILTIN = "builtin:"
BUILTIN_MODELS = ("reviews-tiny",)
BUILTIN_DATA = ("reviews",)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_DATA_FORMS = "should be files {train, validation, test}, a hub data set {hub, splits}, or builtin:reviews"


def _check_model_name(name: str) -> str:
    if name.startswith(BUILTIN):
        if name.removeprefix(BUILTIN) not in BUILTIN_MODELS:
            raise ValueError(f"unknown built-in model; there is {BUILTIN}{f', {BUILTIN}'.join(BUILTIN_MODELS)}")
        return name
    path = absolute(name)
    if os.path.isdir(path):
        return path
    if os.path.isfile(path):
        raise ValueError(f"is a file; should be the directory that holds config.json and the weights: {path}")
    if looks_like_path(name):
        raise ValueError(f"there is no such directory: {path}")
    if not _HUB_ID.fullmatch(name):
        raise ValueError("is neither an existing directory nor a hub id such as distilbert/distilbert-base-uncased")
    return name


class ModelSpec(Spec):
    """Which checkpoint to make smaller."""

    name: Annotated[Name, AfterValidator(_check_model_name)] = Field(
        description="A transformers directory, a hub id, or `builtin:reviews-tiny`, the embedded demo. "
        "A relative directory is looked up next to the recipe.",
        examples=["./my-model", "distilbert/distilbert-base-uncased-finetuned-sst-2-english", "builtin:reviews-tiny"],
    )
    revision: Name | None = Field(
        default=None, description="Branch, tag or commit of a hub id; null is its main branch.", examples=["main"]
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="Number format the model computes in; what is saved keeps the checkpoint's own format.",
    )
    device_map: Name | None = Field(
        default=None, description="Where transformers places the weights; null is one device.", examples=["auto"]
    )

    @field_validator("revision")
    @classmethod
    def _only_on_the_hub(cls, revision: str | None, info: ValidationInfo) -> str | None:
        name = info.data.get("name", "")
        if revision is not None and (os.path.isabs(name) or name.startswith(BUILTIN)):
            raise ValueError("only a hub id has revisions; remove it or name a hub id")
        return revision


def _model_from_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


ModelField = Annotated[ModelSpec, BeforeValidator(_model_from_name, json_schema_input_type=Name | ModelSpec)]


def _check_data_file(path: Path) -> Path:
    found = absolute(str(path))
    if Path(found).suffix.lower() not in DATA_SUFFIXES:
        raise ValueError(f"unknown kind of file; should end in {', '.join(DATA_SUFFIXES)}")
    if not os.path.isfile(found):
        raise ValueError(f"there is no such file: {found}")
    return Path(found)


DataFile = Annotated[Path, AfterValidator(_check_data_file)]


class FileData(Spec):
    """Examples in files: CSV, TSV, JSON lines or Parquet."""

    train: DataFile = Field(
        description="File of training examples; calibration examples are drawn from it. Relative to the recipe.",
        examples=["data/train.csv"],
    )
    validation: DataFile | None = Field(
        default=None,
        description="File of examples for choices; null carves a fifth of train.",
        examples=["data/dev.csv"],
    )
    test: DataFile = Field(description="File of examples that are read once, at the end.", examples=["data/test.csv"])

    @field_validator("validation", "test")
    @classmethod
    def _own_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        for split, other in info.data.items():
            if path is not None and other is not None and os.path.samefile(path, other):
                raise ValueError(f"is the same file as {split}; every split needs its own examples")
        return path


class HubSplits(Spec):
    """Split expressions of a hub data set."""

    train: Name = Field(
        default="train", description="Split that calibration examples are drawn from.", examples=["train"]
    )
    validation: Name | None = Field(
        default=None, description="Split for choices; null carves a fifth of train.", examples=["train[90%:]"]
    )
    test: Name = Field(
        default="test", description="Labelled split that is read once, at the end.", examples=["validation"]
    )

    @field_validator("validation", "test")
    @classmethod
    def _own_split(cls, expression: str | None, info: ValidationInfo) -> str | None:
        for split, other in info.data.items():
            if expression is not None and expression == other:
                raise ValueError(f"is the same split as {split}; every split needs its own examples")
        return expression


class HubData(Spec):
    """Examples of a data set on the Hugging Face hub."""

    hub: Name = Field(description="Id of the data set.", examples=["stanfordnlp/sst2"])
    config: Name | None = Field(
        default=None, description="Configuration of the data set, if it has any.", examples=["sst2"]
    )
    revision: Name | None = Field(default=None, description="Branch, tag or commit of the data set.", examples=["main"])
    splits: HubSplits = Field(default_factory=HubSplits, description="Which splits to read.")


class BuiltinData(Spec):
    """Examples that skillprune generates itself."""

    name: Literal["reviews"] = Field(description="Name of the built-in data set.")

    @model_serializer
    def _short(self) -> str:
        return f"{BUILTIN}{self.name}"


def _builtin_from_name(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    name = value.removeprefix(BUILTIN)
    if name == value:
        raise ValueError(_DATA_FORMS)
    if name not in BUILTIN_DATA:
        raise ValueError(f"unknown built-in data; there is {BUILTIN}{f', {BUILTIN}'.join(BUILTIN_DATA)}")
    return {"name": name}


def _kind_of_data(value: Any) -> str | None:
    if isinstance(value, (str, BuiltinData)):
        return "<builtin>"
    if isinstance(value, HubData) or (isinstance(value, Mapping) and "hub" in value):
        return "<hub>"
    return "<files>" if isinstance(value, (FileData, Mapping)) else None


#: The tags that pydantic puts into an error's location, and the section each stands for.
DATA_KINDS: dict[str, type[Spec]] = {"<builtin>": BuiltinData, "<hub>": HubData, "<files>": FileData}

_BuiltinField = Annotated[
    BuiltinData, BeforeValidator(_builtin_from_name, json_schema_input_type=Literal["builtin:reviews"])
]
DataField = Annotated[
    Annotated[FileData, Tag("<files>")] | Annotated[HubData, Tag("<hub>")] | Annotated[_BuiltinField, Tag("<builtin>")],
    Discriminator(_kind_of_data, custom_error_type="data_forms", custom_error_message=_DATA_FORMS),
]
