"""Checkpoints: fresh processes read back what was written, with skillprune and without; unsafe ones are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file
from tiny import TINY, TINY_ALL, TINY_WIDTHS, VOCABULARY, tiny_bert
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from skillprune.checkpoint import fingerprint, load_model, load_source, save_pruned, uneven_widths, verify_reload
from skillprune.errors import CheckpointError, ParityError, PlanMismatch, VerificationFailed
from skillprune.families import find_ffns
from skillprune.planning import Costs, PruningPlan
from skillprune.recipe import ModelSpec
from skillprune.surgery import prune_

ROOT = Path(__file__).resolve().parents[1]
WIDTH, EVEN, UNEVEN = 32, (8, 8, 8), (12, 3, 20)
UNCOUNTED = Costs(0, 0, 0, 0, 0)
EVEN_DECODER, UNEVEN_DECODER = (6, 6), (5, 9)
WIDTH_ATTRIBUTES = {
    "bert": {"encoder": "intermediate_size"},
    "roberta": {"encoder": "intermediate_size"},
    "distilbert": {"encoder": "hidden_dim"},
    "llama": {"decoder": "intermediate_size"},
    "bart": {"encoder": "encoder_ffn_dim", "decoder": "decoder_ffn_dim"},
}
HEADS = {"llama": AutoModelForCausalLM, "bart": AutoModelForSeq2SeqLM}
families = pytest.mark.parametrize("family", sorted(TINY_ALL))

READ = """
import json, sys
{before}
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
{after}
heads = {{"SequenceClassification": AutoModelForSequenceClassification, "CausalLM": AutoModelForCausalLM,
    "ConditionalGeneration": AutoModelForSeq2SeqLM}}
inputs = {{name: torch.from_numpy(array) for name, array in load_file(sys.argv[1]).items()}}
for directory in sys.argv[2:]:
    head = json.load(open(f"{{directory}}/config.json"))["architectures"][0].split("For")[1]
    for number, auto in enumerate((heads[head], AutoModel)):
        model = auto.from_pretrained(directory, dtype=torch.float32).eval()
        with torch.inference_mode():
            save_file({{"out": model(**inputs)[0].numpy()}}, f"{{directory}}/found-{{number}}.safetensors")
"""
WITHOUT_SKILLPRUNE = """
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "skillprune":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
"""


def widths_of(family: str, widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Widths per stack: the ones named, and for BART's decoder those that go with them."""
    if family != "bart":
        return dict.fromkeys(TINY_WIDTHS[family], widths)
    return {"encoder": widths, "decoder": EVEN_DECODER if widths == EVEN else UNEVEN_DECODER}


def pruned(family: str, widths: tuple[int, ...]) -> PreTrainedModel:
    keep = {s: tuple(tuple(range(width)) for width in w) for s, w in widths_of(family, widths).items()}
    return prune_(TINY_ALL[family](), PruningPlan(keep, TINY_WIDTHS[family], "test", {}, 1, UNCOUNTED, UNCOUNTED))


def load(directory: Path, family: str) -> PreTrainedModel:
    if family in TINY:
        return load_model(directory, dtype="float32")
    model: PreTrainedModel = HEADS[family].from_pretrained(directory, dtype=torch.float32)
    return model.eval()


def small_tokenizer() -> PreTrainedTokenizerFast:
    words = {"[UNK]": 0, "[PAD]": 1, **{f"word{number}": number for number in range(2, VOCABULARY)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=60
    )


def save(model: PreTrainedModel, directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    save_pruned(model, small_tokenizer(), directory, dtype=dtype)
    return directory


def config_of(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "config.json").read_text(encoding="utf-8")))


def inputs() -> dict[str, NDArray[np.int64]]:
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (3, 7))
    return {"input_ids": ids, "attention_mask": (np.arange(7) < np.array([[7], [5], [2]])).astype(np.int64)}


def outputs(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**{name: torch.from_numpy(array) for name, array in inputs().items()})[0]
    return found


