"""The shape of ``report.json``, version 1, and its JSON schema; filling it and rendering it are done elsewhere."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, Field

from skillprune.report.sections import (
    Artifact,
    Best,
    CandidateRow,
    ControlRow,
    Environment,
    LatencyRow,
    LayerRepair,
    Model,
    Planned,
    ProfileRow,
    Quality,
    RetunedPrompt,
    Scoring,
    Section,
    Stage,
    TaskFacts,
    Training,
    Verdict,
)

SCHEMA_VERSION = 1


class Report(Section):
    """A whole run, condensed; ``report.md`` and the model card are views of it."""

    schema_version: Literal[1] = Field(description="Version of this layout.")
    skillprune_version: str = Field(description="Version of skillprune that wrote the report.")
    created: AwareDatetime = Field(description="When the report was written, ISO 8601 with time zone.")
    seed: int = Field(description="The recipe's seed.")
    environment: Environment = Field(description="Machine and versions.")
    model: Model = Field(description="What was pruned, and how much is left.")
    task: TaskFacts = Field(description="The task it was pruned for.")
    scoring: Scoring = Field(description="How neurons were ranked.")
    quality: Quality = Field(description="What it cost on the test split.")
    artifacts: tuple[Artifact, ...] = Field(description="Exported files of the pruned model.")
    best: Best | None = Field(description="The variant chosen, and why; null where nothing is exported.")
    latency: tuple[LatencyRow, ...] = Field(description="Measured times, one row per subject, variant and shape.")
    controls: tuple[ControlRow, ...] = Field(description="The identical-pair (A/A) control of every shape.")
    repair: dict[str, tuple[LayerRepair, ...]] = Field(description="Reconstruction errors per layer, by stack name.")
    stages: tuple[Stage, ...] = Field(description="Steps of the run in order.")
    verdict: Verdict = Field(description="What was demanded and what failed it.")
    repair_method: str | None = Field(
        default=None, description="Repair method: zero, mean or least_squares. Additional, optional."
    )
    plan: Planned | None = Field(
        default=None, description="What was asked of the plan, and what it expected. Additional, optional."
    )
    recovery: Training | None = Field(
        default=None, description="Training after pruning; null without it. Additional, optional."
    )
    candidates: tuple[CandidateRow, ...] = Field(
        default=(),
        description="Files that competed to be the fp32 ones, fastest first, and what could not be made. Additional, "
        "optional.",
    )
    isolation: str | None = Field(
        default=None, description="What subjects shared while they were timed. Additional, optional."
    )
    profile: tuple[ProfileRow, ...] = Field(
        default=(), description="Time of every part of the dense and of the shipped file. Additional, optional."
    )
    prompts: tuple[RetunedPrompt, ...] = Field(
        default=(), description="Soft prompts tuned again on the pruned model. Additional, optional."
    )


def report_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of ``report.json``; ``docs/report.schema.json`` is its published copy."""
    title = f"skillprune report, version {SCHEMA_VERSION}"
    schema = Report.model_json_schema(mode="validation")
    return {**schema, "$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
