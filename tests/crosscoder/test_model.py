"""The crosscoder's partition, forward pass and derived quantities, against formulas written out by hand."""

from __future__ import annotations

import pytest
import torch

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.crosscoder.model import encode_into
from modeldiff.crosscoder.units import Measured
from modeldiff.errors import InputError
from tests.crosscoder.dense import dense_pre
from tests.crosscoder.made import DSF, random_crosscoder


def test_partitions_have_weights_only_for_the_models_they_see() -> None:
    crosscoder = random_crosscoder(width_a=4, width_b=6)
    shapes = {name: tuple(value.shape) for name, value in crosscoder.state_dict().items()}
    assert shapes == {
        "w_enc_a": (7, 4), "w_enc_b": (8, 6), "w_dec_a": (7, 4), "w_dec_b": (8, 6),
        "b_enc": (10,), "b_dec_a": (4,), "b_dec_b": (6,),
    }  # fmt: skip
    assert sum(value.numel() for value in crosscoder.parameters()) == crosscoder.config.parameters
    assert [crosscoder.partition_of(i) for i in range(10)] == ["A"] * 2 + ["shared"] * 5 + ["B"] * 3
    with pytest.raises(InputError, match="feature 10 does not exist"):
        crosscoder.partition_of(10)
    f_BF = torch.rand(4, 10)
    x = torch.randn(7, 4), torch.randn(7, 6)
    for combine in ("mean", "sum"):
        crosscoder = random_crosscoder(width_a=4, width_b=6, combine=combine)
        torch.testing.assert_close(crosscoder.pre_activations(*x), dense_pre(crosscoder, *x))
    more_of_a = f_BF + torch.tensor([1.0, 1, *[0] * 8])
    assert torch.equal(crosscoder.decode(f_BF)[1], crosscoder.decode(more_of_a)[1])


@pytest.mark.parametrize("partition", [(3, 2900, 70), (0, 1537, 0)])
def test_many_shared_features_are_summed_part_by_part(partition: tuple[int, int, int]) -> None:
    """Thousands of them come in several parts, of which the last one is smaller."""
    n_a, n_shared, n_b = partition
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (4, 5), (n_a + n_shared, 3), (n_shared + n_b, 5)]
    x_a, x_b, w_a, w_b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    out = torch.full((4, sum(partition)), torch.nan, dtype=torch.float64)
    assert encode_into(out, x_a, x_b, w_a, w_b, share=1.0) is out
    nothing_a, nothing_b = x_a.new_zeros(n_b, 3), x_a.new_zeros(n_a, 5)
    torch.testing.assert_close(out, x_a @ torch.cat([w_a, nothing_a]).T + x_b @ torch.cat([nothing_b, w_b]).T)


def test_raw_units_are_normalised_units_divided_by_the_scale() -> None:
    crosscoder = random_crosscoder(scale_a=0.5, scale_b=20.0)
    x_a, x_b = torch.randn(5, crosscoder.config.width_a), torch.randn(5, crosscoder.config.width_b)
    f_BF = crosscoder.encode((x_a / 0.5).bfloat16(), (x_b / 20).bfloat16())
    rounded_a, rounded_b = (x_a / 0.5).bfloat16().float() * 0.5, (x_b / 20).bfloat16().float() * 20
    torch.testing.assert_close(f_BF, crosscoder.encode(rounded_a, rounded_b, raw=False))
    raw, normalised = crosscoder.decode(f_BF), crosscoder.decode(f_BF, raw=False)
    torch.testing.assert_close(raw[0], normalised[0] / 0.5)
    torch.testing.assert_close(raw[1], normalised[1] / 20)
    torch.testing.assert_close(crosscoder.direction(3, "b"), crosscoder.w_dec_b[1] / 20)


def test_norms_and_relative_norm() -> None:
    crosscoder = random_crosscoder(n_a_only=1, n_shared=2, n_b_only=1)
    with torch.no_grad():
        crosscoder.w_dec_a.copy_(torch.eye(3, crosscoder.config.width_a) * torch.tensor([[2.0], [3.0], [0.0]]))
        crosscoder.w_dec_b.copy_(torch.eye(3, crosscoder.config.width_b) * torch.tensor([[1.0], [0.0], [5.0]]))
    norms = crosscoder.decoder_norms()
    assert norms["a"].tolist() == [2, 3, 0, 0]
    assert norms["b"].tolist() == [0, 1, 0, 5]
    assert crosscoder.relative_norm().tolist() == [1, 0.75, 0.5, 0]


