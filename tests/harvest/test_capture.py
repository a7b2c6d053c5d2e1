"""Captured rows are the residual stream at the planned tokens, in plan order, whatever the batches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from modeldiff.errors import MachineError
from modeldiff.harvest.capture import Capture, captured
from modeldiff.harvest.run import run
from modeldiff.lm.load import load_model
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.ref import ModelRef
from modeldiff.sides import SIDES
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore, Block


@pytest.fixture(scope="module")
def store(make_settings, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return ActivationStore(run(make_settings(), Workspace(tmp_path_factory.mktemp("ws") / "ws")))


def loaded(models: dict[str, Path], side: str) -> LanguageModel:
    return load_model(ModelRef(str(models[side])), torch.device("cpu"), torch.float32)


def whole(lm: LanguageModel, plan, capture: Capture) -> torch.Tensor:
    """All rows of a shard (N, D)."""
    return torch.cat([rows.x_ND for rows, _ in captured(lm, capture, [plan])])


def test_every_pair_equals_a_direct_forward_pass(make_settings, workspace, models) -> None:
    layers = {"a": 1, "b": 0}
    store = ActivationStore(run(make_settings(layer_a=layers["a"], layer_b=layers["b"]), workspace))
    for side in SIDES:
        lm, layer = loaded(models, side), layers[side]
        for shard, rows in enumerate(store.info.shards):
            x_ND = store.read_side(side, Block(shard, 0, rows))
            plan = store.plan(shard)
            for i, document in enumerate(plan.documents):
                chosen = np.flatnonzero(plan.pairs.document == i)
                ids_BT = torch.from_numpy(document.tokens[side].ids.astype(np.int64))[None]
                with torch.no_grad():
                    state_TD = lm.model(input_ids=ids_BT, output_hidden_states=True).hidden_states[layer + 1][0]
                expected_ND = state_TD[torch.from_numpy(plan.pairs.token[side][chosen].astype(np.int64))]
                torch.testing.assert_close(x_ND[chosen], expected_ND, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
def test_half_precision_keeps_negative_values(make_settings, workspace, store: ActivationStore, storage: str) -> None:
    stored = ActivationStore(run(make_settings(storage=storage), workspace))
    for side in SIDES:
        block = Block(0, 0, store.info.shards[0])
        x_ND, rounded_ND = store.read_side(side, block), stored.read_side(side, block)
        assert (x_ND < 0).float().mean() > 0.3
        assert torch.equal(rounded_ND, x_ND.to(rounded_ND.dtype))


def test_batches_do_not_change_the_rows(models, store: ActivationStore) -> None:
    plan, lm = store.plan(0), loaded(models, "b")
    assert {side: store.info.sides[side].layer for side in SIDES} == {"a": 1, "b": 1}  # by default, the middle ones
    one = whole(lm, plan, Capture("b", 1, "float32", 1, ["words"]))
    many = whole(lm, plan, Capture("b", 1, "float32", 4096, ["words"]))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part_bytes", [1, 3000], ids=["a document each", "some documents"])
def test_a_wide_shard_is_written_in_parts(
    make_settings, workspace, models, store: ActivationStore, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr("modeldiff.harvest.capture.PART_BYTES", part_bytes)
    in_parts = ActivationStore(run(make_settings(), workspace))
    for side in SIDES:
        torch.testing.assert_close(in_parts.mean[side], store.mean[side], rtol=1e-4, atol=1e-4)
        for block in store.blocks(1000):
            rows_ND = in_parts.read_side(side, block)
            torch.testing.assert_close(rows_ND, store.read_side(side, block), rtol=1e-4, atol=1e-4)
    plan = store.plan(0)
    parts = list(captured(loaded(models, "a"), Capture("a", 1, "float32", 128, ["words"]), [plan]))
    documents = len(plan.documents)
    assert len(parts) == documents if part_bytes == 1 else 1 < len(parts) < documents
    assert sum(len(rows.x_ND) for rows, _ in parts) == len(plan.pairs)


def test_what_is_not_finite_is_refused_and_the_place_is_named(models, store: ActivationStore) -> None:
    plan, lm = store.plan(0), loaded(models, "a")
    place = r"model A \(a\): activations of document \d+ \(source words\), token \d+ "
    cases = [
        (1e6, torch.float32, "float16", "are too large for float16: use --storage bfloat16 or float32"),
        (float("nan"), torch.float32, "float32", "are not finite in float32: check its weights"),
        (float("nan"), torch.bfloat16, "bfloat16", "are not finite in bfloat16: use --dtype float32"),
    ]
    for value, dtype, storage, message in cases:
        lm.model.to(dtype)
        with torch.no_grad():
            lm.body.wpe.weight[20:] = value
        with pytest.raises(MachineError, match=place + message):
            whole(lm, plan, Capture("a", 0, storage, None, ["words"]))
