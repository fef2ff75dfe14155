"""Models that write, as ONNX files: the same tokens and the same numbers with a cache as PyTorch without one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from tiny import PAD, VOCABULARY, tiny_bart, tiny_llama
from transformers import LlamaForCausalLM, PreTrainedModel
from zoo import ZOO, Specimen, here
from zoo_checks import pruned

from skillprune.benchmark import open_writer
from skillprune.checkpoint import save_pruned
from skillprune.errors import (
    CheckpointError,
    DataError,
    ParityError,
    ResourceFailure,
    UnsupportedArchitecture,
)
from skillprune.export import OnnxArtifact
from skillprune.export.generation import check_writer, export_decoder, export_encoder_decoder
from skillprune.generation import Signs, Writer, generate_greedy, left_padded, read_signs

MIXTURES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
WINDOW = 4
WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "starcoder2": {"sliding_window": WINDOW},
    "qwen2": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "gemma2": {"sliding_window": WINDOW},
    "gemma3_text": {
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi3": {"sliding_window": WINDOW},
    "gpt_neo": {"window_size": WINDOW},
}
"""Options that have a layer look at the last tokens only."""

ALIKE = {"gptj": "codegen", "gpt_neox": "gpt_neox-parallel", "olmo": "llama", "t5-gated": "t5", "mbart": "bart"}
"""Those traced like another that is tested."""

WRITERS = [name for name in here() if ZOO[name].writes and name not in {*MIXTURES, *WINDOWED, *ALIKE, "whisper"}]

Feeds = dict[str, NDArray[np.int64]]


def texts(*lengths: int, side: str = "left", seed: int = 0) -> Feeds:
    """Random texts of these lengths, padded on one side."""
    rng = np.random.default_rng([seed, *lengths])
    places = np.arange(max(lengths))[::-1] if side == "left" else np.arange(max(lengths))
    mask = (places < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": np.where(mask == 1, rng.integers(3, VOCABULARY, mask.shape), PAD), "attention_mask": mask}


def tried(model: PreTrainedModel) -> tuple[Feeds, ...]:
    side = "right" if model.config.is_encoder_decoder else "left"
    return texts(4, 7, side=side), texts(9, 2, 5, side=side)


def export(model: PreTrainedModel, directory: Path, **options: Any) -> OnnxArtifact:
    write = export_encoder_decoder if model.config.is_encoder_decoder else export_decoder
    return write(model, tried(model), directory, **options)


def writer_of(directory: Path) -> Writer:
    return open_writer(directory, threads=1)


def generated(model: PreTrainedModel, feeds: Feeds, tokens: int) -> NDArray[np.int64]:
    """What transformers writes, without what it was given."""
    given = {name: torch.from_numpy(array) for name, array in feeds.items()}
    whole = model.generate(**given, max_new_tokens=tokens, do_sample=False, num_beams=1).numpy()
    return np.asarray(whole[:, 1 if model.config.is_encoder_decoder else feeds["input_ids"].shape[1] :])


def told(model: PreTrainedModel, feeds: Feeds) -> NDArray[np.float32]:
    """Logits of every place, from a model that keeps no cache; each text alone, so that there is no padding at all."""
    rows = []
    for row, real in enumerate(feeds["attention_mask"].astype(bool)):
        given = {"input_ids": torch.from_numpy(feeds["input_ids"][row : row + 1, real])}
        if "decoder_input_ids" in feeds:
            given["decoder_input_ids"] = torch.from_numpy(feeds["decoder_input_ids"][row : row + 1])
        with torch.no_grad():
            rows.append(model(**given, use_cache=False).logits[0].numpy())
    return np.concatenate(rows)


def eager(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation("eager")
    return model


def graph(path: Path) -> onnx.GraphProto:
    return onnx.load(path).graph


def names(values: Any) -> list[str]:
    return [value.name for value in values]


class Fickle(LlamaForCausalLM):
    """Answers longer texts differently, by a Python branch that no trace can follow."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if kwargs["attention_mask"].shape[1] > 8:
            output.logits = output.logits + 0.5
        return output