def test_initial_decoder_norm_and_centred_start() -> None:
    config = CrosscoderConfig(width_a=5, width_b=9, n_a_only=4, n_shared=8, n_b_only=4, k=4, scale_a=2.0, scale_b=0.25)
    mean_a, mean_b = torch.randn(5, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    measured = {"a": Measured(mean_a, 1.0), "b": Measured(mean_b, 1.0)}
    crosscoder = Crosscoder.initialised(config, measured, seed=3)
    for side in ("a", "b"):
        norm = crosscoder.decoder_norms()[side][crosscoder.sees(side)]
        torch.testing.assert_close(norm, torch.full_like(norm, 0.4))
    assert torch.equal(crosscoder.w_enc_a, crosscoder.w_dec_a)
    pre_BF = crosscoder.pre_activations(*crosscoder.normalise(mean_a[None], mean_b[None]))
    torch.testing.assert_close(pre_BF, torch.zeros_like(pre_BF), atol=1e-6, rtol=0)
    nothing = torch.zeros(1, 16)
    torch.testing.assert_close(crosscoder.decode(nothing)[0][0], mean_a.float())
    again = Crosscoder.initialised(config, measured, seed=3)
    other = Crosscoder.initialised(config, measured, seed=4)
    assert torch.equal(again.w_dec_b, crosscoder.w_dec_b)
    assert not torch.equal(other.w_dec_b, crosscoder.w_dec_b)


def test_scores() -> None:
    crosscoder = random_crosscoder()
    a_F, b_F = crosscoder.decoder_norms().values()
    expected = {
        "l2": (a_F**2 + b_F**2).sqrt(),
        "sum": a_F + b_F,
        "mean": torch.cat([a_F[:2], (a_F[2:7] + b_F[2:7]) / 2, b_F[7:]]),
    }
    for selection, weights in expected.items():
        found = random_crosscoder(selection=selection).score_weights()
        assert found is not None
        torch.testing.assert_close(found, weights)
    assert crosscoder.score_weights() is None


@pytest.mark.parametrize("selection", ["activation", "sum"])
def test_inference_keeps_activations_whose_score_exceeds_the_threshold(selection: str) -> None:
    crosscoder = random_crosscoder(selection=selection, threshold=0.7)
    x_a, x_b = torch.randn(50, 6), torch.randn(50, 9)
    pre_BF = crosscoder.pre_activations(x_a, x_b)
    score_BF = pre_BF * (crosscoder.score_weights() if selection == "sum" else 1.0)
    expected = torch.where(score_BF > 0.7, pre_BF, 0.0)
    assert torch.equal(crosscoder.encode(x_a, x_b, raw=False), expected)
    assert 0 < (expected > 0).float().mean() < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 99}, "k must be at most the number of features"),
        ({"n_shared": -1}, "'n_shared'"),
        ({"selection": "norm"}, "'selection'"),
        ({"scale_b": 0.0}, "'scale_b'"),
        ({"threshold": float("nan")}, "'threshold'"),
        (DSF | {"tie": "names"}, "'tie' expects none, vectors or norms, found 'names'"),
        (DSF | {"tie": "none"}, "'tie' and 'n_designated' need each other"),
        (DSF | {"n_designated": 11}, "'n_designated' must be at most 'n_shared', without exclusive features, found 11"),
        (DSF | {"tie": "vectors"}, "only models of equal width .* found widths 3 and 4; tie their norms instead"),
        (DSF | {"designated_k": 2.6}, r"at most the number of features \(10\), .* found 2.6 times 4"),
    ],
)
def test_config_refuses_senseless_values(change: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"width_a": 3, "width_b": 4, "n_a_only": 2, "n_shared": 4, "n_b_only": 2, "k": 2}
    with pytest.raises(InputError, match=message):
        CrosscoderConfig(**{**values, **change})  # type: ignore[arg-type]
