"""Audits during training: what the other model predicts leaves the exclusive partitions, what it does not comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.audits import auditor as auditor_module
from modeldiff.crosscoder.audits.rearrange import FRESH, rearrange
from modeldiff.crosscoder.training.trainer import Trainer
from tests.crosscoder.made import make_trainer
from tests.crosscoder.planted import Planted, plant, rotated_pair
from tests.crosscoder.truth import Partitions, cut, true_crosscoder

BATCH, WIDTHS = 256, (40, 44)
Batches = list[tuple[torch.Tensor, torch.Tensor]]
# The first three of 32 concepts are A's alone, the last three B's.
OWN = {"a": {0, 1, 2}, "b": {29, 30, 31}}
# Both exclusive partitions hold concepts of both models, and there is no feature for those of one model.
USURPED: Partitions = ([10, 11, 12], [*range(3, 10), *range(13, 26)], [26, 27, 28])


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(6144, concepts=32, widths=WIDTHS, offset=0, active=1.5)


def trainer_of(planted: Planted, concepts: Partitions, *, combine: Any = "sum", **values: Any) -> Trainer:
    """A trainer whose crosscoder is set by hand."""
    features, exclusive = sum(map(len, concepts)), max(len(concepts[0]), 1)
    given = {"features": features, "exclusive": exclusive / features, "k": 1, "k_start": 1, "steps": 100}
    given |= {"batch": BATCH, "audits": 4, "audit_pairs": 8 * BATCH, "outlier_factor": 0.0}
    crosscoder = true_crosscoder(planted, concepts, combine=combine)
    return make_trainer(widths=WIDTHS, crosscoder=crosscoder, **{**given, **values})


def audit(trainer: Trainer, planted: Planted, *, last: bool = False) -> dict[str, Any]:
    return auditor_module.audit(trainer, cut(trainer.crosscoder, planted, BATCH), last=last)


def raw(planted: Planted, steps: int) -> Batches:
    """Batches as harvested, over and over."""
    batches = planted.batches(BATCH)
    return [batches[step % len(batches)] for step in range(steps)]


def concepts_in(crosscoder: Crosscoder, planted: Planted) -> dict[str, set[int]]:
    """The concepts that each model's exclusive features write, by their decoders; -1: none."""
    found = {}
    for side, directions_CD in planted.concepts.items():
        offset, own = crosscoder.sees(side).start, crosscoder.slices[side.upper()]
        rows = crosscoder.decoder(side).detach()[own.start - offset : own.stop - offset]
        near = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-9) @ directions_CD.T).max(dim=1)
        found[side] = {int(i) if value > 0.9 else -1 for value, i in zip(near.values, near.indices, strict=True)}
        assert len(found[side]) == len(rows), "no concept twice"
    return found


