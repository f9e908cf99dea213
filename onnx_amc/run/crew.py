"""Several evaluations at a time: threads, since onnxruntime and the linear algebra let go of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore
from types import TracebackType
from typing import Protocol, Self, TypeVar

from onnx_amc.run.session import threads

Built = TypeVar("Built")
Result = TypeVar("Result")


class Team(Protocol):
    """Who builds models and evaluates them, several at a time."""

    def begin(self, build: Callable[[], Built], evaluate: Callable[[Built], Result]) -> Callable[[], Result]:
        """Begin to build a model and to evaluate it; what is returned waits for the result."""


class Crew:
    """Threads that build a model and evaluate it: so many are evaluated at a time, and one more is being built meanwhile.

    The cores are shared out among the sessions that would run side by side with a worker on each: what comes out depends, in its
    last bits, on the threads of a session, and must not on the number of workers.

    Args:
        workers: Models evaluated at a time; None for one per core.
        most: Models that may be under way at a time.

    """

    def __init__(self, workers: int | None, most: int) -> None:
        cores = usable_cores()
        abreast = max(1, min((workers or cores) + 1, most))
        self._threads = share(most)
        self._turn = Semaphore(workers or cores)
        self._pool = ThreadPoolExecutor(abreast, "onnx-amc")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, build: Callable[[], Built], evaluate: Callable[[Built], Result]) -> Callable[[], Result]:
        """Begin to build a model and to evaluate it; what is returned waits for the result."""

        def work() -> Result:
            with threads(self._threads):
                model = build()
                with self._turn:
                    return evaluate(model)

        return self._pool.submit(work).result


def share(most: int) -> int:
    """Threads of a session where so many models may be under way at a time."""
    cores = usable_cores()
    return max(1, cores // max(1, min(cores + 1, most)))


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
