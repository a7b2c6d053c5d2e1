"""Captured rows are the residual stream at the planned tokens, in plan order, whatever the batches."""

import numpy as np
import pytest
import torch

from modeldiff.errors import MachineError
from modeldiff.harvest.capture import Capture, capture_shard
from modeldiff.harvest.run import run
from modeldiff.lm.load import load_model
from modeldiff.lm.ref import ModelRef
from modeldiff.sides import SIDES
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore, Block


def whole(lm, plan, capture: Capture) -> torch.Tensor:
    """All rows of a shard (N, D)."""
    return torch.cat([x_ND for x_ND, _ in capture_shard(lm, plan, capture)])


def direct(lm, layer: int, ids: np.ndarray) -> torch.Tensor:
    """hidden_states[layer + 1] (T, D) of one sequence, from a whole forward pass without batching."""
    ids_BT = torch.from_numpy(ids.astype(np.int64))[None]
    with torch.no_grad():
        return lm.model(input_ids=ids_BT, output_hidden_states=True).hidden_states[layer + 1][0]


def test_every_pair_equals_a_direct_forward_pass(make_settings, workspace, models) -> None:
    store = ActivationStore(run(make_settings(layer_a=1, layer_b=0), workspace))
    layers = {"a": 1, "b": 0}
    for side in SIDES:
        lm = load_model(ModelRef(str(models[side])), torch.device("cpu"), torch.float32)
        for shard, rows in enumerate(store.info.shards):
            x_ND = store.read_side(side, Block(shard, 0, rows))
            plan = store.plan(shard)
            for i, document in enumerate(plan.documents):
                chosen = np.flatnonzero(plan.pairs.document == i)
                expected_TD = direct(lm, layers[side], document.tokens[side].ids)
                expected_ND = expected_TD[torch.from_numpy(plan.pairs.token[side][chosen].astype(np.int64))]
                torch.testing.assert_close(x_ND[chosen], expected_ND, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
def test_half_precision_keeps_negative_values(make_settings, workspace, storage: str) -> None:
    exact = ActivationStore(run(make_settings(), workspace))
    stored = ActivationStore(run(make_settings(storage=storage), workspace))
    for side in SIDES:
        block = Block(0, 0, exact.info.shards[0])
        x_ND, rounded_ND = exact.read_side(side, block), stored.read_side(side, block)
        assert (x_ND < 0).float().mean() > 0.3
        assert torch.equal(rounded_ND, x_ND.to(rounded_ND.dtype))


def test_the_default_layer_is_the_middle_one(make_settings, workspace) -> None:
    store = ActivationStore(run(make_settings(), workspace))
    assert {side: store.info.sides[side].layer for side in SIDES} == {"a": 1, "b": 1}


def test_batches_do_not_change_the_rows(make_settings, workspace, models) -> None:
    plan = ActivationStore(run(make_settings(), workspace)).plan(0)
    lm = load_model(ModelRef(str(models["b"])), torch.device("cpu"), torch.float32)
    one = whole(lm, plan, Capture("b", 1, "float32", 1, ["words"]))
    many = whole(lm, plan, Capture("b", 1, "float32", 4096, ["words"]))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part_bytes", [1, 3000], ids=["a document each", "some documents"])
def test_a_wide_shard_is_written_in_parts(
    make_settings, workspace, models, tmp_path, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    at_once = ActivationStore(run(make_settings(), workspace))
    monkeypatch.setattr("modeldiff.harvest.capture.PART_BYTES", part_bytes)
    in_parts = ActivationStore(run(make_settings(), Workspace(tmp_path / "parts")))
    for side in SIDES:
        torch.testing.assert_close(in_parts.mean[side], at_once.mean[side], rtol=1e-4, atol=1e-4)
        for block in at_once.blocks(1000):
            torch.testing.assert_close(
                in_parts.read_side(side, block), at_once.read_side(side, block), rtol=1e-4, atol=1e-4
            )
    plan = at_once.plan(0)
    lm = load_model(ModelRef(str(models["a"])), torch.device("cpu"), torch.float32)
    parts = list(capture_shard(lm, plan, Capture("a", 1, "float32", 128, ["words"])))
    assert len(parts) > 1
    documents = len(plan.documents)
    assert len(parts) == documents if part_bytes == 1 else len(parts) < documents
    assert sum(len(x_ND) for x_ND, _ in parts) == len(plan.pairs)


def poisoned(models, value: float):
    lm = load_model(ModelRef(str(models["a"])), torch.device("cpu"), torch.float32)
    with torch.no_grad():
        lm.body.wpe.weight[20:] = value
    return lm


def test_nan_is_refused_and_the_place_is_named(make_settings, workspace, models) -> None:
    plan = ActivationStore(run(make_settings(), workspace)).plan(0)
    lm = poisoned(models, float("nan"))
    with pytest.raises(
        MachineError, match=r"model A \(a\): activations of document \d+ \(source words\), token \d+"
    ) as caught:
        whole(lm, plan, Capture("a", 0, "float32", None, ["words"]))
    assert "not finite in float32: the model itself gives NaN" in str(caught.value)
    lm.model.to(torch.bfloat16)
    with pytest.raises(MachineError, match="not finite in bfloat16: use --dtype float32"):
        whole(lm, plan, Capture("a", 0, "bfloat16", None, ["words"]))


def test_values_too_large_for_the_storage_are_refused(make_settings, workspace, models) -> None:
    plan = ActivationStore(run(make_settings(), workspace)).plan(0)
    lm = poisoned(models, 1e6)
    with pytest.raises(MachineError, match="too large for float16: use --storage bfloat16 or float32"):
        whole(lm, plan, Capture("a", 0, "float16", None, ["words"]))
