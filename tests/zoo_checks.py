"""What is checked of every specimen of the zoo: named functions that raise `AssertionError`, for pytest and scripts.

`prepare` writes every specimen in every form and reads all of them back in two fresh processes, one without skillprune
and one with it; then `CHECKS` look at one specimen each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from zoo import ZOO, Specimen

from skillprune.checkpoint import loader_of, save_pruned
from skillprune.families import FAMILIES, FFN, base_model, by_stack, find_ffns
from skillprune.planning import Costs, PruningPlan
from skillprune.recipe import Form
from skillprune.surgery import masked, prune_

ROOT = Path(__file__).resolve().parents[1]
LINE = "4.57" if transformers.__version__.startswith("4.57") else "5.x"
"""The line of transformers that is installed, as ``verified.json`` calls it."""

PLAIN: tuple[Form, ...] = ("uniform", "padded", "auto_map")
"""Forms that are read without skillprune."""

WITHOUT_BASE = {("4.57", "gemma3_text")}
"""Where transformers itself, in the line named, does not find the bare model in a checkpoint with a head."""

_COSTS = Costs(0, 0, 0, 0, 0)
_EVEN, _UNEVEN = (8, 6), (13, 5, 10)

_READ_BACK = """
import json, sys
from pathlib import Path
plugin, *directories = sys.argv[1:]
if plugin == "with":
    import skillprune
import torch, transformers
from safetensors.torch import load_file, save_file
transformers.logging.set_verbosity_error()
for directory in map(Path, directories):
    case, found = json.loads((directory / "case.json").read_text()), {}
    inputs = load_file(directory / "inputs.safetensors")
    try:
        for part, loader in case["loaders"].items():
            options = {"dtype": torch.float32, "trust_remote_code": case["trust"], "use_safetensors": True}
            model = getattr(transformers, loader).from_pretrained(directory / "model", **options).eval()
            with torch.inference_mode():
                found[part] = model(**inputs)[0].contiguous()
        save_file(found, directory / f"{sys.argv[0]}.safetensors")
    except Exception as error:
        (directory / f"{sys.argv[0]}.txt").write_text(f"{type(error).__name__}: {error}")
assert plugin == "with" or "skillprune" not in sys.modules
"""


@dataclass(frozen=True)
class Check:
    """One thing that is checked.

    Attributes:
        run: checks a specimen, given the folder that `prepare` filled.
        applies: whether it makes sense for a specimen.
    """

    run: Callable[[Specimen, Path], None]
    applies: Callable[[Specimen], bool]


def known() -> list[str]:
    """Names of the specimens of the installed transformers that have a row in the family table."""
    types = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    return [name for name, each in ZOO.items() if each.model_type in types and each.model_type in FAMILIES]


def prepare(names: Iterable[str], folder: Path) -> None:
    """Writes specimens below a folder, in every form they can have, and reads them in fresh processes."""
    for name in names:
        for form in (*PLAIN, "per-layer"):
            if form != "uniform" or says_widths(ZOO[name]):
                write(ZOO[name], form, folder / form / name)
    read_back([directory for form in PLAIN for directory in (folder / form).glob("*")], plugin=False)
    read_back([*(folder / "per-layer").glob("*")], plugin=True)


def write(specimen: Specimen, form: Form, directory: Path) -> None:
    """Writes a pruned specimen into ``model/``, and beside it what it reads and what it computes."""
    model = pruned(specimen, _EVEN if form == "uniform" else _UNEVEN)
    directory.mkdir(parents=True)
    save_file(specimen.inputs(), directory / "inputs.safetensors")
    made = {"head": output_of(model, specimen), "base": _base_output(model, specimen)}
    save_pruned(model, None, directory / "model", dtype=torch.float32, form=form)
    head = loader_of(model) if form == "auto_map" else type(model).__name__
    loaders = {"head": head, "base": "AutoModel"}
    if (LINE, specimen.model_type) in WITHOUT_BASE:
        del loaders["base"], made["base"]
    save_file(made, directory / "made.safetensors")
    case = {"loaders": loaders, "trust": form == "auto_map"}
    (directory / "case.json").write_text(json.dumps(case), encoding="utf-8")


def read_back(
    directories: Sequence[Path], *, plugin: bool, python: str = sys.executable, answer: str = "found"
) -> None:
    """Loads what `write` wrote in one fresh process and leaves what is computed, or what went wrong, beside it.

    Args:
        directories: what to load.
        plugin: whether skillprune is imported there; if not, it cannot be.
        python: interpreter, with its transformers.
        answer: name of the files it leaves.
    """
    cache_folder = directories[0].parents[1] / "modules"
    script = _READ_BACK.replace("sys.argv[0]", repr(answer))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        **({"PYTHONPATH": str(ROOT)} if plugin else {}),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(cache_folder),
    }
    # All directories are called model, and compiled files are told apart by size and second only.
    options = ["-B"] if plugin else ["-B", "-I"]
    command = [python, *options, "-c", script, "with" if plugin else "without", *map(str, directories)]
    subprocess.run(command, env=environment, cwd=cache_folder.parent, capture_output=True, text=True, check=True)


def check_read_back(directory: Path, answer: str = "found", atol: float = 1e-5) -> None:
    """What a fresh process computed is what was computed before the model was written, with its head and without."""
    failure = directory / f"{answer}.txt"
    assert not failure.exists(), failure.read_text(encoding="utf-8")
    made, found = load_file(directory / "made.safetensors"), load_file(directory / f"{answer}.safetensors")
    assert made.keys() == found.keys()
    for part, expected in made.items():
        torch.testing.assert_close(found[part], expected, atol=atol, rtol=1e-4)


def says_widths(specimen: Specimen) -> bool:
    """Whether its config has a place for the width of every stack, so that a uniform checkpoint can be written."""
    return all(ffn.stack.width_attribute is not None for ffn in _ffns(specimen.name))


def plan_of(specimen: Specimen, widths: Sequence[int] = _UNEVEN) -> PruningPlan:
    """Random neurons of every layer.

    Args:
        specimen: whose neurons.
        widths: how many; layers of uneven ones take them in turn, and if there are two, one stack has the first and
            the others the second, as far as the config tells them apart.
    """
    generator = torch.Generator().manual_seed(3)
    stacks = by_stack(_ffns(specimen.name))
    first = next(iter(stacks.values()))[0].stack.width_attribute
    keep = {}
    for name, layers in stacks.items():
        stack = layers[0].stack
        counts = widths if len(widths) > 2 else [widths[stack.width_attribute != first]]
        if stack.routing is not None:  # kernels that multiply by several experts at once want rows of 16 bytes
            counts = [-(-count // 8) * 8 for count in counts]
        keep[name] = tuple(
            tuple(sorted(torch.randperm(ffn.width, generator=generator)[: counts[ffn.layer % len(counts)]].tolist()))
            for ffn in layers
        )
    before = {name: tuple(ffn.width for ffn in layers) for name, layers in stacks.items()}
    return PruningPlan(keep, before, "test", {}, 1, _COSTS, _COSTS)


def pruned(specimen: Specimen, widths: Sequence[int] = _UNEVEN) -> PreTrainedModel:
    """The specimen without most of its neurons."""
    return prune_(specimen.model(), plan_of(specimen, widths))


def output_of(model: nn.Module, specimen: Specimen) -> Tensor:
    """The first output on the specimen's inputs: logits, mostly."""
    with torch.inference_mode():
        found: Tensor = model(**_as(model, specimen.inputs()))[0]
    return found.float().contiguous()


