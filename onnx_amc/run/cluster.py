"""Evaluations on a Ray cluster: each is a task that builds a plan's model and scores it, wherever a core is free.

What is found does not depend on that, as long as the machines round alike: a task runs the same code on the same numbers, each of
its sessions on one thread. Ray starts a task anew whose worker or node has died.
"""

from __future__ import annotations

import logging
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_info, threadpool_limits

from onnx_amc.errors import ClusterError, OptionError
from onnx_amc.run.crew import Model, Result
from onnx_amc.run.session import threads

if TYPE_CHECKING:
    from onnx_amc.run.parcel import Parcel

RETRIES = 5
"""Times that an evaluation is begun again whose worker has died."""

PATIENCE = 5.0
"""Seconds after which a cluster that gives no answer is looked at."""

MISSES = 6
"""Times in a row that it is not there, or has no core, before it counts as lost; after a minute Ray itself ends the process."""

MOST = 8
"""Objects that a worker keeps."""

SOFTWARE = ("onnx-amc", "onnxruntime", "onnx", "numpy", "scipy")

Note = Callable[[str], None]


@contextmanager
def joined(address: str | None, note: Note) -> Iterator[Cluster | None]:
    """Be connected to a cluster meanwhile; None connects to nothing.

    Raises:
        OptionError: Ray is not installed.
        ClusterError: There is no cluster.

    """
    if address is None:
        yield None
        return
    cluster = Cluster(address, note)
    try:
        yield cluster
    finally:
        cluster.leave()


class Cluster:
    """Evaluates models on a Ray cluster; for one that can be had by threads there is `crew.Crew`.

    Objects that have a method `lean` travel once, in the form that it gives, as do the weights; a task names them only.

    Args:
        address: `auto`, `HOST:PORT`, or `ray://HOST:PORT`. A connection that the process has already is used, and kept.
        note: Told of what the user should know.

    Raises:
        OptionError: Ray is not installed.
        ClusterError: There is no cluster.

    """

    def __init__(self, address: str, note: Note) -> None:
        self.address, self.note = address, note
        ray = _ray()
        self._own = not ray.is_initialized()
        if self._own:
            _connect(address)
        self._place = place_of(address) or place_of(ray.get_runtime_context().gcs_address)
        self._work = ray.remote(num_cpus=1, max_retries=RETRIES)(_work)
        self._sent: dict[int, tuple[object, str, Any]] = {}
        self._odd: set[str] = set()
        self._misses = 0

    def leave(self) -> None:
        """Give up the connection, unless it was there before."""
        if self._own:
            _ray().shutdown()

    def begin(self, build: Callable[[], Model], evaluate: Callable[[Model], Result]) -> Callable[[], Result]:
        """Begin to build a model and to evaluate it somewhere; what is returned waits for the result.

        Raises:
            ClusterError: The cluster is lost, or is not equipped for it.

        """
        from onnx_amc.run.parcel import packed  # noqa: PLC0415  needs Ray

        used: dict[str, Any] = {}
        parcel = packed((build, evaluate), lambda thing: self._named(thing, used))
        task = self._work.remote(software(), used, parcel)
        return lambda: self._result(task)

    def _named(self, thing: object, used: dict[str, Any]) -> str | None:
        """The name of something that has a lean form, which is sent if it was not yet."""
        if not hasattr(type(thing), "lean"):
            return None
        if id(thing) not in self._sent:
            from onnx_amc.run.parcel import carry, packed  # noqa: PLC0415  needs Ray

            if (metric := getattr(thing, "metric", None)) is not None:
                carry(metric)
            sent = _ray().put(packed(thing.lean()))  # type: ignore[attr-defined]
            self._sent[id(thing)] = thing, uuid.uuid4().hex, sent  # as long as it is held here its id is no other's
        _, name, used[name] = self._sent[id(thing)]
        return name

    def _result(self, task: Any) -> Any:
        ray = _ray()
        try:
            while not ray.wait([task], timeout=PATIENCE)[0]:
                self._look()
            found, processor = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ImportError):
                what = f"a node cannot run it: {error.cause}"
                raise self._error(what, 'pip install "onnx-amc[ray]" on every node') from error
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise self._error(f"an evaluation was lost for good: {_line(error)}") from error
        self._misses = 0
        if processor not in {processor_kind(), *self._odd}:
            self._odd.add(processor)
            self.note(
                f"a node computes with other instructions than this machine ({processor} and {processor_kind()}): last digits, "
                "and with them the plan, may differ from those of a run without --ray"
            )
        return found

    def _look(self) -> None:
        """Whether the cluster is still there, and can do anything.

        Raises:
            ClusterError: It was not for some time.

        """
        there = self._place is None or answers(self._place)
        self._misses = 0 if there and _ray().cluster_resources().get("CPU", 0) >= 1 else self._misses + 1
        if self._misses >= MISSES:
            raise self._error("the cluster does not answer any more" if not there else "no node of it has a core left")

    def _error(self, what: str, fix: str = "") -> ClusterError:
        fix = fix or "see to the cluster; the same command with --resume goes on, with --ray or without"
        return ClusterError(what, where=f"--ray {self.address}", fix=fix)


