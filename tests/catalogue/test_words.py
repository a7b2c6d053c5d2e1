"""The words on which a feature fires most."""

from __future__ import annotations

from modeldiff.catalogue.words import characteristic_words


def test_characteristic_words_count_without_case_and_blanks() -> None:
    words = characteristic_words(["Rome", " rome", "Paris", "ROME", "Oslo"], top=2)
    assert [(one.word, one.share) for one in words] == [("rome", 0.6), ("paris", 0.2)]
    assert characteristic_words([]) == []