def keeping_all_changes_nothing(specimen: Specimen, _: Path) -> None:
    """A plan that keeps every neuron leaves every parameter and the outputs as they are."""
    model, plan = specimen.model(), plan_of(specimen, (10**6,) * 3)
    before, state = output_of(model, specimen), {name: each.clone() for name, each in model.state_dict().items()}
    with masked(model, plan):
        torch.testing.assert_close(output_of(model, specimen), before, atol=0, rtol=0)
    prune_(model, plan)
    _assert_state(model, state)
    torch.testing.assert_close(output_of(model, specimen), before, atol=0, rtol=0)


def masked_equals_pruned(specimen: Specimen, _: Path) -> None:
    """Silencing neurons and cutting them are the same function, and not that of the whole model."""
    model, plan = specimen.model(), plan_of(specimen)
    whole = output_of(model, specimen)
    with masked(model, plan):
        silenced = output_of(model, specimen)
    cut = output_of(prune_(model, plan), specimen)
    torch.testing.assert_close(cut, silenced, atol=1e-5, rtol=1e-4)
    assert (whole - cut).abs().max() > 1e-3, "pruning changed nothing"


def writes_the_same(specimen: Specimen, _: Path) -> None:
    """Greedy generation gives the same tokens from the same logits, silenced or cut."""
    model, plan = specimen.model(), plan_of(specimen)
    with masked(model, plan):
        silenced = _written(model, specimen)
    cut = _written(prune_(model, plan), specimen)
    assert torch.equal(cut["sequences"], silenced["sequences"])
    torch.testing.assert_close(cut["scores"], silenced["scores"], atol=1e-5, rtol=1e-4)


def is_stored_in_bfloat16(specimen: Specimen, folder: Path) -> None:
    """In bfloat16 too cutting is silencing, and what is written in it comes back bit by bit."""
    model, plan = specimen.model().bfloat16(), plan_of(specimen)
    with masked(model, plan):
        silenced = output_of(model, specimen)
    cut = output_of(prune_(model, plan), specimen)
    assert (cut - silenced).abs().max() <= 0.05 * silenced.abs().max()
    directory = folder / "bfloat16" / specimen.name
    save_pruned(model, None, directory, dtype=torch.bfloat16, form="per-layer")
    _assert_state(type(model).from_pretrained(directory, dtype=torch.bfloat16), model.state_dict())


