"""Models and plans that somebody has made to do harm: refused with a remedy, and nothing of what they name is read or made."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import flat, image
from onnx import TensorProto, helper, numpy_helper

import onnx_amc
from onnx_amc.cli import main
from onnx_amc.errors import DataError, ModelError, OptionError, PlanError
from onnx_amc.graph.groups import analyse
from onnx_amc.graph.load import load
from onnx_amc.graph.outside import SPARE
from onnx_amc.training import replay_of

MODELS = Path(__file__).parents[1] / "models"
BYTES = 8 * 3 * 3 * 3 * 4
"""Of the weight `w` of `toy`."""


def toy() -> onnx.ModelProto:
    return image("toy", "r = Relu (h)").model()


# ---- external data ----------------------------------------------------------------------------------------------


def placed(folder: Path, location: str, **more: str) -> Path:
    """A model whose weight lies at a place, with a secret outside its folder and several things in it."""
    home = folder / "home"
    home.mkdir()
    (folder / "secret").write_bytes(bytes(BYTES))
    (home / "inside").write_bytes(bytes(BYTES))
    (home / "short").write_bytes(bytes(BYTES - 1))
    (home / "link").symlink_to("../secret")
    (home / "near").symlink_to("inside")
    (home / "circle").symlink_to("circle")
    (home / "folder").mkdir()
    os.mkfifo(home / "pipe")
    model = toy()
    tensor = next(t for t in model.graph.initializer if t.name == "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    path = home / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("../secret", "lies outside the model's folder: refused"),
        ("folder/../../secret", "lies outside"),
        ("SECRET", "lies outside"),
        ("link", "lies outside"),
        ("circle", "outside|missing"),
        ("..", "lies outside"),
        ("w" * 5000, "outside"),
        ("a\0b", "outside"),
        ("", "is no file"),
        ("folder", "is no file"),
        ("pipe", "is no file"),
        ("nowhere", "is missing"),
        ("short", "has 863 bytes, the tensor .* needs 864"),
    ],
)
def test_external_data_stays_in_the_models_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], location: str, said: str
) -> None:
    path = placed(tmp_path, str(tmp_path / "secret") if location == "SECRET" else location)
    with pytest.raises(ModelError, match=said):
        load(path)
    assert main(["compress", str(path), "--channels", "0.5", "--no-refit", "-o", str(tmp_path / "o.onnx")]) == 2
    assert "->" in capsys.readouterr().err
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize(
    "more", [{"offset": "-1"}, {"length": "-4"}, {"offset": "x"}, {"offset": "4"}, {"length": "99"}]
)
def test_external_data_of_odd_offset_or_length(tmp_path: Path, more: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="external data 'inside' of tensor 'w'"):
        load(placed(tmp_path, "inside", **more))


@pytest.mark.parametrize("location", ["inside", "./inside", "folder/../inside", "near"])
def test_external_data_within_the_folder_is_read(tmp_path: Path, location: str) -> None:
    assert not load(placed(tmp_path, location)).value("w").any()


def test_many_tensors_out_of_one_small_file(tmp_path: Path) -> None:
    """A sparse file of a gigabyte takes no room on the disk: named by many tensors it would take much in memory."""
    with (tmp_path / "big").open("wb") as file:
        file.truncate(2**30)
    model = toy()
    for i in range(2 + SPARE // 2**30):
        tensor = model.graph.initializer.add(
            name=f"t{i}", data_type=1, dims=[2**28], data_location=TensorProto.EXTERNAL
        )
        tensor.external_data.add(key="location", value="big")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="out of external data of 1073741824: refused"):
        load(tmp_path / "m.onnx")


def test_weights_that_were_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lie in files and are not loaded"):
        load(onnx.load(placed(tmp_path, "inside"), load_external_data=False))


# ---- structure --------------------------------------------------------------------------------------------------


def broken(name: str) -> onnx.ModelProto:
    """A graph that is none."""
    model = toy()
    nodes = model.graph.node
    match name:
        case "cycle":
            nodes[0].input[0] = "r"
        case "twice":
            nodes[1].output[0] = "h"
        case "short":
            model.graph.initializer.append(
                TensorProto(name="n", data_type=TensorProto.INT64, dims=[2], raw_data=bytes(24))
            )
        case "default":
            model.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.float32), "x"))
        case "itself":
            own = helper.make_opsetid("own", 1)
            call = helper.make_node("again", ["a"], ["b"], domain="own")
            model.functions.append(helper.make_function("own", "again", ["a"], ["b"], [call], [own]))
            model.opset_import.append(own)
            nodes.append(helper.make_node("again", ["x"], ["never read"], domain="own"))
    return model


def test_functions_that_double_at_each_level_are_refused_before_they_are_written_out() -> None:
    own, model = helper.make_opsetid("own", 1), toy()
    for level in range(60):
        calls = [helper.make_node(f"f{level + 1}", [a], [b], domain="own") for a, b in (("a", "m"), ("m", "b"))]
        body = calls if level < 59 else [helper.make_node("Neg", ["a"], ["b"])]
        imports = [own, helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("own", f"f{level}", ["a"], ["b"], body, imports))
    model.opset_import.append(own)
    model.graph.node.append(helper.make_node("f0", ["x"], ["never read"], domain="own"))
    with pytest.raises(ModelError, match=r"written out, have 2e\+18 nodes"):
        load(model)


@pytest.mark.parametrize("name", ["cycle", "twice", "short", "default", "itself"])
def test_broken_graphs(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(broken(name))
    assert caught.value.fix


@pytest.mark.parametrize(
    ("body", "values", "said"),
    [
        ("s = Shape (h) g = Gather (s, k) r = Expand (h, g)", {"k": [4]}, "Gather 'g' reads element 4 of 4"),
        ("g = Gather <axis = 1> (h, k) r = Relu (g)", {"k": [-9]}, "Gather 'g' reads element -9 of 8"),
        ("g = Slice (h, o, e, o, k) r = Relu (g)", {"k": [0], "o": [1], "e": [4]}, "Slice 'g' has a step of 0"),
    ],
)
def test_elements_that_are_not_there(body: str, values: dict[str, list[int]], said: str) -> None:
    declared = ", ".join(f"int64[1] {name}" for name in values)
    channels = 1 if "axis" in body else 8
    model = image("t", body, declared=declared, channels=channels, weights=values).model()
    with pytest.raises(ModelError, match=said):
        load(model)


def test_an_element_that_only_a_long_input_has() -> None:
    """What the assumed length of a dynamic axis does not reach is no fault of the model."""
    model = image(
        "t", "g = Gather <axis = 2> (x, k) r = Add (h, h)", declared="int64[1] k", weights={"k": [500]}
    ).model()
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dim.dim_param = name
    model.graph.output.append(helper.make_tensor_value_info("g", TensorProto.FLOAT, None))
    assert load(model).length("x", 1) == 3
    assert load(model).length("x", 2) is None


def test_sizes_that_do_not_fit_each_other_cost_the_channels_alone() -> None:
    body = "s = Shape (h) t = Concat <axis = 0> (s, k, k) e = Equal (t, k) f = Where (e, o, t) g = Expand (c, f) r = Relu (h)"
    model = image("t", body, declared="int64[1] k, int64[4] o", weights={"k": [-1], "o": [1] * 4}).model()
    analysis = analyse(load(model))
    assert not analysis.groups
    assert "Where 'f' calculates with the number of its channels" in {str(g.reason) for g in analysis.fixed}


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    """Infinity times zero is no number: masked and cut network would differ, and that is no fault of ours."""
    model = toy()
    tensor = next(t for t in model.graph.initializer if t.name == "w")
    values = numpy_helper.to_array(tensor).copy()
    values[0] = np.inf
    tensor.CopyFrom(numpy_helper.from_array(values, "w"))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="weight 'w' holds NaN or infinity"):
        onnx_amc.compress(tmp_path / "m.onnx", channels=0.5, policy="uniform", refit=False, round_to=1)


@pytest.mark.parametrize(
    ("body", "bias", "said"),
    [
        ("r = Relu (h)", 1e25, "activation 'r' goes beyond 1e"),
        ("r = Exp (h)", 100.0, "answers NaN or infinity to each of the"),
        ("r = Sqrt (h)", -9.0, "answers NaN or infinity to each of the"),
    ],
)
def test_activations_that_no_gram_matrix_can_be_summed_from(body: str, bias: float, said: str) -> None:
    model = image("t", body, weights={"b": np.full(8, bias)}).model()
    with pytest.raises((DataError, OptionError), match=said):
        onnx_amc.compress(model, channels=0.5, policy="uniform", round_to=1)


def test_activations_that_are_no_numbers_on_some_samples_are_named() -> None:
    model = image("t", "r = Exp (h)").model()
    given = model.graph.input[0]
    shape = [d.dim_value for d in given.type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(0).standard_normal((60, *shape)).astype(np.float32)
    x[::5] *= 1e3
    with pytest.raises(DataError, match="activation 'r' has NaN or infinite values"):
        onnx_amc.compress(model, {given.name: x}, channels=0.5, policy="uniform", round_to=1)


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        (helper.make_node("ReduceMax", ["y"], ["top"], keepdims=0), []),
        (helper.make_node("Transpose", ["y"], ["top"], perm=[2, 1, 0]), [4, 5, "N"]),
    ],
    ids=["scalar", "samples last"],
)
def test_outputs_without_a_row_for_each_sample_are_not_scored(node: onnx.NodeProto, shape: list[int | str]) -> None:
    model = flat("fixed", "r = Relu (h)").model()
    model.graph.node.append(node)
    model.graph.output.append(helper.make_tensor_value_info("top", TensorProto.FLOAT, shape))
    x = np.random.default_rng(0).standard_normal((130, 5, 6), dtype=np.float32)
    assert onnx_amc.evaluate(model, {model.graph.input[0].name: x})["samples"] == 130
    del model.graph.output[0]
    with pytest.raises(ModelError, match=r"no output has a row for each sample.*'top'"):
        onnx_amc.evaluate(model, {model.graph.input[0].name: x})


def test_sizes_that_are_no_numbers() -> None:
    """A target shape of which one part is complex: no whole number can be made of it."""
    nodes = (
        "s = Shape (x) d = Gather (s, zero) u = Unsqueeze (d, first) t = Concat <axis = 0> (u, rest) r = Reshape (h, t)"
    )
    model = image(
        "odd", nodes, 8, "int64 zero, int64[1] first, float[1] rest", weights={"zero": 0, "first": [0]}
    ).model()
    odd = numpy_helper.from_array(np.array([complex(np.nan, np.nan)], np.complex64), "rest")
    next(t for t in model.graph.initializer if t.name == "rest").CopyFrom(odd)
    with contextlib.suppress(ModelError):
        analyse(load(model))


def test_an_image_that_would_become_huge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for i in range(8):
        Image.fromarray(np.zeros((1, 64), np.uint8)).save(tmp_path / f"{i}.png")
    for size in (2**20, 2**62):
        (tmp_path / "preprocess.json").write_text(json.dumps({"size": size, "crop": 8}))
        assert main(["evaluate", str(MODELS / "digits_resnet.onnx"), "--data", str(tmp_path)]) == 2
        assert "the image of 1 x 64 would become" in capsys.readouterr().err


# ---- plans ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [[], {}, None, 7])
@pytest.mark.parametrize("entries", ["groups", "weights"])
def test_a_plan_that_names_what_is_no_name(name: object, entries: str) -> None:
    model = toy()
    plan = {"format": 1, "model_sha256": load(model).sha256, entries: [{"name": name, "tensor": name, "kept": [0]}]}
    plan |= {"granularity": "weight"} if entries == "weights" else {}
    with pytest.raises(PlanError, match="unknown"):
        onnx_amc.apply(model, plan)


@pytest.mark.parametrize(
    "odd", [{"seed": math.inf}, {"pattern": [math.inf, 4]}, {"pattern": [2]}, {"round_to": "many"}, {"round_to": 0}]
)
def test_a_plan_whose_settings_are_none(odd: dict[str, object]) -> None:
    model = toy()
    plan = {"format": 1, "model_sha256": load(model).sha256, "granularity": "weight", "weights": []}
    with pytest.raises(PlanError, match="damaged"):
        onnx_amc.apply(model, plan | odd)


def test_a_plan_that_names_a_group_twice() -> None:
    model = toy()
    entry: dict[str, object] = {"name": analyse(load(model)).groups[0].name, "kept": [0]}
    plan = {"format": 1, "model_sha256": load(model).sha256, "groups": [entry, entry | {"kept": [1]}], "refit": False}
    with pytest.raises(PlanError, match="named twice"):
        onnx_amc.apply(model, plan)


SOUND: dict[str, object] = {"course": {"epochs": 2}, "steps": 3, "rate": 0.001, "shares": [0.5, 1.0]}


def test_what_a_plan_says_of_a_training_is_checked() -> None:
    assert replay_of(SOUND)[1].shares == (0.5, 1.0)
    odd: list[dict[str, object]] = [
        {"steps": 10**30},
        {"steps": 0},
        {"steps": True},
        {"steps": "3"},
        {"rate": float("nan")},
        {"rate": []},
    ]
    odd += [{"shares": [1.0, 0.5]}, {"shares": 1}, {"shares": [2.0]}, {"shares": ["a"]}, {"course": {"batch": 0}}]
    odd += [{"course": {"epochs": "many"}}, {"course": {"nothing": 1}}, {"course": []}]
    for change in odd:
        with pytest.raises(PlanError, match="damaged"):
            replay_of(SOUND | change)


def test_names_are_escaped_in_the_report(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("vl_convert")
    evil = "<script>alert('x')</script><img src=x onerror=alert(1)>"
    model = toy()
    model.graph.node[0].name = evil
    model.graph.name = evil
    onnx.save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((32, 3, 6, 6), dtype=np.float32)
    np.savez(tmp_path / "m.npz", x=x)
    page = tmp_path / "page.html"
    argv = ["compress", str(tmp_path / "m.onnx"), "--channels", "0.5", "--quiet", "--report", str(page)]
    assert main(argv) == 0
    text = page.read_text()
    assert json.dumps(evil)[1:20] not in text
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "alert(" in text, "the name is there, escaped"
