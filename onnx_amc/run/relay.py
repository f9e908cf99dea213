"""The process that is connected to Ray, and what Ray's workers do.

    python -m onnx_amc.run.relay ADDRESS RETRIES

It reads pickled requests of its parent from stdin, the name of a method of `Relay` and its arguments, and writes to stdout an
answer and an error, one of which is None.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from threadpoolctl import threadpool_limits

from onnx_amc.errors import ClusterError
from onnx_amc.run.cluster import FIX, PATIENCE, answers, place_of, processor_kind, software
from onnx_amc.run.parcel import Parcel, unpacked
from onnx_amc.run.session import threads

MISSES = 6
"""Times in a row that the cluster is not there, or has no core, before it counts as lost."""

MOST = 8
"""Objects that a worker keeps."""


class Relay:
    """A connection to a cluster.

    Args:
        address: Of the cluster.
        retries: Times that a task is begun again whose worker has died.

    """

    def __init__(self, address: str, retries: int) -> None:
        self.address, self.place = address, place_of(address)
        self._work = ray.remote(num_cpus=1, max_retries=retries)(work)
        self._sent: dict[str, Any] = {}
        self._tasks: list[Any] = []
        self._misses = 0

    def connect(self) -> None:
        """Begin.

        Raises:
            ClusterError: There is no such cluster, or it has other versions.

        """
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, ImportError) as error:
            fix = "name a running cluster, of the same Python and Ray as here; `ray start --head` begins one"
            raise self._error(f"no connection: {_line(error)}", fix) from error
        self.place = self.place or place_of(ray.get_runtime_context().gcs_address)

    def send(self, name: str, parcel: Parcel) -> None:
        """Put something where all workers can fetch it."""
        self._sent[name] = ray.put(parcel)

    def begin(self, wanted: Mapping[str, str], names: Sequence[str], number: int, parcel: Parcel) -> int:
        """Begin a task, and return its number."""
        self._tasks.append(self._work.remote(wanted, {name: self._sent[name] for name in names}, number, parcel))
        return len(self._tasks) - 1

    def wait(self, number: int) -> Any:
        """Return what came of a task.

        Raises:
            ClusterError: It was lost, or the cluster was.
            Exception: Whatever the task raised.

        """
        task = self._tasks[number]
        try:
            while not ray.wait([task], timeout=PATIENCE)[0]:
                self._look()
            found = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ImportError):
                what = f"a node cannot run it: {error.cause}"
                raise self._error(what, 'pip install "onnx-amc[ray]" on every node') from error
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise self._error(f"an evaluation was lost for good: {_line(error)}", FIX) from error
        self._misses, self._tasks[number] = 0, None
        return found

    def _look(self) -> None:
        """Whether the cluster is still there, and can do anything.

        Raises:
            ClusterError: It was not for some time.

        """
        there = self.place is None or answers(self.place)
        self._misses = 0 if there and ray.cluster_resources().get("CPU", 0) >= 1 else self._misses + 1
        if self._misses >= MISSES:
            raise self._error("no node of it has a core left" if there else "the cluster does not answer any more", FIX)

    def _error(self, what: str, fix: str) -> ClusterError:
        return ClusterError(what, where=f"--ray {self.address}", fix=fix)


def _line(error: BaseException) -> str:
    """The first line of what it says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def answer(ask: Callable[..., Any], given: Sequence[Any]) -> bytes:
    """What goes back: an answer, or an error."""
    try:
        return pickle.dumps((ask(*given), None))
    except Exception as error:  # noqa: BLE001  it is for the other process to judge
        return pickle.dumps((None, error))


def main() -> None:
    """Answer until nobody asks any more."""
    back = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Ray prints
    relay = Relay(sys.argv[1], int(sys.argv[2]))
    while True:
        try:
            what, given = pickle.load(sys.stdin.buffer)  # noqa: S301  from our own process
        except EOFError:
            break
        back.write(answer(getattr(relay, what), given))
        back.flush()
    ray.shutdown()


# ---- in a worker --------------------------------------------------------------------------------------------------

_held: dict[str, Any] = {}


def work(wanted: Mapping[str, str], used: Mapping[str, Any], number: int, parcel: Parcel) -> tuple[Any, str]:
    """Build a model and evaluate it; return also by which instructions.

    Args:
        wanted: Versions of the software.
        used: The objects that are named, by their names; each is fetched once by each process.
        number: Threads of a session.
        parcel: What builds, and what evaluates.

    Raises:
        ClusterError: The software is another one.

    """
    if software() != wanted:
        odd = ", ".join(f"{k} {v}, not {wanted[k]}" for k, v in software().items() if v != wanted[k])
        where = f"node {ray.util.get_node_ip_address()}"
        raise ClusterError(f"it has {odd}", where=where, fix="install the same versions on all machines")
    for name, sent in used.items():
        if name not in _held:
            for old in [n for n in _held if n not in used][: max(0, len(_held) + 1 - MOST)]:
                del _held[old]
            _held[name] = unpacked(ray.get(sent), {})
    with threads(number), threadpool_limits(limits=1, user_api="blas"):
        build, evaluate = unpacked(parcel, _held)
        return evaluate(build()), processor_kind()


if __name__ == "__main__":
    from onnx_amc.run.relay import main as run  # by its name, so that workers find `work`

    run()
