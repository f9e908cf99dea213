"""The user's data from a function: batches, samples, readers, and every way in which they may be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from feeds import (
    I64,
    ROWS,
    TWO,
    Write,
    everything,
    refused,
)

from onnx_amc.run.data import InputSpec, load


def test_batches_of_a_function(write: Write) -> None:
    name = write("""
        def batches():
            for k in range(3):
                yield {"a": np.full((4, 5), k, np.float32)}, np.full(4, k)
        def bare():
            return [np.full((4, 5), k, np.float32) for k in range(3)]
        def unlabelled():
            return [(np.full((4, 5), k, np.float32), None) for k in range(3)]
        class Tools:
            one = staticmethod(bare)
    """)
    data = load(f"{name}:batches", ROWS, classes=3)
    np.testing.assert_array_equal(data.labels, np.repeat(np.arange(3), 4))
    np.testing.assert_array_equal(everything(data)["a"], np.repeat(np.arange(3), 20).reshape(12, 5))
    assert data.source == f"{name}:batches"
    for function in ("bare", "unlabelled", "Tools.one"):
        other = load(f"{name}:{function}", ROWS)
        assert other.labels is None
        np.testing.assert_array_equal(everything(other)["a"], everything(data)["a"])
    refused(f"{name}:batches", ROWS, "label 2 at index 8", classes=2)


def test_single_samples_with_labels_and_a_scalar_input(write: Write) -> None:
    name = write("""
        def f():
            return [({"a": np.ones((1, 5), np.float32), "rate": np.array(3)}, k) for k in range(9)]
    """)
    data = load(f"{name}:f", [*ROWS, InputSpec("rate", I64, ())])
    np.testing.assert_array_equal(data.labels, np.arange(9))
    assert data.batch(np.arange(2))["rate"] == 3


def test_calibration_data_reader(write: Write) -> None:
    name = write("""
        from onnxruntime.quantization.calibrate import CalibrationDataReader
        class Reader(CalibrationDataReader):
            def __init__(self):
                self.k = 0
            def get_next(self):
                self.k += 1
                return {"a": np.full((1, 5), self.k, np.float32)} if self.k <= 9 else None
    """)
    data = load(f"{name}:Reader", ROWS)
    assert data.labels is None
    np.testing.assert_array_equal(everything(data)["a"][:, 0], np.arange(1, 10))


def test_a_function_may_return_arrays_or_a_dataset(write: Write) -> None:
    name = write("""
        from onnx_amc.run.data import InputSpec, synthesise
        def arrays():
            return {"a": np.zeros((9, 5), np.float32), "labels": np.arange(9)}
        def dataset():
            return synthesise([InputSpec("a", np.dtype(np.float32), (None, 5))], 11, 0)
    """)
    assert load(f"{name}:arrays", ROWS).labels is not None
    data = load(f"{name}:dataset", ROWS)
    assert len(data) == 11
    assert data.synthetic


def test_no_such_module_or_function(write: Write) -> None:
    refused("amc_no_such_module:f", ROWS, "no module 'amc_no_such_module'", str(Path.cwd()), "amc_no_such_module:f")
    name = write("def here(): pass\nvalue = 3")
    refused(f"{name}:there", ROWS, f"{name}:there", "no 'there'", "it has here")
    refused(f"{name}:value", ROWS, "'value' is a int")
    refused(f"{name}:here", ROWS, "returned a NoneType", "CalibrationDataReader")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import amc_absent\ndef f(): pass", ("importing it raised ModuleNotFoundError", "amc_absent")),
        ("def f(:", ("importing it raised SyntaxError",)),
        ("raise SystemExit(3)", ("importing it raised SystemExit: 3",)),
        ("def f(): return {}['k']", ("calling it without arguments raised KeyError: 'k'",)),
        ("def f(x): return x", ("calling it without arguments raised TypeError", "'x'")),
        ("def f():\n    yield np.ones((4, 5))\n    1 / 0", ("reading its batches raised ZeroDivisionError",)),
        ("def f(): return []", ("no batches",)),
        ("def f(): return [(1, 2, 3)]", ("batch 0 has a tuple",)),
        (
            "def f(): return [({'a': np.ones((4, 5))}, None), ({'b': np.ones((4, 5))}, None)]",
            ("batch 1 has 'b'", "'a'"),
        ),
        ("def f(): return [(np.ones((4, 5)), np.ones(4, int)), (np.ones((4, 5)), None)]", ("1 of 2 batches",)),
        ("def f(): return [np.ones((4, 5)), np.ones((4, 6))]", ("batch 1 has shape (4, 6), batch 0 (4, 5)", "'a'")),
        ("def f(): return [([[1], [1, 2]], None)]", ("batch 0 has a list",)),
        ("def f(): return [({'a': [[1], [1, 2]]}, None)]", ("batch 0, 'a'", "no array")),
        ("def f(): return [({'b': np.ones((9, 5))}, None)]", ("no array for the model's input 'a'", "rename 'b'")),
        ("def f(): return [({'a': np.full((9, 5), np.nan)}, None)]", ("45 values", "nan")),
        ("def f(): return [(np.ones((9, 5)), np.ones((8, 2), int))]", ("labels of shape (8, 2)", "9 samples")),
    ],
)
def test_wrong_functions(write: Write, body: str, words: tuple[str, ...]) -> None:
    name = write(body)
    refused(f"{name}:f", ROWS, f"{name}:f", *words)


def test_bare_arrays_do_not_feed_two_inputs(write: Write) -> None:
    name = write("def f(): return [np.ones((9, 5))]")
    refused(f"{name}:f", TWO, "batch 0 has a ndarray", "by input name")
