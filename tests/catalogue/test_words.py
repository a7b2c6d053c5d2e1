"""Documents' text on one line, with nothing left in it that could act on a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from modeldiff.catalogue.words import characteristic_words, visible


def test_control_characters_become_signs_and_joined_emoji_and_marks_stay() -> None:
    assert visible("a\r\nb\tc\n\x1b[31m") == "a⏎b⇥c⏎␛[31m"
    assert visible("abc\u202etxt.exe x\ud800y") == "abc�txt.exe x�y"
    text = "👩\u200d🔬 e\u0301 東京 [red]not markup[/red]"
    assert visible(text) == text


@given(st.text(st.characters()))
def test_nothing_that_acts_remains(text: str) -> None:
    shown = visible(text)
    assert not any(unicodedata.category(char) in ("Cc", "Cs") for char in shown)
    shown.encode()


def test_characteristic_words_count_without_case_and_blanks() -> None:
    words = characteristic_words(["Rome", " rome", "Paris", "ROME", "Oslo"], top=2)
    assert [(one.word, one.share) for one in words] == [("rome", 0.6), ("paris", 0.2)]
    assert characteristic_words([]) == []