def fickle() -> PreTrainedModel:
    model = tiny_llama(layers=1)
    model.__class__ = Fickle
    return model


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small decoder's files."""
    folder = tmp_path_factory.mktemp("decoder")
    export(tiny_llama(layers=2), folder)
    return folder


@pytest.fixture(scope="module")
def rewriter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder-decoder's files."""
    folder = tmp_path_factory.mktemp("rewriter")
    export(tiny_bart(layers=1), folder)
    return folder


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        *((name, (21, 8, 13)) for name in WRITERS),
        *(
            (name, (0, 8, 5))
            for name in ("llama", "gpt_neox-parallel", "falcon-parallel", "falcon-new", "phi", "cohere")
        ),
        ("bart", (4, 0, 0)),
    ],
)
def test_a_pruned_model_writes_what_it_writes_in_pytorch(name: str, widths: tuple[int, ...], tmp_path: Path) -> None:
    model = pruned(ZOO[name], widths)
    artifact = export(model, tmp_path)
    writer, feeds = writer_of(tmp_path), tried(model)[1]
    np.testing.assert_array_equal(generate_greedy(writer, feeds, 6), generated(model, feeds, 6))
    assert 0 < artifact.max_abs_diff <= artifact.tolerance
    assert artifact.bytes == sum(file.stat().st_size for file in tmp_path.glob("*.onnx"))


def test_a_decoder_has_the_layout_that_optimum_reads(decoder: Path) -> None:
    assert {file.name for file in decoder.iterdir()} == {"model.onnx", "config.json", "generation_config.json"}
    found = graph(decoder / "model.onnx")
    parts = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    given = ["input_ids", "attention_mask", "position_ids"]
    assert names(found.input) == [*given, *(f"past_key_values.{part}" for part in parts)]
    assert names(found.output) == ["logits", *(f"present.{part}" for part in parts)]
    shape = [axis.dim_param or axis.dim_value for axis in found.input[3].type.tensor_type.shape.dim]
    assert shape == ["batch", 1, "past_sequence", 8]


def test_a_graph_of_a_pruned_checkpoint_needs_no_plug_in(tmp_path: Path) -> None:
    save_pruned(pruned(ZOO["llama"]), None, tmp_path / "model", dtype=torch.float32)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert model.config.quantization_config is not None
    export(model, tmp_path / "onnx")
    assert "quantization_config" not in json.loads((tmp_path / "onnx" / "config.json").read_text())
    assert model.config.quantization_config is not None


def test_an_encoder_decoder_has_the_layout_that_optimum_reads(rewriter: Path) -> None:
    encoder, first, later = (
        graph(rewriter / f"{name}.onnx") for name in ("encoder_model", "decoder_model", "decoder_with_past_model")
    )
    parts = [f"{n}.{side}.{part}" for n in range(2) for side in ("decoder", "encoder") for part in ("key", "value")]
    assert (names(encoder.input), names(encoder.output)) == (["input_ids", "attention_mask"], ["last_hidden_state"])
    assert names(first.input) == ["encoder_attention_mask", "input_ids", "encoder_hidden_states"]
    assert names(first.output) == ["logits", *(f"present.{part}" for part in parts)]
    assert names(later.input) == ["encoder_attention_mask", "input_ids", *(f"past_key_values.{part}" for part in parts)]
    # What the encoder said is turned into keys and values once: later steps neither give it nor hold its projections.
    assert names(later.output) == ["logits", *(f"present.{part}" for part in parts if ".decoder." in part)]
    assert not [node.name for node in later.node if node.op_type == "MatMul" and "encoder_attn/k_proj" in node.name]
    assert [node.name for node in first.node if node.op_type == "MatMul" and "encoder_attn/k_proj" in node.name]


