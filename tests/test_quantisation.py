"""Smaller numeric types: the integers that the arithmetic says, float32 where asked, and the worst products found."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny import PAD, VOCABULARY, tiny_bert

from skillprune.errors import CheckpointError, DataError, PlanMismatch, ResourceFailure, VerificationFailed
from skillprune.export import (
    Quantise,
    Quantised,
    Ranges,
    calibrate,
    export_onnx,
    keep_sensitive,
    output_error,
    quantise_dynamic,
    quantise_static,
    saturates,
    sensitivity,
)

Array = NDArray[Any]
Feed = dict[str, Array]
BYTE = 255


def run(path: Path, feed: Feed) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: Array = session.run(None, feed)[0]
    return found


def write(path: Path, nodes: Iterable[Any], constants: Mapping[str, Array], *, external: bool = False) -> Path:
    """A graph from ``x (batch, sequence, features)`` to ``y``."""
    graph = helper.make_graph(
        list(nodes),
        "tested",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", "features"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, path, save_as_external_data=external, location=f"{path.name}.data")
    return path


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def chain(path: Path, layers: int, *, width: int = 12, bad: int = -1, external: bool = False) -> Path:
    """Products ``p0, p1, ...`` with biases and ReLU between them.

    The first feature that the ``bad`` one reads is always zero, and its weights there are huge, so that in float32 they
    change nothing and in integers leave no precision to the others.
    """
    nodes, constants, tensor = [], {}, "x"
    for layer in range(layers):
        weights, bias = normal(width, width, seed=layer) / np.float32(width**0.5), normal(width, seed=layer)
        if layer == bad:
            weights[0] = 500
        if layer == bad - 1:
            weights[:, 0], bias[0] = 0, 0
        constants |= {f"w{layer}": weights, f"b{layer}": bias}
        output = "y" if layer == layers - 1 else f"r{layer}"
        nodes += [
            helper.make_node("MatMul", [tensor, f"w{layer}"], [f"m{layer}"], f"p{layer}"),
            helper.make_node("Add", [f"b{layer}", f"m{layer}"], [f"a{layer}"], f"add{layer}"),
            helper.make_node("Relu", [f"a{layer}"], [output], f"relu{layer}"),
        ]
        tensor = output
    return write(path, nodes, constants, external=external)


def chain_feeds(width: int = 12) -> list[Feed]:
    feeds = [{"x": normal(2, 3, width, seed=seed) * np.float32(1 + seed)} for seed in range(3)]
    for feed in feeds:
        feed["x"][..., 0] = 0
    return feeds


def texts(batch: int, sequence: int) -> Feed:
    """Random tokens; the rows are shorter and shorter, down to one token."""
    rng = np.random.default_rng([batch, sequence])
    mask = np.array([[place < max(1, sequence - row) for place in range(sequence)] for row in range(batch)])
    ids = np.where(mask, rng.integers(3, VOCABULARY, mask.shape), PAD)
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_bert(layers=2)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[PAD] += 20
    return export_onnx(model, [texts(2, 7), texts(3, 11)], tmp_path_factory.mktemp("bert") / "model.onnx").path


TEXTS = [texts(4, 9), texts(3, 12)]


def static(source: Path, feeds: Iterable[Feed]) -> Quantise:
    return partial(quantise_static, ranges=calibrate(source, feeds))


def dynamic(source: Path, feeds: Iterable[Feed]) -> Quantise:
    return quantise_dynamic


both = pytest.mark.parametrize("form", [dynamic, static])
Form = Callable[[Path, Iterable[Feed]], Quantise]


def naive_product(x: Array, weights: Array, low: float, high: float, largest: int) -> tuple[Array, Array]:
    """Sums of integers, entry by entry, and the float32 that one of each column's units is worth."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(high - low) / np.float32(BYTE)
    zero = np.rint(np.float32(-low) / scale)
    given = np.clip(np.rint(x / scale) + zero, 0, BYTE) - zero
    steps = np.array([max(abs(weight) for weight in column) / np.float32(largest) for column in weights.T])
    sums = np.zeros((*x.shape[:-1], weights.shape[1]))
    for place in np.ndindex(*sums.shape):
        column = place[-1]
        row = given[place[:-1]]
        sums[place] = sum(a * np.rint(w / steps[column]) for a, w in zip(row, weights[:, column], strict=True))
    return sums, scale * steps


