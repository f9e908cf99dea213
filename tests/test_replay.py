"""A plan replayed: the bytes of the run that wrote it, whatever the run was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_amc
from onnx_amc import guarantee
from onnx_amc.delivery import Result
from onnx_amc.errors import PlanError
from onnx_amc.listener import Listener
from onnx_amc.run.session import _threads, open_session

MODELS = Path(__file__).parents[1] / "models"
MLP, RESNET = (MODELS / f"digits_{name}.onnx" for name in ("mlp", "resnet"))
WEIGHTS: dict[str, Any] = {"granularity": "weight", "params": 0.3}


class Heard(Listener):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def written(result: Result, place: Path) -> Path:
    """The run's plan, by way of a file."""
    result.plan.save(place / "plan.json", result.analysis)
    return place / "plan.json"


@pytest.mark.parametrize("criterion", ["obs", "magnitude", "wanda", "random"])
def test_which_weights_stay_is_chosen_as_it_was(criterion: str, tmp_path: Path) -> None:
    result = onnx_amc.compress(MLP, policy="uniform", criterion=criterion, recover=False, seed=3, **WEIGHTS)
    again = onnx_amc.apply(MLP, written(result, tmp_path))
    assert again.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "unusual",
    [
        {"calibration": 100}, {"sequential": False}, {"rows": 300}, {"ridge": 0.1}, {"sequence": 50}, {"judged": 100},
        {"sequential": False, "correction": 20},
    ],
    ids=lambda unusual: next(reversed(unusual)),
)  # fmt: skip
def test_what_the_refit_depends_on_is_in_the_plan(unusual: dict[str, Any], tmp_path: Path) -> None:
    result = onnx_amc.compress(RESNET, flops=0.5, policy="uniform", recover=False, **unusual)
    plan = written(result, tmp_path)
    assert json.loads(plan.read_text()).items() >= unusual.items()
    wanted = result.model.SerializeToString(deterministic=True)
    assert onnx_amc.apply(RESNET, plan).SerializeToString(deterministic=True) == wanted
    usual = {k: v for k, v in json.loads(plan.read_text()).items() if k not in unusual}
    assert onnx_amc.apply(RESNET, usual).SerializeToString(deterministic=True) != wanted, "so it must be told"


def test_a_winner_that_was_not_trained_replays_on_the_samples_it_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        guarantee.Guarantee, "_trained", lambda *_: None
    )  # as if no training had stayed within the drop
    result = onnx_amc.compress(MLP, max_drop=2.0, policy="knapsack", recover_epochs=1)
    assert result.record["recover"] is None
    again = onnx_amc.apply(MLP, written(result, tmp_path))
    assert again.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "damage",
    [
        {"criterion": "best"}, {"calibration": -1}, {"rows": 0}, {"rows": "many"}, {"sequence": 0}, {"ridge": float("nan")},
        {"memory": 1e300}, {"sequence": [3]},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_no_run_has_had(damage: dict[str, Any], tmp_path: Path) -> None:
    plan = written(onnx_amc.compress(MLP, policy="uniform", recover=False, **WEIGHTS), tmp_path)
    with pytest.raises(PlanError, match="settings are damaged"):
        onnx_amc.apply(MLP, json.loads(plan.read_text()) | damage)


@pytest.mark.parametrize(
    ("first", "changes", "said"),
    [
        ({"tensor": "1.bias", "kept": 5}, {}, "'1.bias' cannot go one by one"),
        ({}, {"pattern": [2, 7]}, "'1.weight' has 64 inputs, which are not a whole number of times 7"),
        ({}, {"pattern": [2, 4]}, "2:4 leaves 5120 elements of '1.weight', but the plan keeps 2999"),
    ],
    ids=["no weight of a layer", "a pattern that does not fit", "a number that is not the pattern's"],
)  # fmt: skip
def test_a_plan_of_single_weights_that_somebody_has_edited(
    first: dict[str, Any], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    result = onnx_amc.compress(MLP, policy="uniform", refit=False, recover=False, **WEIGHTS)
    plan = json.loads(written(result, tmp_path).read_text())
    plan["weights"][0] |= first
    with pytest.raises(PlanError, match=said):
        onnx_amc.apply(MLP, plan | changes)


def test_other_data_is_warned_of(tmp_path: Path) -> None:
    result = onnx_amc.compress(MLP, policy="uniform", recover=False, **WEIGHTS)
    plan, other = written(result, tmp_path), dict(np.load(MLP.with_suffix(".npz")))
    other["x"] = other["x"][::-1]
    with pytest.warns(UserWarning, match="was given other samples"):
        onnx_amc.apply(MLP, plan, other)
    heard = Heard()
    onnx_amc.apply(MLP, plan, other, listener=heard)
    assert any(
        "was given other samples" in text and "as many weights stay, but other ones" in text for text in heard.notes
    )


def test_a_plan_with_a_pattern_is_replayed(tmp_path: Path) -> None:
    how: dict[str, Any] = {"granularity": "weight", "params": 0.6, "pattern": (2, 4)}
    result = onnx_amc.compress(MLP, policy="uniform", refit=False, recover=False, **how)
    again = onnx_amc.apply(MLP, written(result, tmp_path))
    assert again.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)


def test_a_replay_gives_a_session_as_many_threads_as_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels sum in another order where they are shared out otherwise."""
    seen: list[int] = []

    def watched(*args: Any, **how: Any) -> Any:
        seen.append(_threads.get())
        return open_session(*args, **how)

    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("onnx_amc.run.stages.open_session", watched)
    found: list[set[int]] = []
    for workers in (1, 3):
        result = onnx_amc.compress(MLP, flops=0.5, policy="uniform", recover=False, workers=workers)
        found.append(set(seen))
        seen.clear()
    onnx_amc.apply(MLP, written(result, tmp_path))
    assert found[0] == found[1], "whatever the number of workers"
    assert len(set(seen)) == 1
    assert set(seen) <= found[0]
