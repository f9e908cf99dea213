"""What a model may ask of the memory: sizes that cannot be meant are refused before anything of that size is made."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx

from onnx_amc.errors import ModelError

LARGEST_INPUT, LARGEST = 2**28, 2**31
"""Elements of an input and of any tensor for one sample, at most: more is damage, or an attack on the memory.
No axis is longer than an input may be, even where another one is 0."""

SHARE = 1 / 3
"""Of the memory, what the tensors of one sample may take: onnxruntime needs some for itself, and what is captured is held twice."""

CGROUP = Path("/sys/fs/cgroup/memory.max")
WIDTH = 4
"""Bytes of an element, as most are."""


def is_huge(shape: Iterable[int | None]) -> bool:
    """Whether a tensor of this shape is beyond what is worked with; dimensions that are not known count once.

    Inference gives negative ones where an assumed length is too short: that is for who looks for the length to find.
    """
    known = [max(d, 0) for d in shape if d is not None]
    return math.prod(known) > LARGEST or max(known, default=0) > LARGEST_INPUT


def too_large(name: str, shape: tuple[int, ...]) -> ModelError:
    """What to say of a tensor of impossible size."""
    return ModelError(
        f"its shape is {shape} for one sample: impossible, or more than memory should be asked for",
        where=f"tensor '{name}'",
        fix="export the model with the sizes that it really takes, or with dynamic dimensions",
    )


def check_memory(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Hold the tensors of one sample against the memory.

    Raises:
        ModelError: One has an impossible shape, or those that are there at a time need more than `SHARE` of what there is.

    """
    for name, shape in shapes.items():
        if is_huge(shape):
            raise too_large(name, shape)
    needed, there = WIDTH * at_a_time(proto, shapes), memory()
    if needed > SHARE * there:
        raise ModelError(
            f"one sample takes {needed / 2**30:.1f} GB of the {there / 2**30:.1f} GB that this process may have",
            where=proto.graph.name or "model",
            fix="export the model with batch 1 or a dynamic batch, or run it where there is more memory",
        )


def at_a_time(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Elements of the activations that exist together, at the node where they are most."""
    stored = {t.name for t in proto.graph.initializer}
    last = {name: i for i, node in enumerate(proto.graph.node) for name in node.input}
    live = sum(_elements(shapes.get(i.name, ())) for i in proto.graph.input if i.name not in stored)
    most = live
    for i, node in enumerate(proto.graph.node):
        live += sum(_elements(shapes.get(name, ())) for name in node.output if name)
        most = max(most, live)
        live -= sum(_elements(shapes.get(n, ())) for n in {*node.input} - stored - {""} if last[n] == i)
    return most


def _elements(shape: tuple[int, ...]) -> int:
    return math.prod(max(d, 0) for d in shape)


def memory() -> int:
    """Bytes that this process may have: of the machine, the container or the limit that was set for it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [2**35]
    with contextlib.suppress(OSError, ValueError):
        found.append(int(CGROUP.read_text(encoding="utf-8")))
    with contextlib.suppress(ImportError):
        import resource  # noqa: PLC0415  not on every system

        found += [n for n in resource.getrlimit(resource.RLIMIT_AS) if n != resource.RLIM_INFINITY]
    return min(found)


def peak() -> int:
    """Bytes that this process has held at most; 0 where the system does not tell."""
    try:
        import resource  # noqa: PLC0415  not on every system
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def room(most: int, allowed: float | None = None) -> int:
    """Bytes that one part of the work may hold: as many as are good for it, and no more than a quarter of the memory.

    Args:
        most: Bytes that are good for it.
        allowed: GB that the run may use; None for what `memory` finds.

    """
    there = memory()
    return min(most, (there if allowed is None else min(there, int(allowed * 2**30))) // 4)
