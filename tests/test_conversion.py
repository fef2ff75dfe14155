"""`skillprune convert`: every form from every other one, the same model in each, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ROOT, invoke, make_tokenizer, read_json, tree
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from zoo import ZOO, here

import skillprune
from skillprune.checkpoint import load_source, load_stored, read_record, save_pruned
from skillprune.errors import CheckpointError, OutputError, ParityError, PlanMismatch
from skillprune.families import find_ffns
from skillprune.pipeline.modalities import arbitrary_inputs
from skillprune.planning import Costs, PruningPlan
from skillprune.recipe import FORMS, Form, ModelSpec
from skillprune.surgery import prune_

COSTS = Costs(0, 0, 0, 0, 0)
UNEVEN = {"encoder": (12, 3, 20)}
HISTORY = ({"criterion": "skill", "seed": 7},)
UNPLUGGED = """
import sys
import torch, transformers
name, directory, inputs, trust = sys.argv[1:]
model = getattr(transformers, name).from_pretrained(directory, dtype=torch.float32, trust_remote_code=trust == "yes")
assert "skillprune" not in sys.modules
torch.save(model.eval()(**torch.load(inputs))[0].detach(), directory + "/found.pt")
"""

forms = pytest.mark.parametrize("form", FORMS)


def pruned(name: str, widths: dict[str, tuple[int, ...]]) -> PreTrainedModel:
    """The specimen with the first neurons of every layer."""
    keep = {stack: tuple(tuple(range(width)) for width in layers) for stack, layers in widths.items()}
    return prune_(ZOO[name].model(), PruningPlan(keep, ZOO[name].widths, "test", {}, 1, COSTS, COSTS))


@cache
def bert() -> PreTrainedModel:
    return pruned("bert", UNEVEN)


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """A per-layer checkpoint with a tokenizer."""
    return write(tmp_path / "uneven", "per-layer")


def write(directory: Path, form: Form, model: PreTrainedModel | None = None) -> Path:
    save_pruned(model or bert(), make_tokenizer(), directory, dtype=torch.float32, form=form, history=HISTORY)
    return directory


def logits(model: PreTrainedModel, name: str = "bert") -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(**ZOO[name].inputs())[0]
    return found


def alone(tmp_path: Path, directory: Path, *, trust: bool, name: str | None = None) -> subprocess.CompletedProcess[str]:
    """Loads a checkpoint in a process that cannot import skillprune; leaves the logits in ``found.pt``."""
    torch.save(ZOO["bert"].inputs(), tmp_path / "inputs.pt")
    loader = name or "AutoModelForSequenceClassification"
    arguments = [loader, str(directory), str(tmp_path / "inputs.pt"), "yes" if trust else "no"]
    return subprocess.run(
        [sys.executable, "-I", "-c", UNPLUGGED, *arguments],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )


@pytest.mark.parametrize("before", FORMS)
def test_every_form_becomes_every_other_and_stays_the_same_model(tmp_path: Path, before: Form) -> None:
    even = before == "uniform"
    model = pruned("bert", {"encoder": (8, 8, 8)}) if even else bert()
    source = write(tmp_path / "source", before, model)
    kept = tree(source)
    for form in FORMS if even else FORMS[1:]:
        done = skillprune.convert_checkpoint(source, tmp_path / form, form=form)
        assert (done.form_before, done.form, done.dtype) == (before, form, "float32")
        again, record = load_stored(tmp_path / form)
        assert record.form == form and [dict(entry) for entry in record.history] == list(HISTORY)
        assert [ffn.width for ffn in find_ffns(again)] == [ffn.width for ffn in find_ffns(model)]
        assert done.widths == {"encoder": (8, 8, 8) if even else UNEVEN["encoder"]}
        state = model.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in again.state_dict().items())
    assert tree(source) == kept


@pytest.mark.parametrize(("form", "trust"), [("uniform", False), ("padded", False), ("auto_map", True)])
def test_what_needs_no_plugin_loads_without_one(tmp_path: Path, form: Form, trust: bool) -> None:
    model = pruned("bert", {"encoder": (8, 8, 8)}) if form == "uniform" else bert()
    source = write(tmp_path / "source", "per-layer", model)
    skillprune.convert_checkpoint(source, tmp_path / "out", form=form)
    done = alone(tmp_path, tmp_path / "out", trust=trust)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "out" / "found.pt"), logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["per-layer", "auto_map"])
@pytest.mark.parametrize("name", ["AutoModelForSequenceClassification", "BertModel"])
def test_without_plugin_and_without_trust_loading_fails_loudly(tmp_path: Path, form: Form, name: str) -> None:
    done = alone(tmp_path, write(tmp_path / "out", form), trust=False, name=name)
    assert done.returncode != 0
    assert "size mismatch" in done.stderr or "mismatched" in done.stderr, done.stderr
    assert not (tmp_path / "out" / "found.pt").exists()


def test_the_command_says_what_it_wrote_and_how_to_load_it(uneven: Path, tmp_path: Path) -> None:
    said = invoke("convert", uneven, "--format", "padded", "--output", tmp_path / "out")
    assert said.code == 0, said.err
    assert "encoder: 12, 3, 20 neurons" in said.out and "largest difference" in said.out
    assert "from transformers import AutoModelForSequenceClassification" in said.out
    assert "import skillprune" not in said.out
    assert [line.partition(" ...")[0] for line in said.err.splitlines() if line.endswith("...")] == [
        *("load", "write", "reload in a fresh process")
    ]
    names: dict[str, Any] = {}
    exec(said.out[said.out.index("from transformers") :], names)  # the lines are ours, for the reader to run
    torch.testing.assert_close(logits(names["model"]), logits(bert()), atol=1e-5, rtol=0)


def test_the_command_speaks_json(uneven: Path, tmp_path: Path) -> None:
    said = invoke("convert", uneven, "-f", "auto_map", "-o", tmp_path / "out", "--json")
    found = json.loads(said.out)
    assert (found["form_before"], found["form"], found["widths"]) == ("per-layer", "auto_map", {"encoder": [12, 3, 20]})
    assert found["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert "trust_remote_code=True" in found["code"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_number_format_can_be_chosen_and_is_kept_otherwise(uneven: Path, tmp_path: Path, dtype: str) -> None:
    said = invoke("convert", uneven, "-f", "padded", "-o", tmp_path / "half", "--dtype", dtype)
    assert said.code == 0, said.err
    assert invoke("convert", tmp_path / "half", "-f", "per-layer", "-o", tmp_path / "again").code == 0
    for name in ("half", "again"):
        weights = load_file(tmp_path / name / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype)}


def test_tokenizer_and_other_small_files_come_along_and_nothing_else(uneven: Path, tmp_path: Path) -> None:
    (uneven / "preprocessor_config.json").write_text('{"size": 8}', encoding="utf-8")
    (uneven / "pytorch_model.bin").write_bytes(b"pickled")
    (uneven / ".secret").write_text("no", encoding="utf-8")
    assert invoke("convert", uneven, "-f", "auto_map", "-o", tmp_path / "code").code == 0
    assert invoke("convert", tmp_path / "code", "-f", "padded", "-o", tmp_path / "out").code == 0
    found, before = tree(tmp_path / "out"), tree(uneven)
    assert found.keys() == before.keys() - {"pytorch_model.bin", ".secret"} | {"README.md"}
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        assert found[name] == before[name]


def test_the_model_card_is_told_the_new_way_and_keeps_the_rest(uneven: Path, tmp_path: Path) -> None:
    card = "---\ntags: []\n---\n\n# Mine\n\n## How to load it\n\nimport skillprune\n\n## Limits\n\n- many\n"
    (uneven / "README.md").write_text(card, encoding="utf-8")
    for form, wanted in {"padded": "Plain transformers is enough", "auto_map": "trust_remote_code=True"}.items():
        assert invoke("convert", uneven, "-f", form, "-o", tmp_path / form).code == 0
        found = (tmp_path / form / "README.md").read_text(encoding="utf-8")
        assert found.startswith("---\ntags: []\n---\n\n# Mine\n\n## How to load it\n")
        assert found.endswith("\n\n## Limits\n\n- many\n")
        assert wanted in found and "import skillprune" not in found and found.count("## How to load it") == 1
    assert invoke("convert", tmp_path / "padded", "-f", "per-layer", "-o", tmp_path / "back").code == 0
    assert "import skillprune" in (tmp_path / "back" / "README.md").read_text(encoding="utf-8")


def test_uneven_widths_are_not_written_as_uniform(uneven: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    said = invoke("convert", uneven, "-f", "uniform", "-o", tmp_path / "out")
    assert said.code == 2 and said.out == "" and "Traceback" not in said.err
    assert "[12, 3, 20]" in said.text and "per-layer, padded or auto_map" in said.text
    assert tree(tmp_path) == before


def occupied(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("years of work", encoding="utf-8")


def occupied_by_a_file(folder: Path) -> None:
    (folder / "out").write_text("years of work", encoding="utf-8")


def never_pruned(folder: Path) -> None:
    (folder / "uneven" / "skillprune.json").unlink()
    ZOO["bert"].model().save_pretrained(folder / "uneven")


def quantised(folder: Path) -> None:
    config = read_json(folder / "uneven" / "config.json") | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "uneven" / "config.json").write_text(json.dumps(config), encoding="utf-8")


def damaged_record(folder: Path) -> None:
    (folder / "uneven" / "skillprune.json").write_text("{", encoding="utf-8")


def no_weights(folder: Path) -> None:
    (folder / "uneven" / "model.safetensors").unlink()


def no_directory(folder: Path) -> None:
    (folder / "uneven").rename(folder / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (occupied, "not empty"),
        (occupied_by_a_file, "is a file"),
        (never_pruned, "no skillprune.json"),
        (quantised, "already quantised (gptq)"),
        (damaged_record, "skillprune.json"),
        (no_weights, "no *.safetensors"),
        (no_directory, "no config.json"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_nothing_written(
    uneven: Path, tmp_path: Path, spoil: Any, wanted: str
) -> None:
    spoil(tmp_path)
    before = tree(tmp_path)
    said = invoke("convert", uneven, "-f", "padded", "-o", tmp_path / "out")
    assert said.code == 2 and wanted in said.text and "Traceback" not in said.err, said.text
    assert tree(tmp_path) == before


def test_an_unknown_form_is_told_the_known_ones(uneven: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="uniform, per-layer, padded, auto_map"):
        skillprune.convert_checkpoint(uneven, tmp_path / "out", form="zip")  # type: ignore[arg-type]
    with pytest.raises(OutputError):
        skillprune.convert_checkpoint(uneven, uneven, form="padded")


def test_padding_that_does_something_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "source", "padded")
    weights = load_file(source / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.weight"][0, 5] = 1.0
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PlanMismatch, match="layer 1 does more than the 3 neurons"):
        skillprune.convert_checkpoint(source, tmp_path / "out", form="per-layer")
    assert not (tmp_path / "out").exists()


def test_what_does_not_reload_as_the_same_model_is_not_kept(
    uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(model: PreTrainedModel, processor: Any, directory: Path, **options: Any) -> str:
        form = save_pruned(model, processor, directory, **options)
        model.classifier.bias.data += 1
        return form

    monkeypatch.setattr("skillprune.pipeline.conversion.save_pruned", spoiled)
    with pytest.raises(ParityError):
        skillprune.convert_checkpoint(uneven, tmp_path / "out", form="padded")
    said = invoke("convert", uneven, "-f", "padded", "-o", tmp_path / "out")
    assert said.code == 1 and {path.name for path in tmp_path.iterdir()} == {"uneven"}


def test_code_of_others_is_neither_run_nor_brought_along(uneven: Path, tmp_path: Path) -> None:
    """A config may name code in the checkpoint; nobody has said that it may be trusted."""
    config = read_json(uneven / "config.json")
    config["auto_map"] = {"AutoModelForSequenceClassification": "modeling_other.BertForSequenceClassification"}
    (uneven / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import BertForSequenceClassification\n"
    (uneven / "modeling_other.py").write_text(code, encoding="utf-8")
    for form in ("padded", "auto_map"):
        assert invoke("convert", uneven, "-f", form, "-o", tmp_path / form).code == 0
        assert "modeling_other" not in json.dumps(read_json(tmp_path / form / "config.json"))
        assert not (tmp_path / form / "modeling_other.py").exists()
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_without_some_of_its_weights_is_refused(uneven: Path, tmp_path: Path) -> None:
    weights = load_file(uneven / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, uneven / "model.safetensors", metadata={"format": "pt"})
    said = invoke("convert", uneven, "-f", "padded", "-o", tmp_path / "out")
    assert said.code == 2 and "classifier.weight" in said.err and not (tmp_path / "out").exists()


def test_a_record_of_other_widths_is_refused(uneven: Path, tmp_path: Path) -> None:
    record = read_json(uneven / "skillprune.json")
    record["widths"]["encoder"][0] += 1
    (uneven / "skillprune.json").write_text(json.dumps(record), encoding="utf-8")
    said = invoke("convert", uneven, "-f", "padded", "-o", tmp_path / "out")
    assert said.code == 2 and "skillprune.json says" in said.err and not (tmp_path / "out").exists()


def test_a_checkpoint_of_the_first_version_has_no_record_and_converts(uneven: Path, tmp_path: Path) -> None:
    (uneven / "skillprune.json").unlink()
    done = skillprune.convert_checkpoint(uneven, tmp_path / "out", form="padded")
    assert done.widths == UNEVEN and read_record(tmp_path / "out") is not None


@forms
def test_a_run_can_start_from_any_form_and_sees_the_real_widths(tmp_path: Path, form: Form) -> None:
    model = pruned("bert", {"encoder": (8, 8, 8)}) if form == "uniform" else bert()
    source = load_source(ModelSpec(name=str(write(tmp_path / "source", form, model))))
    assert [ffn.width for ffn in find_ffns(source.model)] == [ffn.width for ffn in find_ffns(model)]
    assert [dict(entry) for entry in source.history] == list(HISTORY)
    torch.testing.assert_close(logits(source.model), logits(model), atol=1e-5, rtol=0)


READ_FROM_HUB = """
from skillprune.checkpoint import load_source
from skillprune.families import find_ffns
from skillprune.recipe import ModelSpec
import json
source = load_source(ModelSpec(name="someone/padded"))
print(json.dumps([[ffn.width for ffn in find_ffns(source.model)], len(source.history), source.hub_id]))
"""


def test_a_padded_checkpoint_on_the_hub_has_its_real_widths_too(tmp_path: Path) -> None:
    """In the cache, as a download leaves it."""
    cached, commit = tmp_path / "hub" / "models--someone--padded", "0" * 40
    write(cached / "snapshots" / commit, "padded")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", READ_FROM_HUB], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[ffn.width for ffn in find_ffns(bert())], len(HISTORY), "someone/padded"]


@pytest.mark.parametrize("name", here())
def test_inputs_are_made_for_a_model_of_any_kind(name: str) -> None:
    model = ZOO[name].model()
    made = {key: torch.from_numpy(array) for key, array in arbitrary_inputs(model).items()}
    assert ZOO[name].inputs().keys() - {"decoder_attention_mask"} <= made.keys()
    with torch.inference_mode():
        assert model(**made)[0].isfinite().all()


@pytest.mark.parametrize("name", ["clip", "whisper", "t5-gated", "bloom"])
def test_models_of_other_kinds_are_converted_too(name: str, tmp_path: Path) -> None:
    widths = {stack: tuple(3 + layer for layer, _ in enumerate(layers)) for stack, layers in ZOO[name].widths.items()}
    model = pruned(name, widths)
    save_pruned(model, None, tmp_path / "source", dtype=torch.float32, form="per-layer")
    done = skillprune.convert_checkpoint(tmp_path / "source", tmp_path / "padded", form="padded")
    assert done.widths == widths and done.bytes > done.bytes_before
    skillprune.convert_checkpoint(tmp_path / "padded", tmp_path / "code", form="auto_map")
    torch.testing.assert_close(logits(load_stored(tmp_path / "code")[0], name), logits(model, name), atol=1e-5, rtol=0)


def test_the_package_under_test_is_this_one() -> None:
    assert Path(skillprune.__file__).is_relative_to(ROOT)