@pytest.mark.parametrize("seven_bits", [False, True])
@both
def test_products_are_those_of_the_integers(tmp_path: Path, form: Form, seven_bits: bool) -> None:
    weights = normal(8, 5) * np.array([1, 10, 0.1, 3, 1], np.float32)
    source = write(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], "only")], {"w": weights})
    x = normal(2, 3, 8) + np.float32(0.3)
    quantise: Any = partial(form(source, [{"x": x}]), seven_bits=seven_bits)
    made = quantise(source, tmp_path / "q.onnx", keep=())
    assert made == Quantised(tmp_path / "q.onnx", ("only",), ())
    sums, unit = naive_product(x, weights, x.min(), x.max(), 64 if seven_bits else 127)
    found = run(made.path, {"x": x})
    np.testing.assert_array_equal(np.rint(found / unit), sums)
    np.testing.assert_allclose(found, sums * unit, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("seven_bits", "largest"), [(False, 127), (True, 64)])
@both
def test_weights_use_all_bits_of_every_column_and_no_more(
    tmp_path: Path, form: Form, seven_bits: bool, largest: int
) -> None:
    source = chain(tmp_path / "m.onnx", 3, width=64)
    quantise: Any = partial(form(source, chain_feeds(64)), seven_bits=seven_bits)
    made = quantise(source, tmp_path / "q.onnx", keep=())
    assert made.path.stat().st_size < 0.4 * source.stat().st_size
    graph = onnx.load(made.path).graph
    integers = [numpy_helper.to_array(each) for each in graph.initializer if each.data_type == TensorProto.INT8]
    matrices = [array for array in integers if array.ndim == 2]
    assert len(matrices) == 3
    for matrix in matrices:
        np.testing.assert_array_equal(np.abs(matrix.astype(int)).max(axis=0), largest)