def survives_two_round_trips(specimen: Specimen, folder: Path) -> None:
    """Written, loaded, written, loaded: every parameter and the config are the same."""
    first, second = folder / "per-layer" / specimen.name / "model", folder / "second" / specimen.name
    model = pruned(specimen)
    again = type(model).from_pretrained(first, dtype=torch.float32).eval()
    _assert_state(again, model.state_dict())
    save_pruned(again, None, second, dtype=torch.float32, form="per-layer")
    twice = type(model).from_pretrained(second, dtype=torch.float32).eval()
    _assert_state(twice, model.state_dict())
    assert _config(first) == _config(second)
    torch.testing.assert_close(output_of(twice, specimen), output_of(model, specimen), atol=1e-5, rtol=1e-4)


def spreads_over_devices(specimen: Specimen, folder: Path) -> None:
    """``device_map`` puts it on one device, or module by module, one pruned block on disk."""
    directory, model = folder / "per-layer" / specimen.name / "model", pruned(specimen)
    expected = output_of(model, specimen)
    block = next(name for name, module in model.named_modules() if module is find_ffns(model)[-1].block)
    for device_map in ("cpu", _map_with_on_disk(model, block)):
        with warnings.catch_warnings():
            # accelerate wants every parameter named, and warns of names that are no module's.
            warnings.filterwarnings("ignore", "The following device_map keys do not match")
            offload = {"device_map": device_map, "offload_folder": folder / "offload" / specimen.name}
            spread = type(model).from_pretrained(directory, dtype=torch.float32, **offload)
        torch.testing.assert_close(output_of(spread.eval(), specimen), expected, atol=1e-5, rtol=1e-4)
    assert any(each.device.type == "meta" for each in spread.get_submodule(block).parameters()), "nothing is on disk"


def _reloads(form: Form) -> Callable[[Specimen, Path], None]:
    return lambda specimen, folder: check_read_back(folder / form / specimen.name)


def _always(_: Specimen) -> bool:
    return True


CHECKS: dict[str, Check] = {
    "keeping all changes nothing": Check(keeping_all_changes_nothing, _always),
    "masked equals pruned": Check(masked_equals_pruned, _always),
    "generation": Check(writes_the_same, lambda specimen: specimen.writes),
    "uniform reload": Check(_reloads("uniform"), says_widths),
    "padded reload": Check(_reloads("padded"), _always),
    "auto_map reload": Check(_reloads("auto_map"), _always),
    "per-layer reload": Check(_reloads("per-layer"), _always),
    "two round trips": Check(survives_two_round_trips, _always),
    "bfloat16": Check(is_stored_in_bfloat16, _always),
    "device_map": Check(spreads_over_devices, _always),
}
"""By the name that ``verified.json`` has for them. Reloads are of the model with its head and of its base class."""


@cache
def _ffns(name: str) -> tuple[FFN, ...]:
    return find_ffns(ZOO[name].model())


def _as(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs in the number format of the model."""
    dtype = next(model.parameters()).dtype
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


def _base_output(model: PreTrainedModel, specimen: Specimen) -> Tensor:
    """What ``AutoModel`` computes."""
    body = base_model(model)
    if body is model and type(model) is not AutoModel._model_mapping[type(model.config)]:  # T5's head is no module
        with torch.inference_mode():
            states = model(**specimen.inputs(), output_hidden_states=True).decoder_hidden_states
        return states[-1].contiguous()
    return output_of(body, specimen)


def _written(model: PreTrainedModel, specimen: Specimen) -> dict[str, Tensor]:
    read = {name: tensor for name, tensor in specimen.inputs().items() if not name.startswith("decoder_")}
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 1}
    with torch.inference_mode():
        found = model.generate(**read, **options, return_dict_in_generate=True, output_scores=True)
    return {"sequences": found["sequences"], "scores": torch.stack(tuple(found["scores"]))}


def _map_with_on_disk(model: nn.Module, wanted: str, prefix: str = "") -> dict[str, str]:
    """A device map that names every module on the way to the one that is on disk, and puts all others on the CPU."""
    found: dict[str, str] = {}
    for name, _ in model.named_parameters(recurse=False):
        found[f"{prefix}{name}"] = "cpu"
    for name, _ in model.named_buffers(recurse=False):
        found[f"{prefix}{name}"] = "cpu"
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        if wanted.startswith(f"{path}."):
            found |= _map_with_on_disk(child, wanted, f"{path}.")
        else:
            found[path] = "disk" if path == wanted else "cpu"
    return found


def _assert_state(model: nn.Module, expected: Mapping[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, state[name])] == []


def _config(directory: Path) -> dict[str, Any]:
    """What the config says, but for the number formats that transformers notes in its parts when it loads them."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    for part in (part for part in config.values() if isinstance(part, dict)):
        part.pop("dtype", None)
    return dict(config)
