"""Several evaluations at a time: threads, since onnxruntime and the linear algebra let go of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore
from types import TracebackType
from typing import Self, TypeVar

import onnx

from onnx_amc.run.session import threads

Result = TypeVar("Result")
Model = onnx.ModelProto


class Crew:
    """Threads that build a model and evaluate it: so many are evaluated at a time, and one more is being built meanwhile.

    Sessions of the models that are built have one thread, and those that evaluate share the other cores. What comes out does not
    depend on any of this.

    Args:
        workers: Models evaluated at a time; None for one per core, as far as there is work for them.
        ahead: Evaluations that are under way at a time in the search.

    """

    def __init__(self, workers: int | None, ahead: int) -> None:
        cores = usable_cores()
        self.workers = workers or max(1, min(cores, ahead))
        self.threads = max(1, (cores - 1) // self.workers)
        self._turn = Semaphore(self.workers)
        self._pool = ThreadPoolExecutor(self.workers + 1, "onnx-amc")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, build: Callable[[], Model], evaluate: Callable[[Model], Result]) -> Callable[[], Result]:
        """Begin to build a model and to evaluate it; what is returned waits for the result."""

        def work() -> Result:
            with threads(1):
                model = build()
            with self._turn, threads(self.threads):
                return evaluate(model)

        return self._pool.submit(work).result


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