def read_in_a_fresh_process(
    folder: Path, *directories: Path, before: str = "", after: str = "", plugin: bool
) -> subprocess.CompletedProcess[str]:
    np_inputs = folder / "inputs.safetensors"
    save_file({name: torch.from_numpy(array) for name, array in inputs().items()}, np_inputs)
    isolated, path = ([], str(ROOT)) if plugin else (["-I"], "")
    return subprocess.run(
        [
            sys.executable,
            *isolated,
            "-c",
            READ.format(before=before, after=after),
            str(np_inputs),
            *map(str, directories),
        ],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_read(directory: Path, model: PreTrainedModel) -> None:
    """The logits and the bare body's hidden states are those of the model that was saved."""
    model.float()
    for number, whole in enumerate((model, model.base_model)):
        found = load_arrays(directory / f"found-{number}.safetensors")["out"]
        np.testing.assert_allclose(found, outputs(whole).numpy(), rtol=0, atol=1e-5)


def test_without_skillprune_even_widths_load_and_uneven_ones_fail_loudly(tmp_path: Path) -> None:
    models = {family: pruned(family, EVEN) for family in TINY_ALL}
    even = [save(model, tmp_path / family) for family, model in models.items()]
    uneven = save(pruned("bert", UNEVEN), tmp_path / "uneven")
    done = read_in_a_fresh_process(tmp_path, *even, uneven, before=WITHOUT_SKILLPRUNE, plugin=False)
    for directory, model in zip(even, models.values(), strict=True):
        assert_read(directory, model)
    assert done.returncode != 0
    assert "size mismatch" in done.stderr or "mismatched" in done.stderr
    assert not list(uneven.glob("found-*"))


@pytest.mark.parametrize("order", ["before", "after"])
def test_with_skillprune_uneven_widths_load_in_either_import_order(tmp_path: Path, order: str) -> None:
    models = {family: pruned(family, UNEVEN) for family in TINY_ALL}
    saved = [save(deepcopy(model), tmp_path / family, torch.float16) for family, model in models.items()]
    for parameter in (parameter for model in models.values() for parameter in model.parameters()):
        parameter.data = parameter.data.half().float()  # what a file rounds: no buffer, such as rotary frequencies
    done = read_in_a_fresh_process(tmp_path, *saved, plugin=True, **{order: "import skillprune"})
    assert done.returncode == 0, done.stderr
    for directory, model in zip(saved, models.values(), strict=True):
        assert_read(directory, model)


@families
def test_config_says_even_widths_the_stock_way(tmp_path: Path, family: str) -> None:
    config = config_of(save(pruned(family, EVEN), tmp_path))
    for stack, widths in widths_of(family, EVEN).items():
        assert config[WIDTH_ATTRIBUTES[family][stack]] == widths[0]
    assert "quantization_config" not in config
    assert "skillprune" not in json.dumps(config)


@families
def test_config_names_uneven_widths_per_stack_and_no_module(tmp_path: Path, family: str) -> None:
    model = pruned(family, UNEVEN)
    config = config_of(save(model, tmp_path))
    widths = {stack: list(widths) for stack, widths in widths_of(family, UNEVEN).items()}
    assert config["quantization_config"] == {"quant_method": "skillprune", "widths": widths}
    assert uneven_widths(model) == widths
    text = json.dumps(config)
    for ffn in find_ffns(model):
        parts = (ffn.path, ffn.stack.up, ffn.stack.down, ffn.stack.gate)
        assert not any(path in text for path in parts if path is not None)


@pytest.mark.parametrize("uneven", ["encoder", "decoder"])
def test_one_uneven_stack_is_enough_to_name_the_widths_of_both(tmp_path: Path, uneven: str) -> None:
    widths = {"encoder": (8, 8, 8), "decoder": (6, 6)} | (
        {"encoder": UNEVEN} if uneven == "encoder" else {"decoder": (5, 9)}
    )
    keep = {stack: tuple(tuple(range(width)) for width in layers) for stack, layers in widths.items()}
    plan = PruningPlan(keep, TINY_WIDTHS["bart"], "test", {}, 1, UNCOUNTED, UNCOUNTED)
    model = prune_(TINY_ALL["bart"](), plan)
    directory = save(model, tmp_path)
    assert config_of(directory)["quantization_config"]["widths"] == {s: list(w) for s, w in widths.items()}
    torch.testing.assert_close(outputs(load(directory, "bart")), outputs(model), rtol=0, atol=1e-5)


@families
@pytest.mark.parametrize("widths", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_saving_and_loading_twice_changes_nothing(tmp_path: Path, family: str, widths: tuple[int, ...]) -> None:
    model = pruned(family, widths)
    first = save(model, tmp_path / "first")
    again = load(first, family)
    second = save(again, tmp_path / "second")
    twice = load(second, family)
    assert config_of(second) == config_of(first)
    for loaded in (again, twice):
        assert type(loaded) is type(model)
        state = loaded.state_dict()
        assert list(state) == list(model.state_dict())
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        expected = [(w,) * 3 for layers in widths_of(family, widths).values() for w in layers]
        assert [(f.width, f.into[-1].out_features, f.down.in_features) for f in find_ffns(loaded)] == expected
    torch.testing.assert_close(outputs(twice), outputs(model), rtol=0, atol=1e-5)


def test_a_loaded_model_that_is_cut_even_becomes_a_stock_checkpoint(tmp_path: Path) -> None:
    loaded = load_model(save(pruned("bert", UNEVEN), tmp_path / "uneven"), dtype="float32")
    keep = {"encoder": ((0, 1, 2),) * 3}
    prune_(loaded, PruningPlan(keep, {"encoder": UNEVEN}, "test", {}, 1, UNCOUNTED, UNCOUNTED))
    config = config_of(save(loaded, tmp_path / "even"))
    assert config["intermediate_size"] == 3
    assert "quantization_config" not in config
    assert load_model(tmp_path / "even", dtype="float32").config.intermediate_size == 3


@families
def test_a_loaded_model_is_an_ordinary_one(tmp_path: Path, family: str) -> None:
    directory = save(pruned(family, UNEVEN), tmp_path)
    head = HEADS.get(family, AutoModelForSequenceClassification)
    for auto in (AutoModel, head):
        half = auto.from_pretrained(directory, dtype=torch.float32).half()
        assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    model = head.from_pretrained(directory, dtype=torch.float32)
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in model.parameters())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    tensors = {name: torch.from_numpy(array) for name, array in inputs().items()}
    labels = torch.tensor([0, 1, 1]) if family in TINY else tensors["input_ids"]
    loss = model(**tensors, labels=labels).loss
    loss.backward()
    optimizer.step()
    names = {module: name for name, module in model.named_modules()}
    ffns = {f"{names[part.module]}.weight" for ffn in find_ffns(model) for part in (*ffn.into, ffn.down)}
    assert len(ffns) == sum(map(len, TINY_WIDTHS[family].values())) * (3 if family == "llama" else 2)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert ffns <= moved
    repr(model.config)


@pytest.mark.parametrize("widths", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_dtype_is_kept_and_the_file_shrinks(tmp_path: Path, widths: Sequence[int]) -> None:
    dense = save(tiny_bert(), tmp_path / "dense", torch.float16)
    source = load_source(ModelSpec(name=str(dense)))
    assert (source.dtype, source.model.dtype) == (torch.float16, torch.float32)
    keep = {"encoder": tuple(tuple(range(width)) for width in widths)}
    prune_(source.model, PruningPlan(keep, {"encoder": (WIDTH,) * 3}, "test", {}, 1, UNCOUNTED, UNCOUNTED))
    save_pruned(source.model, source.tokenizer, tmp_path / "small", dtype=source.dtype)
    weights = load_file(tmp_path / "small" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    removed = 2 * sum(WIDTH - width for width in widths) * (2 * 16 + 1)
    before, after = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("dense", "small"))
    assert abs(before - after - removed) < 0.1 * removed
    assert load_source(ModelSpec(name=str(tmp_path / "small"))).dtype == torch.float16


def test_verification_finds_a_changed_weight_and_a_broken_config(tmp_path: Path) -> None:
    model = pruned("bert", UNEVEN)
    directory = save(model, tmp_path / "model", torch.float16)
    weights = load_file(directory / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParityError, match="reloaded in a fresh process") as caught:
        verify_reload(model, directory, inputs())
    assert caught.value.difference == pytest.approx(1.0, abs=1e-3)
    config = config_of(directory)
    config["quantization_config"]["widths"]["encoder"] = [12, 3, 21]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationFailed, match="does not load in a fresh process") as failed:
        verify_reload(model, directory, inputs())
    assert not isinstance(failed.value, ParityError)


def test_verification_passes_what_was_written(tmp_path: Path) -> None:
    model = pruned("distilbert", EVEN)
    assert verify_reload(model, save(model, tmp_path), inputs()) < 1e-5


@pytest.mark.parametrize("widths", [[12, 3], [12, 3, 20, 4]], ids=["a layer less", "a layer more"])
def test_widths_of_another_model_are_refused(tmp_path: Path, widths: list[int]) -> None:
    directory = save(pruned("bert", UNEVEN), tmp_path)
    config = config_of(directory)
    config["quantization_config"]["widths"]["encoder"] = widths
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanMismatch, match=r"do not fit a model with .*32, 32, 32"):
        load_source(ModelSpec(name=str(directory)))