@pytest.mark.parametrize(
    ("bounds", "given", "expected"),
    [
        ((-1.0, 2.0), [-5, 5, -0.5, 1.5], [-1, 2, -0.5, 1.5]),
        # Zero can be told even where calibration never met it: padding and ReLU are full of it.
        ((1.0, 2.0), [0, 1.5, 1, 2], [0, 1.5, 1, 2]),
        ((-2.0, -1.0), [0, -1.5, -1, -3], [0, -1.5, -1, -2]),
        ((0.0, 0.0), [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_values_are_cut_to_the_ranges(
    tmp_path: Path, bounds: tuple[float, float], given: list[float], expected: list[float]
) -> None:
    source = write(
        tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], "only")], {"w": np.eye(4, dtype=np.float32)}
    )
    made = quantise_static(source, tmp_path / "q.onnx", ranges=Ranges({"x": bounds}))
    np.testing.assert_allclose(run(made.path, {"x": np.array([[given]], np.float32)})[0, 0], expected, atol=2 / BYTE)


def test_ranges_are_the_lowest_and_highest_value_of_what_is_multiplied(tmp_path: Path) -> None:
    feeds = chain_feeds()
    ranges = calibrate(chain(tmp_path / "m.onnx", 2), iter(feeds))
    inputs = [feed["x"] for feed in feeds]
    weights = normal(12, 12) / np.float32(12**0.5)
    hidden = [np.maximum(x @ weights + normal(12), 0) for x in inputs]
    for name, arrays in {"x": inputs, "r0": hidden}.items():
        expected = min(map(np.min, arrays)), max(map(np.max, arrays))
        np.testing.assert_allclose(ranges.bounds[name], expected, rtol=1e-5)
    assert set(ranges.bounds) == {"x", "r0"}
    assert pickle.loads(pickle.dumps(ranges)) == ranges


def test_padding_widens_no_range(bert: Path) -> None:
    alone = [
        {name: array[row : row + 1, : feed["attention_mask"][row].sum()] for name, array in feed.items()}
        for feed in TEXTS
        for row in range(len(feed["attention_mask"]))
    ]
    padded, cut = calibrate(bert, TEXTS).bounds, calibrate(bert, alone).bounds
    assert set(padded) == set(cut)
    for name, bounds in cut.items():
        np.testing.assert_allclose(padded[name], bounds, rtol=1e-4, atol=1e-5)
    blind = [{**feed, "attention_mask": np.ones_like(feed["attention_mask"])} for feed in TEXTS]
    assert any(bounds[1] > cut[name][1] + 0.1 for name, bounds in calibrate(bert, blind).bounds.items())


def test_calibration_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    calibrate(chain(tmp_path / "m.onnx", 2), chain_feeds(), progress=lambda _, done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@both
def test_kept_products_stay_as_they_were(tmp_path: Path, form: Form) -> None:
    source = chain(tmp_path / "m.onnx", 3)
    made = form(source, chain_feeds())(source, tmp_path / "q.onnx", keep=["p1"])
    assert (made.quantised, made.kept) == (("p0", "p2"), ("p1",))
    graph = onnx.load(made.path).graph
    floats = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    (left,) = [node for node in graph.node if node.op_type == "MatMul"]
    assert left.name == "p1"
    np.testing.assert_array_equal(floats[left.input[1]], normal(12, 12, seed=1) / np.float32(12**0.5))
    assert not {"w0", "w2"} & set(floats)


@both
def test_keeping_everything_changes_nothing(tmp_path: Path, bert: Path, form: Form) -> None:
    quantise = form(bert, TEXTS)
    everything = quantise(bert, tmp_path / "q.onnx", keep=()).quantised
    assert len(everything) == 2 * 6 + 2
    made = quantise(bert, tmp_path / "q.onnx", keep=everything)
    assert (made.quantised, made.kept) == ((), everything)
    for feed in TEXTS:
        np.testing.assert_array_equal(run(made.path, feed), run(bert, feed))


@both
def test_every_product_of_a_classifier_runs_on_integers(tmp_path: Path, bert: Path, form: Form) -> None:
    made = form(bert, TEXTS)(bert, tmp_path / "q.onnx", keep=())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(made.path), options, providers=["CPUExecutionProvider"])
    ran = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert ran["MatMulIntegerToFloat"] + ran["DynamicQuantizeMatMul"] == len(made.quantised)
    # Scores and mixtures of values, per layer: products of two activations.
    assert ran["MatMul"] + ran["FusedMatMul"] == 2 * 2
    assert not ran["Gemm"] and not ran["MatMulInteger"] and not ran["DequantizeLinear"]


@both
def test_a_classifier_in_integers_answers_nearly_the_same(tmp_path: Path, bert: Path, form: Form) -> None:
    made = form(bert, TEXTS)(bert, tmp_path / "q.onnx", keep=())
    expected, found = (np.concatenate([run(path, feed) for feed in TEXTS]) for path in (bert, made.path))
    error = output_error(bert, made.path, TEXTS)
    assert error == pytest.approx(np.square(found - expected).sum() / np.square(expected).sum(), rel=1e-6)
    # Two roundings per product, each to within half of 1/127 of the largest value.
    assert 0 < error < len(made.quantised) * 2 * (1 / 127) ** 2


@both
def test_weights_that_others_read_too_are_left_alone(tmp_path: Path, form: Form) -> None:
    """ONNX Runtime's own tool would turn the table in place, and look up columns."""
    table = normal(6, 6)
    constants = {"w": table, "b": normal(6), "rows": np.array([-1, 6]), "token": np.array(2)}
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["product"], "head", transB=1),
        helper.make_node("Gather", ["w", "token"], ["row"]),
        helper.make_node("Add", ["product", "row"], ["y"]),
    ]
    source = write(tmp_path / "m.onnx", nodes, constants)
    feed = {"x": normal(2, 3, 6)}
    made = form(source, [feed])(source, tmp_path / "q.onnx", keep=())
    assert made.quantised == ("head",)
    expected = feed["x"].reshape(-1, 6) @ table.T + constants["b"] + table[2]
    np.testing.assert_allclose(run(source, feed), expected, atol=1e-5)
    np.testing.assert_allclose(run(made.path, feed), expected, atol=0.1)