@pytest.mark.parametrize("name", [name for name in WINDOWED if name in here()])
def test_a_layer_sees_no_further_than_its_window(name: str, tmp_path: Path) -> None:
    specimen = replace(ZOO[name], sizes={**ZOO[name].sizes, **WINDOWED[name]})
    model = eager(specimen.model())
    export(model, tmp_path)
    writer, feeds = writer_of(tmp_path), texts(11, 8)
    real = feeds["attention_mask"].astype(bool)
    np.testing.assert_allclose(writer.logits(feeds)[real], told(model, feeds), atol=1e-4)
    assert np.abs(told(eager(wide(specimen)), feeds) - told(model, feeds)).max() > 1e-2  # the window is felt
    np.testing.assert_array_equal(generate_greedy(writer, feeds, 3), generated(model, feeds, 3))


def wide(specimen: Specimen) -> PreTrainedModel:
    """The same model with windows that hold every text."""
    sizes = {name: 60 if value == WINDOW else value for name, value in specimen.sizes.items() if "window" in name}
    return replace(specimen, sizes={**specimen.sizes, **sizes}).model()


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_known_texts_are_those_without_padding(decoder: Path, side: str) -> None:
    feeds = texts(3, 12, 1, 7, side=side)
    found = writer_of(decoder).logits(feeds)
    assert found.shape == (4, 12, VOCABULARY)
    real = feeds["attention_mask"].astype(bool)
    np.testing.assert_allclose(found[real], told(tiny_llama(layers=2), feeds), atol=1e-4)


def test_logits_of_known_texts_about_others(rewriter: Path) -> None:
    feeds = {**texts(3, 12, 7, side="right"), "decoder_input_ids": np.array([[2, 5, 9], [2, 44, 4], [2, 2, 2]])}
    found = writer_of(rewriter).logits(feeds)
    np.testing.assert_allclose(found.reshape(9, -1), told(tiny_bart(layers=1), feeds), atol=1e-4)


def uneven_ends(model: PreTrainedModel) -> tuple[Feeds, int]:
    """Texts, and a token that the model writes for some of them early, for others late or never."""
    side = "right" if model.config.is_encoder_decoder else "left"
    for seed in range(50):
        feeds = texts(9, 2, 5, side=side, seed=seed)
        free = generated(model, feeds, 8)
        for token in np.unique(free[:, 1:4]):
            first = [int(np.argmax(row == token)) if token in row else 8 for row in free]
            if 0 < min(first) < 5 and max(first) > min(first):
                return feeds, int(token)
    raise AssertionError("the model writes the same whatever it reads")


@pytest.mark.parametrize("make", [tiny_llama, tiny_bart])
@pytest.mark.parametrize("listed", [False, True])
def test_a_text_ends_where_it_ends_in_pytorch(make: Any, listed: bool, tmp_path: Path) -> None:
    model = make(layers=2)
    model.generation_config.eos_token_id = None
    feeds, end = uneven_ends(model)
    free = generated(model, feeds, 8)
    model.generation_config.eos_token_id = [VOCABULARY - 1, end] if listed else end
    export(model, tmp_path)
    expected = generated(model, feeds, 8)
    assert (expected != free).any()  # padding, or a text that is over sooner
    np.testing.assert_array_equal(generate_greedy(writer_of(tmp_path), feeds, 8), expected)
    model.generation_config.eos_token_id = sorted(set(free[:, 0].tolist()))
    model.generation_config.save_pretrained(tmp_path)
    assert generate_greedy(writer_of(tmp_path), feeds, 8).shape == (len(free), 1)


def test_forced_tokens_are_written(rewriter: Path, tmp_path: Path) -> None:
    model = tiny_bart(layers=1)
    model.generation_config.forced_bos_token_id, model.generation_config.forced_eos_token_id = 7, 9
    model.generation_config.eos_token_id = None
    model.generation_config.save_pretrained(tmp_path)
    writer = replace(writer_of(rewriter), signs=read_signs(tmp_path))
    found = generate_greedy(writer, tried(model)[0], 5)
    assert (found[:, 0] == 7).all() and (found[:, -1] == 9).all()
    np.testing.assert_array_equal(found, generated(model, tried(model)[0], 5))


