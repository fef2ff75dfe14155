"""Opens ONNX files in ONNX Runtime on exactly the provider asked for; running them on inputs is left to `binding`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from skillprune.benchmark.binding import bind, bind_on_device
from skillprune.benchmark.messages import Arrays
from skillprune.benchmark.runtimes import DEFAULT, Once, only_forward
from skillprune.benchmark.values import Phase, Subject
from skillprune.errors import CheckpointError, ProviderUnavailable

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


@dataclass(frozen=True)
class OpenedFile:
    """An open ONNX file, ready for inputs.

    Attributes:
        session: the file.
        provider: what really runs it.
        capture: whether CUDA graphs are recorded.
        spins: only where a session is left to its defaults: `_options` has threads stop.
    """

    session: onnxruntime.InferenceSession
    provider: str
    capture: bool = False
    spins: bool = False

    @property
    def version(self) -> str:
        """Version of ONNX Runtime."""
        return str(onnxruntime.__version__)

    def feed(self, inputs: Arrays, what: str, phase: Phase) -> Once:
        """Runs on inputs in the memory where the provider computes, see `Opened.feed`."""
        only_forward(phase, what)
        if self.provider == "cuda":
            return bind_on_device(self.session, inputs, what, device="cuda", capture=self.capture)
        return bind(self.session, inputs, what)


def open_subject(subject: Subject, threads: int, provider: str) -> OpenedFile:
    """Opens the file of a subject, see `runtimes.open_here`."""
    if subject.runtime == DEFAULT:
        session = _opened(subject.path, _quiet(), provider, {})
        return OpenedFile(session, provider_of(session), spins=True)
    session = open_session(subject.path, threads=threads, provider=provider, capture=subject.capture)
    return OpenedFile(session, provider_of(session), subject.capture)


def open_session(
    path: Path, *, threads: int, provider: str, capture: bool = False, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    """Opens an ONNX file for timing, with the settings that subjects must share to be compared.

    Args:
        path: the ONNX file; external data is found beside it.
        threads: threads that compute inside one operator; operators run one after another.
        provider: ``cpu`` or ``cuda``.
        capture: lets CUDA record the kernels of a run as a graph; all operators must run there.
        profile: start of the name of a file for the times of all operators, written when profiling ends.

    Raises:
        ProviderUnavailable: the provider is unknown, not installed, cannot capture, or the session fell back to
            another one.
        CheckpointError: the file is missing, or ONNX Runtime cannot read it.
    """
    if capture and provider != "cuda":
        raise ProviderUnavailable(f"only provider cuda captures graphs, {provider} was asked for: time without capture")
    # PyTorch multiplies float32 as it is too, unless it is told otherwise; TF32 would compare two precisions.
    on_device = {"use_tf32": "0", "enable_cuda_graph": "1" if capture else "0"} if provider == "cuda" else {}
    return _opened(path, _options(threads, profile), provider, on_device)


def _opened(
    path: Path, options: onnxruntime.SessionOptions, provider: str, on_device: dict[str, str]
) -> onnxruntime.InferenceSession:
    asked = check_provider(provider)
    settings: list[dict[str, str]] = [on_device, *({} for _ in asked[1:])]
    if not path.is_file():
        raise CheckpointError(f"{path}: no such ONNX file")
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=list(asked), provider_options=settings, enable_fallback=0
        )
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


def _quiet() -> onnxruntime.SessionOptions:
    """Options as they come, but for what is logged."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    return options


def _options(threads: int, profile: Path | None) -> onnxruntime.SessionOptions:
    options = _quiet()
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Within a run idle threads busy-wait, as they do where a session serves alone, and wait for no wake-up at every
    # parallel operator; between runs they sleep, because then it is another subject's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
