"""Profiles by layer, against the profiler's own events, names of several families, and work that is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_bert

from skillprune.benchmark import open_session, profile_layers
from skillprune.benchmark.profile import operator_times, part_of
from skillprune.errors import DataError
from skillprune.export import BACKENDS, export_onnx, is_usable


def ids(batch: int, sequence: int) -> dict[str, np.ndarray]:
    values = {"input_ids": 1, "attention_mask": 1, "token_type_ids": 0}
    return {name: np.full((batch, sequence), value, np.int64) for name, value in values.items()}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers whose FFNs do many times the work of their attention."""
    path = tmp_path_factory.mktemp("onnx") / "bert.onnx"
    export_onnx(tiny_bert(layers=2, hidden=32, width=2048), [ids(2, 8), ids(3, 11)], path)
    return path


@pytest.mark.parametrize(
    ("name", "operator", "part"),
    [
        ("/model/bert/encoder/layer.0/attention/output/dense/MatMul", "MatMul", ("layer 0 attention", "attention")),
        ("/model/bert/encoder/layer.11/intermediate/dense/MatMul", "MatMul", ("layer 11 ffn", "ffn")),
        ("/model/bert/encoder/layer.1/output/LayerNorm/LayerNormalization", "", ("layer 1 ffn", "ffn")),
        ("/model/bert/embeddings/word_embeddings/Gather", "Gather", ("embeddings", "embeddings")),
        ("fused /model/bert/pooler/dense/Gemm", "FusedGemm", ("head", "head")),
        ("/model/classifier/Gemm", "Gemm", ("head", "head")),
        ("/model/pre_classifier/Gemm", "Gemm", ("head", "head")),
        ("/model/lm_head/MatMul", "MatMul", ("head", "head")),
        ("/model/distilbert/transformer/layer.2/sa_layer_norm/Div", "", ("layer 2 attention", "attention")),
        ("/model/distilbert/transformer/layer.2/ffn/lin1/MatMul", "", ("layer 2 ffn", "ffn")),
        ("/model/layers.3/input_layernorm/Mul_1/SimplifiedLayerNormFusion/", "", ("layer 3 attention", "attention")),
        ("/model/model/layers.3/post_attention_layernorm/Mul", "", ("layer 3 ffn", "ffn")),
        ("/model/model/layers.3/Add_1", "Add", ("layer 3", "layer")),
        ("/transformer/h.4/ln_1/Div", "", ("layer 4 attention", "attention")),
        ("/transformer/h.4/ln_2/Div", "", ("layer 4 ffn", "ffn")),
        ("/transformer/wte/Gather", "Gather", ("embeddings", "embeddings")),
        ("/encoder/block.5/layer.0/layer_norm/Mul", "", ("layer 5 attention", "attention")),
        ("/decoder/block.5/layer.1/EncDecAttention/q/MatMul", "", ("decoder layer 5 attention", "attention")),
        ("/decoder/block.5/layer.2/DenseReluDense/wi/MatMul", "", ("decoder layer 5 ffn", "ffn")),
        ("/model/bert/Cast", "Cast", ("Cast", "operator")),
        ("Attention_3", "Attention", ("Attention", "attention")),
        ("BiasGelu_token_3", "BiasGelu", ("BiasGelu", "ffn")),
        ("SkipLayerNorm_AddBias_0", "SkipLayerNormalization", ("SkipLayerNormalization", "layer")),
    ],
)
def test_names_tell_layer_and_part(name: str, operator: str, part: tuple[str, str]) -> None:
    assert part_of(name, operator) == part


def test_only_the_last_runs_count_and_no_time_is_lost_or_counted_twice(bert: Path, tmp_path: Path) -> None:
    """Against events whose times are rewritten: run number r takes 10^r microseconds in every operator."""
    session = open_session(bert, threads=1, provider="cpu", profile=tmp_path / "profile")
    for _ in range(4):
        session.run(None, {each.name: ids(2, 8)[each.name] for each in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text())
    starts = sorted(each["ts"] for each in events if each["name"] == "model_run")
    nodes = [each for each in events if each.get("cat") == "Node"]
    for each in nodes:
        each["dur"] = 10 ** sum(each["ts"] >= start for start in starts)
    assert len(nodes) % 4 == 0
    for runs, expected in ((1, 10_000), (2, 11_000), (4, 11_110)):
        total = sum(ms for _, _, ms in operator_times(events, runs))
        assert total == pytest.approx(expected / 1000 * len(nodes) / 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_layer_is_found_and_the_shares_are_of_the_whole(tmp_path: Path, backend: str) -> None:
    if not is_usable(backend):
        pytest.skip(f"{backend} is not installed")
    export_onnx(tiny_bert(layers=2), [ids(2, 8), ids(3, 11)], tmp_path / "bert.onnx", backend=backend)
    found = profile_layers(tmp_path / "bert.onnx", ids(4, 16), threads=1, provider="cpu", runs=5)
    assert sum(each.share for each in found) == pytest.approx(1.0)
    whole = sum(each.ms for each in found)
    assert all(each.share == pytest.approx(each.ms / whole) and each.ms > 0 for each in found)
    names = [each.name for each in found]
    layers = [f"layer {n} {kind}" for n in (0, 1) for kind in ("attention", "ffn")]
    assert [name for name in names if name in layers] == layers  # in the order they run
    assert {"embeddings", "head"} < set(names)
    assert len(names) == len(set(names))


def test_the_wider_of_two_ffns_takes_more(tmp_path: Path) -> None:
    """Sixteen thousand neurons against sixteen: a difference that no busy machine turns round."""
    model = tiny_bert(layers=2, hidden=64, width=16)
    for name, size in (("intermediate.dense", (16384, 64)), ("output.dense", (64, 16384))):
        linear = model.bert.encoder.layer[1].get_submodule(name)
        linear.weight.data = linear.weight.data.new_zeros(size)
        linear.bias.data = linear.bias.data.new_zeros(size[0])
    export_onnx(model, [ids(2, 8), ids(3, 11)], tmp_path / "uneven.onnx")
    profile = profile_layers(tmp_path / "uneven.onnx", ids(8, 32), threads=1, provider="cpu", runs=5)
    ms = {each.name: each.ms for each in profile}
    assert ms["layer 1 ffn"] > 4 * ms["layer 0 ffn"]


def test_a_profile_of_nothing_is_refused_and_nothing_is_left_behind(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="at least one run"):
        profile_layers(bert, ids(1, 4), threads=1, provider="cpu", runs=0)
    with pytest.raises(DataError, match="needs the inputs"):
        profile_layers(bert, {}, threads=1, provider="cpu", runs=1)
    assert list(tmp_path.iterdir()) == []