def test_a_source_knows_what_it_is(tmp_path: Path) -> None:
    model = tiny_bert()
    directory = save(model, tmp_path / "a")
    source = load_source(ModelSpec(name=str(directory)))
    assert all(torch.equal(tensor, source.model.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert not source.model.training
    assert source.tokenizer("word5 word9 other")["input_ids"] == [5, 9, 0]
    assert (source.dtype, source.fingerprint) == (torch.float32, fingerprint(directory))
    assert load_source(ModelSpec(name=str(directory), dtype="bfloat16")).model.dtype == torch.bfloat16


@pytest.mark.parametrize("shard", ["1GB", "5KB"], ids=["one file", "shards"])
def test_where_no_config_says_how_weights_are_stored_they_do(tmp_path: Path, shard: str) -> None:
    directory = save(tiny_bert(), tmp_path / "model")
    tiny_bert().half().save_pretrained(directory, max_shard_size=shard)
    if shard == "5KB":
        (directory / "model.safetensors").unlink()
    said = {name: value for name, value in config_of(directory).items() if name not in {"dtype", "torch_dtype"}}
    (directory / "config.json").write_text(json.dumps(said))
    assert load_source(ModelSpec(name=str(directory))).dtype == torch.float16


def test_a_special_token_without_an_embedding_is_none_that_a_text_has(tmp_path: Path) -> None:
    directory, tokenizer = save(tiny_bert(), tmp_path / "model"), small_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(directory)
    assert len(load_source(ModelSpec(name=str(directory))).tokenizer) == VOCABULARY + 1
    tokenizer.add_tokens(["picture"])
    tokenizer.save_pretrained(directory)
    with pytest.raises(CheckpointError, match=f"has {VOCABULARY + 2} tokens, the model embeds only {VOCABULARY}"):
        load_source(ModelSpec(name=str(directory)))


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    directory = save(tiny_bert(), tmp_path / "a")
    first = fingerprint(directory)
    shutil.copytree(directory, tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("a model card")
    assert fingerprint(tmp_path / "b") == first
    assert fingerprint(save(tiny_bert(seed=1), tmp_path / "c")) != first
    (tmp_path / "b" / "config.json").write_text((directory / "config.json").read_text() + "\n")
    assert fingerprint(tmp_path / "b") != first


def pickle_only(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def headless(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})


def truncated(directory: Path) -> None:
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[: len(content) // 2])


def other_width(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({**config_of(directory), "intermediate_size": 48}))


def without_tokenizer(directory: Path) -> None:
    for path in directory.glob("*token*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (pickle_only, "pickled weights only"),
        (lambda directory: (directory / "config.json").unlink(), r"no config\.json"),
        (lambda directory: (directory / "model.safetensors").unlink(), r"no \*\.safetensors"),
        (headless, r"no weights for classifier\.bias, classifier\.weight"),
        (truncated, "cannot be loaded"),
        (other_width, "cannot be loaded"),
        (lambda directory: (directory / "config.json").write_text("{"), "cannot be loaded"),
        (lambda directory: (directory / "config.json").write_text('{"model_type": "brt"}'), "cannot be loaded"),
        (without_tokenizer, "holds no tokenizer"),
    ],
    ids=[
        "pickle",
        "no config",
        "no weights",
        "no head",
        "truncated",
        "width",
        "bad config",
        "bad type",
        "no tokenizer",
    ],
)
def test_a_checkpoint_that_is_no_checkpoint_is_refused(tmp_path: Path, damage: Any, words: str) -> None:
    directory = save(tiny_bert(), tmp_path / "model")
    damage(directory)
    with pytest.raises(CheckpointError, match=words):
        load_source(ModelSpec(name=str(directory)))
