"""Soft prompts on frozen models: how well a tuned prompt solves a task, and which neurons predict at its slots.

``heads``: MiniLM's pretrained body with a new head, frozen but for prompt and head, on SST-2 and TREC; beside it the
same head without a prompt, and the checkpoints that were fine-tuned as a whole. ``masked-lm``: a small masked language
model that this script pretrains on short generated reviews and then asks for the sentiment with label words. Each text
goes on with a second sentence, "it was" and an adjective, which agrees with the first in nine of ten, as the sentences
of one reviewer do, and which the model learns to fill in, as salient words are in other pretraining (Guu et al., 2020,
REALM). The label words never stand there. Test accuracy is read once per trial, after the validation loss chose the
epoch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from findings import body_data
from provenance import write_result
from samples import BODY, CHECKPOINTS, batches, spec
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    get_constant_schedule_with_warmup,
)

from skillprune import load_splits, make_batches, resolve_task
from skillprune.activations import Reading
from skillprune.answers import ClassAnswers, Classifier, TaskModel, Verbalizer
from skillprune.data import Batch, Example, label_word_ids
from skillprune.demo import reviews
from skillprune.demo.encoder import TRAINING, build_model, build_tokenizer
from skillprune.demo.words import ADJECTIVES
from skillprune.prompts import PromptSettings, tune_prompt
from skillprune.recipe import TaskSpec
from skillprune.scoring import NeuronScores, Provenance, ScoringData, combine_trials, score_neurons, settings_for

TOKENS, EPOCHS, LEARNING_RATE = 16, 4, 5e-3
EXAMPLES = 2048
HEAD_EPOCHS = 80  # more than the prompts get: the body runs only once for all of them
WORDS = {"negative": "bad", "positive": "good"}
TEMPLATE = "{text} it was {mask} ."
SHORT = 8  # words of a review that the masked language model reads
PRETRAINING_STEPS, PRETRAINING_BATCH, WARM_UP = 1500, 64, 100
COPIES, AGREES = 4, 0.9
MASKED_EPOCHS, MASKED_LEARNING_RATE = 20, 1e-2


def main() -> None:
    """Both parts, for every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=["heads", "masked-lm"])
    arguments = parser.parse_args()
    if arguments.only != "masked-lm":
        result = {task: with_head(task, arguments.seeds) for task in ("sst2", "trec")}
        write_result("soft-prompts-minilm", seeds=arguments.seeds, result=result)
    if arguments.only != "heads":
        write_result("soft-prompts-masked-lm", seeds=arguments.seeds, result=masked_lm(arguments.seeds))