@both
def test_additions_that_are_no_bias_stay(tmp_path: Path, form: Form) -> None:
    """One number for all outputs, and a sum whose product is read elsewhere too."""
    constants = {"w": normal(6, 5), "v": normal(5, 5), "one": normal(1), "b": normal(5)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "first"),
        helper.make_node("Add", ["m", "one"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["n"], "second"),
        helper.make_node("Add", ["n", "b"], ["s"]),
        helper.make_node("Mul", ["n", "s"], ["y"]),
    ]
    source = write(tmp_path / "m.onnx", nodes, constants)
    feed = {"x": normal(2, 3, 6)}
    made = form(source, [feed])(source, tmp_path / "q.onnx", keep=())
    assert made.quantised == ("first", "second")
    product = (feed["x"] @ constants["w"] + constants["one"]) @ constants["v"]
    expected = product * (product + constants["b"])
    np.testing.assert_allclose(run(made.path, feed), expected, atol=0.03 * np.abs(expected).max())
    assert sorted(sensitivity(source, made.path, [feed])) == ["first", "second"]


@pytest.mark.parametrize("bad", [0, 1, 3])
@both
def test_the_worst_product_is_found(tmp_path: Path, form: Form, bad: int) -> None:
    source, feeds = chain(tmp_path / "m.onnx", 4, bad=bad), chain_feeds()
    made = form(source, feeds)(source, tmp_path / "q.onnx", keep=())
    for tries in (48, 1):
        ranking = sensitivity(source, made.path, feeds, tries=tries)
        assert ranking[0] == f"p{bad}"
        assert sorted(ranking) == ["p0", "p1", "p2", "p3"]


@both
def test_sensitivity_is_what_quantising_all_but_one_gives(tmp_path: Path, bert: Path, form: Form) -> None:
    quantise = form(bert, TEXTS)
    made = quantise(bert, tmp_path / "q.onnx", keep=["/model/classifier/Gemm"])
    told: list[tuple[int, int]] = []
    ranking = sensitivity(bert, made.path, TEXTS, progress=lambda _, done, total: told.append((done, total)))
    assert sorted(ranking) == sorted(made.quantised)
    assert told[-1] == (len(ranking), len(ranking))
    errors = [
        output_error(bert, quantise(bert, tmp_path / "one.onnx", keep=[*made.kept, name]).path, TEXTS)
        for name in ranking
    ]
    assert all(one <= other * 1.01 for one, other in zip(errors, errors[1:], strict=False))
    assert errors[0] < errors[-1]


def kept_in(path: Path) -> int:
    return sum(node.op_type == "MatMul" for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("needed", range(5))
@both
def test_no_more_is_kept_than_needed(tmp_path: Path, form: Form, needed: int) -> None:
    source = chain(tmp_path / "m.onnx", 8)
    ranking = ("p3", "p1", "p7", "p0", "p2", "p5", "p6", "p4")
    tried: list[int] = []

    def accept(path: Path) -> bool:
        tried.append(kept_in(path))
        return tried[-1] >= needed

    made = keep_sensitive(source, tmp_path / "q.onnx", form(source, chain_feeds()), ranking, accept)
    assert made is not None and made.path == tmp_path / "q.onnx"
    assert set(made.kept) == set(ranking[:needed])
    assert kept_in(made.path) == needed
    assert tried[0] == 0 and len(set(tried)) == len(tried) <= 4


def test_what_half_in_float32_does_not_cure_is_not_written(tmp_path: Path) -> None:
    source, target = chain(tmp_path / "m.onnx", 8), tmp_path / "q.onnx"
    target.write_bytes(b"older")
    made = keep_sensitive(
        source, target, quantise_dynamic, [f"p{each}" for each in range(8)], lambda path: kept_in(path) > 4
    )
    assert made is None
    assert target.read_bytes() == b"older"
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "q.onnx"}


