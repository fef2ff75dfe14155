"""The token that stands for each label word; what a model gives those tokens is left to others."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from skillprune.errors import DataError
from skillprune.tasks import Template


def label_word_ids(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], *, task_type: str, template: Template | None = None
) -> tuple[int, ...]:
    """The one token of every label word as it stands where the answer does.

    Many tokenizers write a word differently after a space and after anything else. At a mask, the form that fits the
    template counts first and the other one if that is no single token; after the end of a prompt only the form that
    continues the template can be predicted.

    Args:
        tokenizer: The checkpoint's tokenizer.
        words: Label words in class order.
        task_type: ``masked-lm`` or ``causal-lm``.
        template: The prompt; without one, a space is taken to stand before the answer.

    Returns:
        Token ids in the order of ``words``.

    Raises:
        DataError: A word is not a single known token, or two words are the same one.
        ValueError: Tasks of this type have no label words.
    """
    forms = _forms(task_type, "" if template is None else template.before_answer, default=template is None)
    ids: list[int] = []
    for word in words:
        token = _token(tokenizer, word, forms)
        if token in ids:
            same = words[ids.index(token)]
            raise DataError(f"task.label_words: {same!r} and {word!r} are the same token; choose another word")
        ids.append(token)
    return tuple(ids)


def _forms(task_type: str, before: str, *, default: bool) -> tuple[bool, ...]:
    """Whether a word is looked up as one that follows a space, in order of preference."""
    after_space = before[-1:].isspace()
    if task_type == "masked-lm":
        spaced = default or after_space
        return spaced, not spaced
    if task_type == "causal-lm":
        return (not after_space,)
    raise ValueError(f"a task of type {task_type} has no label words")


def _token(tokenizer: PreTrainedTokenizerBase, word: str, forms: Sequence[bool]) -> int:
    found = [_pieces(tokenizer, word, spaced=spaced) for spaced in forms]
    for pieces in found:
        if len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id:
            return pieces[0]
    shown = " ".join(map(str, tokenizer.convert_ids_to_tokens(found[0]))) or "nothing"
    raise DataError(
        f"task.label_words: {word!r} is no single token, the tokenizer makes {shown} of it; choose another word"
    )


def _pieces(tokenizer: PreTrainedTokenizerBase, word: str, *, spaced: bool) -> list[int]:
    """The tokens of a word in the middle of a line: after another word and a space, or right after a bracket.

    At the start of a line some tokenizers add a space of their own, so the word is read off after something else.
    """
    anchor, gap = ("a", " ") if spaced else ("(", "")
    before = tokenizer.encode(anchor, add_special_tokens=False)
    after = tokenizer.encode(f"{anchor}{gap}{word}", add_special_tokens=False)
    # An anchor that the tokenizer does not know can swallow the word.
    known = tokenizer.unk_token_id not in before
    if known and len(after) > len(before) and after[: len(before)] == before:
        return list(after[len(before) :])
    return list(tokenizer.encode(word, add_special_tokens=False))
