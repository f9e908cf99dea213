"""Every bad input on the command line, with its message and exit code."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_cli import MLP, digits, fails, refused

from onnx_amc.cli import main
from onnx_amc.config import SWITCHES, Budget, Settings
from onnx_amc.errors import OptionError


def test_no_such_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in fails(capsys, 2, "compress", tmp_path / "none.onnx", "--flops", 0.5)


@pytest.mark.parametrize(("content", "said"), [(b"hello, world", "not an ONNX model"), (b"", "not an ONNX model")])
def test_not_onnx(place: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str) -> None:
    (place / "digits_mlp.onnx").write_bytes(content)
    assert said in refused(place, capsys, "--flops", 0.5)


def test_truncated_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "digits_mlp.onnx").write_bytes(MLP.read_bytes()[:-5000])
    assert "truncated" in refused(place, capsys, "--flops", 0.5)


def test_model_without_prunable_layer(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", d]) for n, d in (("x", 4), ("y", 3)))
    w = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [w])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), place / "single.onnx"
    )
    argv = [
        "compress",
        str(place / "single.onnx"),
        "--policy",
        "uniform",
        "--no-refit",
        "-o",
        str(place / "out.onnx"),
    ]
    assert main([*argv, "--flops", "0.5"]) == 3
    message = capsys.readouterr().err
    assert "no prunable layer" in message
    assert "it is the model's output 'y'" in message
    assert not (place / "out.onnx").exists()
    np.savez(place / "data.npz", x=np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32))
    whole = ["compress", str(place / "single.onnx"), "-o", str(place / "out.onnx"), "--flops", "1", "--episodes", "3"]
    for more in ([*argv[2:], "--channels", "0.5"], whole[4:], [*whole[4:], "--data", str(place / "data.npz")],
                 [*whole[4:], "--policy", "knapsack"]):  # fmt: skip
        assert main([*whole[:4], *more]) == 0
        assert "stays as it is" in capsys.readouterr().err
        assert (place / "out.onnx").read_bytes() == (place / "single.onnx").read_bytes()


THIN = ("--params", "0.6", "--granularity", "weight")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--flops", "0"], "not a fraction"),
        (["--flops", "1.5"], "not a fraction"),
        (["--flops", "nan"], "not a fraction"),
        (["--channels", "-1"], "not a fraction"),
        (["--flops", "0.5", "--params", "0.5"], "2 budgets at once: --flops, --params"),
        ([], "no budget"),
        (["--flops", "0.5", "--workers", "0"], "no whole number from 1"),
        (["--flops", "0.5", "--recover-epochs", "0"], "no whole number from 1"),
        (["--flops", "0.5", "--recover-minutes", "-1"], "no time"),
        (["--flops", "0.5", "--no-recover", "--recover-epochs", "3"], "--recover-epochs: --no-recover trains nothing"),
        (
            ["--flops", "0.5", "--no-recover", "--recover-labels", "--recover-flip"],
            "--recover-labels, --recover-flip: --no-",
        ),
        (
            ["--flops", "0.5", "--no-refit", "--recover-minutes", "3"],
            "--recover-minutes: --no-refit alone trains nothing",
        ),
        (
            ["--channels", "0.5", "--policy", "knapsack"],
            "--policy: --channels says what the plan is, knapsack proposes none",
        ),
        (["--flops", ""], "--flops: is empty"),
        (["--flops", "0.5", "--run-dir", ""], "--run-dir: is empty"),
        (["--flops", "0.5", "--report", ""], "--report: is empty"),
        (["--flops", "0.5", "--latency-command", ""], "--latency-command: is empty"),
        (["--flops", "0.5", "--memory", "0.1"], "0.1 GB are too few"),
        (["--flops", "0.5", "--memory", "nan"], "nan GB are too few"),
        (["--flops", "0.5", "--keep", "nosuchnode"], "matches no node"),
        (["--flops", "0.5", "--policy", "genius"], "unknown policy"),
        (["--flops", "0.5", "--criterion", "taste"], "unknown criterion"),
        (["--flops", "0.5", "--metric", "beauty"], "unknown metric"),
        (["--flops", "0.5", "--metric", "nosuch:thing"], "cannot import"),
        (["--flops", "0.5", "--round-to", "many"], "neither auto nor a whole number"),
        (["--flops", "0.5", "--round-to", "0"], "no whole number from 1"),
        (["--flops", "0.5", "--min-keep", "2"], "not a fraction"),
        (["--flops", "0.5", "--seed", "-1"], "no whole number"),
        (["--flops", "0.5", "--provider", "NoSuchProvider"], "no provider"),
        (["--flops", "0.5", "--provider", "dml"], "no provider 'DmlExecutionProvider' here\n  -> choose one of"),
        (["--flops", "0.5", "--provider", "dml"], "or install onnxruntime-directml in place of onnxruntime"),
        (["--flops", "0.5", "--data", "nosuch.npz"], "no such"),
        (["--flops", "0.5", "--reduce", "weight"], "'weight' is nothing that can be made small"),
        (["--flops", "0.5", "--reduce", "params"], "no --max-drop to reduce params within"),
        (["--flops", "0.5", "--max-drop", "1"], "2 budgets at once: --flops, --max-drop"),
        ([*THIN, "--round-to", "4"], "--round-to: single weights are not rounded"),
        ([*THIN, "--reward", "latency"], "--reward: zeros save no latency"),
        ([*THIN, "--approximate"], "--approximate: single weights cut no stream"),
        ([*THIN, "--pattern", "2:4", "--min-keep", "0.9"], "--min-keep: --pattern says how many weights stay"),
    ],
)
def test_bad_options(place: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert said in refused(place, capsys, *options)


@pytest.mark.parametrize(
    "name", ["calibration", "judged", "rows", "correction", "sequence", "draft", "draft_rows", "trial", "finalists", "probe"]
)  # fmt: skip
def test_settings_that_only_python_knows(name: str) -> None:
    one: Any = np.int64(1)
    assert getattr(Settings(Budget("flops", 0.5), **{name: one}), name) == 1
    wrong: tuple[Any, ...] = (0, -1, 2.5, True, "3")
    for value in wrong:
        with pytest.raises(OptionError, match=f"{name.replace('_', '-')}: .* is no whole number from 1"):
            Settings(Budget("flops", 0.5), **{name: value})


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_are_true_or_false(name: str) -> None:
    """A text of a configuration file, "false" for one, would be taken for true."""
    wrong: tuple[Any, ...] = ("false", "no", 0, 1, *([] if name == "recover" else [None]))
    for value in wrong:
        with pytest.raises(OptionError, match=f"--{name.replace('_', '-')}: {value!r} is neither True nor False"):
            Settings(Budget("flops", 0.5), **{name: value})


@pytest.mark.parametrize("name", ["recover_minutes", "memory", "max_drop", "ridge", "min_keep", "metric", "reward"])
def test_numbers_and_names_are_no_others(name: str) -> None:
    wrong: tuple[Any, ...] = (["3"], True, 5 if name in {"metric", "reward"} else "3")
    for value in wrong:
        with pytest.raises(OptionError):
            Settings(Budget("flops", 0.5), **{name: value})


@pytest.mark.parametrize("ridge", [0, -1.0, float("nan"), float("inf"), "1"])
def test_a_pull_that_is_none(ridge: Any) -> None:
    with pytest.raises(OptionError, match="is no pull"):
        Settings(Budget("flops", 0.5), ridge=ridge)


def test_budget_below_reach_is_exit_code_3(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(place, capsys, "--flops", 0.001, code=3)
    assert "the smallest is 0." in message
    assert "In the way: " in message
    smallest = message.split("the smallest is ")[1].split(".", 1)[1][:4]
    assert (
        main(["compress", str(place / "digits_mlp.onnx"), "--flops", f"0.{smallest}", "--policy", "uniform", "--quiet"])
        == 0
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"y": np.full(500, 10)}, "10"),
        ({"y": np.full(500, -1)}, "-1"),
        ({"y": np.zeros(499, np.int64)}, "499"),
        ({"x": np.zeros((500, 9, 9, 1), np.uint8)}, "9"),
        ({"x": np.full((500, 1, 8, 8), np.nan, np.float32)}, "NaN"),
        ({"x": np.zeros((3, 8, 8, 1), np.uint8), "y": np.zeros(3, np.int64)}, "3"),
        ({"x": np.zeros((500, 1, 8, 8), np.complex64)}, "complex64"),
    ],
    ids=["label too large", "negative label", "label count", "shape", "NaN", "too few samples", "dtype"],
)
def test_bad_data(place: Path, capsys: pytest.CaptureFixture[str], change: dict[str, np.ndarray], said: str) -> None:
    assert said in refused(place, capsys, "--flops", 0.5, "--data", digits(place, **change))


def test_wrong_input_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "named.npz"
    np.savez(path, image=np.zeros((500, 1, 8, 8), np.float32))
    message = refused(place, capsys, "--flops", 0.5, "--data", path)
    assert "image" in message
    assert "input" in message


def test_output_folder_that_is_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, 2, "compress", place / "digits_mlp.onnx", "--flops", 0.5, "-o", place / "no" / "out.onnx")
    assert "its folder does not exist" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_that_cannot_be_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked = place / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    message = fails(capsys, 2, "compress", place / "digits_mlp.onnx", "--flops", 0.5, "-o", locked / "out.onnx")
    assert "cannot be written" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nonsense", "not a JSON file"),
        ('{"format": 7}', "format is 7"),
        ('{"format": 1, "groups": [], "model_sha256": "abc"}', "made for a model with sha256 abc"),
    ],
)
def test_bad_plan(place: Path, capsys: pytest.CaptureFixture[str], content: str, said: str) -> None:
    (place / "plan.json").write_text(content)
    message = fails(capsys, 2, "apply", place / "digits_mlp.onnx", place / "plan.json", "-o", place / "o.onnx")
    assert said in message
    assert not (place / "o.onnx").exists()


def test_plan_with_impossible_channels(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "digits_mlp.amc.onnx"
    assert main(["compress", str(place / "digits_mlp.onnx"), "--channels", "0.5", "--no-refit", "--quiet"]) == 0
    path = out.with_suffix(".run") / "plan.json"
    good = json.loads(path.read_text())
    for kept, said in (([0, 0], "distinct"), ([10**6], "distinct"), ([], "non-empty")):
        broken = json.loads(json.dumps(good))
        broken["groups"][0]["kept"] = kept
        path.write_text(json.dumps(broken))
        assert said in fails(capsys, 2, "apply", place / "digits_mlp.onnx", path, "-o", place / "o.onnx")
    good["groups"][0]["name"] = "nobody"
    path.write_text(json.dumps(good))
    assert "unknown group 'nobody'" in fails(
        capsys, 2, "apply", place / "digits_mlp.onnx", path, "-o", place / "o.onnx"
    )


def test_interrupt_is_exit_code_130(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx_amc import pipeline

    def interrupted(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "compress", interrupted)
    assert main(["compress", str(place / "digits_mlp.onnx"), "--flops", "0.5"]) == 130
    assert "--resume" in capsys.readouterr().err