def with_head(name: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Trials on one task of the pretrained body."""
    test = test_batches(name)
    trials, slots, pooled = [], [], []
    data, labels = body_data(name, seeds[0])
    for seed in seeds:
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            BODY, num_labels=len(labels), dtype=torch.float32
        ).eval()
        settings = PromptSettings(TOKENS, EPOCHS, LEARNING_RATE, seed, train_head=True)
        start = time.perf_counter()
        prompted = tune_prompt(Classifier(model), data.calibration, data.validation, settings)
        trials.append({"seed": seed, "seconds": time.perf_counter() - start, "losses": list(prompted.prompt.losses)})
        trials[-1] |= {"test_accuracy": accuracy(prompted, test), "head_alone": head_alone(model, data, test, settings)}
        slots.append(predictivity(prompted, data, labels, Reading("prompt"), TOKENS))
        pooled.append(predictivity(prompted, data, labels, Reading("mean"), 1))
        print(name, trials[-1], flush=True)
    return {
        "trials": trials,
        "fine_tuned_as_a_whole": accuracy(fine_tuned(name), test),
        "best_predictivity_per_layer": {
            "prompt slots": best(combine_trials(slots)),
            "mean over the text, with the prompt": best(combine_trials(pooled)),
            "mean over the text, without": best(predictivity(Classifier(model), data, labels, Reading("mean"), 1)),
        },
    }


def masked_lm(seeds: Sequence[int]) -> dict[str, Any]:
    """Trials with label words on a masked language model made here."""
    texts = reviews_that_go_on()
    tokenizer = build_tokenizer([*texts, *WORDS.values()], TRAINING.positions)
    model, loss = pretrained(texts, tokenizer)
    task = resolve_task(TaskSpec(type="masked-lm", data="builtin:reviews", template=TEMPLATE, label_words=WORDS), ())
    calibration, validation, test = (
        make_batches(examples, tokenizer, max_length=48, batch_size=32, task_type="masked-lm", template=task.template)
        for examples in map(short_examples, ("train", "validation", "test"))
    )
    data = ScoringData(calibration, validation)
    words = label_word_ids(tokenizer, task.label_words, task_type="masked-lm", template=task.template)
    subject = Verbalizer(model, words)
    trials, slots = [], []
    for seed in seeds:
        settings = PromptSettings(TOKENS, MASKED_EPOCHS, MASKED_LEARNING_RATE, seed)
        prompted = tune_prompt(subject, calibration, validation, settings, mask_token=tokenizer.mask_token_id)
        trials.append({"seed": seed, "losses": list(prompted.prompt.losses), "test_accuracy": accuracy(prompted, test)})
        slots.append(predictivity(prompted, data, task.labels, Reading("prompt"), TOKENS))
        print("masked-lm", trials[-1], flush=True)
    return {
        "pretraining": {"steps": PRETRAINING_STEPS, "last_loss": loss, "parameters": model.num_parameters()},
        "trials": trials,
        "without_prompt": accuracy(subject, test),
        "best_predictivity_per_layer": {
            "prompt slots": best(combine_trials(slots)),
            "mask, without a prompt": best(predictivity(subject, data, task.labels, Reading("mask"), 1)),
            "mean over the text, without": best(predictivity(subject, data, task.labels, Reading("mean"), 1)),
        },
    }


def short_reviews(split: str) -> list[dict[str, str]]:
    """The reviews of one split that are a single short statement."""
    return [row for row in reviews(split) if len(row["text"].split()) <= SHORT]


def short_examples(split: str) -> list[Example]:
    """The first of them, with the labels' numbers."""
    labels = list(WORDS)
    return [Example((row["text"],), labels.index(row["label"])) for row in short_reviews(split)[:EXAMPLES]]


def reviews_that_go_on() -> list[str]:
    """Short reviews of the training split, several times, each time with a second sentence drawn anew."""
    rng = np.random.default_rng(0)
    texts = []
    for row in short_reviews("train") * COPIES:
        praise = (row["label"] == "positive") == (rng.random() < AGREES)
        adjectives = [word for word in ADJECTIVES[praise] if word not in WORDS.values()]
        texts.append(f"{row['text']} it was {rng.choice(adjectives)} .")
    return texts


def head_alone(model: PreTrainedModel, data: ScoringData, test: Sequence[Batch], settings: PromptSettings) -> float:
    """Test accuracy of a head trained on the frozen body without a prompt; validation chooses its epoch too."""
    features = {split: pooled_states(model, getattr(data, split)) for split in ("calibration", "validation")}
    head = nn.Linear(model.config.hidden_size, model.config.num_labels)
    head.load_state_dict(model.classifier.state_dict())
    optimizer = torch.optim.Adam(head.parameters(), lr=settings.learning_rate)
    best_loss, best_state = float("inf"), head.state_dict()
    for _ in range(HEAD_EPOCHS):
        for states, labels in features["calibration"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(states), labels).backward()
            optimizer.step()
        with torch.no_grad():
            losses = [nn.functional.cross_entropy(head(x), y, reduction="sum") for x, y in features["validation"]]
        if float(sum(losses)) < best_loss:
            best_loss, best_state = float(sum(losses)), {key: value.clone() for key, value in head.state_dict().items()}
    head.load_state_dict(best_state)
    with torch.no_grad():
        right = [head(states).argmax(dim=1) == labels for states, labels in pooled_states(model, test)]
    return float(torch.cat(right).float().mean())


def pooled_states(model: PreTrainedModel, given: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
    """What the frozen body hands to the head, and the labels."""
    with torch.no_grad():
        return [(model.bert(**batch.inputs).pooler_output, batch.labels) for batch in given]


def fine_tuned(name: str) -> TaskModel:
    """The checkpoint that was fine-tuned for a task."""
    return Classifier(AutoModelForSequenceClassification.from_pretrained(CHECKPOINTS[name], dtype=torch.float32).eval())


def test_batches(name: str) -> tuple[Batch, ...]:
    """The test split of a task."""
    task = resolve_task(spec(name), spec(name).labels or ())
    tokenizer = AutoTokenizer.from_pretrained(BODY)
    return batches(load_splits(task, examples=EXAMPLES, seed=0).test, tokenizer)


def accuracy(subject: TaskModel, given: Sequence[Batch]) -> float:
    """Share of right answers."""
    right = []
    with torch.no_grad():
        for batch in given:
            answers = subject.ask(subject.prepare(batch))
            assert isinstance(answers, ClassAnswers)
            right.append(answers.scores.argmax(dim=1) == answers.labels)
    return float(torch.cat(right).float().mean())


def predictivity(
    subject: TaskModel, data: ScoringData, labels: Sequence[str], reading: Reading, positions: int
) -> NeuronScores:
    """Predictivity read at some position."""
    settings = settings_for(subject, data, labels=tuple(labels), reading=reading, positions=positions)
    seen = Provenance("", "", EXAMPLES, reading.position, 0)
    return score_neurons(subject, data, criteria=["predictivity"], provenance=seen, settings=settings)[0]


def best(scores: NeuronScores) -> list[float]:
    """The best neuron of every layer."""
    return [round(value, 4) for value in scores.best_per_layer()["encoder"]]


def pretrained(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> tuple[BertForMaskedLM, float]:
    """The demo's encoder, from nothing, learns to fill in the words that follow "it was"."""
    torch.manual_seed(0)
    body = build_model(TRAINING, len(tokenizer)).bert
    model = BertForMaskedLM(body.config).train()
    model.bert.load_state_dict(body.state_dict(), strict=False)  # a masked language model has no pooler
    optimizer = torch.optim.AdamW(model.parameters(), lr=TRAINING.learning_rate)
    schedule = get_constant_schedule_with_warmup(optimizer, WARM_UP)
    rng = np.random.default_rng(0)
    it_was = tokenizer.convert_tokens_to_ids(["it", "was"])
    losses = []
    for step in range(PRETRAINING_STEPS):
        drawn = [texts[index] for index in rng.integers(0, len(texts), PRETRAINING_BATCH)]
        inputs = dict(tokenizer(drawn, padding=True, return_tensors="pt"))
        hidden = follows(inputs["input_ids"], it_was)
        labels = inputs["input_ids"].masked_fill(~hidden, -100)
        inputs["input_ids"] = inputs["input_ids"].masked_fill(hidden, tokenizer.mask_token_id)
        # Texts start anywhere, so that slots in front of them bring nothing to places that the model never saw.
        inputs["position_ids"] = torch.arange(labels.shape[1])[None] + int(rng.integers(0, 2 * TOKENS))
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 300 == 299:
            print(f"pretraining step {step + 1}: loss {np.mean(losses[-300:]):.3f}", flush=True)
    return model.eval(), float(np.mean(losses[-300:]))


def follows(ids: Tensor, words: Sequence[int]) -> Tensor:
    """Which tokens stand directly behind two given ones, ``(batch, tokens)``."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    found[:, 2:] = (ids[:, :-2] == words[0]) & (ids[:, 1:-1] == words[1])
    return found


if __name__ == "__main__":
    main()
