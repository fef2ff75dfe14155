"""The demo's tiny encoder: its tokenizer, its training on the grammar's reviews, and the cache that keeps it.

Making the sentences is left to grammar; this is the only training in skillprune that starts from nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from filelock import FileLock
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from skillprune.cache import cache_home
from skillprune.demo.grammar import LABELS, reviews
from skillprune.errors import ResourceFailure, VerificationFailed
from skillprune.progress import Progress, track

FLOOR: Final = 0.95
SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Training:
    """What the trained weights depend on, apart from the sentences."""

    layers: int = 4
    hidden_size: int = 128
    intermediate_size: int = 512
    heads: int = 2
    positions: int = 512
    initializer_range: float = 0.06
    position_scale: float = 0.05
    longest_wave: float = 100.0
    epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warm_up: float = 0.1
    seed: int = 0


TRAINING: Final = Training()


@dataclass(frozen=True)
class Encoded:
    """One padded batch: ``inputs`` of ``(batch, sequence)``, ``labels`` of ``(batch,)``."""

    inputs: dict[str, Tensor]
    labels: Tensor


def cached_checkpoint(progress: Progress) -> Path:
    """The demo's checkpoint directory; trains it once per cache, however many processes ask at the same time.

    Raises:
        VerificationFailed: if the trained encoder misses the accuracy floor; nothing is cached then.
        ResourceFailure: if the cache directory cannot be written.
    """
    home = cache_home()
    target = home / f"reviews-tiny-{fingerprint()}"
    if target.is_dir():  # it appears complete or not at all: see _store
        return target
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f"{target.name}.lock"):
            if not target.is_dir():
                _store(*train(TRAINING, progress), target)
    except OSError as error:
        raise ResourceFailure(f"cannot cache the demo's encoder in {home}: {error}") from error
    return target


def fingerprint() -> str:
    """Twelve hex digits that change with the sentences, the sizes, the training and its seed."""
    recipe = {"training": asdict(TRAINING), "data": [reviews("train"), reviews("validation")]}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def build_tokenizer(texts: Sequence[str], positions: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows the lower-cased words of ``texts``, with BERT's special tokens and pairs."""
    normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    known = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *sorted(known)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=positions,
        **{
            name: f"[{name[:-6].upper()}]"
            for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        },
    )


def build_model(training: Training, vocabulary: int) -> BertForSequenceClassification:
    """The untrained encoder, in float32; without dropout, because the sentences hold no noise to guard against."""
    config = BertConfig(
        vocab_size=vocabulary,
        num_hidden_layers=training.layers,
        hidden_size=training.hidden_size,
        intermediate_size=training.intermediate_size,
        num_attention_heads=training.heads,
        max_position_embeddings=training.positions,
        initializer_range=training.initializer_range,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=SPECIAL.index("[PAD]"),
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = BertForSequenceClassification(config)
    model.float()
    _wave_positions_(model, training)
    return model


def _wave_positions_(model: BertForSequenceClassification, training: Training) -> None:
    """Starts position embeddings as sines and cosines (Vaswani et al. 2017, section 3.5), which are trained further.

    Neighbours start out similar, so that far fewer sentences are needed to learn which words stand together.
    """
    weight = model.bert.embeddings.position_embeddings.weight  # (positions, hidden)
    positions, hidden_size = weight.shape
    rates = training.longest_wave ** -(torch.arange(0, hidden_size, 2) / hidden_size)
    angles = torch.arange(positions)[:, None] * rates
    with torch.no_grad():
        weight.copy_(training.position_scale * torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1))


def train(training: Training, progress: Progress) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    """Trains from nothing on the train split, leaving torch's global random state as it was.

    Raises:
        VerificationFailed: if accuracy on the validation split is below ``FLOOR``.
    """
    rows = reviews("train")
    tokenizer = build_tokenizer([row["text"] for row in rows], training.positions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = build_model(training, len(tokenizer)).train()
        batches = [batch for _ in range(training.epochs) for batch in _shuffled(rows, tokenizer, training.batch_size)]
    _descend(model, batches, training, progress)
    reached = accuracy(model, tokenizer, reviews("validation"))
    if reached < FLOOR:
        raise VerificationFailed(f"the demo's encoder reached {reached:.3f} on validation, below {FLOOR}")
    return model, tokenizer


def accuracy(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict[str, str]]
) -> float:
    """The share of ``rows`` whose label the model finds; leaves the model in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        batches = (_encode(rows[start : start + 256], tokenizer) for start in range(0, len(rows), 256))
        right = sum(int((model(**b.inputs).logits.argmax(-1) == b.labels).sum()) for b in batches)
    return right / len(rows)


def _descend(
    model: BertForSequenceClassification, batches: Sequence[Encoded], training: Training, progress: Progress
) -> None:
    """AdamW over ``batches`` in order; the learning rate rises linearly, then falls linearly to zero."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, betas=(0.9, 0.98)
    )
    rise = max(1, int(training.warm_up * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (len(batches) - step) / (len(batches) - rise))
    )
    for batch in track(batches, "training the demo's encoder", progress):
        loss = cross_entropy(model(**batch.inputs).logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _shuffled(rows: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerFast, batch_size: int) -> Iterator[Encoded]:
    """One epoch in random order; batches hold sentences of nearly equal length, so that little of them is padding."""
    order = sorted(torch.randperm(len(rows)).tolist(), key=lambda index: len(rows[index]["text"].split()))
    for start in (torch.randperm(len(rows) // batch_size) * batch_size).tolist():
        yield _encode([rows[index] for index in order[start : start + batch_size]], tokenizer)


def _encode(rows: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerFast) -> Encoded:
    inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    return Encoded(dict(inputs), torch.tensor([LABELS.index(row["label"]) for row in rows]))


def _store(model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, target: Path) -> None:
    """Writes into a temporary sibling and renames it, so that ``target`` is never seen half-written."""
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model.save_pretrained(draft, safe_serialization=True)
        tokenizer.save_pretrained(draft)
        _name_tokenizer_class(draft / "tokenizer_config.json")
        os.replace(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _name_tokenizer_class(path: Path) -> None:
    """Names the class that both transformers lines know: 5.x writes a name of its own that 4.57 cannot load."""
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2), encoding="utf-8")
