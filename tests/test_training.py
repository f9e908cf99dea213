"""Recovery within a run: who is trained on what, what the plan and the record say of it, and how it is resumed and replayed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnx_amc
from onnx_amc import training
from onnx_amc.cli import main
from onnx_amc.compression import Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.display import Display
from onnx_amc.errors import OptionError, PlanError
from onnx_amc.graph.load import load
from onnx_amc.listener import Listener
from onnx_amc.prune.plan import Plan
from onnx_amc.recover.course import Course
from onnx_amc.recover.distil import Distiller
from onnx_amc.run.data import Dataset, InputSpec
from onnx_amc.training import parts_of

MODELS = Path(__file__).parents[1] / "models"
MLP = MODELS / "digits_mlp.onnx"
CUT: dict[str, Any] = {"channels": 0.5, "policy": "uniform", "refit": False, "recover": True, "recover_epochs": 3}
SHORT = ["--channels", "0.5", "--no-refit", "--recover", "--recover-epochs", "3"]


def samples(n: int, *, synthetic: bool = False) -> Dataset:
    inputs = (InputSpec("x", np.dtype(np.float32), (None, 4)),)
    return Dataset(inputs, {"x": np.zeros((n, 4), np.float32)}, np.arange(n) % 3, "test", synthetic=synthetic)


class Notes(Listener):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("n", "options", "trained", "reward"),
    [
        (10_000, {}, 8_000, 2_000),
        (50_000, {}, 47_000, 3_000),
        (500, {}, 300, 200),
        (499, {}, None, 249),
        (499, {"recover": True}, 299, 200),
        (20, {"recover": True}, 10, 10),
        (10_000, {"recover": False}, None, 3_000),
        (10_000, {"refit": False}, None, 3_000),
    ],
)
def test_which_samples_are_trained_on(n: int, options: dict[str, Any], trained: int | None, reward: int) -> None:
    parts = parts_of(samples(n), Settings(Budget("flops", 0.5), **options))
    assert len(parts.reward) == reward
    if trained is None:
        assert parts.trained is None
        return
    assert parts.trained is not None
    assert len(parts.trained) == trained
    assert np.intersect1d(parts.trained, parts.reward).size == 0
    assert np.isin(parts.calibration, parts.trained).all()


def test_noise_is_not_trained_on_unless_it_is_asked_for() -> None:
    data = samples(1_000, synthetic=True)
    assert parts_of(data, Settings(Budget("flops", 0.5))).trained is None
    assert parts_of(data, Settings(Budget("flops", 0.5), recover=True)).trained is not None


def test_training_makes_a_cut_model_better_and_the_record_says_so() -> None:
    plain = onnx_amc.compress(MLP, **{**CUT, "recover": False, "recover_epochs": None})
    found = onnx_amc.compress(MLP, **CUT)
    told = found.record["recover"]
    assert told["after"] > told["before"] + 0.05
    assert told["after"] == found.record["compressed"]["score"]
    assert (told["samples"], told["epochs"]) == (300, 3)
    assert 1 <= told["best_epoch"] <= 3
    assert found.record["seconds"]["recover"] > 0
    assert plain.record["recover"] is None
    assert plain.plan.kept == found.plan.kept
    test = MODELS / "digits_test.npz"
    assert onnx_amc.evaluate(found.model, test)["score"] > onnx_amc.evaluate(plain.model, test)["score"] + 0.05


def test_labels_count_only_when_asked_for() -> None:
    with np.load(MODELS / "digits_mlp.npz") as file:
        known = dict(file)
    wrong = {**known, "y": (known["y"] + 1) % 10}  # the split keeps classes in proportion: it stays as it is
    settings = {**CUT, "metric": "agreement"}
    one, same, other = (
        onnx_amc.compress(MLP, data, **{**settings, **more}).model.SerializeToString()
        for data, more in ((known, {}), (wrong, {}), (wrong, {"recover_labels": True}))
    )
    assert one == same != other


@pytest.mark.parametrize("labels", [np.zeros((500, 10)), np.zeros((500, 8, 8), np.uint8)], ids=["targets", "maps"])
def test_only_class_numbers_count_in_the_training(labels: np.ndarray) -> None:
    with np.load(MODELS / "digits_mlp.npz") as file:
        known = {**{name: file[name] for name in file.files if name != "y"}, "labels": labels}
    with pytest.raises(OptionError, match="it takes class numbers") as caught:
        onnx_amc.compress(MLP, known, **{**CUT, "recover_labels": True})
    assert caught.value.where == "--recover-labels"


def test_a_plan_replays_its_training(tmp_path: Path) -> None:
    out, again = tmp_path / "a.onnx", tmp_path / "b.onnx"
    assert main(["compress", str(MLP), *SHORT, "-o", str(out), "--quiet"]) == 0
    plan = json.loads((tmp_path / "a.run" / "plan.json").read_text())
    assert len(plan["recover"]["shares"]) >= 1
    assert not (tmp_path / "a.run" / "recovery-0.5.npz").exists()
    assert main(["apply", str(MLP), str(tmp_path / "a.run" / "plan.json"), "-o", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    plan["recover"]["shares"] = "all"
    with pytest.raises(PlanError, match="recovery"):
        onnx_amc.apply(MLP, plan)


def test_a_training_is_not_repeated_on_made_up_samples(tmp_path: Path) -> None:
    """The reader who leaves out `--data` is told so."""
    plan = onnx_amc.compress(MLP, MODELS / "digits_mlp.npz", **CUT).plan
    away = tmp_path / "model.onnx"  # without a file of samples beside it
    away.write_bytes(MLP.read_bytes())
    with pytest.raises(PlanError, match="other samples than") as caught:
        onnx_amc.apply(away, plan)
    assert caught.value.fix == "give --data what the run was given"
    before = Plan(plan.kept, {k: v for k, v in plan.settings.items() if k != "data"})  # as plans once were
    with np.load(MODELS / "digits_mlp.npz") as file:
        few = {name: file[name][:60] if file[name].ndim and len(file[name]) > 60 else file[name] for name in file.files}
    with pytest.raises(PlanError, match=r"its training takes .* samples, there are"):
        onnx_amc.apply(away, before, few)


def test_a_refit_on_other_samples_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", str(MLP), "--channels", "0.5", "--policy", "uniform", "--no-recover"]
    out = tmp_path / "a.onnx"
    assert main([*command, "-o", str(out)]) == 0
    with np.load(MODELS / "digits_mlp.npz") as file:
        np.savez(tmp_path / "other.npz", **{n: v[::-1] if v.ndim and len(v) > 60 else v for n, v in file.items()})
    replay = ["apply", str(MLP), str(tmp_path / "a.run" / "plan.json"), "-o", str(tmp_path / "b.onnx")]
    assert main(replay) == 0
    assert "other samples" not in capsys.readouterr().err
    assert (tmp_path / "b.onnx").read_bytes() == out.read_bytes()
    assert main([*replay, "--data", str(tmp_path / "other.npz")]) == 0
    assert "warning: its run was given other samples than" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "b.onnx").read_bytes() != out.read_bytes()


def interrupt(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    """Run a command that is interrupted after the second epoch of its training."""
    advance = Display.advance

    def torn(self: Display, done: int, note: str = "", total: int | None = None) -> None:
        advance(self, done, note, total)
        if "held-out" in note and done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Display, "advance", torn)
        assert main(command) == 130


def test_a_run_interrupted_in_its_recovery_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole.onnx", tmp_path / "out.onnx"
    command = ["compress", str(MLP), *SHORT, "--run-dir", str(tmp_path / "run"), "-o"]
    assert main([*command, str(whole)]) == 0
    capsys.readouterr()
    interrupt(monkeypatch, [*command, str(out)])
    assert not out.exists()
    assert (tmp_path / "run" / "recovery-0.5.npz").exists()
    capsys.readouterr()
    assert main([*command, str(out), "--resume"]) == 0
    heard = capsys.readouterr().err
    assert "recover 3/3" in heard
    assert "recover 1/3" not in heard
    assert out.read_bytes() == whole.read_bytes()


def test_a_run_begun_anew_forgets_an_old_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recovery-0.5.npz").write_bytes(b"of another run")
    command = ["compress", str(MLP), "--channels", "0.5", "--no-refit", "--run-dir", str(run), "--quiet"]
    assert main([*command, "-o", str(tmp_path / "out.onnx")]) == 0
    assert not (run / "recovery-0.5.npz").exists()


def test_an_operator_that_torch_lacks_is_named_and_the_model_delivered_untrained() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 8] x) => (float[N, 3] y) {
            h = MatMul(x, a)
            r = Relu(h)
            s = Bernoulli(zero)
            t = Mul(s, zero)
            z = MatMul(r, b)
            y = Add(z, t)
        }
    """)
    rng = np.random.default_rng(0)
    for name, shape in (("a", (8, 16)), ("b", (16, 3)), ("zero", (1, 1))):
        value = np.zeros(shape, np.float32) if name == "zero" else rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    heard = Notes()
    data = {"x": rng.standard_normal((100, 8)).astype(np.float32)}
    found = onnx_amc.compress(model, data, channels=0.5, round_to=1, recover=True, listener=heard)
    assert any("no recovery" in text and "Bernoulli" in text for text in heard.said)
    assert found.record["recover"] is None
    assert found.record["compressed"]["macs"] == found.record["original"]["macs"] // 2