def test_an_accepted_file_stays_when_a_later_check_breaks_off(tmp_path: Path) -> None:
    source, target = chain(tmp_path / "m.onnx", 8), tmp_path / "q.onnx"
    answers = iter([False, True])
    with pytest.raises(StopIteration):
        keep_sensitive(source, target, quantise_dynamic, [f"p{each}" for each in range(8)], lambda _: next(answers))
    assert kept_in(target) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "q.onnx"}


@both
def test_weights_stored_beside_the_source_stay_beside(tmp_path: Path, form: Form) -> None:
    feeds = chain_feeds(64)
    inside = chain(tmp_path / "in" / "m.onnx", 3, width=64)
    beside = chain(tmp_path / "out" / "m.onnx", 3, width=64, external=True)
    results = []
    for source in (inside, beside):
        made = form(source, feeds)(source, source.with_name("q.onnx"), keep=["p1"])
        results.append(run(made.path, feeds[0]))
        assert sensitivity(source, made.path, feeds)
    np.testing.assert_array_equal(*results)
    assert {path.name for path in inside.parent.iterdir()} == {"m.onnx", "q.onnx"}
    assert {path.name for path in beside.parent.iterdir()} == {"m.onnx", "m.onnx.data", "q.onnx", "q.onnx.data"}
    assert (beside.parent / "q.onnx").stat().st_size < (beside.parent / "q.onnx.data").stat().st_size


def test_a_model_appears_after_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = chain(tmp_path / "m.onnx", 3, width=64, external=True)
    moved: list[str] = []
    replace = os.replace

    def watched(old: Path, new: Path) -> None:
        moved.append(new.name)
        replace(old, new)

    monkeypatch.setattr(os, "replace", watched)
    quantise_dynamic(source, tmp_path / "q.onnx")
    assert moved == ["q.onnx.data", "q.onnx"]


def test_nodes_without_a_name_of_their_own_can_be_kept(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"]),
        helper.make_node("MatMul", ["h", "w1"], ["i"], "twice"),
        helper.make_node("MatMul", ["i", "w0"], ["y"], "twice"),
    ]
    source = write(tmp_path / "m.onnx", nodes, {"w0": normal(5, 5), "w1": normal(5, 5, seed=1)})
    made = quantise_static(
        source, tmp_path / "q.onnx", ranges=calibrate(source, [{"x": normal(1, 2, 5)}]), keep=["h", "twice"]
    )
    assert (made.quantised, made.kept) == (("y",), ("h", "twice"))


def test_products_without_a_range_stay_float32(tmp_path: Path) -> None:
    source = chain(tmp_path / "m.onnx", 3)
    ranges = calibrate(source, chain_feeds())
    less = Ranges({name: bounds for name, bounds in ranges.bounds.items() if name != "r0"})
    made = quantise_static(source, tmp_path / "q.onnx", ranges=less, keep=["p0"])
    assert (made.quantised, made.kept) == (("p2",), ("p0", "p1"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2", True),
        ("avx2 avx512f", True),
        ("avx2 avx512f avx512_vnni", False),
        ("avx2 avx_vnni", False),
        ("avx2 avx512f amx_int8", False),
        ("", False),
    ],
)
def test_processors_that_saturate(flags: str, expected: bool) -> None:
    assert saturates(flags) is expected


