"""Evaluations on a Ray cluster: each builds a plan's model and scores it, wherever a core is free.

What is found does not depend on that, as long as the machines round alike: a task runs the same code on the same numbers, each of
its sessions on as many threads as without a cluster. Ray starts a task anew whose worker or node has died.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from threadpoolctl import threadpool_info

from onnx_amc.errors import ClusterError, OptionError
from onnx_amc.run.crew import Built, Result
from onnx_amc.run.session import VERSION

RETRIES = 5
"""Times that an evaluation is begun again whose worker has died."""

PATIENCE = 5.0
"""Seconds in which whoever is there answers."""

SOFTWARE = ("onnx-amc", "onnxruntime", "onnx", "numpy", "scipy")

FIX = "see to the cluster; the same command with --resume goes on, with --ray or without"

Note = Callable[[str], None]


@contextmanager
def joined(address: str | None, threads: int, note: Note) -> Iterator[Cluster | None]:
    """Be connected to a cluster meanwhile; None connects to nothing.

    Raises:
        OptionError: Ray is not installed, or this is no address.
        ClusterError: There is no cluster.

    """
    if address is None:
        yield None
        return
    cluster = Cluster(address, threads, note)
    try:
        yield cluster
    finally:
        cluster.leave()


class Cluster:
    """Evaluates models on a Ray cluster, as `crew.Crew` does by threads.

    Objects that have a method `lean` travel once, in the form that it gives; a task names them only. Ray itself runs in a process
    of its own (see `relay`): it prints as it likes, and ends its process where it loses the node that it is connected to.

    Args:
        address: `auto`, `HOST:PORT`, or `ray://HOST:PORT`.
        threads: Of each session.
        note: Told of what the user should know.

    Raises:
        OptionError: Ray is not installed, or this is no address.
        ClusterError: There is no cluster.

    """

    def __init__(self, address: str, threads: int, note: Note) -> None:
        _check(address)
        self.address, self.threads, self.note = address, threads, note
        self._sent: dict[int, tuple[object, str]] = {}
        self._odd: set[str] = set()
        path = os.pathsep.join(p for p in sys.path if p)
        self._relay = subprocess.Popen(  # noqa: S603  our own module
            [sys.executable, "-m", "onnx_amc.run.relay", address, str(RETRIES)], env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            self._ask("connect")
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Give up the connection, and what is under way."""
        self._relay.kill()
        for end in (self._relay.stdin, self._relay.stdout):
            with suppress(OSError):
                if end is not None:
                    end.close()
        self._relay.wait()

    def begin(self, build: Callable[[], Built], evaluate: Callable[[Built], Result]) -> Callable[[], Result]:
        """Begin to build a model and to evaluate it somewhere; what is returned waits for the result.

        Raises:
            ClusterError: The cluster is lost, or is not equipped for it.

        """
        from onnx_amc.run.parcel import packed  # noqa: PLC0415  needs Ray

        used: list[str] = []
        parcel = packed((build, evaluate), lambda thing: self._named(thing, used))
        task = self._ask("begin", software(), used, self.threads, parcel)
        return lambda: self._result(task)

    def _named(self, thing: object, used: list[str]) -> str | None:
        """The name of something that has a lean form, which is sent if it was not yet."""
        if not hasattr(type(thing), "lean"):
            return None
        if id(thing) not in self._sent:
            from onnx_amc.run.parcel import carry, packed  # noqa: PLC0415  needs Ray

            if (metric := getattr(thing, "metric", None)) is not None:
                carry(metric)
            name = uuid.uuid4().hex
            self._ask("send", name, packed(thing.lean()))  # type: ignore[attr-defined]
            self._sent[id(thing)] = thing, name  # as long as it is held here its id is no other's
        used.append(self._sent[id(thing)][1])
        return used[-1]

    def _result(self, task: int) -> Any:
        found, processor = self._ask("wait", task)
        if processor not in {processor_kind(), *self._odd}:
            self._odd.add(processor)
            self.note(
                f"a node computes with other instructions than this machine ({processor}, not {processor_kind()}): last digits, "
                "and with them the plan, may differ from those of a run without --ray"
            )
        return found

    def _ask(self, what: str, *given: Any) -> Any:
        """What the relay answers.

        Raises:
            ClusterError: It has ended, or the cluster is lost.

        """
        try:
            pickle.dump((what, given), self._relay.stdin, protocol=5)  # type: ignore[arg-type]
            self._relay.stdin.flush()  # type: ignore[union-attr]
            answer, error = pickle.load(self._relay.stdout)  # type: ignore[arg-type]  # noqa: S301  our own process
        except (OSError, EOFError, pickle.UnpicklingError) as broken:
            what = "the node that this machine is connected to is lost"
            raise ClusterError(what, where=f"--ray {self.address}", fix=FIX) from broken
        if error is not None:
            raise error
        return answer


def _check(address: str) -> None:
    """Whether it is worth trying; Ray itself would try for long.

    Raises:
        OptionError: Ray is not installed, or this is no address.
        ClusterError: Nothing answers there.

    """
    try:
        import onnx_amc.run.parcel  # noqa: F401, PLC0415  not everybody has Ray
    except ImportError as error:
        raise OptionError("Ray is not installed", where="--ray", fix='pip install "onnx-amc[ray]"') from error
    place = place_of(address)
    fix = "name a running cluster: auto, HOST:PORT or ray://HOST:PORT; `ray start --head` begins one"
    if address != "auto" and place is None:
        raise OptionError(f"'{address}' is no address", where="--ray", fix=fix)
    if place is not None and not answers(place):
        raise ClusterError(f"nothing answers at {place[0]}:{place[1]}", where=f"--ray {address}", fix=fix)


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
    return {name: version_of(name) or "unknown" for name in SOFTWARE}


def version_of(package: str) -> str | None:
    """Of a package, None where it is not installed; onnxruntime's has other names where it is made for other devices."""
    try:
        return version(package)
    except PackageNotFoundError:
        return VERSION if package == "onnxruntime" else None


@cache
def processor_kind() -> str:
    """By which instructions the linear algebra computes; results depend on them in their last digits."""
    return (
        ", ".join(sorted({info["architecture"] for info in threadpool_info() if "architecture" in info})) or "unknown"
    )
