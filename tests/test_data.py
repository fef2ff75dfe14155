"""Examples: every kind of source, every kind of wrong row, splits that never overlap, and batches."""

from __future__ import annotations

import csv
import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import BertProcessing, TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    CanineTokenizer,
    PreTrainedTokenizerFast,
)

from skillprune.data import (
    NO_TARGET,
    Example,
    fingerprint,
    label_word_ids,
    load_splits,
    make_batches,
    recovery_examples,
)
from skillprune.data.rows import read_examples
from skillprune.errors import DataError, RecipeError, ResourceFailure
from skillprune.recipe import TaskSpec
from skillprune.tasks import Task, Template, resolve_task

LABELS = ("negative", "positive")
Table = Sequence[Sequence[str]]


def write_csv(path: Path, rows: Table, delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def write_tsv(path: Path, rows: Table) -> Path:
    return write_csv(path, rows, "\t")


def write_jsonl(path: Path, rows: Table) -> Path:
    lines = [json.dumps(dict(zip(rows[0], row, strict=True))) for row in rows[1:]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Table) -> Path:
    pyarrow.parquet.write_table(
        pyarrow.table({name: [row[at] for row in rows[1:]] for at, name in enumerate(rows[0])}), path
    )
    return path


WRITERS = {".csv": write_csv, ".tsv": write_tsv, ".jsonl": write_jsonl, ".json": write_jsonl, ".parquet": write_parquet}
HEADER = ("text", "label")
PLAIN = [HEADER, ("good", "positive"), ('bad\nor worse, "really"\t…', "negative"), ("größer", "1")]


def task(train: Path, labels: Sequence[str] = LABELS, **values: Any) -> Task:
    """A task on three files in one folder; the other two are made if they are not there."""
    files: dict[str, Path] = {"train": train}
    for split in ("validation", "test"):
        path = train.parent / f"{split}.csv"
        if path.exists() or split == "test":
            files[split] = path
            path.touch()
    return resolve_task(TaskSpec.model_validate({"data": files, **values}), labels)


def error(path: Path, **values: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_examples(task(path, **values), "train")
    return str(caught.value)


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_kind_of_file_holds_the_same_examples(tmp_path: Path, suffix: str) -> None:
    path = WRITERS[suffix](tmp_path / f"train{suffix}", PLAIN)
    assert read_examples(task(path), "train") == tuple(
        Example((text,), label) for (text, _), label in zip(PLAIN[1:], (1, 0, 1), strict=True)
    )


def test_pairs_are_read_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", [("b", "label", "a"), ("second", "0", "first")])
    assert read_examples(task(path, text=["a", "b"]), "train") == (Example(("first", "second"), 0),)


def test_a_byte_order_mark_is_no_part_of_a_column_name(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\ngood,positive\r\n\r\n")
    assert read_examples(task(path), "train") == (Example(("good",), 1),)


def test_parquet_labels_may_be_numbers(tmp_path: Path) -> None:
    for labels in ([0, 1], [0.0, 1.0]):
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": labels}), tmp_path / "train.parquet")
        assert [e.label for e in read_examples(task(tmp_path / "train.parquet"), "train")] == [0, 1]


@pytest.mark.parametrize(
    ("rows", "where", "words"),
    [
        ([("", "positive")], ":2: column 'text'", "is empty"),
        ([("a", "positive"), ("  \n ", "positive")], ":3: column 'text'", "is empty"),
        ([("a", "")], ":2: column 'label'", "is missing"),
        ([("two\nlines", "positive"), ("b", "postive")], ":4: column 'label'", "unknown label 'postive'"),
        ([("a", "2")], ":2: column 'label'", "should be one of negative, positive"),
        ([("a", "positive", "more")], ":2: ", "has 3 values; should have 2"),
        ([("a",)], ":2: ", "has 1 values; should have 2, one per column: text, label"),
        ([], ": ", "no examples"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, rows: Table, where: str, words: str) -> None:
    path = write_csv(tmp_path / "train.csv", [HEADER, *rows])
    message = error(path)
    assert message.startswith(f"{path}{where}")
    assert words in message


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_missing_column_lists_those_there_are(tmp_path: Path, suffix: str) -> None:
    path = WRITERS[suffix](tmp_path / f"train{suffix}", [("sentence", "label"), ("a", "positive")])
    message = error(path, text="sentense")
    assert "no column 'sentense'; did you mean 'sentence'? columns: sentence, label" in message


@pytest.mark.parametrize(
    ("name", "content", "where", "words"),
    [
        ("t.csv", b"", ": ", "no examples"),
        ("t.parquet", b"", ": ", "Parquet"),
        ("t.jsonl", b"\n\n", ": ", "no examples"),
        ("t.csv", b'text,label\na,positive\n"b,positive\nc,positive\n', ":3: ", "cannot be read"),
        ("t.csv", b"text,label\na,positive\ncaf\xe9,positive\n", ":3: ", "not UTF-8 text (found byte 0xe9)"),
        ("t.csv", b"text,label,text\n", ":1: ", "2 columns 'text'"),
        ("t.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"\n', ":2: ", "one JSON object per line"),
        ("t.json", b'[\n{"text": "a", "label": 1}]\n', ":1: ", "one JSON object per line"),
        ("t.json", b"[" * 100000, ":1: ", "one JSON object per line"),
        ("t.jsonl", b'{"text": 3, "label": 1}\n', ":1: column 'text'", "should be text (found 3)"),
        ("t.jsonl", b'{"text": null, "label": 1}\n', ":1: column 'text'", "is empty"),
        ("t.jsonl", b'{"text": "a", "label": true}\n', ":1: column 'label'", "unknown label 'True'"),
        ("t.parquet", b"text,label\n", ": ", "Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, where: str, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = error(path)
    assert message.startswith(f"{path}{where}")
    assert words in message


def test_the_first_ten_problems_come_at_once(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", [HEADER, *[("", "x")] * 3, ("fine", "1"), *[("a", "y")] * 20])
    lines = error(path).splitlines()
    assert [line.split(": ")[0] for line in lines[:10]] == [f"{path}:{n}" for n in (2, 2, 3, 3, 4, 4, 6, 7, 8, 9)]
    assert len(lines) == 11


def test_a_file_that_went_away_is_named(tmp_path: Path) -> None:
    asked = task(write_csv(tmp_path / "train.csv", PLAIN))
    (tmp_path / "train.csv").unlink()
    with pytest.raises(DataError, match="no such file"):
        read_examples(asked, "train")


def test_the_builtin_reviews_are_examples() -> None:
    asked = resolve_task(TaskSpec.model_validate({"data": "builtin:reviews"}), LABELS)
    splits = load_splits(asked, examples=50, seed=0)
    assert len(splits.calibration) == 50
    assert {example.label for example in splits.test} == {0, 1}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Task]:
    """Tasks on a data set in a local folder, which ``load_dataset`` reads as it reads one on the hub."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "set"
    folder.mkdir()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["POS", "NEG"])})
    rows = {"text": ["a", "b", "c"], "label": [0, 1, 1]}
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{split}.parquet")

    def make(labels: Sequence[str] = LABELS, name: str = str(folder), **values: Any) -> Task:
        return resolve_task(TaskSpec.model_validate({"data": {"hub": name}, **values}), labels)

    return make


def test_class_numbers_of_the_hub_follow_names_if_they_are_the_same(hub: Callable[..., Task]) -> None:
    assert [e.label for e in read_examples(hub(["neg", "pos"]), "train")] == [1, 0, 0]
    assert [e.label for e in read_examples(hub(), "train")] == [0, 1, 1]


def test_a_hub_data_set_without_labels_will_do(hub: Callable[..., Task]) -> None:
    asked = hub(type="seq2seq", target="text", text="label")
    assert asked.labels == ()
    assert read_examples(hub(type="language-modeling"), "train") == tuple(Example((text,)) for text in "abc")


def test_what_is_not_on_the_hub_is_named(hub: Callable[..., Task]) -> None:
    with pytest.raises(DataError, match=r"train: task\.text: there is no column 'txt'; did you mean 'text'"):
        read_examples(hub(text="txt"), "train")
    asked = TaskSpec.model_validate({"data": {"hub": hub().data.hub, "splits": {"test": "nothing"}}})  # type: ignore[union-attr]
    with pytest.raises(DataError, match="nothing: no such data set"):
        read_examples(resolve_task(asked, LABELS), "test")


def test_a_hub_that_cannot_be_reached_is_nobodys_mistake(hub: Callable[..., Task]) -> None:
    with pytest.raises(ResourceFailure, match="could not be downloaded"):
        read_examples(hub(name="someone/a-data-set-that-is-not-cached"), "train")


def write_splits(folder: Path, **splits: Sequence[Example]) -> Task:
    for name, examples in splits.items():
        write_csv(folder / f"{name}.csv", rows_of(examples))
    return task(folder / "train.csv")


def rows_of(examples: Sequence[Example]) -> Table:
    return [HEADER, *((example.texts[0], LABELS[example.label]) for example in examples)]


def numbered(prefix: str, count: int) -> list[Example]:
    return [Example((f"{prefix} {number}",), number % 2) for number in range(count)]


def test_given_splits_are_kept_and_calibration_is_a_sample_of_train(tmp_path: Path) -> None:
    train, validation, test = numbered("a", 200), numbered("b", 30), numbered("c", 20)
    splits = load_splits(write_splits(tmp_path, train=train, validation=validation, test=test), examples=50, seed=3)
    assert (splits.validation, splits.test) == (tuple(validation), tuple(test))
    assert len(splits.calibration) == len(set(splits.calibration)) == 50
    assert set(splits.calibration) < set(train)


def test_the_first_calibration_examples_are_a_sample_of_a_sorted_file(tmp_path: Path) -> None:
    """Some criteria read only the first examples; in file order those would be of one class."""
    train = [Example(example.texts, number // 100) for number, example in enumerate(numbered("a", 200))]
    asked = write_splits(tmp_path, train=train, validation=numbered("b", 30), test=numbered("c", 20))
    labels = [example.label for example in load_splits(asked, examples=200, seed=0).calibration]
    assert 30 < sum(labels[:100]) < 70 and sum(labels) == 100


def test_every_training_example_is_as_likely_to_be_drawn(tmp_path: Path) -> None:
    asked = write_splits(tmp_path, train=numbered("a", 40), validation=numbered("b", 4), test=numbered("c", 4))
    drawn = Counter(e for seed in range(200) for e in load_splits(asked, examples=20, seed=seed).calibration)
    # 200 draws at 1/2: within five standard deviations of 100
    assert len(drawn) == 40
    assert all(abs(count - 100) < 5 * (200 * 0.25) ** 0.5 for count in drawn.values())


def test_without_a_validation_file_a_fifth_of_train_is_set_aside(tmp_path: Path) -> None:
    train = numbered("a", 100)
    splits = load_splits(write_splits(tmp_path, train=train, test=numbered("c", 20)), examples=1000, seed=0)
    assert (len(splits.validation), len(splits.calibration)) == (20, 80)
    assert {*splits.validation, *splits.calibration} == set(train)
    (tmp_path / "train.csv").unlink()
    many = write_splits(tmp_path, train=numbered("a", 10_100))
    assert len(load_splits(many, examples=10, seed=4).validation) == 2000


def test_shared_texts_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    test, validation = numbered("c", 20), numbered("b", 20)
    asked = write_splits(
        tmp_path, train=[*numbered("a", 40), *test[:3], *validation[:5]], validation=[*validation, *test[:2]], test=test
    )
    with caplog.at_level(logging.WARNING, logger="skillprune"):
        splits = load_splits(asked, examples=1000, seed=0)
    assert sorted(splits.calibration, key=str) == sorted(numbered("a", 40), key=str)
    assert (splits.validation, splits.test) == (tuple(validation), tuple(test))
    assert [record.getMessage() for record in caplog.records] == [
        "dropped 3 of 48 train examples whose text is also in test",
        "dropped 2 of 22 validation examples whose text is also in test",
        "dropped 5 of 45 train examples whose text is also in validation",
    ]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=20, max_size=80), st.lists(st.integers(0, 60), min_size=4), st.integers(0, 99)
)
def test_no_text_is_in_two_splits(tmp_path_factory: Any, train: list[int], test: list[int], seed: int) -> None:
    make = lambda numbers: [Example((f"t {number}",), number % 2) for number in numbers]  # noqa: E731
    asked = write_splits(tmp_path_factory.mktemp("s"), train=make(train), test=make(test))
    try:
        splits = load_splits(asked, examples=30, seed=seed)
    except DataError:
        return
    texts = [{e.texts for e in part} for part in (splits.calibration, splits.validation, splits.test)]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    assert splits.test == tuple(make(test))


def test_training_after_pruning_sees_all_of_train_but_nothing_else(tmp_path: Path) -> None:
    splits = load_splits(
        write_splits(tmp_path, train=numbered("a", 60), validation=numbered("b", 10), test=numbered("c", 10)),
        examples=20,
        seed=0,
    )
    assert splits.train == tuple(numbered("a", 60)) and set(splits.calibration) < set(splits.train)
    (tmp_path / "overlapping").mkdir()
    without = write_splits(tmp_path / "overlapping", train=numbered("a", 60), test=numbered("a", 10))
    left = load_splits(without, examples=20, seed=0)
    assert len(left.train) == 40  # ten are in test, a fifth of the others is validation
    assert not {each.texts for each in left.train} & {each.texts for each in (*left.validation, *left.test)}


def test_named_examples_for_recovery_never_come_from_test(tmp_path: Path) -> None:
    parts = {"train": numbered("a", 60), "validation": numbered("b", 10), "test": numbered("c", 10)}
    asked = write_splits(tmp_path, **parts)
    splits = load_splits(asked, examples=20, seed=0)
    assert recovery_examples(asked, splits, None) == splits.train
    more = numbered("d", 6)
    path = write_csv(tmp_path / "more.csv", rows_of([*more, *parts["validation"][:2]]))
    assert recovery_examples(asked, splits, path) == tuple(more)
    spaced = [replace(each, texts=(f" {each.texts[0].replace(' ', '  ')}\t",)) for each in parts["test"][:2]]
    write_csv(path, rows_of([*more, *spaced]))
    with pytest.raises(DataError, match="2 of 8 examples have a text that is also in test, such as ' c"):
        recovery_examples(asked, splits, path)


def test_the_same_seed_gives_the_same_splits_in_another_process(tmp_path: Path) -> None:
    asked = write_splits(tmp_path, train=numbered("a", 300), test=numbered("c", 20))
    here = [load_splits(asked, examples=40, seed=seed).fingerprint() for seed in (0, 1)]
    code = (
        "import sys; from skillprune.data import load_splits; from skillprune.recipe import TaskSpec;"
        "from skillprune.tasks import resolve_task; folder = sys.argv[1];"
        "data = {'train': folder + '/train.csv', 'test': folder + '/test.csv'};"
        "task = resolve_task(TaskSpec.model_validate({'data': data}), ['negative', 'positive']);"
        "print(load_splits(task, examples=40, seed=0).fingerprint())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here[0] != here[1]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"train": [0] * 50}, "train: all 50 examples have the label 'negative'"),
        ({"validation": [1] * 9}, "validation: all 9 examples have the label 'positive'"),
        ({"test": [1] * 9}, "test: all 9 examples have the label 'positive'"),
        ({"train": [0] * 50 + [1]}, r"calibration: too few examples of 'positive' \(1\) among 51"),
    ],
)
def test_too_few_classes_are_refused(tmp_path: Path, sizes: dict[str, list[int]], words: str) -> None:
    plain = {"train": [0, 1] * 20, "validation": [0, 1], "test": [0, 1]}
    splits = {
        name: [Example((f"{name} {number}",), label) for number, label in enumerate(labels)]
        for name, labels in {**plain, **sizes}.items()
    }
    with pytest.raises(DataError, match=words):
        load_splits(write_splits(tmp_path, **splits), examples=100, seed=0)


def test_a_train_file_that_holds_only_test_texts_is_refused(tmp_path: Path) -> None:
    asked = write_splits(tmp_path, train=numbered("c", 10), test=numbered("c", 20))
    with pytest.raises(DataError, match="every text is also in test"):
        load_splits(asked, examples=5, seed=0)


def test_the_fingerprint_tells_texts_labels_and_order_apart() -> None:
    a, b = Example(("a",), 0), Example(("b",), 0)
    prints = [
        fingerprint(part) for part in ([a, b], [b, a], [a], [Example(("a",), 1), b], [Example(("a", "b"), 0)], [])
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint([a, b]) == prints[0]


def test_the_fingerprint_of_examples_with_classes_is_what_it_always_was() -> None:
    examples = [Example(("a",), 0), Example(("b", "größer"), 3)]
    assert fingerprint(examples) == "b9f29f36d5c16569e0b3746b8303cf2d05804349a8804edd28e90b242a443778"
    targets = [[Example(("a",), target=target)] for target in ("", "x", "y")]
    assert len({fingerprint(part) for part in targets}) == 3


@pytest.mark.parametrize("suffix", WRITERS)
def test_targets_are_read_and_labels_are_not(tmp_path: Path, suffix: str) -> None:
    rows = [("label", "phonemes", "text"), ("not a label", "jˈu", "yew"), ("", "ˈæmbO", "ambo")]
    path = WRITERS[suffix](tmp_path / f"train{suffix}", rows)
    asked = task(path, (), type="seq2seq", target="phonemes")
    assert read_examples(asked, "train") == (Example(("yew",), 0, "jˈu"), Example(("ambo",), 0, "ˈæmbO"))
    asked = task(path, (), type="language-modeling")
    assert read_examples(asked, "train") == (Example(("yew",)), Example(("ambo",)))


def test_a_wrong_target_is_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", [("text", "target"), ("a", "b"), ("c", " ")])
    assert error(path, type="seq2seq").startswith(f"{path}:3: column 'target': the text is empty")
    assert "task.target: there is no column 'targets'; did you mean 'target'" in error(
        path, type="seq2seq", target="targets"
    )


def test_a_task_without_classes_may_have_few_examples_but_none_in_two_splits(tmp_path: Path) -> None:
    for split, texts in (("train", ["a", "b", "c", "d", "e", "f"]), ("test", ["a", "g"])):
        write_csv(tmp_path / f"{split}.csv", [("text",), *((text,) for text in texts)])
    splits = load_splits(task(tmp_path / "train.csv", (), type="language-modeling"), examples=9, seed=0)
    parts = [{example.texts[0] for example in part} for part in (splits.calibration, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [4, 1, 2]
    assert set.union(*parts) == set("abcdefg")
    assert parts[2] == {"a", "g"}


def test_a_prompt_task_needs_every_class(tmp_path: Path) -> None:
    words = {"negative": "bad", "positive": "good"}
    path = write_csv(tmp_path / "train.csv", [HEADER, *((f"a {number}", "negative") for number in range(9))])
    write_csv(tmp_path / "test.csv", [HEADER, ("b", "negative"), ("c", "positive")])
    asked = task(path, (), type="causal-lm", template="{text}", label_words=words)
    with pytest.raises(DataError, match="train: all 8 examples have the label 'negative'"):
        load_splits(asked, examples=9, seed=0)


WORDS = [f"w{number}" for number in range(20)]


def make_tokenizer(limit: int = 16, **special: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    plain = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = Whitespace()
    plain.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", **special}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=limit, model_input_names=inputs, **names)


def naive_ids(example: Example, max_length: int) -> list[int]:
    """Token ids by hand; of a pair, the longer text loses its last word until both fit."""
    parts = [[4 + WORDS.index(word) for word in text.split()] for text in example.texts]
    while sum(map(len, parts)) + 1 + len(parts) > max_length:
        longest = max(parts, key=len)
        longest.pop()
    return [2, *(token for part in parts for token in (*part, 3))]


TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=20).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=12), st.integers(3, 16), st.integers(1, 5))
def test_batches_hold_the_tokens_of_every_example_once(texts: list[str], max_length: int, batch_size: int) -> None:
    examples = [Example((text,), number % 3) for number, text in enumerate(texts)]
    batches = make_batches(examples, make_tokenizer(), max_length=max_length, batch_size=batch_size)
    order = [index for batch in batches for index in batch.indices.tolist()]
    lengths = [len(naive_ids(example, max_length)) for example in examples]
    assert order == sorted(range(len(examples)), key=lambda index: (-lengths[index], index))
    assert all(len(batch.indices) <= batch_size for batch in batches)
    for batch in batches:
        assert batch.inputs["input_ids"].shape[1] == max(lengths[index] for index in batch.indices.tolist())
        assert set(batch.inputs) <= {"input_ids", "token_type_ids", "attention_mask"}
        for row, index in enumerate(batch.indices.tolist()):
            ids = naive_ids(examples[index], max_length)
            padding = batch.mask.shape[1] - len(ids)
            assert batch.inputs["input_ids"][row].tolist() == ids + [0] * padding
            assert batch.mask[row].tolist() == [True] * len(ids) + [False] * padding
            assert batch.special[row].tolist() == [token in (2, 3) for token in ids] + [False] * padding
            assert batch.labels[row] == examples[index].label


def test_pairs_are_one_input_with_two_segments() -> None:
    examples = [Example(("w1 w2", "w3"), 0), Example(("w4", "w5 w6 w7 w8 w9 w10"), 1)]
    (batch,) = make_batches(examples, make_tokenizer(), max_length=8, batch_size=2)
    assert batch.inputs["input_ids"].tolist() == [naive_ids(examples[1], 8), [2, 5, 6, 3, 7, 3, 0, 0]]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0, 0]]


def test_batches_have_the_types_models_expect_and_can_move() -> None:
    (batch,) = make_batches([Example(("w1",), 1)], make_tokenizer(), max_length=8, batch_size=2)
    assert (batch.labels.dtype, batch.indices.dtype, batch.special.dtype) == (torch.long, torch.long, torch.bool)
    moved = batch.to("meta")
    tensors = [*moved.inputs.values(), moved.labels, moved.special, moved.indices]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_no_examples_make_no_batches() -> None:
    assert make_batches([], make_tokenizer(), max_length=8, batch_size=2) == ()


@pytest.mark.parametrize(
    ("text", "max_length", "words"),
    [
        ("w1", 17, r"task\.max_length: the model allows 16 tokens \(found 17\)"),
        ("w1", 2, r"task\.max_length: leaves no room"),
        ("w1", 1, r"task\.max_length: leaves no room"),
        (" \u3000", 8, "has no tokens"),
    ],
)
def test_inputs_without_a_word_are_refused(text: str, max_length: int, words: str) -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(DataError if max_length == 8 else RecipeError, match=words):
        make_batches([Example((text,), 0)], tokenizer, max_length=max_length, batch_size=2)


def test_a_tokenizer_that_cannot_pad_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(DataError, match="no padding token"):
        make_batches([Example(("w1",), 0)], tokenizer, max_length=8, batch_size=2)


def make_prompt_tokenizer(
    side: str = "right", special: str = "[CLS] $A [SEP]", **names: str | None
) -> PreTrainedTokenizerFast:
    """One token per word or sign, as ids: four special ones, the words from 4, then [MASK] 24, "It" 25 and "." 26."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    core = Tokenizer(WordLevel({**vocabulary, "[MASK]": 24, "It": 25, ".": 26}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    core.post_processor = TemplateProcessing(single=special, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]", "eos_token": "[SEP]", **names}
    given = {name: token for name, token in tokens.items() if token is not None}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, padding_side=side, **given)


MASKED = Template("It {text} . It {mask} .", ("text",))
CAUSAL = Template("It {text} . It", ("text",))


def real_tokens(batch: Any, row: int) -> list[int]:
    return [token for token, real in zip(batch.inputs["input_ids"][row].tolist(), batch.mask[row], strict=True) if real]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(TEXT, min_size=1, max_size=9),
    st.integers(9, 20),
    st.integers(1, 4),
    st.sampled_from(["right", "left"]),
    st.booleans(),
)
def test_a_long_prompt_loses_words_of_its_text_only(
    texts: list[str], max_length: int, batch_size: int, side: str, masked: bool
) -> None:
    examples = [Example((text,), number) for number, text in enumerate(texts)]
    after = [26, 25, 24, 26, 3] if masked else [26, 25]
    batches = make_batches(
        examples,
        make_prompt_tokenizer(side),
        max_length=max_length,
        batch_size=batch_size,
        task_type="masked-lm" if masked else "causal-lm",
        template=MASKED if masked else CAUSAL,
    )
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == list(range(len(texts)))
    for batch in batches:
        width = batch.mask.shape[1]
        assert width <= max_length
        assert batch.answer is not None
        assert batch.targets is None
        for row, index in enumerate(batch.indices.tolist()):
            words = [4 + WORDS.index(word) for word in texts[index].split()]
            ids = [2, 25, *words[: max_length - 2 - len(after)], *after]
            assert real_tokens(batch, row) == ids
            first = width - len(ids) if side == "left" else 0
            assert batch.mask[row].tolist() == [first <= at < first + len(ids) for at in range(width)]
            assert batch.special[row].nonzero().flatten().tolist() == [first] + [first + len(ids) - 1] * masked
            assert batch.answer[row] == first + (ids.index(24) if masked else len(ids) - 1)
            assert batch.labels[row] == index


@given(TEXT, TEXT, st.integers(9, 30))
@settings(max_examples=40, deadline=None)
def test_of_two_texts_in_a_prompt_the_longer_is_cut(first: str, second: str, max_length: int) -> None:
    (batch,) = make_batches(
        [Example((first, second), 0)],
        make_prompt_tokenizer(),
        max_length=max_length,
        batch_size=1,
        task_type="masked-lm",
        template=Template("{b} It {mask} . {a} .", ("a", "b")),
    )
    parts = [first.split(), second.split()]
    while sum(map(len, parts)) + 6 > max_length:
        max(parts, key=len).pop()
    a, b = ([4 + WORDS.index(word) for word in part] for part in parts)
    assert real_tokens(batch, 0) == [2, *b, 25, 24, 26, *a, 26, 3]


def test_words_of_the_template_stay_even_if_the_text_says_them_too() -> None:
    ids = prompt_ids("It It It w1 . . .", MASKED, max_length=10)
    assert ids == [2, 25, 25, 25, 25, 26, 25, 24, 26, 3]


def prompt_ids(text: str, template: Template, **values: Any) -> list[int]:
    kind = "masked-lm" if "{mask}" in template.source else "causal-lm"
    (batch,) = make_batches(
        [Example((text,), 0)], make_prompt_tokenizer(), batch_size=1, task_type=kind, template=template, **values
    )
    return real_tokens(batch, 0)


@pytest.mark.parametrize(
    ("text", "template", "max_length", "words"),
    [
        ("w1 w2", MASKED, 7, r"task\.max_length: leaves no room for the text 'w1 w2'; raise it or shorten"),
        ("w1", MASKED, 1, r"task\.max_length: leaves no room"),
        ("w1", MASKED, 65, r"task\.max_length: the model allows 64"),
        ("w1", Template("[MASK] {text} {mask}", ("text",)), 9, r"task\.template: spells \[MASK\] out"),
    ],
)
def test_a_prompt_that_cannot_be_is_the_recipes_fault(
    text: str, template: Template, max_length: int, words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        prompt_ids(text, template, max_length=max_length)


def test_the_shortest_prompt_has_one_word_of_the_text() -> None:
    assert prompt_ids("w1 w2", MASKED, max_length=8) == [2, 25, 5, 26, 25, 24, 26, 3]


@pytest.mark.parametrize(
    ("text", "tokenizer", "words"),
    [
        ("w1 [MASK] w2", make_prompt_tokenizer(), r"'w1 \[MASK\] w2' contains the mask token"),
        ("w1", make_prompt_tokenizer(mask_token=None), "no mask token"),
        ("w1", make_prompt_tokenizer(pad_token=None), "no padding token"),
        ("w1", CanineTokenizer(), "not a fast one"),
        (" \u3000", make_prompt_tokenizer(), "has no tokens"),
    ],
)
def test_a_prompt_that_cannot_be_made_of_a_text_says_why(text: str, tokenizer: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make_batches(
            [Example((text,), 0)], tokenizer, max_length=16, batch_size=1, task_type="masked-lm", template=MASKED
        )


@pytest.mark.parametrize("kind", ["causal-lm", "language-modeling"])
def test_a_causal_tokenizer_without_padding_pads_with_the_end_of_text(kind: str) -> None:
    tokenizer = make_prompt_tokenizer("left", "$A", pad_token=None)
    template = Template("{text}", ("text",)) if kind == "causal-lm" else None
    examples = [Example(("w1 w2",), 0), Example(("w3 w4 w5",), 0)]
    (batch,) = make_batches(examples, tokenizer, max_length=9, batch_size=2, task_type=kind, template=template)
    assert batch.inputs["input_ids"].tolist() == [[7, 8, 9], [3, 5, 6]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert tokenizer.pad_token is None
    assert tokenizer.padding_side == "left"
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no padding token"):
        make_batches(examples, tokenizer, max_length=9, batch_size=2, task_type=kind, template=template)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(TEXT, min_size=1, max_size=9),
    st.integers(3, 12),
    st.sampled_from(["right", "left"]),
    st.sampled_from(["[CLS] $A", "$A [SEP]"]),
)
def test_every_token_of_running_text_predicts_the_next(
    texts: list[str], max_length: int, side: str, special: str
) -> None:
    batches = make_batches(
        [Example((text,)) for text in texts],
        make_prompt_tokenizer(side, special),
        max_length=max_length,
        batch_size=3,
        task_type="language-modeling",
    )
    for batch in batches:
        assert batch.answer is None
        assert batch.labels.tolist() == [0] * len(batch)
        assert batch.targets is not None
        for row, index in enumerate(batch.indices.tolist()):
            words = [4 + WORDS.index(word) for word in texts[index].split()][: max_length - 1]
            assert real_tokens(batch, row) == ([2, *words] if special == "[CLS] $A" else [*words, 3])
            ids, mask = batch.inputs["input_ids"][row].tolist(), batch.mask[row].tolist()
            for at, target in enumerate(batch.targets[row].tolist()):
                predicts = at + 1 < len(ids) and mask[at] and mask[at + 1]
                assert target == (ids[at + 1] if predicts else NO_TARGET)
            assert sum(target != NO_TARGET for target in batch.targets[row].tolist()) == len(words)


def test_running_text_of_one_token_predicts_nothing() -> None:
    tokenizer = make_prompt_tokenizer(special="$A")
    examples = [Example(("w1 w2",)), Example(("w3",))]
    with pytest.raises(DataError, match="'w3' has a single token"):
        make_batches(examples, tokenizer, max_length=9, batch_size=2, task_type="language-modeling")
    with pytest.raises(RecipeError, match=r"task\.max_length: leaves no token to predict"):
        make_batches(examples[:1], tokenizer, max_length=1, batch_size=2, task_type="language-modeling")


@pytest.mark.parametrize("kind", ["causal-lm", "language-modeling", "seq2seq"])
def test_a_decoder_gets_token_types_only_if_they_say_something(kind: str) -> None:
    values: dict[str, Any] = {"task_type": kind, "max_length": 9, "batch_size": 2}
    values |= {"template": Template("{text}", ("text",))} if kind == "causal-lm" else {}
    values |= {"decoder_start": 0} if kind == "seq2seq" else {}
    for special, expected in (("$A", None), ("[CLS]:1 $A", [[1, 0, 0]])):
        tokenizer = make_prompt_tokenizer(special=special)
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        (batch,) = make_batches([Example(("w1 w2",), target="w3")], tokenizer, **values)
        found = batch.inputs.get("token_type_ids")
        assert (None if found is None else found.tolist()) == expected


def test_a_decoder_reads_its_targets_one_place_later() -> None:
    examples = [Example(("w1 w2",), target="w9"), Example(("w3",), target="w5 w6 w7 w8 w9")]
    (batch,) = make_batches(
        examples,
        make_prompt_tokenizer("left"),
        max_length=4,
        batch_size=2,
        task_type="seq2seq",
        target_tokenizer=make_prompt_tokenizer("left", "$A [SEP]", pad_token="[UNK]"),
        decoder_start=19,
    )
    assert batch.indices.tolist() == [0, 1]
    assert batch.inputs["input_ids"].tolist() == [[2, 5, 6, 3], [0, 2, 7, 3]]
    assert batch.targets is not None
    assert batch.targets.tolist() == [[13, 3, NO_TARGET, NO_TARGET], [9, 10, 11, 3]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[19, 13, 3, 1], [19, 9, 10, 11]]
    assert batch.inputs["decoder_input_ids"].dtype == torch.long


def test_targets_come_from_the_models_own_tokenizer_if_there_is_no_other() -> None:
    (batch,) = make_batches(
        [Example(("w1",), target="w2")],
        make_prompt_tokenizer(),
        max_length=4,
        batch_size=2,
        task_type="seq2seq",
        decoder_start=0,
    )
    assert batch.targets is not None
    assert batch.targets.tolist() == [[2, 6, 3]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[0, 2, 6]]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"task_type": "seq2seq"}, "needs decoder_start"),
        ({"task_type": "causal-lm"}, "needs a template"),
        ({"template": CAUSAL}, "has no template"),
        ({"task_type": "summarization"}, "unknown kind of task 'summarization'; known: text-classification"),
    ],
)
def test_a_kind_of_task_without_what_it_needs_is_a_mistake(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_batches([], make_prompt_tokenizer(), max_length=8, batch_size=2, **values)


def make_bpe(*words: str, prefix: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer as GPT-2's (without ``prefix``) or RoBERTa's; Ġ is a space."""
    pieces = sorted({character for word in words for character in word} | set("Ġa(great"))
    merges, vocabulary = [], {piece: index for index, piece in enumerate(pieces)}
    for word in words:
        steps = [("Ġ", word[1:])] if word[0] == "Ġ" else [(word[:end], word[end]) for end in range(1, len(word))]
        merges += steps
        vocabulary |= {"".join(step): len(vocabulary) + at for at, step in enumerate(steps)}
    core = Tokenizer(BPE(vocabulary, merges))
    core.pre_tokenizer = ByteLevel(add_prefix_space=prefix)
    return PreTrainedTokenizerFast(tokenizer_object=core, mask_token="<mask>")


def spelled(tokenizer: PreTrainedTokenizerFast, words: Sequence[str], source: str | None, kind: str) -> list[str]:
    template = None if source is None else Template(source, ("text",))
    ids = label_word_ids(tokenizer, words, task_type=kind, template=template)
    return list(tokenizer.convert_ids_to_tokens(list(ids)))


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize(
    ("kind", "source", "expected"),
    [
        ("masked-lm", None, "Ġgood"),
        ("masked-lm", "{text} It was {mask}.", "Ġgood"),
        ("masked-lm", '{text} It was "{mask}".', "good"),
        ("causal-lm", None, "Ġgood"),
        ("causal-lm", "{text} It was", "Ġgood"),
        ("causal-lm", "{text} It was ", "good"),
        ("causal-lm", "{text}", "Ġgood"),
    ],
)
def test_a_label_word_is_spelled_as_it_stands_in_the_template(
    prefix: bool, kind: str, source: str | None, expected: str
) -> None:
    assert spelled(make_bpe("good", "Ġgood", prefix=prefix), ["good"], source, kind) == [expected]


def test_at_a_mask_the_other_spelling_will_do_after_a_prompt_it_will_not() -> None:
    tokenizer = make_bpe("good")
    assert spelled(tokenizer, ["good"], "{text} {mask}", "masked-lm") == ["good"]
    with pytest.raises(DataError, match="'good' is no single token, the tokenizer makes Ġ good of it; choose another"):
        spelled(tokenizer, ["good"], "{text}", "causal-lm")


def test_label_words_are_known_and_each_its_own_token() -> None:
    tokenizer = make_prompt_tokenizer()
    assert label_word_ids(tokenizer, ["w7", "It"], task_type="masked-lm") == (11, 25)
    assert label_word_ids(tokenizer, ["w7", "It"], task_type="causal-lm") == (11, 25)
    with pytest.raises(DataError, match=r"'wonderful' is no single token, the tokenizer makes \[UNK\] of it"):
        label_word_ids(tokenizer, ["w7", "wonderful"], task_type="masked-lm")
    with pytest.raises(DataError, match=r"'w7\.w8' is no single token, the tokenizer makes w7 \. w8 of it"):
        label_word_ids(tokenizer, ["w7.w8"], task_type="causal-lm")
    tokenizer.backend_tokenizer.normalizer = Replace("W", "w")
    with pytest.raises(DataError, match="'w1' and 'W1' are the same token"):
        label_word_ids(tokenizer, ["w1", "w2", "W1"], task_type="masked-lm")
    with pytest.raises(ValueError, match="has no label words"):
        label_word_ids(tokenizer, ["w1"], task_type="seq2seq")


def test_a_real_masked_prompt_keeps_its_template(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "minilm-sst2")
    template = Template("Überall {text}, it was {mask}.", ("text",))
    examples = [Example(("A surprisingly café-like, thought-provoking film " * length,), 0) for length in (1, 9)]
    batches = make_batches(examples, tokenizer, max_length=24, batch_size=1, task_type="masked-lm", template=template)
    for batch in batches:
        assert batch.answer is not None
        words = tokenizer.decode(real_tokens(batch, 0))
        assert words.startswith("[CLS] uberall a surprisingly cafe - like")
        assert words.endswith(", it was [MASK]. [SEP]")
        assert tokenizer.convert_ids_to_tokens(batch.inputs["input_ids"][0].tolist())[batch.answer[0]] == "[MASK]"
    assert batches[0].mask.shape[1] == 24
    ids = label_word_ids(tokenizer, ["terrible", "great"], task_type="masked-lm", template=template)
    assert tokenizer.convert_ids_to_tokens(list(ids)) == ["terrible", "great"]


def mean_loss(model: Any, batches: Sequence[Any]) -> float:
    """Mean loss per target token; a model in evaluation mode."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in batches:
            logits = model(**batch.inputs).logits
            total += float(torch.nn.functional.cross_entropy(logits.mT, batch.targets, reduction="sum"))
            count += int((batch.targets != NO_TARGET).sum())
    return total / count


def read_column(path: Path, count: int) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))[:count]


def test_a_real_language_model_predicts_stories(shared: Path) -> None:
    folder = shared / "models" / "stories260k"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = read_column(shared / "data" / "stories" / "test.csv", 12)
    batches = make_batches(
        [Example((row["text"],)) for row in rows],
        AutoTokenizer.from_pretrained(folder),
        max_length=200,
        batch_size=4,
        task_type="language-modeling",
    )
    assert 0.8 < mean_loss(model, batches) < 1.2


def test_a_real_encoder_decoder_predicts_phonemes(shared: Path) -> None:
    folder = shared / "models" / "g2p-bart"
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = read_column(shared / "data" / "g2p" / "test.csv", 40)
    batches = make_batches(
        [Example((row["text"],), target=row["target"]) for row in rows],
        AutoTokenizer.from_pretrained(folder),
        max_length=64,
        batch_size=8,
        task_type="seq2seq",
        target_tokenizer=AutoTokenizer.from_pretrained(folder / "target_tokenizer"),
        decoder_start=model.config.decoder_start_token_id,
    )
    assert mean_loss(model, batches) < 0.3


def test_the_real_data_sets_are_read(shared: Path) -> None:
    folder = shared / "data" / "nli"
    files = {split: folder / f"{split}.csv" for split in ("train", "validation", "test")}
    spec = TaskSpec.model_validate({"data": files, "text": ["premise", "hypothesis"]})
    splits = load_splits(resolve_task(spec, ["contradiction", "entailment", "neutral"]), examples=100, seed=0)
    assert (len(splits.calibration), len(splits.test)) == (100, 400)
    assert {len(example.texts) for example in splits.test} == {2}
