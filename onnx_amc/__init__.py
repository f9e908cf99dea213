"""Compress any trained network given as an ONNX graph: `compress`, `inspect`, `apply`, `evaluate`."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from onnx_amc.errors import AmcError, BudgetError, DataError, ModelError, OptionError, PlanError, SelfCheckError

if TYPE_CHECKING:
    import onnx

    from onnx_amc.delivery import Result
    from onnx_amc.intake import DataSource, ModelSource
    from onnx_amc.listener import Listener

__version__ = version("onnx-amc")

__all__ = [
    "AmcError",
    "BudgetError",
    "DataError",
    "ModelError",
    "OptionError",
    "PlanError",
    "SelfCheckError",
    "apply",
    "compress",
    "evaluate",
    "inspect",
]


def compress(
    model: ModelSource,
    data: DataSource | None = None,
    *,
    flops: float | None = None,
    params: float | None = None,
    channels: float | None = None,
    listener: Listener | None = None,
    **settings: Any,
) -> Result:
    """Compress a model to a budget.

    Args:
        model: Path of an ONNX file, or a model.
        data: `.npz` file, folder of images, `module:function`, a mapping of arrays, or a `Dataset`; the file MODEL.npz beside the
            model, or synthetic noise, where it is left out.
        flops: Fraction of the multiply-accumulates to be left, in (0, 1].
        params: Fraction of the parameters to be left, in (0, 1].
        channels: Fraction of every group's channels to keep, in place of a budget.
        listener: Hears how the run goes.
        settings: Any field of `onnx_amc.config.Settings`: policy, episodes, seed, round_to (None is auto), min_keep, keep,
            approximate, refit, metric, provider, recover and what limits it.

    Returns:
        The model, its plan and a record of all that was measured.

    Raises:
        AmcError: Input or options that do not work, or a budget that cannot be reached.

    """
    from onnx_amc.config import Settings, choose_budget  # noqa: PLC0415  keeps the import of the package light
    from onnx_amc.pipeline import compress as run  # noqa: PLC0415

    budget = choose_budget(flops=flops, params=params, channels=channels)
    return run(model, data, Settings(budget=budget, **settings), listener)


def inspect(
    model: ModelSource, *, min_keep: float = 0.2, round_to: int | None = None, approximate: bool = False
) -> dict[str, Any]:
    """Return layers, groups, what is fixed and why, and the smallest MACs that can be reached."""
    from onnx_amc.pipeline import inspect as run  # noqa: PLC0415

    return run(model, min_keep, round_to, approximate=approximate)


def apply(model: ModelSource, plan: Any, data: DataSource | None = None) -> onnx.ModelProto:
    """Replay a plan (a `Plan`, its JSON, or the path of it): the same bytes as the run that wrote it."""
    from onnx_amc.pipeline import apply as run  # noqa: PLC0415

    return run(model, plan, data)


def evaluate(
    model: ModelSource, data: DataSource, *, metric: str | None = None, against: ModelSource | None = None
) -> dict[str, Any]:
    """Score a model on data; a metric that looks at the original's outputs finds it in `against`, and else the model itself."""
    from onnx_amc.pipeline import evaluate as run  # noqa: PLC0415

    return run(model, data, metric, against=against)