def test_what_a_classifier_says_in_words_does_not_keep_it_from_training() -> None:
    """As scikit-learn's exporter writes one: the class by its name, and the probabilities."""
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 1]>
        net (float[N, 8] x) => (string[N] label, float[N, 3] p) <string[3] names = {"a", "b", "c"}> {
            h = MatMul(x, a)
            r = Relu(h)
            z = MatMul(r, b)
            p = Softmax(z)
            i = ArgMax <axis = 1, keepdims = 0> (p)
            f = ai.onnx.ml.ArrayFeatureExtractor(names, i)
            label = Reshape(f, flat)
        }
    """)
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat"))
    rng = np.random.default_rng(0)
    for name, shape in (("a", (8, 16)), ("b", (16, 3))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    heard = Notes()
    data = {"x": rng.standard_normal((100, 8)).astype(np.float32)}
    found = onnx_amc.compress(model, data, channels=0.5, round_to=1, recover=True, recover_epochs=2, listener=heard)
    assert not any("no recovery" in text for text in heard.said)
    assert found.record["recover"] is not None
    assert [o.name for o in found.model.graph.output] == ["label", "p"]


def drawn(text: str, shapes: dict[str, tuple[int, ...]], kind: type = np.float32, opset: int = 17) -> onnx.ModelProto:
    """A network with random weights."""
    rng, model = np.random.default_rng(0), parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    for name, shape in shapes.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(kind), name))
    return model


def untrained(model: onnx.ModelProto, data: dict[str, np.ndarray]) -> str:
    """Compress a network that cannot be trained, and return what is said of that."""
    heard = Notes()
    found = onnx_amc.compress(model, data, channels=0.5, round_to=1, recover=True, listener=heard)
    assert found.record["recover"] is None
    assert found.record["compressed"]["macs"] < found.record["original"]["macs"]
    return next(text for text in heard.said if text.startswith("no recovery"))


def test_a_model_of_half_precision_is_delivered_untrained() -> None:
    model = drawn(
        "net (float16[N,8] x) => (float16[N,3] y) { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }",
        {"a": (8, 16), "b": (16, 3)},
        np.float16,
    )
    data = {"x": np.random.default_rng(0).standard_normal((100, 8)).astype(np.float16)}
    assert "no float32 weight" in untrained(model, data)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_model_whose_batch_cannot_be_changed_is_delivered_untrained(batch: int) -> None:
    """As a transformer is exported: with a token for each sample of the batch among its constants."""
    model = drawn(
        f"""net (float[{batch},3,8,8] x) => (float[{batch},10] y) {{
            c = Conv<strides = [4,4]>(x, w)
            q = Reshape(c, shape)
            t = Transpose<perm = [0,2,1]>(q)
            k = Concat<axis = 1>(token, t)
            p = ReduceMean<axes = [1], keepdims = 0>(k)
            y = MatMul(p, v)
        }}""",
        {"w": (8, 3, 4, 4), "v": (8, 10), "token": (batch, 1, 8)},
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([batch, 8, -1]), "shape"))
    data = {"x": np.random.default_rng(0).standard_normal((100, 3, 8, 8)).astype(np.float32)}
    assert "Concat" in untrained(model, data)


@pytest.mark.parametrize(
    ("output", "labels", "what"),
    [
        ("1", 2, r"the first output is \(N, 1\): it tells no classes apart"),
        ("3", 4, "the labels go from 0 to 3, the model's 3 classes from 0 to 2"),
        ("3", 3, None),
    ],
)
def test_labels_that_are_none_of_the_model_s_classes_are_refused_before_the_search(
    output: str, labels: int, what: str | None
) -> None:
    model = load(drawn(f"net (float[N,4] x) => (float[N,{output}] y) {{ y = MatMul(x, a) }}", {"a": (4, int(output))}))
    data = replace(samples(600), labels=np.arange(600) % labels)
    settings = Settings(Budget("flops", 0.5), recover_labels=True)
    if what is None:
        assert parts_of(data, settings, model).trained is not None
        return
    with pytest.raises(OptionError, match=what) as caught:
        parts_of(data, settings, model)
    assert caught.value.where == "--recover-labels"


def test_the_number_of_epochs_suits_the_number_of_samples() -> None:
    settings = Settings(Budget("flops", 0.5))
    assert training.course_of(settings, 300).epochs == training.MOST_EPOCHS
    assert training.course_of(settings, 15_000).epochs == training.VISITS // 15_000
    assert training.course_of(settings, 10**9).epochs == 1


def test_steps_are_large_where_there_are_enough_of_them() -> None:
    """However many samples there are: a short training of many takes small steps."""
    short, long = (Settings(Budget("flops", 0.5), recover_epochs=n) for n in (5, 40))
    assert training.course_of(short, 42_000).batch == training.course_of(long, 4_000).batch == Course.batch
    assert training.course_of(long, 42_000).batch == training.LARGER > Course.batch


@pytest.mark.parametrize("wrong", [{"recover_epochs": 0}, {"recover_minutes": 0}, {"recover_minutes": float("nan")}])
def test_impossible_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="--recover"):
        Settings(Budget("flops", 0.5), **wrong)


def test_labels_count_for_a_classifier_whose_output_has_axes_of_length_one() -> None:
    model, data = onnx.load(MLP), MLP.with_suffix(".npz")
    last = model.graph.output[0].name
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 10, 1, 1]), "shape"))
    model.graph.node.append(onnx.helper.make_node("Reshape", [last, "shape"], ["wide"]))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("wide", onnx.TensorProto.FLOAT, ["N", 10, 1, 1]))
    options: dict[str, Any] = {"data": data, "channels": 0.5, "policy": "uniform", "recover_epochs": 3}
    plain, wide = (onnx_amc.compress(m, recover_labels=True, **options).record["recover"] for m in (MLP, model))
    assert wide["after"] == pytest.approx(plain["after"], abs=0.02)
    assert wide["epochs"] == 3


def test_labels_that_are_not_there_cannot_count() -> None:
    data = {"input": np.random.default_rng(0).normal(size=(600, 1, 8, 8)).astype(np.float32)}
    with pytest.raises(OptionError, match="there are no labels"):
        onnx_amc.compress(MLP, data=data, recover_labels=True, **CUT)


def test_a_weight_that_no_gradient_reaches_does_not_stop_a_training_from_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]> g (float[N,16] x) => (float[N,4] y, int64[N] c) {
        g = Gemm <transB = 1> (x, w, b)
        h = Relu (g)
        y = Gemm <transB = 1> (h, v)
        z = Gemm <transB = 1> (h, u)
        c = ArgMax <axis = 1, keepdims = 0> (z)
    }""")
    for name, shape in {"w": (32, 16), "b": (32,), "v": (4, 32), "u": (3, 32)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 4, name))
    onnx.save(model, tmp_path / "two.onnx")
    np.savez(tmp_path / "two.npz", x=rng.standard_normal((600, 16)).astype(np.float32))
    whole, out = tmp_path / "whole.onnx", tmp_path / "out.onnx"
    command = ["compress", str(tmp_path / "two.onnx"), *SHORT, "--run-dir", str(tmp_path / "run"), "-o"]
    assert main([*command, str(whole)]) == 0
    interrupt(monkeypatch, [*command, str(out)])
    epochs, epoch = list[int](), Distiller._epoch

    def counted(self: Distiller, number: int, *more: Any) -> float:
        epochs.append(number)
        return epoch(self, number, *more)

    monkeypatch.setattr(Distiller, "_epoch", counted)
    assert main([*command, str(out), "--resume"]) == 0
    assert epochs == [2]
    assert out.read_bytes() == whole.read_bytes()


