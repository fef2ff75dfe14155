"""Opens ONNX files in ONNX Runtime on exactly the provider asked for; timing them is left to `measure`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from skillprune.benchmark.timing import Run
from skillprune.errors import CheckpointError, DataError, ProviderUnavailable

# ONNX Runtime needs the CPU provider in the list even for CUDA: shape arithmetic always runs there.
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
ADVICE = {
    "cpu": "reinstall it: pip install --force-reinstall onnxruntime",
    "cuda": "install the GPU build (pip uninstall onnxruntime; pip install 'skillprune[gpu]') and the CUDA libraries "
    "it names, or choose provider: cpu",
}
ERRORS_ONLY = 3  # ONNX Runtime's severities run from 0 (verbose) to 4 (fatal)
# ONNX Runtime gives its errors no common base class.
UNREADABLE: tuple[type[Exception], ...] = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
)
NOT_STARTED: tuple[type[Exception], ...] = (state.EPFail, RuntimeError)  # a broken driver, for one
REFUSED: tuple[type[Exception], ...] = (state.Fail, state.InvalidArgument, state.RuntimeException, ValueError)


def check_provider(provider: str) -> tuple[str, ...]:
    """The execution providers that ``cpu`` or ``cuda`` stands for, when this ONNX Runtime has them.

    Raises:
        ProviderUnavailable: the provider is unknown or not installed.
    """
    if provider not in PROVIDERS:
        raise ProviderUnavailable(f"unknown provider {provider!r}, choose one of {sorted(PROVIDERS)}")
    installed = onnxruntime.get_available_providers()
    if PROVIDERS[provider][0] not in installed:
        raise ProviderUnavailable(
            f"provider {provider} is not in this ONNX Runtime, which has {', '.join(installed)}: {ADVICE[provider]}"
        )
    return PROVIDERS[provider]


def open_session(path: Path, *, threads: int, provider: str) -> onnxruntime.InferenceSession:
    """Opens an ONNX file for timing, with every setting that decides its speed named.

    Args:
        path: the ONNX file; external data is found beside it.
        threads: threads that compute inside one operator; operators run one after another.
        provider: ``cpu`` or ``cuda``.

    Raises:
        ProviderUnavailable: the provider is unknown, not installed, or the session fell back to another one.
        CheckpointError: the file is missing, or ONNX Runtime cannot read it.
    """
    asked = check_provider(provider)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such ONNX file")
    try:
        session = onnxruntime.InferenceSession(str(path), _options(threads), providers=list(asked), enable_fallback=0)
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: ONNX Runtime cannot open this file: {error}") from error
    except NOT_STARTED as error:
        raise ProviderUnavailable(f"provider {provider} does not start: {error}: {ADVICE[provider]}") from error
    running = session.get_providers()[0]
    if running != asked[0]:
        raise ProviderUnavailable(
            f"provider {provider} was asked for, but ONNX Runtime chose {running}: {ADVICE[provider]}"
        )
    return session


def provider_of(session: onnxruntime.InferenceSession) -> str:
    """The provider that really runs, in the recipe's word where there is one, else in ONNX Runtime's."""
    words = {names[0]: word for word, names in PROVIDERS.items()}
    running = str(session.get_providers()[0])
    return words.get(running, running)


def bind(session: onnxruntime.InferenceSession, feeds: Mapping[str, NDArray[np.generic]], what: str) -> Run:
    """A callable that runs the session once on fixed inputs and fetches all outputs, after a first run that worked.

    Inputs that the graph does not have are left out: exporters drop those that a model ignores.

    Args:
        session: an open session.
        feeds: input name to array.
        what: names file and shape in errors.

    Raises:
        DataError: an input of the graph is missing, or the graph refuses the inputs.
    """
    wanted = [each.name for each in session.get_inputs()]
    missing = sorted(set(wanted) - set(feeds))
    if missing:
        raise DataError(f"{what}: the graph needs the inputs {missing}, only {sorted(feeds)} were given")
    inputs = {name: feeds[name] for name in wanted}

    def run() -> object:
        return session.run(None, inputs)

    try:
        run()
    except REFUSED as error:
        raise DataError(f"{what}: ONNX Runtime cannot run this shape: {error}") from error
    return run


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Several sessions share the process, and threads that busy-wait after a run would slow whichever is timed next.
    # Within a run they may: else every parallel operator costs a wake-up, which weighs most on the fastest subjects.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = ERRORS_ONLY
    return options