@pytest.fixture
def rearranged(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Former numbers of the features, for every rearrangement that an audit makes."""
    made: list[torch.Tensor] = []

    def spy(crosscoder: Crosscoder, optimizer: torch.optim.Optimizer, order: Mapping[str, Sequence[int]]) -> Any:
        made.append(rearrange(crosscoder, optimizer, order))
        return made[-1]

    monkeypatch.setattr(auditor_module, "rearrange", spy)
    return made


def test_usurped_slots_go_to_what_only_one_model_has(planted: Planted) -> None:
    trainer = trainer_of(planted, USURPED)
    report = audit(trainer, planted)
    for name in ("A", "B"):
        assert (report[name]["kept"], report[name]["moved"], report[name]["planted"]) == (0, 3, 3)
        assert report[name]["unjudged"] == report[name]["gone"] == 0
    assert concepts_in(trainer.crosscoder, planted) == OWN
    assert trainer.crosscoder.n_features == 26
    for x_a, x_b in raw(planted, 30):
        trainer.update(x_a, x_b)
    report = audit(trainer, planted, last=True)
    assert [report[name]["kept"] for name in ("A", "B")] == [3, 3], "what was planted stands the next judgement"
    assert concepts_in(trainer.crosscoder, planted) == OWN


def test_with_nothing_exclusive_the_partitions_end_empty() -> None:
    pair = rotated_pair(40, rows=6144, concepts=32, active=1.5)
    trainer = trainer_of(pair, ([0, 1, 2], range(6, 32), [3, 4, 5]), audits=3)
    reports = []
    for x_a, x_b in raw(pair, 100):
        line = trainer.update(x_a, x_b)
        if line and line["audit"]:
            reports.append(line["audit"])
    assert trainer.crosscoder.sizes == {"A": 0, "shared": 32, "B": 0}
    assert [report["A"]["planted"] + report["B"]["planted"] for report in reports] == [0, 0, 0]
    assert line["fve"]["a"] > 0.8, "training goes on without exclusive features"


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_a_moved_feature_has_the_same_activations(
    combine: str, planted: Planted, rearranged: list[torch.Tensor]
) -> None:
    trainer = trainer_of(planted, ([0, 11, 12], USURPED[1], [26, 27, 31]), combine=combine)
    was, before = partitions(trainer), pre_activations(trainer, planted)
    weights = trainer.crosscoder.w_dec_a.detach()[1:3].clone()
    audit(trainer, planted)
    now, after = partitions(trainer), pre_activations(trainer, planted)
    new_of = {old: new for new, old in enumerate(rearranged[0].tolist()) if old != FRESH}
    moved = {old: now[new] for old, new in new_of.items() if now[new] != was[old]}
    assert moved == dict.fromkeys((1, 2, 23, 24), "shared")
    torch.testing.assert_close(after[:, [*new_of.values()]], before[:, [*new_of]], rtol=1e-5, atol=1e-5)
    assert torch.equal(trainer.crosscoder.w_dec_a.detach()[[new_of[1], new_of[2]]], weights)
    # Its decoder in the model that lacked it is what its activation explains there: the concept's direction.
    offset = trainer.crosscoder.sees("b").start
    rows = trainer.crosscoder.w_dec_b.detach()[[new_of[1] - offset, new_of[2] - offset]]
    assert torch.cosine_similarity(rows, planted.concepts["b"][[11, 12]]).min() > 0.95


def partitions(trainer: Trainer) -> list[str]:
    return [trainer.crosscoder.partition_of(feature) for feature in range(trainer.crosscoder.n_features)]


def pre_activations(trainer: Trainer, planted: Planted) -> torch.Tensor:
    x = trainer.crosscoder.normalise(planted.x_a, planted.x_b)
    return trainer.crosscoder.pre_activations(*x).detach()


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_a_shared_feature_of_one_model_alone_becomes_exclusive(
    combine: str, planted: Planted, rearranged: list[torch.Tensor]
) -> None:
    """Concepts 0 of A and 30 of B sit in shared slots (features 3 and 4), where there is room in the partitions."""
    trainer = trainer_of(planted, ([10, 11, 12], [0, 30, *USURPED[1]], [26, 27, 28]), combine=combine)
    before = pre_activations(trainer, planted)
    report = audit(trainer, planted, last=True)
    assert report["A"]["promoted"] == report["B"]["promoted"] == 1
    assert concepts_in(trainer.crosscoder, planted) == {"a": {0}, "b": {30}}
    new = [rearranged[0].tolist().index(old) for old in (3, 4)]
    torch.testing.assert_close(pre_activations(trainer, planted)[:, new], before[:, [3, 4]], rtol=1e-5, atol=1e-5)


def test_a_partition_takes_no_more_than_it_had_at_the_start(planted: Planted) -> None:
    trainer = trainer_of(planted, ([1], [0, 2, *USURPED[1]], [30]))
    report = audit(trainer, planted)
    assert (report["A"]["kept"], report["A"]["promoted"], report["A"]["planted"]) == (1, 0, 0)
    assert trainer.crosscoder.sizes == {"A": 1, "shared": 22, "B": 1}


def test_twins_and_what_never_fires_leave(planted: Planted) -> None:
    trainer = trainer_of(planted, ([0, 0, 1], USURPED[1], [29, 30, 31]))
    with torch.no_grad():
        trainer.crosscoder.b_enc[1] -= 0.2  # the weaker of the twins
        trainer.crosscoder.b_enc[2] = -100.0
    report = audit(trainer, planted)
    assert (report["A"]["kept"], report["A"]["gone"], report["A"]["moved"]) == (1, 2, 0)
    assert report["B"]["kept"] == 3
    assert concepts_in(trainer.crosscoder, planted)["a"] == OWN["a"], "the free slots are planted"


@pytest.mark.parametrize("missing", [True, False])
def test_a_feature_too_rare_to_judge_stays_while_nothing_better_is_known(missing: bool, planted: Planted) -> None:
    """The last feature of A fires in six pairs. Concept 2 may be missing."""
    own = [0, 1] if missing else [0, 1, 2]
    trainer = trainer_of(planted, ([*own, 10], USURPED[1], [29, 30, 31]))
    strength_N = pre_activations(trainer, planted)[:, len(own)].sort(descending=True).values
    with torch.no_grad():
        # Steeply, so that it is among the strongest there.
        trainer.crosscoder.w_enc_a[len(own)] *= 1000
        trainer.crosscoder.w_dec_a[len(own)] /= 1000
        trainer.crosscoder.b_enc[len(own)] = -1000 * strength_N[6]
    report = audit(trainer, planted)["A"]
    expected = (2, 0, 1, 1) if missing else (4, 1, 0, 0)
    assert (report["kept"], report["unjudged"], report["gone"], report["planted"]) == expected


def test_a_mixture_gives_way_to_the_concept_in_it(planted: Planted) -> None:
    """Feature 0 fires for concept 0, which is A's alone, and for concept 11, which is not, and writes both."""
    trainer = trainer_of(planted, ([0, 1, 2], USURPED[1], [29, 30, 31]))
    crosscoder = trainer.crosscoder
    with torch.no_grad():
        crosscoder.w_enc_a[0] += 1.5 * torch.linalg.pinv(planted.concepts["a"])[:, 11]
        crosscoder.w_dec_a[0] += 0.5 * planted.concepts["a"][11]
    report = audit(trainer, planted)["A"]
    assert (report["kept"], report["planted"]) == (2, 1)
    assert (report["moved"], report["gone"]) == (0, 1), "it does not stay as a shared feature besides"
    assert concepts_in(crosscoder, planted)["a"] == OWN["a"]
    row = crosscoder.w_dec_a.detach()[2]
    assert torch.cosine_similarity(row, planted.concepts["a"][0], dim=0) > 0.97, "purer than it was"


def test_until_its_first_audit_a_run_is_the_same_as_without(planted: Planted) -> None:
    trainer, plain = (trainer_of(planted, USURPED, audits=audits) for audits in (4, 0))
    first = trainer.recipe.next_audit(0)
    batches = raw(planted, first)
    for batch in batches:
        assert trainer.update(*batch) == plain.update(*batch)
    for one, same in zip(trainer.crosscoder.parameters(), plain.crosscoder.parameters(), strict=True):
        assert torch.equal(one, same)
    assert trainer.update(*batches[0])["audit"]["A"]["planted"] > 0
