"""Compress any trained network given as an ONNX graph: `compress`, `inspect`, `apply`, `evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_amc.errors import (
    AmcError,
    BudgetError,
    ClusterError,
    DataError,
    ModelError,
    OptionError,
    PlanError,
    SelfCheckError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from onnx_amc.delivery import Result
    from onnx_amc.intake import DataSource, ModelSource
    from onnx_amc.listener import Listener

    __version__: str

__all__ = [
    "AmcError",
    "BudgetError",
    "ClusterError",
    "DataError",
    "ModelError",
    "OptionError",
    "PlanError",
    "SelfCheckError",
    "apply",
    "compress",
    "evaluate",
    "inspect",
    "pareto",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> str:
        """The version, which takes longer to look up than all else here."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

        try:
            return version("onnx-amc")
        except PackageNotFoundError:  # run from a checkout or an archive
            return "0+unknown"


def compress(
    model: ModelSource,
    data: DataSource | None = None,
    *,
    flops: float | None = None,
    params: float | None = None,
    size: float | None = None,
    latency: float | None = None,
    channels: float | None = None,
    max_drop: float | None = None,
    reduce: str = "flops",
    listener: Listener | None = None,
    **settings: Any,
) -> Result:
    """Compress a model to a budget, or as far as a drop of the score allows.

    Args:
        model: Path of an ONNX file, or a model.
        data: `.npz`, `.npy`, `.csv` or `.parquet` file, folder of images, saved Hugging Face data set, `module:function`, a
            mapping of arrays, or an `onnx_amc.run.data.Dataset`; the file MODEL.npz beside the model, or what is made up, where it
            is left out.
        flops: Fraction of the multiply-accumulates to be left, in (0, 1].
        params: Fraction of the parameters to be left, in (0, 1]; of single weights, of those that are not zero.
        size: Fraction of the file's bytes to be left, in (0, 1].
        latency: Fraction of the latency to be left, in (0, 1], measured in onnxruntime with batch 1.
        channels: Fraction of every group's channels to keep, in place of a budget.
        max_drop: Points of the score, in hundredths, that may be lost, in place of a budget.
        reduce: What is to become small then: `flops`, `params`, `size` or `latency`.
        listener: Hears how the run goes.
        settings: Any field of `onnx_amc.config.Settings`: granularity, policy, episodes, seed, round_to (None is auto), min_keep,
            keep, approximate, refit, metric, provider, recover and what limits it.

    Returns:
        The model, its plan and a record of all that was measured.

    Raises:
        AmcError: Input or options that do not work, or a budget that cannot be reached.

    """
    from onnx_amc.config import Settings, choose_budget, within_drop  # noqa: PLC0415  keeps the import of the package light
    from onnx_amc.pipeline import compress as run  # noqa: PLC0415

    given = {"flops": flops, "params": params, "size": size, "latency": latency, "channels": channels}
    budget = choose_budget(**within_drop(given, 1.0, max_drop, reduce))
    return run(model, data, Settings(budget=budget, max_drop=max_drop, **settings), listener)


def pareto(
    model: ModelSource,
    data: DataSource | None = None,
    *,
    flops: float | Sequence[float] | None = None,
    params: float | Sequence[float] | None = None,
    size: float | Sequence[float] | None = None,
    latency: float | Sequence[float] | None = None,
    listener: Listener | None = None,
    **settings: Any,
) -> list[Result]:
    """Compress a model to several budgets of one kind, largest first; they share calibration, tables and what plans scored.

    Args:
        model: Path of an ONNX file, or a model.
        data: As for `compress`.
        flops: Fractions of the multiply-accumulates to be left, each in (0, 1].
        params: Fractions of the parameters.
        size: Fractions of the file's bytes.
        latency: Fractions of the measured latency.
        listener: Hears how the run goes.
        settings: As for `compress`.

    Returns:
        A result for each budget.

    Raises:
        AmcError: As `compress`.

    """
    import numpy as np  # noqa: PLC0415

    from onnx_amc.config import Settings, choose_budgets  # noqa: PLC0415
    from onnx_amc.pipeline import pareto as run  # noqa: PLC0415

    given = {"flops": flops, "params": params, "size": size, "latency": latency}
    budgets = choose_budgets(
        **{k: None if v is None else ",".join(map(str, np.atleast_1d(v))) for k, v in given.items()}
    )
    return run(model, data, Settings(budget=budgets[0], **settings), budgets, listener)


def inspect(
    model: ModelSource, *, min_keep: float = 0.2, round_to: int | str | None = None, approximate: bool = False
) -> dict[str, Any]:
    """Return layers, groups, what is fixed and why, and the smallest MACs that can be reached.

    Args:
        model: Path of an ONNX file, or a model.
        min_keep: Smallest fraction of a group that is kept, in (0, 1].
        round_to: Multiple of the kept channels; None or `auto` is what onnxruntime's kernels like.
        approximate: Whether channels under norms and reductions count, where a cut is not quite a mask.

    Returns:
        What `onnx-amc inspect --json` writes.

    Raises:
        AmcError: The model cannot be read, or an option makes no sense.

    """
    from onnx_amc.pipeline import inspect as run  # noqa: PLC0415

    return run(model, min_keep, round_to, approximate=approximate)


def apply(
    model: ModelSource, plan: Any, data: DataSource | None = None, *, listener: Listener | None = None
) -> onnx.ModelProto:
    """Replay a plan: the same bytes as the run that wrote it, given the same data.

    Args:
        model: Path of an ONNX file, or a model: the one that the plan was made for.
        plan: A `Plan`, its JSON, or the path of it.
        data: As for `compress`: what the run was given. With other data the weights that are refitted differ.
        listener: Hears how it goes; without one, what is doubtful (such as other data) is a Python warning.

    Returns:
        The cut model.

    Raises:
        AmcError: The plan does not fit the model, or the data its training.

    """
    from onnx_amc.listener import Warner  # noqa: PLC0415
    from onnx_amc.pipeline import apply as run  # noqa: PLC0415

    return run(model, plan, data, listener or Warner())


def evaluate(
    model: ModelSource, data: DataSource, *, metric: str | None = None, against: ModelSource | None = None,
    provider: str = "cpu", preset: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score a model on data.

    Args:
        model: Path of an ONNX file, or a model.
        data: As for `compress`.
        metric: Name of the score, or `module:function`; None for what suits the data, with `against` for what compares with that.
        against: The original that agreement and the like compare with; None for the model itself.
        provider: Execution provider of onnxruntime, by its name or a short one.
        preset: How images are normalised and brought to size.

    Returns:
        What `onnx-amc evaluate --json` writes: `score`, `metric`, `samples`, what the network was fed, and what is doubtful.

    Raises:
        AmcError: Model or data cannot be read, the outputs of the two models are not alike, or the metric cannot be had.

    """
    from onnx_amc.pipeline import evaluate as run  # noqa: PLC0415

    return run(model, data, metric, provider, against, preset)