def _ray() -> Any:
    """Ray, imported when it is needed.

    Raises:
        OptionError: It is not installed.

    """
    try:
        import ray  # noqa: PLC0415  heavy, and not everybody has it
    except ImportError as error:
        raise OptionError("Ray is not installed", where="--ray", fix='pip install "onnx-amc[ray]"') from error
    return ray


def _connect(address: str) -> None:
    ray, place = _ray(), place_of(address)
    fix = "name a running cluster: auto, HOST:PORT or ray://HOST:PORT; `ray start --head` begins one"
    if address != "auto" and place is None:
        raise OptionError(f"'{address}' is no address", where="--ray", fix=fix)
    if place is not None and not answers(place):
        raise ClusterError(f"nothing answers at {place[0]}:{place[1]}", where=f"--ray {address}", fix=fix)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise ClusterError(f"no connection: {_line(error)}", where=f"--ray {address}", fix=fix) from error


def place_of(address: str) -> tuple[str, int] | None:
    """Host and port of an address; None where it names none."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdecimal() and int(port) < 2**16 else None


def answers(place: tuple[str, int]) -> bool:
    """Whether anybody listens there."""
    try:
        socket.create_connection(place, timeout=PATIENCE).close()
    except OSError:
        return False
    return True


@cache
def software() -> Mapping[str, str]:
    """Versions of what a result depends on."""
    return {name: version(name) for name in SOFTWARE}


@cache
def processor_kind() -> str:
    """By which instructions the linear algebra computes; results depend on them in their last digits."""
    return (
        ", ".join(sorted({info["architecture"] for info in threadpool_info() if "architecture" in info})) or "unknown"
    )


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# ---- in a worker --------------------------------------------------------------------------------------------------

_HELD: dict[str, Any] = {}


def _work(wanted: Mapping[str, str], used: Mapping[str, Any], parcel: Parcel) -> tuple[Any, str]:
    """Build a model and evaluate it; return also by which instructions.

    Args:
        wanted: Versions of the software.
        used: The objects that are named, by their names; each is fetched once by each process.
        parcel: What builds, and what evaluates.

    Raises:
        ClusterError: The software is another one.

    """
    from onnx_amc.run.parcel import unpacked  # noqa: PLC0415  needs Ray

    if software() != wanted:
        odd = ", ".join(f"{k} {v}, not {wanted[k]}" for k, v in software().items() if v != wanted[k])
        where = f"node {_ray().util.get_node_ip_address()}"
        raise ClusterError(f"it has {odd}", where=where, fix="install the same versions on all machines")
    for name, sent in used.items():
        if name not in _HELD:
            for old in [n for n in _HELD if n not in used][: len(_HELD) + 1 - MOST]:
                del _HELD[old]
            _HELD[name] = unpacked(_ray().get(sent), {})
    with threads(1), threadpool_limits(limits=1, user_api="blas"):
        build, evaluate = unpacked(parcel, _HELD)
        return evaluate(build()), processor_kind()
