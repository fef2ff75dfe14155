"""Chains the stages of a recipe; every stage reads values and leaves values, and the run directory keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

from transformers import PreTrainedModel

from skillprune.answers import label_names
from skillprune.benchmark import Latency, check_start, environment
from skillprune.checkpoint import Attention, load_model, load_source
from skillprune.data import load_splits
from skillprune.errors import DataError, Problem, RecipeError
from skillprune.evaluation import Outcome, compare, judge_split
from skillprune.families import find_ffns
from skillprune.pipeline.choice import Choice, choose
from skillprune.pipeline.detection import batches_of, detection
from skillprune.pipeline.directory import RunDirectory, replacing, write_text
from skillprune.pipeline.exporter import Exporter, check_exportable, check_exporters
from skillprune.pipeline.planner import Planner, float32_model
from skillprune.pipeline.processes import is_main, join_processes
from skillprune.pipeline.recoverer import losses_of, recoverer
from skillprune.pipeline.results import Exports, PartTime, Quality, Recovered
from skillprune.pipeline.saving import check_form, save_checkpoint
from skillprune.planning import Prediction, PruningPlan, layers_of, load_plan, plan_to_json
from skillprune.progress import Progress, silent
from skillprune.prompts import Prompted, PromptSettings, load_prompt, save_prompt
from skillprune.recipe import Recipe
from skillprune.repair import LayerError
from skillprune.scoring import NeuronScores, ScoringData, load_scores, of_main, save_scores
from skillprune.tasks import resolve_task


class Run:
    """One recipe at work in one directory. Every property is a stage: asking for it does what it needs first.

    Creating it loads the model and the data and checks everything that can be checked, and writes nothing.

    Attributes:
        recipe: the request.
        directory: where results go.
        source: the dense model.
        task: the resolved task.
        splits: its examples.
    """

    def __init__(self, recipe: Recipe, output: Path, *, cache: bool = True, progress: Progress = silent) -> None:
        """Loads and checks.

        Raises:
            SkillPruneError: the recipe, the data, the model or the output directory is not usable; nothing is written.
        """
        join_processes()
        self._helped = False
        self.recipe, self.progress = recipe, progress if is_main() else silent
        self.directory = RunDirectory(output, recipe, cache=cache)
        try:
            self._prepare(recipe, cache)
        except RecipeError as error:  # what only model and data show is wrong has a place in the recipe too
            raise RecipeError([recipe.located(problem) for problem in error.problems]) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if is_main() and not self._helped:
            of_main(False)

    @property
    def is_helper(self) -> bool:
        """Whether torchrun started this process beside the main one, to score a share of the batches."""
        return not is_main()

    def help(self) -> None:
        """Waits for the main process and, if it scores, takes a share of the batches."""
        if of_main(False):
            assert self.scores

    def _prepare(self, recipe: Recipe, cache: bool) -> None:
        if recipe.is_exported:
            check_start(recipe.benchmark.provider)
            check_exporters(recipe)
        self.source = load_source(
            recipe.model,
            task_type=recipe.task.type,
            target_tokenizer=recipe.task.target_tokenizer,
            progress=self.progress,
        )
        # Before the data is read: an unknown architecture or a layer that does not exist.
        layers_of(find_ffns(self.source.model), round_to=recipe.plan.round_to, keep_layers=recipe.plan.keep_layers)
        check_form(recipe, self.source.model)
        if recipe.is_exported:
            check_exportable(recipe, self.source)
        self.task = resolve_task(recipe.task, label_names(self.source.model))
        self.splits = load_splits(self.task, examples=recipe.scoring.examples, seed=recipe.seed)
        calibration, validation, self._test_batches = (
            batches_of(examples, self.source, self.task, recipe.scoring.batch_size)
            for examples in (self.splits.calibration, self.splits.validation, self.splits.test)
        )
        self.data_fingerprint = self.splits.fingerprint()
        data = ScoringData(calibration, validation)
        self._detection = detection(recipe, self.source, self.task, data, self.data_fingerprint)
        self._detection.check()
        self._planner = Planner(recipe, self.source, self._detection, self.task.metric, cache, self.progress)
        self._planner.check()
        self._recoverer = recoverer(recipe, self.source, self.task, self.splits, self._detection, self.progress)
        self._recoverer.check()
        # The machine and the versions count too: a time measured elsewhere must not be reported as measured here.
        self.directory.depend_on(self.source.fingerprint, self.data_fingerprint, json.dumps(environment()))

    def predict(self) -> Prediction:
        """Widths, parameters, MACs and times the plan will have; nothing is scored or written."""
        return self._planner.predict()

    @cached_property
    def scores(self) -> tuple[NeuronScores, ...]:
        """Importance of every neuron, under the criterion that decides and those computed beside it.

        The one stage that all processes of a group share.

        Raises:
            DataError: the scores in the directory are of another model or task.
        """
        if is_main():
            self._helped = of_main(True)
        path, prompts = self.directory.path / "scores.safetensors", self.prompts
        done = of_main(self.directory.is_done("score", [path]))
        if is_main():
            self.directory.stage("score", None, lambda: self._score(prompts, path), [path])
        elif not done:
            self._detection.scores(prompts, silent)
        of_main(None)  # nobody reads before the main process has written
        scores = load_scores(path)
        for score in scores:
            score.refuse_others(self._detection.provenance)
        return scores

    @cached_property
    def prompts(self) -> tuple[Prompted, ...]:
        """The model with each of the soft prompts that were tuned for scoring; none unless the recipe asks for them."""
        paths = {self._prompt_path(tuning): tuning for tuning in self._detection.tunings()}
        if paths and is_main():
            self.directory.stage("prompt", None, lambda: self._tune(paths), list(paths))
        of_main(None)
        return tuple(load_prompt(self._detection.subject, path) for path in paths)

    @cached_property
    def plan(self) -> PruningPlan:
        """Which neurons stay."""
        path = self.directory.path / "plan.json"
        decisive = self._decisive()

        def compute() -> None:
            write_text(path, plan_to_json(self._planner.plan(decisive)))

        self.directory.stage("plan", None, compute, [path])
        return load_plan(path)

    @cached_property
    def errors(self) -> tuple[LayerError, ...]:
        """The pruned checkpoint, written and proven to reload; the value is the repair's error per layer."""
        self._refuse_unprunable()
        plan, path = self.plan, self._pruned_path
        return self.directory.stage("prune", tuple[LayerError, ...], lambda: self._prune(plan, path), _files_of(path))

    @cached_property
    def recovered(self) -> Recovered:
        """The checkpoint and the soft prompts after training, if the recipe asks for any; nothing is done otherwise."""
        assert self.errors is not None  # the pruned checkpoint is there
        spec, prompts = self.recipe.recovery, self.prompts if self.recipe.recovery.prompt else ()
        written = {each: self._prompt_path(each.prompt.settings, "-recovered") for each in prompts}
        outputs = [*(_files_of(self._model_path) if spec.epochs else ()), *written.values()]
        if not outputs:
            return Recovered()
        self.directory.depend_further_on(self._recoverer.fingerprint)
        found = self.directory.stage("recover", Recovered, lambda: self._recover(written), outputs)
        self.directory.finish("recover")
        return found

    @cached_property
    def exports(self) -> Exports:
        """ONNX files of the dense and of the pruned model, each proven against what it was made from.

        Raises:
            RecipeError: models of this kind are not exported.
        """
        self._refuse_unexported()
        assert self.recovered is not None  # the final checkpoint is there
        exporter = self._exporter
        export = lambda: exporter.export(self._final_model)  # noqa: E731
        are_there = lambda found: exporter.here(found).are_there  # noqa: E731
        found = self.directory.stage("export", Exports, export, list(exporter.paths), is_whole=are_there)
        return exporter.here(found)

    @cached_property
    def latency(self) -> Latency:
        """Dense against pruned in ONNX Runtime, interleaved, with an identical-pair control."""
        exports = self.exports
        return self.directory.stage("bench", Latency, lambda: self._exporter.bench(exports))

    @cached_property
    def choice(self) -> Choice:
        """The variant that is shipped."""
        return choose(self.exports, self.latency, least=self.recipe.demand.min_speedup)

    @cached_property
    def profile(self) -> tuple[PartTime, ...]:
        """Where the time of the dense and of the shipped file goes."""
        exports, shipped = self.exports, self.choice.variant
        profile = lambda: self._exporter.profile(exports, shipped)  # noqa: E731
        return self.directory.stage("profile", tuple[PartTime, ...], profile)

    @cached_property
    def quality(self) -> Quality:
        """The test split, read here and only here, once everything is decided."""
        assert self.recovered is not None  # the final checkpoint is there
        if self.recipe.is_exported:
            _ = self.exports, self.latency, self.profile
        return self.directory.stage("test", Quality, self._test)

    def _decisive(self) -> NeuronScores:
        name = self.recipe.scoring.criterion
        for scores in self.scores:
            if scores.criterion == name:
                return scores
        raise DataError(f"{self.directory.path / 'scores.safetensors'} holds no scores of {name}; score again")

    def _score(self, prompts: Sequence[Prompted], path: Path) -> None:
        scores = self._detection.scores(prompts, self.progress)
        with replacing(path) as fresh:
            save_scores(scores, fresh)

    def _tune(self, paths: Mapping[Path, PromptSettings]) -> None:
        for path, tuning in paths.items():
            prompted = self._detection.tune(tuning, self.progress)
            with replacing(path) as fresh:
                save_prompt(prompted, fresh)

    def _prune(self, plan: PruningPlan, path: Path) -> tuple[LayerError, ...]:
        model = self._planner.dense()
        errors = self._planner.repair_(model, plan)
        self._save(model, path)
        return errors

    def _recover(self, paths: Mapping[Prompted, Path]) -> Recovered:
        # Where the dense model is, and in float32: what it is saved in is too coarse for small steps.
        kind, device_map = self.recipe.task.type, self.recipe.model.device_map
        model = load_model(self._pruned_path, task_type=kind, dtype="float32", device_map=device_map)
        training = None
        if self.recipe.recovery.epochs:
            training = self._recoverer.train_(model, self.directory.unfinished("recover"))
            self._save(model, self._model_path)
        tuned = {path: self._recoverer.tune_again(model, prompted) for prompted, path in paths.items()}
        for path, prompted in tuned.items():
            with replacing(path) as fresh:
                save_prompt(prompted, fresh)
        return Recovered(training, sum(map(len, self._recoverer.train)), losses_of(list(tuned.values())))

    def _save(self, model: PreTrainedModel, path: Path) -> None:
        batch = self._detection.data.calibration[0]
        save_checkpoint(model, path, self.recipe, self.source, self.plan, batch, self.progress)

    @property
    def _model_path(self) -> Path:
        """The final checkpoint."""
        return self.directory.path / "model"

    @property
    def _pruned_path(self) -> Path:
        """The pruned checkpoint without training, which is the final one if there is none."""
        return self.directory.path / "pruned" if self.recipe.recovery.epochs else self._model_path

    def _prompt_path(self, settings: PromptSettings, suffix: str = "") -> Path:
        return self.directory.path / "prompts" / f"seed-{settings.seed}{suffix}.safetensors"

    def _test(self) -> Quality:
        """Models are asked one after the other, each loaded anew; what is shipped is compared with the dense one."""
        device_map = self.recipe.model.device_map
        models: dict[str, Callable[[], PreTrainedModel]] = {
            "dense": lambda: float32_model(self.recipe, "sdpa"),
            "pruned": lambda: self._load(self._pruned_path, device_map=device_map),
        }
        if self.recovered.training is not None:
            models["recovered"] = lambda: self._load(self._model_path, device_map=device_map)
        metric, subject = self.task.metric, self._detection.subject
        outcomes = {
            name: judge_split(
                replace(subject, model=load()),
                self._test_batches,
                metric,
                what=f"test ({name})",
                progress=self.progress,
            )
            for name, load in models.items()
        }
        *_, shipped = outcomes.values()
        files: dict[str, Outcome] = {}
        if self.recipe.is_exported:
            files = {each.name: self._exporter.judge(each, self._test_batches) for each in self.exports.variants}
            shipped = files[self.choice.variant]
        return Quality(
            **{name: outcome.value(metric) for name, outcome in outcomes.items()},
            onnx={name: outcome.value(metric) for name, outcome in files.items()},
            comparison=compare(outcomes["dense"], shipped, metric=metric, seed=self.recipe.seed),
        )

    @property
    def _exporter(self) -> Exporter:
        return Exporter(self.recipe, self.source, self._detection, self.directory.path / "onnx", self.progress)

    def _final_model(self, attention: Attention = "sdpa") -> PreTrainedModel:
        return self._load(self._model_path, attention)

    def _load(self, path: Path, attention: Attention = "sdpa", device_map: str | None = None) -> PreTrainedModel:
        kind = self.recipe.task.type
        return load_model(path, task_type=kind, dtype="float32", attention=attention, device_map=device_map)

    def _refuse_unprunable(self) -> None:
        """Models with weights elsewhere are scored and planned for, and no more."""
        if any(parameter.device.type == "meta" for parameter in self.source.model.parameters()):
            wanted = "leaves weights outside the devices that compute; pruning needs them there"
            raise RecipeError([self.recipe.located(Problem("model.device_map", "", wanted))])

    def _refuse_unexported(self) -> None:
        if not self.recipe.is_exported:
            wanted = "no ONNX file is asked for; export: {variants: [fp32]} asks for one"
            raise RecipeError([self.recipe.located(Problem("export.variants", "[]", wanted))])


def _files_of(checkpoint: Path) -> list[Path]:
    """The files without which a checkpoint is none; large ones come in several files and an index of them."""
    index = checkpoint / "model.safetensors.index.json"
    return [checkpoint / "config.json", index if index.exists() else checkpoint / "model.safetensors"]
