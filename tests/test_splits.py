from __future__ import annotations

from modeldiff.splits import evenly_spread


def test_the_middle_of_each_share_is_taken_and_everything_where_that_is_asked_for():
    assert evenly_spread(100, 4) == [12, 37, 62, 87]
    assert evenly_spread(5, 2) == [1, 3]
    assert evenly_spread(3, 3) == evenly_spread(3, 7) == [0, 1, 2]
