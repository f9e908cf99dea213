"""One way to open a model in onnxruntime, with errors the user can read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from types import TracebackType

import numpy as np
import onnx
import onnxruntime as ort

from onnx_amc.errors import DataError, ModelError
from onnx_amc.graph.light import session
from onnx_amc.run.providers import remedy

_threads = ContextVar("threads", default=0)

VERSION = str(ort.__version__)

OUT_OF_MEMORY = ("bad_alloc", "allocate memory")
"""What onnxruntime says where the memory does not suffice."""


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let every session that this thread opens have so many threads, unless it is told otherwise; 0 takes all cores."""
    token = _threads.set(number)
    try:
        yield
    finally:
        _threads.reset(token)


class Meter:
    """Wall time in which at least one thread was at something.

    Attributes:
        seconds: So far, without what is under way.

    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside, self._since, self._lock = 0, 0.0, Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._since = time.perf_counter()
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self.seconds += time.perf_counter() - self._since


RUNNING = Meter()
"""Time in which onnxruntime was running a network."""


def open_session(
    model: onnx.ModelProto | str, *, threads: int | None = None, provider: str = "CPUExecutionProvider", where: str = "model",
    profile: str | None = None, once: bool = False, beside: bool = False, optimized: str | None = None,
    extra: Iterable[str] = (),
) -> ort.InferenceSession:  # fmt: skip
    """Build an inference session at full graph optimisation (the fast kernels need it).

    Args:
        model: A model, or the path of one.
        threads: Threads within an operator; 0 takes all cores, None as many as `threads` says.
        provider: Execution provider.
        where: What to call the model in messages.
        profile: Where onnxruntime's own profile goes, a path that it adds a time and `.json` to; None takes none.
        beside: Whether it is timed beside others: then its threads stop looking for work when a run ends, which would keep those of
            the next network from the cores, for longer than its run takes.
        once: Whether it will run once: then the weights are not laid out for the fast kernels, which takes longer than a run.
        optimized: Where the graph goes as onnxruntime has optimised it; None keeps it nowhere.
        extra: Tensors of a model, not of a path, that are to be outputs as well.

    Raises:
        ModelError: onnxruntime refuses the model, or does not have the provider or cannot start it.

    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = _threads.get() if threads is None else threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if optimized is not None:
        options.optimized_model_filepath = optimized
    if beside:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if once:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("session.disable_prepacking", "1")
    known = ort.get_available_providers()
    if provider not in known:
        raise ModelError(
            f"onnxruntime has no provider '{provider}' here", where="--provider", fix=remedy(provider, known)
        )
    try:
        if isinstance(model, str):
            opened = ort.InferenceSession(model, options, providers=[provider])
        else:
            opened = session(model, options, provider, extra)
    except Exception as error:  # onnxruntime raises its own, undocumented kinds
        raise ModelError(
            f"onnxruntime cannot load it: {str(error).splitlines()[0]}",
            where=where,
            fix="the model must load and run in onnxruntime before it can be compressed",
        ) from error
    if provider not in opened.get_providers():  # it goes on with the CPU, and says so in its log only
        raise ModelError(
            f"onnxruntime cannot start the provider '{provider}'",
            where="--provider",
            fix="check its driver and libraries, or leave it out to run on the CPU",
        )
    return opened


def run_session(
    opened: ort.InferenceSession, names: Sequence[str] | None, feed: Mapping[str, np.ndarray], *, where: str
) -> list[np.ndarray]:
    """Run once; inputs that the session does not have are left out.

    Raises:
        DataError: onnxruntime cannot run the model on this input.

    """
    known = {i.name for i in opened.get_inputs()}
    try:
        with RUNNING:
            return list(opened.run(names, {k: v for k, v in feed.items() if k in known}))
    except Exception as error:  # onnxruntime raises its own, undocumented kinds
        said = str(error).splitlines()[0]
        short = any(word in said for word in OUT_OF_MEMORY)
        raise DataError(
            f"onnxruntime cannot run the model on the data: {said}",
            where=where,
            fix="run it where there is more memory, or on smaller samples"
            if short
            else "the data must have the shapes and values that the model takes",
        ) from error
