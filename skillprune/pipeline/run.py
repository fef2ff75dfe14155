"""Chains the stages of a recipe; every stage reads values and leaves values, and the run directory keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from skillprune.answers import label_names
from skillprune.benchmark import Latency, Subject, check_provider, environment, measure_latency, open_session
from skillprune.checkpoint import load_model, load_source, save_pruned, verify_reload
from skillprune.data import Batch, load_splits
from skillprune.errors import DataError, Problem, RecipeError
from skillprune.evaluation import METRICS, Predictor, compare, predict_split, torch_predictor
from skillprune.export import export_onnx
from skillprune.families import find_ffns
from skillprune.pipeline.detection import batches_of, detection
from skillprune.pipeline.directory import RunDirectory, replacing, write_text
from skillprune.pipeline.history import history_of
from skillprune.pipeline.inputs import PARITY_SHAPES, check_shapes, parity_inputs, random_inputs
from skillprune.pipeline.planner import EXPORTED, Planner, float32_model
from skillprune.pipeline.processes import is_main, join_processes
from skillprune.pipeline.recoverer import losses_of, recoverer
from skillprune.pipeline.results import Exports, Quality, Recovered
from skillprune.planning import Prediction, PruningPlan, layers_of, load_plan, plan_to_json
from skillprune.progress import Progress, silent
from skillprune.prompts import Prompted, PromptSettings, load_prompt, save_prompt
from skillprune.recipe import Recipe
from skillprune.repair import LayerError
from skillprune.scoring import NeuronScores, ScoringData, load_scores, of_main, save_scores
from skillprune.tasks import resolve_task

Inputs = Mapping[str, NDArray[np.int64]]


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
        check_provider(recipe.benchmark.provider)
        self.source = load_source(
            recipe.model,
            task_type=recipe.task.type,
            target_tokenizer=recipe.task.target_tokenizer,
            progress=self.progress,
        )
        # Before the data is read: an unknown architecture or a layer that does not exist.
        layers_of(find_ffns(self.source.model), round_to=recipe.plan.round_to, keep_layers=recipe.plan.keep_layers)
        if recipe.task.type == EXPORTED:
            check_shapes(self.source.tokenizer, recipe.benchmark.shapes)
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
        """ONNX files of the dense and of the pruned model, each proven against PyTorch."""
        assert self.recovered is not None  # the final checkpoint is there
        paths = [self.directory.path / "onnx" / name / "model.onnx" for name in ("dense/fp32", "fp32")]
        found = self.directory.stage("export", Exports, lambda: self._export(*paths), paths)
        # The directory may have been moved, or be called by another name, since the files were made.
        return Exports(replace(found.dense, path=paths[0]), replace(found.pruned, path=paths[1]))

    @cached_property
    def latency(self) -> Latency:
        """Dense against pruned in ONNX Runtime, interleaved, with an identical-pair control."""
        exports = self.exports
        return self.directory.stage("bench", Latency, lambda: self._bench(exports))

    @cached_property
    def quality(self) -> Quality:
        """The test split, read here and only here, once everything is decided."""
        exports, _ = self.exports, self.latency
        return self.directory.stage("test", Quality, lambda: self._test(exports))

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
        model = load_model(self._pruned_path, dtype="float32", device_map=self.recipe.model.device_map)
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
        """Writes a checkpoint that has been proven to reload; the model is in float32 afterwards."""
        with replacing(path) as fresh:
            form, history = self.recipe.checkpoint.format, history_of(self.recipe, self.source, self.plan)
            save_pruned(model, self.source.tokenizer, fresh, dtype=self.source.dtype, form=form, history=history)
            self.progress("reload in a fresh process", 0, 1)
            verify_reload(model, fresh, self._inputs(*PARITY_SHAPES[1], padded=True))
            self.progress("reload in a fresh process", 1, 1)

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

    def _export(self, dense_path: Path, pruned_path: Path) -> Exports:
        inputs = parity_inputs(self.source.model, self.source.tokenizer, seed=self.recipe.seed)
        self.progress("export", 0, 2)
        dense = export_onnx(float32_model(self.recipe, "eager"), inputs, dense_path)
        self.progress("export", 1, 2)
        pruned = export_onnx(self._final_model("eager"), inputs, pruned_path)
        self.progress("export", 2, 2)
        return Exports(dense, pruned)

    def _bench(self, exports: Exports) -> Latency:
        spec = self.recipe.benchmark
        return measure_latency(
            [Subject("dense", "fp32", exports.dense.path), Subject("pruned", "fp32", exports.pruned.path)],
            spec.shapes,
            self._inputs,
            threads=spec.threads,
            provider=spec.provider,
            rounds=spec.rounds,
            seed=self.recipe.seed,
            progress=self.progress,
        )

    def _test(self, exports: Exports) -> Quality:
        predictors = {
            "dense": torch_predictor(float32_model(self.recipe, "sdpa")),
            "pruned": torch_predictor(load_model(self._pruned_path, dtype="float32")),
            "onnx": self._onnx_predictor(exports.pruned.path),
        }
        if self.recovered.training is not None:
            predictors["recovered"] = torch_predictor(self._final_model())
        answers = {
            name: predict_split(predict, self._test_batches, what=f"test ({name})", progress=self.progress)
            for name, predict in predictors.items()
        }
        measure = METRICS[self.task.metric]
        return Quality(
            **{name: measure(given.labels, given.predicted) for name, given in answers.items()},
            comparison=compare(answers["dense"], answers["onnx"], metric=self.task.metric, seed=self.recipe.seed),
        )

    def _onnx_predictor(self, path: Path) -> Predictor:
        spec = self.recipe.benchmark
        session = open_session(path, threads=spec.threads, provider=spec.provider)
        names = {given.name for given in session.get_inputs()}

        def predict(batch: Batch) -> NDArray[np.float32]:
            logits: NDArray[np.float32] = session.run(
                ["logits"], {name: tensor.numpy() for name, tensor in batch.inputs.items() if name in names}
            )[0]
            return logits

        return predict

    def _final_model(self, attention: Literal["eager", "sdpa"] = "sdpa") -> PreTrainedModel:
        return load_model(self._model_path, dtype="float32", attention=attention)

    def _refuse_unprunable(self) -> None:
        """Models without a classification head, or with weights elsewhere, are scored and planned for, and no more."""
        if any(parameter.device.type == "meta" for parameter in self.source.model.parameters()):
            wanted = "leaves weights outside the devices that compute; pruning needs them there"
            raise RecipeError([self.recipe.located(Problem("model.device_map", "", wanted))])
        if self.task.type != EXPORTED:
            wanted = f"only {EXPORTED} is pruned and exported; `skillprune score` and `plan` work for this kind"
            raise RecipeError([self.recipe.located(Problem("task.type", self.task.type, wanted))])

    def _inputs(self, batch: int, sequence: int, *, padded: bool = False) -> Inputs:
        source = self.source
        return random_inputs(source.model, source.tokenizer, batch, sequence, seed=self.recipe.seed, padded=padded)


def _files_of(checkpoint: Path) -> list[Path]:
    """The files without which a checkpoint is none."""
    return [checkpoint / "config.json", checkpoint / "model.safetensors"]
