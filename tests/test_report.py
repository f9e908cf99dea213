"""The page of a run: what is on it, what is left out, what cannot break out of it, and every bad input."""

from __future__ import annotations

import hashlib
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nets import Row
from sklearn.metrics import confusion_matrix

from onnx_amc import details
from onnx_amc.cli import main
from onnx_amc.config import Budget, Settings
from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import load
from onnx_amc.prune.layers import find_layers
from onnx_amc.prune.surgery import cut
from onnx_amc.report import page
from onnx_amc.run import data as sources
from onnx_amc.run.images import class_names
from onnx_amc.run.layerwise import layer_errors, layer_times
from onnx_amc.run.metrics import confusion
from onnx_amc.run.samples import Dataset, InputSpec

MODELS = Path(__file__).parents[1] / "models"
EVIL = "</script><script>alert(1)</script>"


class Reader(HTMLParser):
    """Collects what a browser would make of a page: headings, cells, script texts, and attributes that load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.cells: list[str] = []
        self.scripts: list[str] = []
        self.loads: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.loads += [f"{tag} {k}={v}" for k, v in attrs if k in {"src", "href", "srcset", "data", "action"}]
        for tags, found in (({"h2"}, self.headings), ({"td", "th"}, self.cells), ({"script"}, self.scripts)):
            if tag in tags:
                found.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        for tags, found in (({"h2"}, self.headings), ({"td", "th"}, self.cells), ({"script"}, self.scripts)):
            if self._inside in tags:
                found[-1] += data

    @property
    def charts(self) -> dict[str, Any]:
        return json.loads(self.scripts[0]) if self.scripts else {}


def compress(place: Path, *options: object, model: str = "digits_mlp", data: bool = True) -> Path:
    """Run the command line in a folder of its own with a copy of the model; the page is there as page.html."""
    for name in (f"{model}.onnx", *([f"{model}.npz"] if data else [])):
        (place / name).write_bytes((MODELS / name).read_bytes())
    command = [
        "compress",
        place / f"{model}.onnx",
        "--quiet",
        "--run-dir",
        place / "run",
        "--report",
        place / "page.html",
    ]
    assert main([str(c) for c in [*command, *options]]) == 0
    return place


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("searched")
    return compress(place, "--flops", 0.5, "--episodes", 4, "--recover", "--recover-epochs", 2)


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("blind")
    return compress(place, "--flops", 0.5, "--policy", "uniform", "--no-refit", data=False)


def read(place: Path, name: str = "page.html") -> str:
    return (place / name).read_text(encoding="utf-8")


# ---- what is on it ---------------------------------------------------------------------------------------------------


def test_it_says_what_was_asked_delivered_and_lost(searched: Path) -> None:
    told, text = json.loads(read(searched, "run/record.json")), read(searched)
    assert "At most 50 % of the MACs." in text
    share = told["compressed"]["macs"] / told["original"]["macs"]
    assert f"{100 * share:.1f} % of the MACs" in text
    assert f"{100 * told['original']['score']:.2f} % \u2192 {100 * told['compressed']['score']:.2f} %" in text


def test_the_table_holds_the_figures_of_the_record(searched: Path) -> None:
    told, cells = json.loads(read(searched, "run/record.json")), Reader(read(searched)).cells
    assert cells[:4] == ["", "original", "uniform", "delivered"]
    for column in (told["original"], told["baselines"]["uniform"], told["compressed"]):
        for key in ("macs", "params", "bytes"):
            assert f"{100 * column[key] / told['original'][key]:.1f} %\n{column[key]:,}" in cells


def test_it_says_how_it_was_made(searched: Path) -> None:
    text, details = read(searched), json.loads(read(searched, "run/details.json"))
    delivered = hashlib.sha256((searched / "digits_mlp.amc.onnx").read_bytes()).hexdigest()
    data = hashlib.sha256((searched / "digits_mlp.npz").read_bytes()).hexdigest()
    assert delivered in text
    assert data in text
    assert details["command"] in text
    assert details["command"].startswith("onnx-amc compress ")
    assert "--recover-epochs 2" in details["command"]
    for package in (onnx, ort, np):
        assert f"{package.__name__} {package.__version__}" in text


def test_every_chart_is_there_with_its_rows(searched: Path) -> None:
    charts, told = Reader(read(searched)).charts, json.loads(read(searched, "run/record.json"))
    assert set(charts) == {"plan", "sizes", "rewards", "pareto", "times", "errors", "confusion", "recovery"}
    kept = {r["name"]: r["count"] for r in charts["plan"]["data"]["values"] if r["state"] == "kept"}
    assert kept == {g["name"]: g["kept"] for g in told["groups"]}
    tried = charts["rewards"]["data"]["values"]
    assert [r["reward"] for r in tried if r["source"] == "ddpg"] == pytest.approx(told["rewards"])
    assert [r["evaluation"] for r in tried] == list(range(1, len(tried) + 1))
    assert len(charts["recovery"]["data"]["values"]) == 3
    assert charts["recovery"]["layer"][1]["encoding"]["x"]["axis"]["values"] == [0, 1, 2]
    shares = charts["confusion"]["data"]["values"]
    right = sum(r["delivered"] for r in shares if r["label"] == r["answer"]) / sum(r["delivered"] for r in shares)
    assert right == pytest.approx(told["compressed"]["score"])


def test_fixed_groups_say_why(searched: Path) -> None:
    assert any("model's output" in cell for cell in Reader(read(searched)).cells)


def test_it_is_one_small_file_that_loads_nothing(searched: Path) -> None:
    text = read(searched)
    assert len(text.encode()) < 1_500_000
    assert Reader(text).loads == []
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert "url(" not in read(MODELS.parent, "onnx_amc/report/page.css")


def test_report_draws_the_same_page_again(searched: Path) -> None:
    assert main(["report", str(searched / "run")]) == 0
    assert read(searched, "run/report.html") == read(searched)
    assert main(["report", str(searched / "run"), "-o", str(searched / "again.html")]) == 0
    assert read(searched, "again.html") == read(searched)


def test_what_is_saved_is_the_same_but_for_time(searched: Path, tmp_path: Path) -> None:
    compress(tmp_path, "--flops", 0.5, "--episodes", 4, "--recover", "--recover-epochs", 2)
    first, second = (json.loads(read(p, "run/details.json")) for p in (searched, tmp_path))
    for found in (first, second):
        for key in ("finished", "command", "layer_times"):
            del found[key]
    assert first == second


# ---- what is left out ------------------------------------------------------------------------------------------------


def test_without_data_there_is_no_search_and_no_score(blind: Path) -> None:
    found = Reader(read(blind))
    assert found.headings == ["Side by side", "The plan", "Layer by layer", "How it was made"]
    assert set(found.charts) == {"plan", "sizes", "times"}
    assert "Not measured: the run had no data." in read(blind)
    assert "None" not in found.cells
    assert found.cells[:4] == ["", "original", "uniform", "delivered"], "the same twice, as in any run of that policy"


def test_without_report_nothing_is_timed_but_the_rest_is_there(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes((MODELS / "digits_mlp.onnx").read_bytes())
    command = ["compress", str(tmp_path / "m.onnx"), "--policy", "uniform", "--no-refit", "--flops", "0.5", "--quiet"]
    assert main(command) == 0
    assert main(["report", str(tmp_path / "m.amc.run")]) == 0
    found = Reader((tmp_path / "m.amc.run" / "report.html").read_text(encoding="utf-8"))
    assert set(found.charts) == {"plan", "sizes"}
    assert "Layer by layer" not in found.headings


def test_several_budgets_give_a_page_each(tmp_path: Path) -> None:
    compress(tmp_path, "--flops", "0.75,0.5", "--policy", "knapsack", "--no-recover")
    assert not (tmp_path / "page.html").exists()
    for budget in ("0.75", "0.5"):
        text = read(tmp_path, f"page-{budget}.html")
        assert f"At most {100 * float(budget):g} % of the MACs." in text
        assert f"digits_mlp.amc-{budget}.onnx" in text
        searches = {r["search"] for r in Reader(text).charts["pareto"]["data"]["values"]}
        assert searches == {"this budget", "another budget"}
    assert main(["report", str(tmp_path / "run")]) == 0
    assert read(tmp_path, "run/0.5/report.html") == read(tmp_path, "page-0.5.html")


def test_single_weights(tmp_path: Path) -> None:
    compress(tmp_path, "--granularity", "weight", "--params", 0.4, "--policy", "uniform", "--no-recover")
    found = Reader(read(tmp_path))
    assert "At most 40 % of the parameters not zero." in read(tmp_path)
    assert {r["name"] for r in found.charts["plan"]["data"]["values"]} >= {"1.weight", "3.weight", "5.weight"}
    assert "weights not zero" in read(tmp_path)


def test_a_drop(tmp_path: Path) -> None:
    compress(tmp_path, "--max-drop", 2, "--policy", "knapsack", "--no-recover")
    text = read(tmp_path)
    assert "The smallest network by MACs that loses at most 2 points of top1." in text
    assert "On the samples that decide" in text
    cost = [r["ratio"] for r in Reader(text).charts["pareto"]["data"]["values"]]
    assert max(cost) - min(cost) > 0.2, "the plans of the whole bisection"


# ---- what cannot break out -------------------------------------------------------------------------------------------


def renamed(place: Path) -> None:
    """A copy of the MLP in which every node and weight has a hostile name."""
    model = onnx.load(MODELS / "digits_mlp.onnx")
    for i, node in enumerate(model.graph.node):
        node.name = f"{EVIL}{i}"
    (place / "digits_mlp.onnx").write_bytes(model.SerializeToString())


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    renamed(tmp_path)
    command = ["compress", tmp_path / "digits_mlp.onnx", "--flops", 0.5, "--policy", "uniform", "--no-refit", "--quiet"]
    assert main([str(c) for c in [*command, "--report", tmp_path / "page.html"]]) == 0
    text = read(tmp_path)
    assert EVIL not in text
    assert "<script>alert" not in text
    found = Reader(text)
    assert len(found.scripts) == 3
    assert any(r["name"].startswith(EVIL) for r in found.charts["plan"]["data"]["values"])
    assert any(cell.startswith(EVIL) for cell in found.cells)


# ---- errors ----------------------------------------------------------------------------------------------------------


def fails(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main([str(a) for a in argv]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert "->" in message
    return message


def test_no_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in fails(capsys, "report", tmp_path / "nothing")
    assert "holds no record.json" in fails(capsys, "report", tmp_path)
    (tmp_path / "evaluations.jsonl").write_text("{}\n")
    message = fails(capsys, "report", tmp_path)
    assert "has not finished" in message
    assert "--resume" in message


def test_a_damaged_run(blind: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("record.json", "details.json"):
        (tmp_path / name).write_text(read(blind, f"run/{name}")[:-9])
        assert f"{name} is damaged" in fails(capsys, "report", tmp_path)
        (tmp_path / name).write_text("[]")
        assert f"{name} holds a JSON list" in fails(capsys, "report", tmp_path)
        (tmp_path / name).write_text(read(blind, f"run/{name}"))
    for budgets in ("3", "[3]", '[{"budget": {}}]', '[{"budget": {"ratio": "half"}}]'):
        (tmp_path / "record.json").write_text(f'{{"budgets": {budgets}}}')
        assert "record.json is damaged" in fails(capsys, "report", tmp_path)
    (tmp_path / "record.json").write_text(read(blind, "run/record.json"))
    (tmp_path / "details.json").write_text('{"format": 99}')
    assert "format 99, not 1" in fails(capsys, "report", tmp_path)


def test_a_missing_package_is_noticed_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(page.NEEDED, "no_such_module", "vl-convert-python")
    (tmp_path / "m.onnx").write_bytes((MODELS / "digits_mlp.onnx").read_bytes())
    message = fails(capsys, "compress", tmp_path / "m.onnx", "--flops", 0.5, "--report", tmp_path / "page.html")
    assert "vl-convert-python" in message
    assert 'pip install "onnx-amc[report]"' in message
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes((MODELS / "digits_mlp.onnx").read_bytes())
    message = fails(capsys, "compress", tmp_path / "m.onnx", "--flops", 0.5, "--report", tmp_path / "no" / "page.html")
    assert "--report" in message
    assert "does not exist" in message


# ---- what is measured for it -----------------------------------------------------------------------------------------


def digits() -> tuple[Analysis, Dataset]:
    model = load(MODELS / "digits_mlp.onnx")
    shape = (None, *model.shapes["input"][1:])
    return analyse(model), sources.load(MODELS / "digits_mlp.npz", [InputSpec("input", np.dtype(np.float32), shape)])


def halves(analysis: Analysis) -> dict[str, tuple[int, ...]]:
    return {g.name: tuple(range(0, g.channels, 2)) for g in analysis.groups}


def test_the_error_of_the_last_layer_is_that_of_the_outputs() -> None:
    analysis, data = digits()
    kept, index = halves(analysis), np.arange(40)
    small = cut(analysis, kept)
    found = layer_errors(analysis, find_layers(analysis)[0], small, analysis.keeper(kept), data, index)
    feed = data.batch(index)
    z0, z = (ort.InferenceSession(m.SerializeToString()).run(None, feed)[0] for m in (analysis.model.proto, small))
    expected = np.square(z - z0).sum() / np.square(z0 - z0.mean(axis=0)).sum()
    assert list(found.values())[-1] == pytest.approx(expected, rel=1e-4)
    assert len(found) == 4
    assert next(iter(found.values())) == pytest.approx(0.0, abs=1e-9), "the first layer's inputs are whole"


def test_the_original_has_no_error() -> None:
    analysis, data = digits()
    proto = analysis.model.proto
    found = layer_errors(analysis, find_layers(analysis)[0], proto, analysis.keeper({}), data, np.arange(40))
    assert list(found.values()) == pytest.approx([0.0] * 4, abs=1e-9)


def test_layers_are_timed_in_both_networks() -> None:
    analysis, data = digits()
    found = layer_times(analysis, cut(analysis, halves(analysis)), data.batch(np.arange(1)))
    assert len(found) >= 3
    assert all(before > 0 and after > 0 for before, after in found.values())


def test_what_is_added_behind_a_layer_counts_for_it() -> None:
    """onnxruntime computes a MatMul of three axes and what is behind it by a kernel each."""
    times = {"h": (7.0, 3.0), "k": (1.0, 1.0), "r": (2.0, 1.0), "u": (5.0, 2.0), "y": (2.0, 3.0)}
    text = """
        (float[N,16,64] x) => (float[N,16,64] y) <float[64,128] w, float[128] b, float[128,64] v>
        { h = MatMul(x, w)  k = Add(h, b)  r = Relu(k)  u = MatMul(r, v)  y = Add(x, u) }
    """
    analysis = analyse(load(Row("biased", text, 0).model()))
    settings = Settings(Budget("flops", 0.5), threads=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(details, "layer_times", lambda *_a, **_k: times)
        found = details.times_json(analysis, analysis.model.original, settings)
    assert [(t["op"], t["before"], t["after"]) for t in found] == [("MatMul", 10.0, 5.0), ("MatMul", 7.0, 5.0)]
    measured = details.times_json(analysis, analysis.model.original, settings)
    assert len(measured) == len({t["name"] for t in measured}) == 2


def test_confusion_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, z = rng.integers(0, 5, 200), rng.standard_normal((200, 5))
    found = np.zeros((5, 5), dtype=int)
    for truth, answer, count in confusion([z], labels):
        found[truth, answer] = count
    np.testing.assert_array_equal(found, confusion_matrix(labels, z.argmax(axis=1)))


def test_classes_are_called_what_classes_json_says(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert class_names(tmp_path) == {0: "a", 1: "b"}
    (tmp_path / "classes.json").write_text('{"a": {"index": 7, "name": "tench"}, "b": 3}')
    assert class_names(tmp_path) == {7: "tench", 3: "b"}


# ---- small things ----------------------------------------------------------------------------------------------------


def test_it_repeats_what_was_warned_of_and_counts_all_its_time(searched: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(searched / "run", tmp_path / "run")
    record = json.loads((folder / "record.json").read_text())
    record["warnings"] = ["the original itself gets 9.8% of a class right"]
    (folder / "record.json").write_text(json.dumps(record))
    assert main(["report", str(folder), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "The original itself gets 9.8% of a class right." in page
    assert "refit of the best few" in page