def test_tokens_that_are_no_words_are_read(tmp_path: Path) -> None:
    def signs(**config: Any) -> Signs:
        (tmp_path / "generation_config.json").write_text(json.dumps(config))
        return read_signs(tmp_path)

    assert signs() == Signs()
    assert signs(eos_token_id=4) == Signs(ends=(4,), pad=4)
    assert signs(eos_token_id=[4, 5], pad_token_id=0) == Signs(ends=(4, 5), pad=0)
    assert signs(decoder_start_token_id=0).start == 0
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="generation_config.json cannot be read"):
        read_signs(tmp_path)


def test_matrices_used_both_ways_round_are_stored_once(tmp_path: Path) -> None:
    def stored(tied: bool) -> list[int]:
        specimen = replace(ZOO["llama"], sizes={**ZOO["llama"].sizes, "tie_word_embeddings": tied})
        export(specimen.model(), tmp_path / str(tied))
        return [t.name for t in graph(tmp_path / str(tied) / "model.onnx").initializer if VOCABULARY in t.dims]

    assert (len(stored(True)), len(stored(False))) == (1, 2)


def test_weights_too_large_for_one_file_stand_beside_it(tmp_path: Path) -> None:
    model = tiny_llama(layers=1, hidden=64, width=256)
    whole = export(model, tmp_path / "whole")
    parted = export(model, tmp_path / "parted", split_above=1000)
    files = [tmp_path / "parted" / name for name in ("model.onnx", "model.onnx.data")]
    assert parted.bytes == sum(file.stat().st_size for file in files)
    assert files[1].stat().st_size > 0.5 * whole.bytes
    feeds = tried(model)[0]
    same = [generate_greedy(writer_of(tmp_path / name), feeds, 4) for name in ("whole", "parted")]
    np.testing.assert_array_equal(*same)
    export(model, tmp_path / "parted")
    assert not files[1].exists()


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(training: bool, tmp_path: Path) -> None:
    def state() -> tuple[Any, ...]:
        modes = {name: module.training for name, module in model.named_modules()}
        hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
        return modes, hooks, model.config.to_dict(), model.config._attn_implementation

    model = tiny_llama(layers=1).train(training)
    before, weights = state(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export(model, tmp_path)
    assert state() == before
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_files_that_fail_never_replace_older_ones(decoder: Path, tmp_path: Path) -> None:
    older = {file.name: file.read_bytes() for file in decoder.iterdir()}
    place = tmp_path / "onnx"
    place.mkdir()
    for name, content in older.items():
        (place / name).write_bytes(content)
    with pytest.raises(ParityError, match=r"exceeds the tolerance") as caught:
        export(fickle(), place)
    assert caught.value.difference == pytest.approx(0.5, abs=1e-3)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == older
    with pytest.raises(ParityError):
        export(fickle(), tmp_path / "other")
    assert list(tmp_path.iterdir()) == [place]


def test_files_of_another_model_are_refused(decoder: Path, rewriter: Path) -> None:
    for folder, other in ((decoder, tiny_llama(layers=2, seed=1)), (rewriter, tiny_bart(layers=1, seed=1))):
        with pytest.raises(ParityError):
            check_writer(other, writer_of(folder), tried(other))


@pytest.mark.parametrize("damaged", ["decoder_model.onnx", "decoder_with_past_model.onnx", "encoder_model.onnx"])
def test_one_wrong_weight_is_found_in_any_of_the_files(damaged: str, rewriter: Path, tmp_path: Path) -> None:
    for file in rewriter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    wrong = onnx.load(tmp_path / damaged)
    matrix = next(each for each in wrong.graph.initializer if len(each.dims) == 2 and VOCABULARY not in each.dims)
    values = onnx.numpy_helper.to_array(matrix).copy()
    values[:8] *= -1
    matrix.CopyFrom(onnx.numpy_helper.from_array(values, matrix.name))
    onnx.save_model(wrong, tmp_path / damaged)
    with pytest.raises(ParityError):
        check_writer(tiny_bart(layers=1), writer_of(tmp_path), tried(tiny_bart(layers=1)))


def test_a_place_that_cannot_be_written_is_no_fault_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ResourceFailure, match="could not be written"):
        export(tiny_llama(layers=1), tmp_path / "file" / "folder")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("name", [*MIXTURES, "whisper"])
