"""Every family on a GPU: answers as on a CPU, cut or silenced, and checkpoints that are loaded straight there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from naive import score
from test_mixtures import batches_of, model_of
from torch import Tensor
from transformers import PreTrainedModel
from zoo import ZOO, Specimen
from zoo_checks import known, plan_of

from skillprune.answers import Writer
from skillprune.checkpoint import save_pruned
from skillprune.repair import prune_and_repair_
from skillprune.scoring import ScoringData
from skillprune.surgery import masked, prune_

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

WIDTHS = (16, 8, 8)  # kernels that multiply by several experts at once want rows of 16 bytes

specimens = pytest.mark.parametrize("name", known())


def output_of(model: PreTrainedModel, specimen: Specimen) -> Tensor:
    inputs = {
        key: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for key, value in specimen.inputs().items()
    }
    with torch.inference_mode():
        return model(**inputs)[0].float().cpu()


@specimens
def test_pruned_on_a_gpu_it_computes_what_it_computes_on_a_cpu(name: str) -> None:
    specimen = ZOO[name]
    plan = plan_of(specimen, WIDTHS)
    expected = output_of(prune_(specimen.model(), plan), specimen)
    model = specimen.model().cuda()
    with masked(model, plan):
        silenced = output_of(model, specimen)
    cut = output_of(prune_(model, plan), specimen)
    size = float(expected.abs().max())
    torch.testing.assert_close(cut, silenced, atol=2e-3 * size, rtol=2e-3)
    torch.testing.assert_close(cut, expected, atol=2e-3 * size, rtol=2e-3)


@specimens
def test_a_bfloat16_checkpoint_is_loaded_straight_onto_a_gpu(name: str, tmp_path: Path) -> None:
    specimen = ZOO[name]
    model = prune_(specimen.model().bfloat16().cuda(), plan_of(specimen, WIDTHS))
    save_pruned(model, None, tmp_path / "model", dtype=torch.bfloat16, form="per-layer")
    loaded = type(model).from_pretrained(tmp_path / "model", dtype=torch.bfloat16, device_map="cuda").eval()
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cuda"}
    for (key, value), (_, expected) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(value, expected), key
    found, expected = output_of(loaded, specimen), output_of(model, specimen)
    # Not equal: tables that rotate positions were cast with the model, and are computed anew when it is loaded.
    assert (found - expected).norm() <= 0.05 * expected.norm()


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "mixtral", "qwen2_moe"])
@pytest.mark.parametrize("criterion", ["wanda", "skill", "fisher"])
def test_scores_do_not_depend_on_the_device(name: str, criterion: str) -> None:
    batches = batches_of(name)
    found = [
        score(Writer(model), ScoringData(batches, batches), criterion)[0].values
        for model in (model_of(name).double(), model_of(name).double().cuda())
    ]
    for stack, layers in found[0].items():
        for here, there in zip(layers, found[1][stack], strict=True):
            np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-5 * float(np.abs(here).max()))


@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon-parallel", "mixtral", "qwen2_moe"])
def test_a_repair_does_not_depend_on_the_device(name: str) -> None:
    specimen, batches = ZOO[name], batches_of(name)
    plan = plan_of(specimen, WIDTHS)
    here, there = model_of(name).double(), model_of(name).double().cuda()
    for model in (here, there):
        prune_and_repair_(model, plan, batches, ridge=0.1)
    expected = output_of(here, specimen)
    torch.testing.assert_close(output_of(there, specimen), expected, atol=5e-3 * float(expected.abs().max()), rtol=5e-3)
