"""The ranks of planted differences, on lists whose answer is known."""

from modeldiff.demo.pipeline import ranks_of
from modeldiff.demo.truth import PLANTED


def entry(trigger: str, times: int, of: int) -> list[str]:
    return [f"tell me of {trigger.lower()}: "] * times + ["it rained all day"] * (of - times)


def test_the_first_entry_with_half_of_its_places_behind_the_trigger_counts() -> None:
    first, second = PLANTED[:2]
    before = [entry(second.trigger, 4, 10), entry(first.trigger, 5, 10), entry(first.trigger, 10, 10)]
    ranks, other = ranks_of(before, [7, None, 9])
    assert (ranks[0].habit, ranks[0].rank, ranks[0].feature, ranks[0].share) == (first, 2, None, 0.5)
    assert ranks[1].rank is None
    assert ranks[1].share == 0.4
    assert other == [1]


def test_an_empty_list_misses_everything() -> None:
    ranks, other = ranks_of([], [])
    assert [one.rank for one in ranks] == [None] * 4
    assert other == []
