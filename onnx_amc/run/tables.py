"""Samples in tables: CSV and Parquet, a row for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnx_amc.errors import DataError
from onnx_amc.run.samples import KINDS, InputSpec, show

SUFFIXES = frozenset({".csv", ".tsv", ".parquet", ".pq"})
LABELS = ("label", "labels", "y")
"""Names of the column that holds labels; the first one there is counts."""


def read_table(path: Path, inputs: Sequence[InputSpec]) -> dict[str, np.ndarray]:
    """Read a table as arrays by input name, and `labels` where it has such a column.

    Columns are taken by the names of the inputs; where none is named like an input, in their order: as many for each input as it
    has values per sample. Columns of lists are rows of an array.

    Raises:
        DataError: It cannot be read, or its columns do not fit the inputs.

    """
    return bind_columns(_columns(path), inputs, str(path))


def bind_columns(columns: dict[str, np.ndarray], inputs: Sequence[InputSpec], where: str) -> dict[str, np.ndarray]:
    """Share columns out among the inputs, by name or in order; labels go to `labels`."""
    label = next((name for name in LABELS if name in columns and name not in {s.name for s in inputs}), None)
    found = {} if label is None else {"labels": columns[label]}
    rest = {name: column for name, column in columns.items() if name != label}
    if any(spec.name in rest for spec in inputs):
        return found | {s.name: _shaped([rest[s.name]], s, where) for s in inputs if s.name in rest}
    wanted = [int(np.prod([s or 1 for s in spec.shape[1:]])) for spec in inputs]
    if len(inputs) == 1 and any(s is None for s in inputs[0].shape[1:]):
        wanted = [len(rest)]
    if sum(wanted) != len(rest):
        takes = ", ".join(f"'{s.name}' {show(s.shape)}" for s in inputs)
        raise DataError(
            what=f"{len(rest)} columns beside the labels ({_few(rest)}), the model takes {sum(wanted)} values per sample: {takes}",
            where=where,
            fix=f"give a column for each value, in the model's order, and labels in a column '{LABELS[0]}'",
        )
    names = iter(rest)
    for spec, count in zip(inputs, wanted, strict=True):
        found[spec.name] = _shaped([rest[next(names)] for _ in range(count)], spec, where)
    return found


def _shaped(columns: list[np.ndarray], spec: InputSpec, where: str) -> np.ndarray:
    """Columns side by side in the shape of an input; whole numbers become floats where the input takes these."""
    kinds = {KINDS.get(c.dtype.kind) for c in columns}
    if len(kinds) > 1 and "text" in kinds:
        raise DataError(
            what=f"text beside numbers in the columns for the input '{spec.name}'",
            where=where,
            fix="encode text as numbers, as it was in training, or give a column per input",
        )
    x = np.stack(columns, axis=1) if len(columns) > 1 else columns[0]
    if spec.dtype.kind == "f" and x.dtype.kind in "iub":
        x = x.astype(spec.dtype)
    if x.dtype.kind == "U" and spec.dtype.kind == "O":
        x = x.astype(object)
    fixed = [s or -1 for s in spec.shape[1:]]
    fits = fixed.count(-1) < 2 and x.size == len(x) * abs(int(np.prod(fixed)))
    if len(columns) == 1 and x.ndim == 1 and len(spec.shape) == 2 and spec.shape[1] in {None, 1}:
        return x[:, None]
    return x.reshape(len(x), *fixed) if fits and x.ndim < len(spec.shape) else x


def _columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a file by name, as arrays."""
    arrow = _pyarrow(str(path))
    try:
        if path.suffix.lower() in {".parquet", ".pq"}:
            from pyarrow import parquet  # noqa: PLC0415

            table = parquet.read_table(path)
        else:
            table = _csv(path)
    except arrow.ArrowException as error:
        raise DataError(
            what=f"the table cannot be read ({str(error).splitlines()[0]})", where=str(path), fix="write it again"
        ) from error
    return {name: _column(table.column(i), f"{path}: column '{name}'") for i, name in enumerate(table.column_names)}


def _csv(path: Path) -> Any:
    """Read a CSV; without a header its columns are numbered, as they are in the header that pandas gives unnamed ones."""
    from pyarrow import csv  # noqa: PLC0415

    between = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        cells = next(filter(None, map(str.strip, file)), "").split(between)
    numbered = [cell.strip().strip('"') for cell in cells] == list(map(str, range(len(cells))))
    how = csv.ReadOptions(autogenerate_column_names=all(map(_number, cells)) and not numbered)
    return csv.read_csv(path, read_options=how, parse_options=csv.ParseOptions(delimiter=between))


def _number(cell: str) -> bool:
    try:
        float(cell.strip().strip('"'))
    except ValueError:
        return False
    return True


def _column(column: Any, where: str) -> np.ndarray:
    """An array of a column without gaps."""
    if column.null_count:
        raise DataError(
            what=f"{column.null_count} of {len(column)} values are missing",
            where=where,
            fix="fill or remove these rows",
        )
    x: np.ndarray = column.to_numpy()
    if x.dtype.kind == "O" and len(x) and not isinstance(x[0], str | bytes):
        try:
            return np.stack([np.asarray(value.tolist() if hasattr(value, "tolist") else value) for value in x])
        except (TypeError, ValueError) as error:
            raise DataError(
                what="its lists have different lengths", where=where, fix="pad them to one length"
            ) from error
    return x


def _pyarrow(where: str) -> Any:
    try:
        import pyarrow  # noqa: ICN001, PLC0415  an extra
    except ModuleNotFoundError as error:
        raise DataError(
            what="tables are read by pyarrow, which is not installed", where=where, fix="pip install 'onnx-amc[data]'"
        ) from error
    return pyarrow


def _few(names: dict[str, np.ndarray]) -> str:
    shown = list(names)[:4]
    return ", ".join(map(repr, shown)) + (", ..." if len(names) > len(shown) else "")
