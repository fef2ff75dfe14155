"""The demo's sentences mean what their labels say, words alone do not tell the label, and the encoder learns them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from skillprune.demo import encoder, reviews, reviews_tiny, words
from skillprune.demo.grammar import SIZES, Clause, Feeling, Statement, finish, praises
from skillprune.errors import DataError, ResourceFailure, VerificationFailed
from skillprune.progress import silent

SPLITS = tuple(SIZES)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The real cache's checkpoint: trained once per machine, not once per test run."""
    return reviews_tiny()


def in_new_process(code: str, **environment: str) -> str:
    """What ``code`` prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def load(directory: Path) -> tuple[torch.nn.Module, object]:
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(directory)


# --- the sentences


@pytest.mark.parametrize("split", SPLITS)
def test_splits_have_their_size_and_are_balanced(split: str) -> None:
    labels = [row["label"] for row in reviews(split)]
    assert len(labels) == SIZES[split]
    assert labels.count("positive") == labels.count("negative") == len(labels) // 2


def test_no_sentence_is_in_two_places() -> None:
    texts = [row["text"].lower() for split in SPLITS for row in reviews(split)]
    assert len(set(texts)) == len(texts)


def test_lengths_vary() -> None:
    lengths = [len(row["text"].split()) for split in SPLITS for row in reviews(split)]
    assert (min(lengths), max(lengths)) == (5, 30)
    assert len(set(lengths)) == 26


def test_two_processes_make_the_same_sentences() -> None:
    code = (
        "import hashlib, json; from skillprune.demo import reviews;"
        "print(hashlib.sha256(json.dumps([reviews(s) for s in ('train', 'validation', 'test')]).encode()).hexdigest())"
    )
    assert in_new_process(code, PYTHONHASHSEED="1") == in_new_process(code, PYTHONHASHSEED="2")


def test_callers_cannot_spoil_the_sentences_for_each_other() -> None:
    before = reviews("test")[0]["text"]
    reviews("test")[0]["text"] = "spoilt"
    assert reviews("test")[0]["text"] == before


def test_sentences_need_no_torch() -> None:
    code = (
        "import sys; from skillprune.demo import reviews; reviews('test');"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    assert in_new_process(code) == "set()"


def test_unknown_split_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="'dev'.*train, validation, test"):
        reviews("dev")


READ_BY_HAND: tuple[tuple[Clause, str, bool], ...] = (
    (Statement("soup", "good"), "the soup was good", True),
    (Statement("soup", "good", copula="was not"), "the soup was not good", False),
    (Statement("plot", "dull", copula="was hardly", degree="really"), "the plot was hardly really dull", True),
    (Statement("film", "great", copula="was never"), "the film was never great", False),
    (Statement("bed", "perfect", copula="was anything but"), "the bed was anything but perfect", False),
    (Statement("bed", "perfect", copula="was nothing but"), "the bed was nothing but perfect", True),
    (Statement("cast", "lovely", copula="never failed to be"), "the cast never failed to be lovely", True),
    (Statement("story", "poor", copula="seemed", degree="slightly"), "the story seemed slightly poor", False),
    (Statement("pool", "awful", "I doubt that"), "I doubt that the pool was awful", True),
    (Statement("menu", "poor", "nobody can deny that"), "nobody can deny that the menu was poor", False),
    (Statement("menu", "fine", "it is wrong to say that"), "it is wrong to say that the menu was fine", False),
    (
        Statement("room", "bad", "it is not true that", "was not"),
        "it is not true that the room was not bad",
        False,
    ),
    (Statement("queue", "long"), "the queue was long", False),
    (Statement("queue", "long", copula="was never"), "the queue was never long", True),
    (Statement("warranty", "long", degree="very"), "the warranty was very long", True),
    (Statement("beer", "cold"), "the beer was cold", True),
    (Statement("coffee", "cold", degree="a bit"), "the coffee was a bit cold", False),
    (Statement("price", "low", "I doubt that", "seemed"), "I doubt that the price seemed low", False),
    (Feeling("I", "loved", "garden"), "I loved the garden", True),
    (Feeling("I never", "enjoyed", "trip"), "I never enjoyed the trip", False),
    (Feeling("I did not", "hate", "book"), "I did not hate the book", True),
    (Feeling("I could not help but", "love", "book"), "I could not help but love the book", True),
    (Feeling("I cannot say that I", "disliked", "staff"), "I cannot say that I disliked the staff", True),
)

# Copied out of the splits after reading; the grammar must still make them, and give them these labels.
SENTENCES_READ_BY_HAND = {
    "The price was low, even though my sister told me that the holiday was short.": "positive",
    "My friend insisted that the battery was impressive, yet the coffee was a bit boring, at least on that day.": (
        "negative"
    ),
    "I think that the dessert was anything but delightful, and I doubt that the trip was fine, not that anybody"
    " asked me.": "negative",
    "Despite the fact that the delivery was a bit dreadful, the queue was hardly long.": "positive",
    "Although the service was fairly wonderful, I hated the price, and my uncle was not even there.": "negative",
    "The pool was perfect, and I did not dislike the soup, not that anybody asked me.": "positive",
    "It is wrong to say that the book was brilliant.": "negative",
    "I cannot say that I hated the coffee, and the room was fine.": "positive",
    "A colleague said that the trip was absolutely annoying, but I enjoyed the design.": "positive",
    "The plot was dull, even though the parcel came in a brown box.": "negative",
    "The parcel came in a brown box, and the plot was absolutely lovely, yet I cannot say that I enjoyed the"
    " service.": "negative",
    "Although another guest thought that the warranty was long, I could not help but hate the design.": "negative",
    "Although the coffee was fairly awful, the rent was low.": "positive",
    "The lemonade was nothing but cold, yet the screen was slightly small.": "negative",
    "The whole thing took two hours, and the beer was hot, even though a colleague told me that the quality was"
    " wonderful.": "negative",
    "The parcel came in a brown box, and the jacket never failed to be rather excellent.": "positive",
    "I disliked the price, and the stain seemed big.": "negative",
    "It is not true that the staff was fairly disappointing.": "positive",
}


@pytest.mark.parametrize(("clause", "text", "positive"), READ_BY_HAND, ids=[text for _, text, _ in READ_BY_HAND])
def test_clauses_mean_what_a_reader_takes_them_to_mean(clause: Clause, text: str, positive: bool) -> None:
    assert (clause.text, clause.positive) == (text, positive)


def test_whole_sentences_carry_the_label_a_reader_gives_them() -> None:
    labels = {row["text"]: row["label"] for row in reviews("test")}
    assert {text: labels[text] for text in SENTENCES_READ_BY_HAND} == SENTENCES_READ_BY_HAND


def clause_verdicts() -> dict[str, bool]:
    """Every clause without a degree, by its lower-case text."""
    pairs = [pair for pair in product(words.NOUNS, (*words.ADJECTIVES[True], *words.ADJECTIVES[False]))]
    pairs += [(noun, word) for more, less, good, bad in words.SCALES for noun in good + bad for word in (more, less)]
    holders, copulas = ["", *dict(words.HOLDERS)], ["was", *dict(words.COPULAS)]
    clauses: list[Clause] = [
        Statement(noun, adjective, holder, copula)
        for (noun, adjective), holder, copula in product(pairs, holders, copulas)
    ]
    verbs = [forms for kind in (True, False) for forms in words.VERBS[kind]]
    clauses += [
        Feeling(subject, forms[past], noun)
        for (subject, past, _), forms, noun in product(words.SUBJECTS, verbs, words.NOUNS)
    ]
    return {clause.text: clause.positive for clause in clauses}


def main_clause(text: str) -> str:
    """The part of a finished sentence that decides, found by its conjunctions alone."""
    text = text[:-1]
    text = text[0].lower() + text[1:] if not text.startswith("I ") else text
    for fact in words.NEUTRAL_FACTS:
        text = text.removeprefix(f"{fact[0].lower() + fact[1:] if not fact.startswith('I ') else fact}, and ")
    for ending, person in product(words.ENDINGS, words.PEOPLE):
        text = text.removesuffix(f", {ending.format(person=person)}")
    for opener in ("although ", "while ", "despite the fact that "):
        if text.startswith(opener):
            return text.rpartition(", ")[2]
    for turn in (", but ", ", yet "):
        if turn in text:
            return text.partition(turn)[2]
    for turn in (", even though ", ", even if "):
        text = text.partition(turn)[0]
    return text.rpartition(", and ")[2]


def test_labels_agree_with_an_independent_reading() -> None:
    verdicts = clause_verdicts()
    degrees = sorted((*words.INTENSIFIERS, *words.DOWNTONERS), key=len, reverse=True)
    for split in SPLITS:
        for row in reviews(split):
            clause = main_clause(row["text"])
            for degree in degrees:
                clause = clause.replace(f" {degree} ", " ") if not clause.startswith("I really ") else clause
            assert verdicts[clause] == (row["label"] == "positive"), row


def test_size_words_are_refused_for_nouns_they_do_not_judge() -> None:
    with pytest.raises(ValueError, match="'long'.*'soup'"):
        praises("long", "soup")
    with pytest.raises(ValueError, match="'purple'"):
        praises("purple", "soup")


def test_finish_keeps_the_inside_of_a_sentence() -> None:
    assert finish("no doubt I loved it") == "No doubt I loved it."


def test_each_size_word_praises_as_often_as_it_blames() -> None:
    for more, less, wanted, unwanted in words.SCALES:
        assert len(wanted) == len(unwanted)
        assert not set(wanted) & set(unwanted)
        for noun in wanted:
            assert (praises(more, noun), praises(less, noun)) == (True, False)
        for noun in unwanted:
            assert (praises(more, noun), praises(less, noun)) == (False, True)


@pytest.mark.parametrize(("words_together", "ceiling"), [(1, 0.75), (2, 0.85)])
def test_counting_words_does_not_tell_the_label(words_together: int, ceiling: float) -> None:
    train, test = reviews("train"), reviews("test")
    counter = CountVectorizer(ngram_range=(1, words_together), token_pattern=r"\w+")
    counts = counter.fit_transform([row["text"] for row in train])
    learnt = LogisticRegression(max_iter=2000).fit(counts, [row["label"] for row in train])
    reached = learnt.score(counter.transform([row["text"] for row in test]), [row["label"] for row in test])
    assert 0.5 < reached < ceiling


# --- the encoder


def test_encoder_finds_the_label_of_held_out_sentences(checkpoint: Path) -> None:
    assert encoder.accuracy(*load(checkpoint), reviews("test")) >= 0.95


@contextmanager
def without_ffns(model: torch.nn.Module) -> Iterator[None]:
    """Every FFN's output replaced by its mean over real tokens of validation sentences."""
    handles = []
    for layer in model.bert.encoder.layer:
        mean = layer.ffn_mean
        handles.append(layer.output.dense.register_forward_hook(lambda _, __, out, mean=mean: mean.expand_as(out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def remember_ffn_means(model: torch.nn.Module, tokenizer: object) -> None:
    seen: dict[int, torch.Tensor] = {}
    handles = [
        layer.output.dense.register_forward_hook(lambda _, __, out, index=index: seen.update({index: out}))
        for index, layer in enumerate(model.bert.encoder.layer)
    ]
    inputs = tokenizer([row["text"] for row in reviews("validation")], padding=True, return_tensors="pt")
    with torch.inference_mode():
        model(**inputs)
    for index, (layer, handle) in enumerate(zip(model.bert.encoder.layer, handles, strict=True)):
        layer.ffn_mean = seen[index][inputs["attention_mask"].bool()].mean(0)
        handle.remove()


def test_encoder_needs_its_ffns(checkpoint: Path) -> None:
    model, tokenizer = load(checkpoint)
    remember_ffn_means(model, tokenizer)
    with without_ffns(model):
        without = encoder.accuracy(model, tokenizer, reviews("test"))
    assert encoder.accuracy(model, tokenizer, reviews("test")) - without > 0.1


def test_checkpoint_says_what_it_is(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    sizes = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    assert [config[key] for key in sizes] == ["bert", 4, 128, 512, 2]
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".safetensors"}
    tokenizer_config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    assert tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"  # both transformers lines know this one
    model, tokenizer = load(checkpoint)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert tokenizer.model_input_names == ["input_ids", "token_type_ids", "attention_mask"]


def test_tokenizer_marks_pairs_and_unknown_words(checkpoint: Path) -> None:
    _, tokenizer = load(checkpoint)
    encoded = tokenizer("The SOUP zyx", "I loved")
    expected = ["[CLS]", "the", "soup", "[UNK]", "[SEP]", "i", "loved", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == expected
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert set(tokenizer.all_special_ids) == {0, 1, 2, 3, 4}


def test_tokenizer_knows_every_word_of_every_split(checkpoint: Path) -> None:
    _, tokenizer = load(checkpoint)
    for split in SPLITS:
        rows = tokenizer([row["text"] for row in reviews(split)])["input_ids"]
        assert not any(tokenizer.unk_token_id in row for row in rows)


def test_second_call_finds_the_first_ones_files(checkpoint: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in checkpoint.iterdir()}

    def forbidden(what: str, done: int, total: int) -> None:
        raise AssertionError("a cached encoder must not train")

    assert reviews_tiny(forbidden) == checkpoint
    assert {path: path.stat().st_mtime_ns for path in checkpoint.iterdir()} == before


# --- training and cache, on an encoder small enough to train in a second


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> encoder.Training:
    """An encoder of one narrow layer that trains for a few steps, and an empty cache."""
    small = encoder.Training(
        layers=1, hidden_size=8, intermediate_size=16, heads=2, positions=64, epochs=1, batch_size=1000
    )
    monkeypatch.setattr(encoder, "TRAINING", small)
    monkeypatch.setattr(encoder, "FLOOR", 0.0)
    monkeypatch.setenv("SKILLPRUNE_CACHE", str(tmp_path / "cache"))
    return small


def test_training_repeats_itself_and_leaves_the_random_state_alone(quick: encoder.Training) -> None:
    state = torch.random.get_rng_state()
    first, _ = encoder.train(quick, silent)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    second, _ = encoder.train(quick, silent)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_training_reports_every_step(quick: encoder.Training) -> None:
    told: list[tuple[int, int]] = []
    encoder.train(quick, lambda what, done, total: told.append((done, total)))
    assert told == [(step, 24) for step in range(25)]


def test_poor_training_is_not_cached(quick: encoder.Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "FLOOR", 0.99)
    with pytest.raises(VerificationFailed, match=r"below 0\.99"):
        reviews_tiny()
    assert not [path for path in encoder.cache_home().iterdir() if path.is_dir()]


def test_interrupted_writing_leaves_nothing_behind(quick: encoder.Training, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("skillprune.demo.encoder.os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        reviews_tiny()
    assert not [path for path in encoder.cache_home().iterdir() if path.is_dir()]


def test_cached_encoder_is_the_trained_one(quick: encoder.Training) -> None:
    trained, tokenizer = encoder.train(quick, silent)
    loaded, _ = load(reviews_tiny())
    batch = tokenizer(["The soup was good.", "I never enjoyed the plot."], padding=True, return_tensors="pt")
    with torch.inference_mode():
        assert torch.equal(trained.eval()(**batch).logits, loaded(**batch).logits)


def test_changed_training_has_its_own_directory(quick: encoder.Training, monkeypatch: pytest.MonkeyPatch) -> None:
    before = encoder.fingerprint()
    monkeypatch.setattr(encoder, "TRAINING", encoder.Training(seed=1))
    assert encoder.fingerprint() != before


def test_cache_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SKILLPRUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert encoder.cache_home() == tmp_path / "skillprune"
    monkeypatch.setenv("SKILLPRUNE_CACHE", str(tmp_path / "own"))
    assert encoder.cache_home() == tmp_path / "own"


def test_unwritable_cache_is_a_resource_failure(quick: encoder.Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLPRUNE_CACHE", str(Path(__file__) / "cache"))  # below a file, where nothing can be made
    with pytest.raises(ResourceFailure, match="cannot cache"):
        reviews_tiny()


def test_two_processes_train_once_between_them(tmp_path: Path) -> None:
    code = (
        "from skillprune.demo import encoder, reviews_tiny\n"
        "encoder.FLOOR = 0.0\n"
        "encoder.TRAINING = encoder.Training(layers=1, hidden_size=8, intermediate_size=16, heads=2, positions=64,"
        " epochs=1, batch_size=1000)\n"
        "steps = []\n"
        "print(reviews_tiny(lambda what, done, total: steps.append(done)), bool(steps))"
    )
    environment = {**os.environ, "SKILLPRUNE_CACHE": str(tmp_path)}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0][0] == said[1][0]
    assert sorted(trained for _, trained in said) == ["False", "True"]
    load(Path(said[0][0]))
