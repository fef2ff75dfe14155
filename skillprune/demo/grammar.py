"""Review sentences with a known verdict, drawn from a small grammar; what learns them is the encoder's business.

The verdict of a sentence follows from its parts: a clause reverses what its words say once per negation, the main
clause of a contrast decides, what other people think does not count, and neutral facts say nothing. Hence counting
words does not tell the label, and combining them does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Final, Protocol, TypeVar

from skillprune.demo import words
from skillprune.errors import DataError

LABELS: Final = ("negative", "positive")
SIZES: Final = {"train": 24000, "validation": 2000, "test": 2000}
SEED: Final = 20240229
SHORTEST, LONGEST = 5, 30

Choice = TypeVar("Choice")


class Clause(Protocol):
    """A piece of a sentence with a verdict of its own."""

    @property
    def text(self) -> str:
        """The words, without capital and full stop."""

    @property
    def positive(self) -> bool:
        """The verdict."""


@dataclass(frozen=True)
class Statement:
    """``<holder> the <noun> <copula> <degree> <adjective>``, such as "I doubt that the queue was very long"."""

    noun: str
    adjective: str
    holder: str = ""
    copula: str = "was"
    degree: str = ""

    @property
    def text(self) -> str:
        """The words, without capital and full stop."""
        return " ".join(filter(None, (self.holder, "the", self.noun, self.copula, self.degree, self.adjective)))

    @property
    def positive(self) -> bool:
        """What the adjective says of the noun, reversed by a denying holder and by a negated copula."""
        denies = ({"": False} | dict(words.HOLDERS))[self.holder]
        negates = ({"was": False} | dict(words.COPULAS))[self.copula]
        return praises(self.adjective, self.noun) ^ denies ^ negates


@dataclass(frozen=True)
class Feeling:
    """``<subject> <verb> the <noun>``, such as "I could not help but love the soup"."""

    subject: str
    verb: str
    noun: str

    @property
    def text(self) -> str:
        """The words, without capital and full stop."""
        return f"{self.subject} {self.verb} the {self.noun}"

    @property
    def positive(self) -> bool:
        """What the verb says, reversed by a negated subject."""
        reversed_by = {subject: reverses for subject, _, reverses in words.SUBJECTS}
        return any(self.verb in forms for forms in words.VERBS[True]) ^ reversed_by[self.subject]


def praises(adjective: str, noun: str) -> bool:
    """Whether calling ``noun`` ``adjective`` is praise; words of size and degree depend on the noun.

    Raises:
        ValueError: if the grammar does not say what ``adjective`` means for ``noun``.
    """
    for more, less, wanted, unwanted in words.SCALES:
        if adjective in (more, less):
            if noun not in wanted + unwanted:
                raise ValueError(f"the grammar does not say whether {adjective!r} is good for {noun!r}")
            return (adjective == more) == (noun in wanted)
    if adjective not in words.ADJECTIVES[True] + words.ADJECTIVES[False]:
        raise ValueError(f"the grammar does not know the adjective {adjective!r}")
    return adjective in words.ADJECTIVES[True]


def finish(text: str) -> str:
    """Capital letter and full stop."""
    return text[0].upper() + text[1:] + "."


def reviews(split: str) -> list[dict[str, str]]:
    """The reviews of one split, always the same ones: half of them positive, none in two splits.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
        Rows with the keys ``text`` and ``label`` (``"negative"`` or ``"positive"``).

    Raises:
        DataError: if there is no such split.
    """
    if split not in SIZES:
        raise DataError(f"builtin:reviews has no split {split!r}; it has {', '.join(SIZES)}")
    return [{"text": text, "label": label} for text, label in _corpus()[split]]


@lru_cache(maxsize=1)
def _corpus() -> dict[str, tuple[tuple[str, str], ...]]:
    """Distinct sentences of alternating verdict in one stream, cut into the splits."""
    rng = Random(SEED)
    drawn: dict[str, str] = {}
    while len(drawn) < sum(SIZES.values()):
        positive = len(drawn) % 2 == 1
        text = _sentence(rng, positive)
        if text not in drawn and SHORTEST <= len(text.split()) <= LONGEST:
            drawn[text] = LABELS[positive]
    stream = iter(drawn.items())
    return {split: tuple(next(stream) for _ in range(size)) for split, size in SIZES.items()}


def _pick(rng: Random, options: tuple[Choice, ...]) -> Choice:
    """One of ``options``; of all that Random offers, only ``random()`` is promised never to change its sequence."""
    return options[int(rng.random() * len(options))]


def _sentence(rng: Random, positive: bool) -> str:
    shape = rng.random()
    if shape < 0.55:
        core = _clause(rng, positive).text
    elif shape < 0.68:
        core = f"{_clause(rng, positive).text}, and {_clause(rng, positive).text}"
    elif shape < 0.9:
        other = (
            _statement(rng, not positive, held=False).text if rng.random() < 0.5 else _pick(rng, words.NEUTRAL_FACTS)
        )
        core = _pick(rng, words.CONTRASTS).format(main=_clause(rng, positive).text, other=other)
    else:
        other = _statement(rng, not positive, held=False).text
        template, person = _pick(rng, words.HEARSAY), _pick(rng, words.PEOPLE)
        core = template.format(main=_clause(rng, positive).text, other=other, person=person)
    return finish(_framed(rng, core))


def _framed(rng: Random, core: str) -> str:
    """The core, at times after a neutral fact or before a remark that changes nothing."""
    if rng.random() < 0.12:
        core = f"{_pick(rng, words.NEUTRAL_FACTS)}, and {core}"
    if rng.random() < 0.12:
        core = f"{core}, {_pick(rng, words.ENDINGS).format(person=_pick(rng, words.PEOPLE))}"
    return core


def _clause(rng: Random, positive: bool) -> Clause:
    return _feeling(rng, positive) if rng.random() < 0.2 else _statement(rng, positive, held=rng.random() < 0.1)


def _feeling(rng: Random, positive: bool) -> Feeling:
    subject, past, reverses = _pick(rng, words.SUBJECTS) if rng.random() < 0.5 else words.SUBJECTS[0]
    return Feeling(subject, _pick(rng, words.VERBS[positive ^ reverses])[past], _pick(rng, words.NOUNS))


def _statement(rng: Random, positive: bool, *, held: bool) -> Statement:
    holder, denies = _pick(rng, words.HOLDERS) if held else ("", False)
    copula, negates = _pick(rng, words.COPULAS) if rng.random() < 0.25 else ("was", False)
    praise = positive ^ denies ^ negates
    noun, adjective = _scaled(rng, praise) if rng.random() < 0.2 else _plain(rng, praise)
    degrees = words.INTENSIFIERS if negates or rng.random() < 0.5 else words.DOWNTONERS
    degree = _pick(rng, degrees) if rng.random() < 0.25 else ""
    return Statement(noun, adjective, holder, copula, degree)


def _plain(rng: Random, praise: bool) -> tuple[str, str]:
    return _pick(rng, words.NOUNS), _pick(rng, words.ADJECTIVES[praise])


def _scaled(rng: Random, praise: bool) -> tuple[str, str]:
    more, less, wanted, unwanted = _pick(rng, words.SCALES)
    first = rng.random() < 0.5
    return _pick(rng, wanted if first == praise else unwanted), more if first else less