def test_what_no_trace_can_follow_is_refused(name: str, tmp_path: Path) -> None:
    reason = "reads input_features" if name == "whisper" else "sends tokens to experts"
    with pytest.raises(UnsupportedArchitecture, match=reason):
        export(ZOO[name].model(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rotary_embeddings_that_change_are_refused(tmp_path: Path) -> None:
    rotations = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = replace(ZOO["llama"], sizes={**ZOO["llama"].sizes, "rope_scaling": rotations}).model()
    with pytest.raises(UnsupportedArchitecture, match="of type dynamic"):
        export(model, tmp_path)
    model.config.rope_parameters = {"full_attention": {"rope_type": "longrope"}, "sliding_attention": rotations}
    with pytest.raises(UnsupportedArchitecture, match="of type dynamic, longrope"):
        export(model, tmp_path)


def test_each_kind_of_model_has_its_exporter(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match="export_encoder_decoder"):
        export_decoder(tiny_bart(), tried(tiny_bart()), tmp_path)
    with pytest.raises(UnsupportedArchitecture, match="export_decoder"):
        export_encoder_decoder(tiny_llama(), tried(tiny_llama()), tmp_path)


def test_a_text_to_be_continued_ends_where_it_is_continued(decoder: Path) -> None:
    with pytest.raises(DataError, match="padded on the left"):
        generate_greedy(writer_of(decoder), texts(3, 5, side="right"), 2)


def test_padding_is_moved_before_the_text() -> None:
    ids, mask = [[8, 3, 5, PAD], [PAD, 9, 4, 9], [7, PAD, PAD, PAD]], [[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]]
    moved = left_padded({"input_ids": np.array(ids), "attention_mask": np.array(mask)})
    assert moved["input_ids"].tolist() == [[PAD, 8, 3, 5], [PAD, 9, 4, 9], [PAD, PAD, PAD, 7]]
    assert moved["attention_mask"].tolist() == [[0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]]


def test_a_directory_without_files_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        writer_of(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds neither model\.onnx nor encoder_model\.onnx"):
        writer_of(tmp_path)


def test_writing_needs_no_pytorch(decoder: Path) -> None:
    script = (
        "import sys, numpy, onnxruntime; from pathlib import Path\n"
        "from skillprune.generation import generate_greedy, load_writer\n"
        "writer = load_writer(Path(sys.argv[1]), lambda path: onnxruntime.InferenceSession(str(path)))\n"
        "ids = numpy.array([[5, 6, 7]])\n"
        "found = generate_greedy(writer, {'input_ids': ids, 'attention_mask': ids * 0 + 1}, 3)\n"
        "print(found.tolist(), 'torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(decoder)], capture_output=True, text=True, check=False)
    ids = np.array([[5, 6, 7]])
    expected = generated(tiny_llama(layers=2), {"input_ids": ids, "attention_mask": np.ones_like(ids)}, 3)
    assert done.stdout.split("\n")[0] == f"{expected.tolist()} False False", done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", [tiny_llama, tiny_bart])
def test_the_same_is_written_on_cuda(make: Any, tmp_path: Path) -> None:
    model = make(layers=2)
    export(model, tmp_path)
    there, here = (open_writer(tmp_path, threads=1, provider=provider) for provider in ("cuda", "cpu"))
    for feeds in tried(model):
        np.testing.assert_array_equal(generate_greedy(there, feeds, 6), generate_greedy(here, feeds, 6))