@pytest.mark.parametrize(("machine", "expected"), [("AMD64", True), ("x86_64", True), ("arm64", False)])
def test_processors_that_do_not_tell(monkeypatch: pytest.MonkeyPatch, machine: str, expected: bool) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert saturates(None) is expected


def test_outputs_that_are_not_finite_are_infinitely_wrong(tmp_path: Path) -> None:
    good = chain(tmp_path / "good.onnx", 2)
    broken = onnx.load(good)
    broken.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((12, 12), np.nan, np.float32), "w0"))
    onnx.save(broken, tmp_path / "broken.onnx")
    assert output_error(good, tmp_path / "broken.onnx", chain_feeds()) == float("inf")
    assert output_error(good, good, chain_feeds()) == 0


def wrong_keep(source: Path, target: Path) -> Any:
    return quantise_dynamic(source, target, keep=["p0", "nothing"])


def other_ranges(source: Path, target: Path) -> Any:
    return quantise_static(source, target, ranges=Ranges({"other": (0.0, 1.0)}))


def quantised_twice(source: Path, target: Path) -> Any:
    quantise_dynamic(source, source)
    return quantise_dynamic(source, target)


def missing(source: Path, target: Path) -> Any:
    return quantise_dynamic(source.with_name("none.onnx"), target)


def no_graph(source: Path, target: Path) -> Any:
    source.write_bytes(b"This is no graph")
    return quantise_dynamic(source, target)


def nothing_multiplied(source: Path, target: Path) -> Any:
    write(source, [helper.make_node("Relu", ["x"], ["y"])], {})
    return quantise_dynamic(source, target)


def no_feeds(source: Path, target: Path) -> Any:
    return calibrate(source, [])


def no_feeds_to_compare(source: Path, target: Path) -> Any:
    return output_error(source, source, [])


def not_a_number(source: Path, target: Path) -> Any:
    feeds = chain_feeds()
    feeds[1]["x"][0, 1, 5] = np.nan
    return calibrate(source, feeds)


def nothing_quantised(source: Path, target: Path) -> Any:
    return sensitivity(source, source, chain_feeds())


def another_graph_quantised(source: Path, target: Path) -> Any:
    quantise_dynamic(chain(source.with_name("less.onnx"), 1), source.with_name("less.onnx"))
    return sensitivity(source, source.with_name("less.onnx"), chain_feeds())


def a_folder_in_the_way(source: Path, target: Path) -> Any:
    (target / "occupied").mkdir(parents=True)
    return quantise_dynamic(source, target)


def not_runnable(source: Path, target: Path) -> Any:
    return output_error(
        source, write(source.with_name("m2.onnx"), [helper.make_node("Relu", ["z"], ["y"])], {}), chain_feeds()
    )


@pytest.mark.parametrize(
    ("attempt", "error", "said"),
    [
        (wrong_keep, PlanMismatch, "nothing"),
        (other_ranges, PlanMismatch, "calibrate"),
        (quantised_twice, CheckpointError, "quantised already"),
        (missing, CheckpointError, "none.onnx"),
        (no_graph, CheckpointError, "m.onnx"),
        (nothing_multiplied, CheckpointError, "no float32 weights"),
        (no_feeds, DataError, "example"),
        (no_feeds_to_compare, DataError, "example"),
        (not_a_number, DataError, "not finite"),
        (nothing_quantised, PlanMismatch, "not a quantised form"),
        (another_graph_quantised, PlanMismatch, "not a quantised form"),
        (a_folder_in_the_way, ResourceFailure, "could not be written"),
        (not_runnable, VerificationFailed, "m2.onnx"),
    ],
)
def test_bad_input_is_told(
    tmp_path: Path, attempt: Callable[[Path, Path], Any], error: type[Exception], said: str
) -> None:
    source = chain(tmp_path / "m.onnx", 2)
    with pytest.raises(error, match=said):
        attempt(source, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