def test_what_is_said_of_a_training_that_there_will_not_be_is_warned_of() -> None:
    """Few samples do not make an error of a limit that a pipeline gives to every run."""
    with np.load(MLP.with_suffix(".npz")) as file:
        few = {k: v[:300] if k in {"x", "y"} else v for k, v in file.items()}
    how: dict[str, Any] = {"channels": 0.5, "policy": "uniform"}
    record = onnx_amc.compress(MLP, few, recover_minutes=1, **how).record
    said = [w for w in record["warnings"] if "of no effect" in w]
    assert len(said) == 1
    assert (
        "--recover-minutes is of no effect: there are 300 samples, too few, and without --recover it takes 500"
        in said[0]
    )
    assert record["recover"] is None
    assert onnx_amc.compress(MLP, few, recover_epochs=1, recover=True, **how).record["recover"]["epochs"] == 1


def test_a_run_that_is_another_of_one_that_trains_need_not_train() -> None:
    """Of `--max-drop`: it tries networks without a training, whatever was said of that."""
    run = Compression(MLP, None, Settings(Budget("flops", 0.5), recover=True, recover_epochs=2), Listener())
    other = run.again(recover=False)
    assert other.trained is None
    assert other.settings.recover_epochs is None
    assert run.settings.recover_epochs == 2
