"""What the predictability pass will cost, on sizes whose blocks and sums can be counted by hand."""

from __future__ import annotations

from modeldiff.features.cost import BLOCK_BYTES, Cost

LARGE = Cost(
    pairs=200_000,
    targets={"features": 131_072, "read from one model": 640, "in permuted pairs": 131_712},
    entries=200_000 * 256,
    widths=(4096, 2880),
)


def test_a_large_dictionary_goes_through_in_blocks_of_bounded_memory() -> None:
    assert LARGE.all_targets == 263_424
    # Six arrays of (block, 4096) numbers of 8 bytes fit, one target more would not.
    assert 6 * 8 * 4096 * LARGE.block <= BLOCK_BYTES < 6 * 8 * 4096 * (LARGE.block + 1)
    assert LARGE.passes == 25
    assert LARGE.block * (LARGE.passes - 1) < LARGE.all_targets <= LARGE.block * LARGE.passes
    # All sums at once would take 29 GB; a dense array of the activations 421 GB.
    assert LARGE.sums_bytes == sum(2 * 8 * (d**2 + LARGE.block * d) for d in (4096, 2880)) < 2e9
    assert LARGE.memory_bytes < 10e9


def test_more_features_take_more_passes_and_no_more_sums() -> None:
    twice = Cost(LARGE.pairs, {"features": 2 * LARGE.all_targets}, LARGE.entries, LARGE.widths)
    assert twice.block == LARGE.block
    assert twice.passes == 49
    assert twice.memory_bytes == LARGE.memory_bytes


def test_a_small_one_is_one_pass() -> None:
    cost = Cost(1000, {"features": 10, "random directions": 0}, 5000, (8, 4))
    assert (cost.block, cost.passes) == (10, 1)
    # Moments 2 N D² + 2 E D, the factor D³ / 3, weights and residuals 4 D² G: for both widths.
    by_width = [2 * 1000 * d**2 + 2 * 5000 * d + d**3 / 3 + 4 * d**2 * 10 for d in (8, 4)]
    assert cost.operations == sum(by_width)
    first, second, third = cost.lines()
    assert first == "predictability: 1,000 pairs, widths 8 and 4; 10 features"
    assert "1 pass over them for each model (up to 10 targets at once), 2.8e+05 floating-point operations" in second
    # 2 parts of 8 (D² + D G) bytes, for both widths.
    assert "3.2 kB of sums in float64" in third


def test_nothing_to_explain_is_no_pass() -> None:
    cost = Cost(0, {"features": 0}, 0, (8, 4))
    assert cost.passes == 0
