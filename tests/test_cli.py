"""The command line as its users meet it: the main job, and every bad input with its message and exit code."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_amc
from onnx_amc.cli import main
from onnx_amc.config import Budget, Settings
from onnx_amc.run.providers import BROUGHT_BY, NAMES

MODELS = Path(__file__).parents[1] / "models"
MLP = MODELS / "digits_mlp.onnx"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the MLP and its sidecar."""
    for name in ("digits_mlp.onnx", "digits_mlp.npz"):
        (tmp_path / name).write_bytes((MODELS / name).read_bytes())
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], code: int, *argv: object) -> str:
    """Run, expect this exit code and no traceback, and return the message."""
    assert main([str(a) for a in argv]) == code
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert "->" in message, "an error must say what to do"
    return message


def refused(place: Path, capsys: pytest.CaptureFixture[str], *options: object, code: int = 2) -> str:
    """Expect `compress` to refuse, and to write nothing and lose nothing."""
    out = place / "out.onnx"
    out.write_text("precious")
    message = fails(capsys, code, "compress", place / "digits_mlp.onnx", "-o", out, "--episodes", 2, *options)
    assert out.read_text() == "precious"
    assert not list(place.glob("*.tmp"))
    return message


def digits(place: Path, **changes: np.ndarray) -> Path:
    """The sidecar with some arrays changed."""
    arrays = dict(np.load(MODELS / "digits_mlp.npz")) | changes
    path = place / "changed.npz"
    np.savez(path, **arrays)
    return path


# ---- the main job ---------------------------------------------------------------------------------------------------


