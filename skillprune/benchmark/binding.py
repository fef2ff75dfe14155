"""Runs an open ONNX Runtime session on fixed inputs, again and again; opening it is left to `sessions`."""

from __future__ import annotations

from itertools import count

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from skillprune.benchmark.messages import Arrays
from skillprune.benchmark.runtimes import Once, refusal
from skillprune.errors import DataError

# A binding's errors are plain RuntimeErrors.
REFUSED: tuple[type[Exception], ...] = (
    state.Fail,
    state.InvalidArgument,
    state.RuntimeException,
    RuntimeError,
    ValueError,
    MemoryError,
)
LIBRARY = "ONNX Runtime"
GRAPH = "gpu_graph_id"  # ONNX Runtime's name for which captured graph a run records or replays
NO_GRAPH = "-1"
NUMBERS = count(1)


def bind(session: onnxruntime.InferenceSession, feeds: Arrays, what: str) -> Once:
    """A callable that runs the session once on fixed inputs and fetches all outputs, after a first run that worked.

    Inputs that the graph does not have are left out: exporters drop those that a model ignores.

    Args:
        session: an open session.
        feeds: input name to array.
        what: names file and shape in errors.

    Raises:
        DataError: an input of the graph is missing, or the graph refuses the inputs.
        ResourceFailure: memory ran out.
    """
    inputs = _wanted(session, feeds, what)

    def run() -> object:
        return session.run(None, inputs)

    try:
        run()
    except REFUSED as error:
        raise refusal(what, LIBRARY, error) from error
    return run


def bind_on_device(
    session: onnxruntime.InferenceSession, feeds: Arrays, what: str, *, device: str, capture: bool
) -> Once:
    """Like `bind`, with inputs and outputs that stay in the memory of a device: no copy is timed.

    The callable waits for the device and returns the outputs' ``OrtValue``s, in memory that every run writes anew.

    Args:
        session: an open session.
        feeds: input name to array.
        what: names file and shape in errors.
        device: ``cuda``, or ``cpu``.
        capture: the session was opened to capture; each call of this function records a graph of its own.

    Raises:
        DataError: an input of the graph is missing, or the graph refuses the inputs.
        ResourceFailure: memory ran out.
    """
    inputs = _wanted(session, feeds, what)
    binding = session.io_binding()
    try:
        outputs = session.run(None, inputs, _on_graph(NO_GRAPH) if capture else None)
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0) for array in outputs]
        for output, value in zip(session.get_outputs(), values, strict=True):
            binding.bind_ortvalue_output(output.name, value)
        options = _on_graph(str(next(NUMBERS))) if capture else None

        def run() -> object:
            session.run_with_iobinding(binding, options)
            binding.synchronize_outputs()
            return values

        run()
    except REFUSED as error:
        raise refusal(what, LIBRARY, error) from error
    return run


def _wanted(session: onnxruntime.InferenceSession, feeds: Arrays, what: str) -> Arrays:
    names = [each.name for each in session.get_inputs()]
    missing = sorted(set(names) - set(feeds))
    if missing:
        raise DataError(f"{what}: the graph needs the inputs {missing}, only {sorted(feeds)} were given")
    return {name: feeds[name] for name in names}


def _on_graph(number: str) -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(GRAPH, number)
    return options
