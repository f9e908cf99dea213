"""The command line as its users meet it: the main job, names in place of numbers, results as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import onnx_amc
from onnx_amc.cli import main
from onnx_amc.config import Budget, Settings
from onnx_amc.run.providers import BROUGHT_BY, NAMES

MODELS = Path(__file__).parents[1] / "models"
MLP = MODELS / "digits_mlp.onnx"


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
    fed = next(line for line in shown.err.splitlines() if line.startswith("note: the network is fed"))
    assert "std" in fed, "a remark is one line where there is no terminal"
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
    command = [
        "compress",
        model,
        "--flops",
        "0.5",
        "--episodes",
        "4",
        "--recover-epochs",
        "2",
        "--seed",
        "3",
        "--quiet",
    ]
    runs = []
    for name in ("a.onnx", "b.onnx"):
        out = str(place / name)
        assert main([*command, "-o", out]) == 0
        runs.append(Path(out).read_bytes())
    assert runs[0] == runs[1]
    assert main(["apply", model, str(place / "a.run" / "plan.json"), "-o", str(place / "c.onnx")]) == 0
    assert (place / "c.onnx").read_bytes() == runs[0]


def test_resume_goes_on_and_gives_the_same_bytes(place: Path) -> None:
    model, run = str(place / "digits_mlp.onnx"), place / "run"
    command = ["compress", model, "--flops", "0.5", "--episodes", "5", "--recover-epochs", "2", "--quiet"]
    command += ["--run-dir", str(run), "-o"]
    assert main([*command, str(place / "whole.onnx")]) == 0
    journal = run / "evaluations.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-3]) + lines[-3][:7])  # three results lost, one of them torn
    assert main([*command, str(place / "resumed.onnx"), "--resume"]) == 0
    assert (place / "resumed.onnx").read_bytes() == (place / "whole.onnx").read_bytes()
    assert journal.read_text().splitlines(keepends=True) == lines


def test_resume_refuses_another_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, run = place / "digits_mlp.onnx", place / "run"
    command = ["compress", model, "--episodes", 3, "--no-recover", "--run-dir", run, "--quiet", "-o", place / "x.onnx"]
    assert "no run to resume" in fails(capsys, 2, *command, "--flops", 0.5, "--resume")
    assert main([str(a) for a in [*command, "--flops", 0.5]]) == 0
    assert "another model, other data or other options" in fails(capsys, 2, *command, "--flops", 0.6, "--resume")


def test_what_is_interrupted_before_the_run_is_begun_promises_no_resumption(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for name, promised in (("writable", 0), ("_compress", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(f"onnx_amc.cli.{name}", stop)
            assert (
                main(["compress", str(place / "digits_mlp.onnx"), "--flops", "0.5", "-o", str(place / "x.onnx")]) == 130
            )
        assert capsys.readouterr().err.count("--resume") == promised
        assert (place / "x.run").exists() == bool(promised)


def test_resume_refuses_data_that_changed_under_the_same_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", place / "digits_mlp.onnx", "--flops", 0.5, "--policy", "uniform"]
    command += ["--no-recover", "--run-dir", place / "run", "--quiet", "-o", place / "x.onnx"]
    assert main([str(a) for a in command]) == 0
    with np.load(place / "digits_mlp.npz") as file:
        arrays = dict(file)
    arrays["x"][7, 3, 3] ^= 1
    np.savez(place / "digits_mlp.npz", **arrays)
    assert "other data" in fails(capsys, 2, *command, "--resume")


def test_resume_refuses_an_agent_that_changed_under_the_same_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compress", place / "digits_mlp.onnx", "--flops", 0.5, "--episodes", 2, "--no-recover", "--quiet"]
    for seed in (1, 2):
        saved = ["--seed", seed, "--save-agent", place / f"{seed}.npz", "-o", place / f"{seed}.onnx"]
        assert main([str(a) for a in [*command, *saved]]) == 0
    command += ["--agent", place / "1.npz", "--run-dir", place / "run", "-o", place / "x.onnx"]
    assert main([str(a) for a in command]) == 0
    assert main([str(a) for a in [*command, "--resume"]]) == 0
    (place / "2.npz").replace(place / "1.npz")
    assert "other options" in fails(capsys, 2, *command, "--resume")


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
        ("/5/*", {"/3/Gemm", "/5/Gemm"}),  # which, read as a regular expression, is in every name
        ("logits", {"/5/Gemm"}),
        ("Relu", {"/1/Gemm", "/3/Gemm", "/5/Gemm"}),
    ],
)
def test_keep_protects(place: Path, pattern: str, whole: set[str]) -> None:
    """A node is left as it is: the channels that it makes and those that it reads."""
    result = onnx_amc.compress(place / "digits_mlp.onnx", channels=0.5, policy="uniform", refit=False, keep=(pattern,))
    assert {g["name"] for g in result.record["groups"] if g["kept"] == g["channels"]} == whole


def test_several_patterns_after_one_option(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", str(place / "digits_mlp.onnx"), "--policy", "uniform", "--no-refit", "--quiet"]
    command += ["--flops", "0.99", "-o", str(place / "o.onnx")]
    assert main([*command, "--keep", "/3/Gemm", "/5/Gemm"]) == 3
    message = capsys.readouterr().err
    assert (
        "0.99 of the MACs cannot be reached; the smallest is 1.0000. In the way: /1/Gemm (--keep); /3/Gemm (--keep)"
        in message
    )
    assert "--keep less" in message
    assert main([*command, "--keep", "/3/Gemm", "--keep", "/5/Gemm"]) == 3
    assert main([*command, "--keep", "/1/Gemm"]) == 0


def test_the_smallest_budget_that_inspect_tells_can_be_met(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rounding in ("auto", "1", "7"):
        assert main(["inspect", str(place / "digits_mlp.onnx"), "--round-to", rounding]) == 0
        told = capsys.readouterr().out.split("smallest budget: --flops ")[1].split()[0]
        how = ["--policy", "uniform", "--no-refit", "--quiet", "--round-to", rounding, "-o", str(place / "o.onnx")]
        assert main(["compress", str(place / "digits_mlp.onnx"), "--flops", told, *how]) == 0
        assert main(["compress", str(place / "digits_mlp.onnx"), "--flops", f"{float(told) - 1.01e-4:.4f}", *how]) == 3


def test_params_budget_and_quiet(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--params", "0.5", "--policy", "knapsack", "--no-recover", "--quiet"]
    assert main(["compress", str(place / "digits_mlp.onnx"), *options]) == 0
    assert capsys.readouterr().out == ""
    sizes = [sum(int(np.prod(t.dims)) for t in onnx.load(p).graph.initializer) for p in place.glob("*.onnx")]
    assert min(sizes) <= 0.5 * max(sizes)


@pytest.mark.parametrize("policy", ["td3", "sac", "random", "evolution", "shallow", "deep"])
def test_every_policy_meets_the_budget(policy: str) -> None:
    result = onnx_amc.compress(MLP, flops=0.5, policy=policy, episodes=3, recover=False)
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
    for many in (-1, 99_999):
        assert f"{many} is no whole number from 0 to" in fails(capsys, 2, "bench", model, "--threads", many)
    other = onnx.load(model)
    other.graph.input[0].name = next(n for n in other.graph.node if "input" in n.input).input[0] = "picture"
    onnx.save(other, place / "other.onnx")
    assert "an input 'picture', the first one 'input'" in fails(capsys, 2, "bench", model, place / "other.onnx")
    assert "-1 is no whole number from 0" in fails(capsys, 2, "compress", model, "--latency", 0.6, "--threads", -1)


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


@pytest.mark.parametrize("options", [["."], ["{model}", "-o", "."], ["{model}", "-o", "/"]])
def test_a_folder_in_place_of_a_file(options: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [o.format(model=place / "digits_mlp.onnx") for o in options]
    assert "is a folder" in fails(capsys, 2, "compress", *words, "--flops", 0.5)


def test_names_with_brackets_are_shown_as_they_are(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(place / "digits_mlp.onnx")
    for node, name in zip(
        (n for n in model.graph.node if n.op_type == "Gemm"), ("blocks[first].conv", "up[/conv]"), strict=False
    ):
        node.name = name
    onnx.save(model, place / "net[fp16].onnx")
    assert main(["inspect", str(place / "net[fp16].onnx")]) == 0
    assert "blocks[first].conv" in capsys.readouterr().out
    options = ["--data", str(place / "digits_mlp.npz"), "--flops", "0.5", "--policy", "uniform", "--no-refit"]
    assert main(["compress", str(place / "net[fp16].onnx"), *options]) == 0
    assert "net[fp16]" in capsys.readouterr().out


def test_a_run_that_was_interrupted_at_its_very_start_can_be_resumed(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["compress", str(place / "digits_mlp.onnx"), "--flops", "0.5", "--policy", "uniform", "--no-recover"]
    command += ["-o", str(place / "out.onnx")]

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("onnx_amc.pipeline.compress", stopped)
        assert main(command) == 130
        patch.setattr("onnx_amc.pipeline.inspect", stopped)
        assert main(["inspect", str(place / "digits_mlp.onnx")]) == 130
    told = capsys.readouterr().err
    assert told.count("--resume") == 1, "there is nothing to resume of an inspection"
    assert main([*command, "--resume"]) == 0


def test_a_network_that_takes_and_gives_text(place: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 2]>
    text (string[N] x, float[N, 6] z) => (float[N, 4] y, string[N] said) <float[6, 8] w, float[8] b, float[8, 4] v>
    { h = MatMul (z, w) g = Add (h, b) r = Relu (g) y = MatMul (r, v) said = Identity (x) }"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for info in model.graph.value_info:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), info.name))
    del model.graph.value_info[:]
    data = {"x": np.array(["a", "bc"] * 40, object), "z": rng.normal(size=(80, 6)).astype(np.float32)}
    result = onnx_amc.compress(model, data=data, flops=0.5, policy="knapsack", recover=False)
    assert result.record["compressed"]["macs"] <= 0.5 * result.record["original"]["macs"]
