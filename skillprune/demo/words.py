"""The words of the demo's review sentences, as plain tables; how they combine is grammar's work.

A table whose entries carry a boolean says with it whether the entry reverses what follows: ``("was never", True)``.
"""

from __future__ import annotations

ADJECTIVES: dict[bool, tuple[str, ...]] = {
    True: (
        "good", "great", "excellent", "wonderful", "lovely", "brilliant", "delightful", "fine", "impressive", "perfect",
    ),
    False: (
        "bad", "awful", "terrible", "horrible", "dreadful", "poor", "disappointing", "boring", "annoying", "dull",
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
    ("high", "low", ("quality", "resolution"), ("price", "rent")),
    ("long", "short", ("warranty", "holiday"), ("queue", "delay")),
    ("hot", "cold", ("soup", "coffee"), ("beer", "lemonade")),
    ("big", "small", ("screen", "portion"), ("bill", "stain")),
)

INTENSIFIERS = ("very", "really", "truly", "extremely", "particularly", "absolutely")
DOWNTONERS = ("somewhat", "fairly", "rather", "slightly", "quite", "a bit")

HOLDERS: tuple[tuple[str, bool], ...] = (
    ("I think that", False),
    ("it is true that", False),
    ("nobody can deny that", False),
    ("I doubt that", True),
    ("it is not true that", True),
    ("it is wrong to say that", True),
)

COPULAS: tuple[tuple[str, bool], ...] = (
    ("seemed", False),
    ("was nothing but", False),
    ("never failed to be", False),
    ("was not", True),
    ("was never", True),
    ("was hardly", True),
    ("was anything but", True),
)

# Base form and past of what a reviewer feels.
VERBS: dict[bool, tuple[tuple[str, str], ...]] = {
    True: (("love", "loved"), ("enjoy", "enjoyed"), ("like", "liked")),
    False: (("hate", "hated"), ("dislike", "disliked"), ("despise", "despised")),
}

# What stands between the reviewer and the verb, whether the verb is in the past, whether it is reversed.
SUBJECTS: tuple[tuple[str, bool, bool], ...] = (
    ("I", True, False),
    ("I could not help but", False, False),
    ("I never", True, True),
    ("I did not", False, True),
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
    "there were not many people around",
    "the whole thing took two hours",
)

ENDINGS = (
    "whatever {person} says",
    "at least on that day",
    "and {person} was not even there",
    "not that anybody asked me",
)
