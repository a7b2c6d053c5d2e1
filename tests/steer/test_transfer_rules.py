"""The rules on dictionaries whose truth is known."""

from __future__ import annotations

import pytest
import torch

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.linear.maps import LinearMap
from modeldiff.steer.transfer_rules import (
    Decoders,
    cosine,
    paper_rule,
    rescaled,
    stitch_rule,
)

DA, DB = 12, 7


def made(
    n_shared: int = 9, *, seed: int = 0, scales: tuple[float, float] = (2.0, 0.25)
) -> tuple[Crosscoder, torch.Tensor]:
    """A crosscoder whose shared B decoders are a known map M (Da, Db), raw units, of the A decoders."""
    generator = torch.Generator().manual_seed(seed)
    config = CrosscoderConfig(
        width_a=DA, width_b=DB, n_a_only=2, n_shared=n_shared, n_b_only=3, k=2, scale_a=scales[0], scale_b=scales[1]
    )
    crosscoder = Crosscoder(config)
    map_DD = torch.randn(DA, DB, generator=generator)
    with torch.no_grad():
        for weight in crosscoder.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
        raw_FD = crosscoder.w_dec_a[2:] / scales[0]
        crosscoder.w_dec_b[:n_shared] = raw_FD @ map_DD * scales[1]
    return crosscoder, map_DD


def test_from_b_the_other_way_round() -> None:
    crosscoder, map_DD = made()
    decoders = Decoders.of(crosscoder, "b")
    torch.testing.assert_close(decoders.source_FD, crosscoder.w_dec_b[:9] / 0.25)
    torch.testing.assert_close(decoders.target_FD, crosscoder.w_dec_a[2:] / 2.0)
    assert decoders.ids_F.tolist() == list(range(2, 11))
    torch.testing.assert_close(decoders.target_FD @ map_DD, decoders.source_FD)


def test_the_units_of_the_crosscoder_make_no_difference() -> None:
    """The same decoders in raw units, stored at other scales: the same vectors."""
    one, other = (made(scales=scales)[0] for scales in ((2.0, 0.25), (1.0, 1.0)))
    with torch.no_grad():
        other.w_dec_a.copy_(one.w_dec_a / 2.0)
        other.w_dec_b.copy_(one.w_dec_b / 0.25)
    v_ND = torch.randn(4, DA, generator=torch.Generator().manual_seed(5))
    moved = [paper_rule(Decoders.of(crosscoder, "a"), v_ND, 3).target_ND for crosscoder in (one, other)]
    torch.testing.assert_close(*moved)


def test_the_papers_rule_by_hand() -> None:
    source_FD = torch.tensor([[2.0, 0.0], [3.0, 3.0], [0.0, 5.0], [-1.0, 0.0]])
    target_FD = torch.tensor([[1.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 7.0], [9.0, 9.0, 9.0]])
    decoders = Decoders(source_FD, target_FD, torch.tensor([10, 11, 12, 13]))
    # Cosines with (1, 0): 1, 1/sqrt(2), 0, -1. The top two, weighted, the decoders as long as they are.
    moved = paper_rule(decoders, torch.tensor([[0.5, 0.0]]), 2)
    half = 2**-0.5
    torch.testing.assert_close(moved.target_ND, torch.tensor([[1.0, 4 * half, 0.0]]) / (1 + half))
    assert moved.features_NK is not None
    assert moved.features_NK.tolist() == [[10, 11]]
    scaled_ND = rescaled(moved.target_ND, [0.5])
    torch.testing.assert_close(scaled_ND, 0.5 * torch.tensor([[1.0, 4 * half, 0.0]]) / 9**0.5)


def test_dead_features_and_rows_without_length_are_left_out() -> None:
    crosscoder, _ = made()
    with torch.no_grad():
        crosscoder.w_dec_a[2 + 6].zero_()
    alive_F = torch.ones(14, dtype=torch.bool)
    alive_F[3] = False
    assert Decoders.of(crosscoder, "a", alive_F).ids_F.tolist() == [2, 4, 5, 6, 7, 9, 10]


def test_the_stitch_is_its_matrix() -> None:
    generator = torch.Generator().manual_seed(1)
    there_DD, back_DD = torch.randn(DA, DB, generator=generator), torch.randn(DB, DA, generator=generator)
    v_ND = torch.randn(3, DA, generator=generator)
    there = LinearMap(there_DD, torch.full((DB,), 100.0), 0.0)
    moved = stitch_rule(there, LinearMap(back_DD, torch.full((DA,), 100.0), 0.0), v_ND)
    torch.testing.assert_close(moved.target_ND[1], there_DD.T @ v_ND[1])
    torch.testing.assert_close(moved.source_ND, v_ND @ there_DD @ back_DD)


def test_rescaling_keeps_zeros_and_cosines_of_zeros_are_zero() -> None:
    x_ND = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(rescaled(x_ND, [10.0, 10.0]), torch.tensor([[6.0, 8.0], [0.0, 0.0]]))
    assert cosine(x_ND, torch.tensor([4.0, -3.0])).tolist() == [0.0, 0.0]


def test_random_directions_stay_near_nothing() -> None:
    """Moved through a dictionary whose two sides have nothing to do with each other."""
    generator = torch.Generator().manual_seed(4)
    decoders = Decoders(
        torch.randn(200, 64, generator=generator), torch.randn(200, 48, generator=generator), torch.arange(200)
    )
    own_D = torch.randn(48, generator=generator)
    v_ND = torch.randn(300, 64, generator=generator)
    found_N = cosine(paper_rule(decoders, v_ND, 10).target_ND, own_D)
    assert found_N.mean().abs() < 0.05
    assert found_N.std() == pytest.approx(48**-0.5, rel=0.3)
