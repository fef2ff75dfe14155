"""The report of a run: its schema, its JSON file, and the pages a person reads; measuring is left to other rooms."""

from skillprune.report.files import read_report, write_json, write_text
from skillprune.report.loading import class_code, loading_section, with_loading_section
from skillprune.report.markdown import render_markdown, render_summary
from skillprune.report.model_card import render_model_card
from skillprune.report.schema import SCHEMA_VERSION, Report, report_schema
from skillprune.report.sections import (
    Artifact,
    Best,
    ControlRow,
    Demand,
    Environment,
    ExpectedTime,
    LatencyRow,
    LayerRepair,
    MetricValues,
    Model,
    Planned,
    Quality,
    RetunedPrompt,
    Scoring,
    SplitSizes,
    StackWidths,
    Stage,
    TaskFacts,
    Training,
    Verdict,
)

__all__ = [
    "SCHEMA_VERSION",
    "Artifact",
    "Best",
    "ControlRow",
    "Demand",
    "Environment",
    "ExpectedTime",
    "LatencyRow",
    "LayerRepair",
    "MetricValues",
    "Model",
    "Planned",
    "Quality",
    "Report",
    "RetunedPrompt",
    "Scoring",
    "SplitSizes",
    "StackWidths",
    "Stage",
    "TaskFacts",
    "Training",
    "Verdict",
    "class_code",
    "loading_section",
    "read_report",
    "render_markdown",
    "render_model_card",
    "render_summary",
    "report_schema",
    "with_loading_section",
    "write_json",
    "write_text",
]
