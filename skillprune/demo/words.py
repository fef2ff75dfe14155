"""The words of the demo's review sentences, as plain tables; how they combine is grammar's work.

A table whose entries carry a boolean says with it whether the entry reverses what follows: ``("was never", True)``.
"""

from __future__ import annotations

ADJECTIVES: dict[bool, tuple[str, ...]] = {
    True: (
        "good", "great", "excellent", "wonderful", "lovely", "brilliant", "delightful", "fine", "impressive", "perfect",
        "pleasant", "superb",
    ),
    False: (
        "bad", "awful", "terrible", "horrible", "dreadful", "poor", "disappointing", "boring", "annoying", "mediocre",
        "unpleasant", "dull",
    ),
}  # fmt: skip

NOUNS = (
    "soup", "coffee", "dessert", "menu", "waiter", "plot", "film", "cast", "ending", "soundtrack", "book", "story",
    "phone", "camera", "screen", "battery", "keyboard", "speaker", "hotel", "room", "bed", "breakfast", "garden",
    "pool", "service", "staff", "price", "quality", "delivery", "design", "trip", "museum", "concert", "jacket",
)  # fmt: skip

# Words that praise one thing and blame another. Each row: the word, its opposite, what should be the first, what
# should be the second. Neither noun nor adjective alone tells the verdict.
SCALES: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("high", "low", ("quality", "resolution", "standard"), ("price", "fee", "rent")),
    ("long", "short", ("warranty", "holiday", "guarantee"), ("queue", "wait", "delay")),
    ("hot", "cold", ("soup", "coffee", "shower"), ("beer", "lemonade", "yoghurt")),
    ("loud", "quiet", ("speaker", "alarm", "applause"), ("fan", "street", "engine")),
    ("big", "small", ("screen", "portion", "garden"), ("bill", "deposit", "stain")),
)

INTENSIFIERS = ("very", "really", "truly", "extremely", "particularly", "absolutely")
DOWNTONERS = ("somewhat", "fairly", "rather", "slightly", "quite", "a bit")

HOLDERS: tuple[tuple[str, bool], ...] = (
    ("I think that", False),
    ("I know that", False),
    ("it is true that", False),
    ("no doubt", False),
    ("nobody can deny that", False),
    ("I do not doubt that", False),
    ("I doubt that", True),
    ("I do not think that", True),
    ("it is not true that", True),
    ("nobody can claim that", True),
    ("I would never say that", True),
    ("it is wrong to say that", True),
)

COPULAS: tuple[tuple[str, bool], ...] = (
    ("seemed", False),
    ("was always", False),
    ("was nothing but", False),
    ("never failed to be", False),
    ("was not", True),
    ("was never", True),
    ("was hardly", True),
    ("was far from", True),
    ("was anything but", True),
    ("failed to be", True),
)

# Base form and past of what a reviewer feels.
VERBS: dict[bool, tuple[tuple[str, str], ...]] = {
    True: (("love", "loved"), ("enjoy", "enjoyed"), ("like", "liked"), ("admire", "admired"), ("praise", "praised")),
    False: (("hate", "hated"), ("dislike", "disliked"), ("resent", "resented"), ("despise", "despised")),
}

# What stands between the reviewer and the verb, whether the verb is in the past, whether it is reversed.
SUBJECTS: tuple[tuple[str, bool, bool], ...] = (
    ("I", True, False),
    ("I really", True, False),
    ("I could not help but", False, False),
    ("I never", True, True),
    ("I did not", False, True),
    ("I hardly", True, True),
    ("I cannot say that I", True, True),
)

PEOPLE = (
    "my friend", "my sister", "my brother", "my neighbour", "a colleague", "the critic", "my uncle", "another guest",
)  # fmt: skip

CONTRASTS = (
    "although {other}, {main}",
    "while {other}, {main}",
    "despite the fact that {other}, {main}",
    "{other}, but {main}",
    "{other}, yet {main}",
    "{main}, even though {other}",
    "{main}, even if {other}",
)

# The opinion of somebody else; it does not count.
HEARSAY = (
    "although {person} thought that {other}, {main}",
    "{person} said that {other}, but {main}",
    "{person} insisted that {other}, yet {main}",
    "{main}, even though {person} told me that {other}",
)

NEUTRAL_FACTS = (
    "we went there on a Friday",
    "it was the second week of May",
    "I ordered it for my mother",
    "the parcel came in a brown box",
    "we sat next to the window",
    "the place is near the station",
    "I had never been there before",
    "there were not many people around",
    "my cousin paid for everything",
    "the whole thing took two hours",
)

ENDINGS = (
    "whatever {person} says",
    "and that is all there is to say",
    "at least on that day",
    "for what it is worth",
    "and {person} was not even there",
    "not that anybody asked me",
)
