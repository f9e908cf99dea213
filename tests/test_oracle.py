"""Masked equals cut, over the table of toy networks; and proofs that the oracle can fail."""

from __future__ import annotations

import numpy as np
import pytest
from nets import Row, rows
from oracle import delivered, difference, gap, masked

from onnx_amc.graph import cost
from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import load
from onnx_amc.graph.rules import RULES
from onnx_amc.prune.plan import Plan

TABLE = rows()
UNTESTED = {
    "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",  # no trained network computes its channels with them
    "RMSNormalization", "SimplifiedLayerNormalization", "Swish",  # not in onnxruntime's CPU kernels at a released opset
}  # fmt: skip


def drawn(analysis: Analysis, share: float, seed: int) -> dict[str, tuple[int, ...]]:
    """A random plan that keeps about this share of each group, at least one channel."""
    rng = np.random.default_rng(seed)
    return {
        g.name: tuple(sorted(rng.choice(g.channels, max(1, round(share * g.channels)), replace=False).tolist()))
        for g in analysis.groups
    }


@pytest.mark.parametrize("row", TABLE, ids=lambda r: r.name)
def test_masked_equals_cut(row: Row) -> None:
    analysis = analyse(load(row.model()))
    assert sum(g.channels for g in analysis.groups) == row.prunable
    assert not row.reason or any(row.reason in str(g.reason) for g in analysis.fixed)
    for share, seed in ((0.5, 0), (0.7, 1), (0.0, 2)):
        kept = drawn(analysis, share, seed)
        assert difference(analysis, kept, seed) <= row.tolerance
        counts = cost.counts_of(analysis, kept)
        again = analyse(load(delivered(analysis, kept)))
        full = np.array([g.channels for g in again.groups], dtype=np.int64)
        assert cost.macs(again)(full) == cost.macs(analysis)(counts)


def test_names_of_rows_and_groups_are_unique() -> None:
    assert len({r.name for r in TABLE}) == len(TABLE)
    for row in TABLE:
        names = [g.name for g in analyse(load(row.model())).groups]
        assert len(set(names)) == len(names)


def test_every_rule_has_a_row() -> None:
    used = {node.op_type for row in TABLE for node in row.model().graph.node}
    assert set(RULES) - used - UNTESTED == set()
    assert set(RULES) - used >= UNTESTED


def pick(name: str) -> Analysis:
    return analyse(load(next(r for r in TABLE if r.name == name).model()))


def test_the_oracle_sees_a_wrong_mask() -> None:
    analysis = pick("residual stream")
    plan = Plan(drawn(analysis, 0.5, 0))
    document = plan.to_json(analysis)
    entry = next(s for g in document["groups"] for s in g["slices"] if s["mask"])
    entry["removed"] = entry["removed"][:-1]
    assert gap(masked(analysis.model.original, document), delivered(analysis, plan.kept)) > 1e-3


def test_the_oracle_sees_another_cut() -> None:
    analysis = pick("Concat")
    plan, other = (Plan(drawn(analysis, 0.5, seed)) for seed in (0, 1))
    document = plan.to_json(analysis)
    assert gap(masked(analysis.model.original, document), delivered(analysis, other.kept)) > 1e-3


def test_the_oracle_sees_a_channel_that_is_read_elsewhere() -> None:
    """The fixed channels of LRN, cut all the same: what a wrong rule would do."""
    analysis = pick("LRN fixes")
    assert not analysis.groups
    row = next(r for r in TABLE if r.name == "LRN fixes")
    model, cut = row.model(), row.model()
    for proto, zero in ((model, True), (cut, False)):
        from onnx import numpy_helper

        for tensor in proto.graph.initializer:
            array = numpy_helper.to_array(tensor).copy()
            if tensor.name == "v":
                array = np.where(np.arange(8)[:, None, None] < 4, array, 0) if zero else array[:, :4]
            elif tensor.name in {"w", "b"} and not zero:
                array = array[:4]
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    assert gap(model, cut) > 1e-4