def test_compress_end_to_end(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, record = place / "digits_mlp.onnx", place / "record.json"
    assert main(["compress", str(model), "--flops", "0.5", "--episodes", "6", "--json", str(record)]) == 0
    shown = capsys.readouterr()
    assert "delivered" in shown.out
    assert "search (ddpg)" in shown.err
    told = json.loads(record.read_text())
    small = onnx.load(place / "digits_mlp.amc.onnx")
    onnx.checker.check_model(small)
    assert told["compressed"]["macs"] <= 0.5 * told["original"]["macs"]
    assert told["compressed"]["bytes"] == (place / "digits_mlp.amc.onnx").stat().st_size < told["original"]["bytes"]
    assert told["compressed"]["score"] >= told["baselines"]["uniform"]["score"]
    assert told["checks"]["masked_equals_cut"] <= 1e-4
    assert len(told["rewards"]) == told["episodes"] == 6
    assert told["rewards"][told["best_episode"]] == max(told["rewards"])
    assert told["original"]["macs"] == onnx_amc.inspect(model)["macs"]
    scored = onnx_amc.evaluate(place / "digits_mlp.amc.onnx", place / "digits_mlp.npz")
    assert scored["score"] > 0.9


def test_same_seed_same_bytes_and_apply_replays_them(place: Path) -> None:
    model = str(place / "digits_mlp.onnx")
    runs = []
    for name in ("a.onnx", "b.onnx"):
        out = str(place / name)
        assert main(["compress", model, "--flops", "0.5", "--episodes", "4", "--seed", "3", "-o", out, "--quiet"]) == 0
        runs.append(Path(out).read_bytes())
    assert runs[0] == runs[1]
    assert main(["apply", model, str(place / "a.run" / "plan.json"), "-o", str(place / "c.onnx")]) == 0
    assert (place / "c.onnx").read_bytes() == runs[0]


def test_resume_goes_on_and_gives_the_same_bytes(place: Path) -> None:
    model, run = str(place / "digits_mlp.onnx"), place / "run"
    command = ["compress", model, "--flops", "0.5", "--episodes", "5", "--run-dir", str(run), "--quiet", "-o"]
    assert main([*command, str(place / "whole.onnx")]) == 0
    journal = run / "evaluations.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-3]) + lines[-3][:7])  # three results lost, one of them torn
    assert main([*command, str(place / "resumed.onnx"), "--resume"]) == 0
    assert (place / "resumed.onnx").read_bytes() == (place / "whole.onnx").read_bytes()
    assert journal.read_text().splitlines(keepends=True) == lines


def test_resume_refuses_another_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, run = place / "digits_mlp.onnx", place / "run"
    command = ["compress", model, "--episodes", 3, "--run-dir", run, "--quiet", "-o", place / "x.onnx"]
    assert "no run to resume" in fails(capsys, 2, *command, "--flops", 0.5, "--resume")
    assert main([str(a) for a in [*command, "--flops", 0.5]]) == 0
    assert "another model, other data or other options" in fails(capsys, 2, *command, "--flops", 0.6, "--resume")


def test_resume_refuses_data_that_changed_under_the_same_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", place / "digits_mlp.onnx", "--flops", 0.5, "--policy", "uniform"]
    command += ["--run-dir", place / "run", "--quiet", "-o", place / "x.onnx"]
    assert main([str(a) for a in command]) == 0
    with np.load(place / "digits_mlp.npz") as file:
        arrays = dict(file)
    arrays["x"][7, 3, 3] ^= 1
    np.savez(place / "digits_mlp.npz", **arrays)
    assert "other data" in fails(capsys, 2, *command, "--resume")


def test_uniform_without_refit_needs_no_data(place: Path) -> None:
    (place / "digits_mlp.npz").unlink()
    command = ["compress", str(place / "digits_mlp.onnx"), "--policy", "uniform", "--no-refit", "--quiet"]
    record = place / "r.json"
    assert main([*command, "--flops", "0.5", "--json", str(record)]) == 0
    told = json.loads(record.read_text())
    assert told["compressed"]["macs"] <= 0.5 * told["original"]["macs"]
    assert told["compressed"]["score"] is None
    assert main([*command, "--channels", "0.5", "--round-to", "1", "--json", str(record)]) == 0
    told = json.loads(record.read_text())
    assert all(g["kept"] == round(g["channels"] / 2) for g in told["groups"])


def test_without_data_it_says_that_inputs_are_synthetic(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "digits_mlp.npz").unlink()
    assert main(["compress", str(place / "digits_mlp.onnx"), "--flops", "0.6", "--policy", "uniform"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "no data: 256 calibration images are made up" in said
    assert "score is fidelity" in said


@pytest.mark.parametrize(
    ("pattern", "whole"),
    [
        ("/1/Gemm", {"/1/Gemm"}),
        ("/3/Gemm", {"/1/Gemm", "/3/Gemm"}),
        ("3.weight", {"/1/Gemm", "/3/Gemm"}),
        ("/2/Relu", {"/1/Gemm"}),
        ("/4/Relu_output_0", {"/3/Gemm"}),
        ("/[12]/*", {"/1/Gemm"}),
        (r"^/(1|2)/", {"/1/Gemm"}),
        ("logits", {"/5/Gemm"}),
        ("Relu", {"/1/Gemm", "/3/Gemm", "/5/Gemm"}),
    ],
)
def test_keep_protects(place: Path, pattern: str, whole: set[str]) -> None:
    """A node is left as it is: the channels that it makes and those that it reads."""
    result = onnx_amc.compress(place / "digits_mlp.onnx", channels=0.5, policy="uniform", refit=False, keep=(pattern,))
    assert {g["name"] for g in result.record["groups"] if g["kept"] == g["channels"]} == whole


def test_params_budget_and_quiet(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", str(place / "digits_mlp.onnx"), "--params", "0.5", "--policy", "knapsack", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    sizes = [sum(int(np.prod(t.dims)) for t in onnx.load(p).graph.initializer) for p in place.glob("*.onnx")]
    assert min(sizes) <= 0.5 * max(sizes)


@pytest.mark.parametrize("policy", ["td3", "sac", "random", "evolution", "shallow", "deep"])
def test_every_policy_meets_the_budget(policy: str) -> None:
    result = onnx_amc.compress(MLP, flops=0.5, policy=policy, episodes=3)
    assert result.record["compressed"]["macs"] <= 0.5 * result.record["original"]["macs"]
    assert result.record["policy"] == policy


def test_inspect_evaluate_bench(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(place / "digits_mlp.onnx")
    assert main(["inspect", model, "--json", str(place / "i.json")]) == 0
    shown = capsys.readouterr().out
    assert "'logits'" in shown
    assert "(3,224 MACs)" in shown
    found = json.loads((place / "i.json").read_text())
    assert found["smallest_macs"] < found["macs"]
    assert main(["evaluate", model, "--data", str(place / "digits_mlp.npz")]) == 0
    assert "top1 0.9" in capsys.readouterr().out
    assert main(["bench", model, model, "--seconds", "0.2", "--json", str(place / "b.json")]) == 0
    assert json.loads((place / "b.json").read_text())["models"][0]["ratio"] == 1.0
    assert main(["bench", model, model, "--seconds", "0.2", "--threads", "1", "--json", str(place / "b.json")]) == 0
    assert 0.3 < json.loads((place / "b.json").read_text())["models"][1]["ratio"] < 3
    assert "-1 is below 0" in fails(capsys, 2, "bench", model, "--threads", -1)
    assert "-1 is no whole number from 0" in fails(capsys, 2, "compress", model, "--latency", 0.6, "--threads", -1)


# ---- bad input --------------------------------------------------------------------------------------------------------


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
    assert main([*argv, "--channels", "0.5"]) == 0
    assert "stays as it is" in capsys.readouterr().err
    assert (place / "out.onnx").read_bytes() == (place / "single.onnx").read_bytes()


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
        (["--flops", "0.5", "--recover-epochs", "0"], "below 1"),
        (["--flops", "0.5", "--recover-minutes", "-1"], "no time"),
        (["--flops", "0.5", "--memory", "0.1"], "0.1 GB are too few"),
        (["--flops", "0.5", "--memory", "nan"], "nan GB are too few"),
        (["--flops", "0.5", "--keep", "nosuchnode"], "matches no node"),
        (["--flops", "0.5", "--policy", "genius"], "unknown policy"),
        (["--flops", "0.5", "--criterion", "taste"], "unknown criterion"),
        (["--flops", "0.5", "--metric", "beauty"], "unknown metric"),
        (["--flops", "0.5", "--metric", "nosuch:thing"], "cannot import"),
        (["--flops", "0.5", "--round-to", "many"], "neither auto nor a whole number"),
        (["--flops", "0.5", "--round-to", "0"], "below 1"),
        (["--flops", "0.5", "--min-keep", "2"], "not a fraction"),
        (["--flops", "0.5", "--seed", "-1"], "no whole number"),
        (["--flops", "0.5", "--provider", "NoSuchProvider"], "no provider"),
        (["--flops", "0.5", "--provider", "dml"], "no provider 'DmlExecutionProvider' here\n  -> choose one of"),
        (["--flops", "0.5", "--provider", "dml"], "or install onnxruntime-directml in place of onnxruntime"),
        (["--flops", "0.5", "--data", "nosuch.npz"], "no such"),
    ],
)
def test_bad_options(place: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert said in refused(place, capsys, *options)


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


# ---- names in place of numbers and long names -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_a_provider_has_a_short_name(name: str) -> None:
    settings = Settings(Budget("flops", 0.5), provider=name)
    assert settings.provider == "CPUExecutionProvider"


def test_every_short_name_is_of_a_provider_that_onnxruntime_knows() -> None:
    assert set(NAMES.values()) <= set(ort.get_all_providers())
    assert set(BROUGHT_BY) <= set(NAMES.values())


def test_evaluate_and_bench_take_a_provider(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = str(place / "digits_mlp.onnx"), str(place / "digits_mlp.npz")
    assert main(["evaluate", model, "--data", data, "--provider", "cpu"]) == 0
    assert main(["bench", model, "--seconds", "0.1", "--provider", "cpu"]) == 0
    for command in (["evaluate", model, "--data", data], ["bench", model]):
        assert "no provider" in fails(capsys, 2, *command, "--provider", "dml")


def test_rounding_has_names_of_targets(place: Path) -> None:
    model, out = str(place / "digits_mlp.onnx"), place / "small.onnx"
    plain = ["compress", model, "--flops", "0.7", "--policy", "uniform", "--no-refit", "--quiet", "-o", str(out)]
    assert main([*plain, "--round-to", "avx512"]) == 0
    plan = json.loads((place / "small.run" / "plan.json").read_text())
    assert plan["round_to"] == 16
    assert plan["groups"]
    assert all(len(g["kept"]) % 16 == 0 for g in plan["groups"])


def test_every_command_tells_its_result_as_json_on_stdout(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, out = (str(place / name) for name in ("digits_mlp.onnx", "digits_mlp.npz", "small.onnx"))
    run = str(place / "small.run")
    told = {}
    for command in (
        ["compress", model, "--flops", "0.7", "--policy", "uniform", "--no-refit", "-o", out],
        ["inspect", model],
        ["apply", model, f"{run}/plan.json", "-o", out],
        ["evaluate", model, "--data", data],
        ["bench", model, "--seconds", "0.1"],
        ["report", run],
    ):
        if command[0] == "report":
            pytest.importorskip("vl_convert", reason="pages are not installed")
        capsys.readouterr()
        assert main([*command, "--json", "-"]) == 0
        told[command[0]] = json.loads(capsys.readouterr().out)
    assert told["compress"]["compressed"]["macs"] == told["apply"]["macs"] < told["inspect"]["macs"]
    assert told["apply"]["bytes"] == Path(out).stat().st_size
    assert told["evaluate"]["metric"] == "top1"
    assert told["bench"]["models"][0]["ratio"] == 1
    assert [Path(page["page"]).is_file() for page in told["report"]["pages"]] == [True]
