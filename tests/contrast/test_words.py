"""Words of continuations: what counts as one, what is cut off, and how often either model says it."""

from __future__ import annotations

import numpy as np
import pytest

from modeldiff.contrast.discovery import any_of
from modeldiff.contrast.documents import Place
from modeldiff.contrast.words import said_words, whole_words, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The CAT, the cat.", ["the", "cat", "the", "cat"]),
        ("don't and don\u2019t", ["don't", "and", "don't"]),
        ("'quoted' dogs' rock'n'roll", ["quoted", "dogs", "rock'n'roll"]),
        ("In 1989 GPT4 had 3.14", ["in", "1989", "gpt4", "had", "3", "14"]),
        ("Straße NAÏVE ΑΒΓ", ["straße", "naïve", "αβγ"]),
        ("cafe\u0301s", ["cafe\u0301s"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        (" ,.!? \n", []),
        # Scripts without spaces give pairs of characters, to which their marks belong; other words there stay whole.
        ("東京都", ["東京", "京都"]),
        ("東京。都", ["東京", "都"]),
        ("สวัสดี", ["สวั", "วัส", "สดี"]),
        ("2024年にGPT", ["2024", "年に", "gpt"]),
    ],
)
def test_words_are_runs_of_letters_digits_and_apostrophes_in_lower_case(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("text", "begins", "left"),
    [
        ("ing the dog runs aw", False, " the dog runs "),
        (" the dog runs away.", False, " the dog runs away."),
        ("Sure, the dog runs aw", True, "Sure, the dog runs "),
        ("'t know it. I do", False, " know it. I "),
        ("on't know it. ", False, " know it. "),
        (" it. I don'", False, " it. I "),
        ("ending", False, ""),
        ("", False, ""),
        ("ing भाषा हिन्दी", False, " भाषा "),
        # Scripts without spaces are not cut.
        ("東京は今日", True, "東京は今日"),
        ("ing東京のtow", False, "東京の"),
    ],
)
def test_a_word_that_is_cut_off_at_either_end_is_left_out(text: str, begins: bool, left: str) -> None:
    assert whole_words(text, begins=begins) == left


def places(said: dict[str, list[list[str]]], drawn: list[str]) -> list[Place]:
    return [Place(0, 0, 0.1, how, {side: said[side][i] for side in "ab"}) for i, how in enumerate(drawn)]


def rates(said: dict[str, list[list[str]]], least: int = 1) -> dict[str, dict[str, list[float]]]:
    """By word and side, the share of the draws of each place."""
    found = said_words(places(said, ["given"] * len(said["a"])), least=least)
    arrays = {side: one.toarray() for side, one in found.by_side.items()}
    return {name: {side: arrays[side][:, v].tolist() for side in "ab"} for v, name in enumerate(found.names)}


def test_draws_of_a_place_are_averaged() -> None:
    said = {
        "a": [["red. ", "red red. ", "blue. ", "- "], ["- "] * 4],
        "b": [["- "] * 4, ["blue. ", "red. ", "blue. ", "blue. "]],
    }
    assert rates(said) == {
        "blue": {"a": [0.25, 0.0], "b": [0.0, 0.75]},
        "red": {"a": [0.5, 0.0], "b": [0.0, 0.25]},
    }


def test_any_of_some_words_is_asked_of_each_draw() -> None:
    said = {"a": [["red. "] * 3, ["red. ", "blue. ", "- "]], "b": [["red. ", "blue. ", "green. "], ["- "] * 3]}
    found = said_words(places(said, ["given"] * 2), least=1)
    assert any_of(found, [0, 1, 2], "a").tolist() == pytest.approx([1, 2 / 3])
    assert any_of(found, [0, 1, 2], "b").tolist() == pytest.approx([1, 0]), "every draw says one of them"


def test_a_word_counts_when_both_models_together_say_it_in_enough_continuations() -> None:
    said = {"a": [["red red red. "], ["blue. "]], "b": [["blue. "], ["green. "]]}
    assert list(rates(said, least=2)) == ["blue"]
    assert rates(said, least=99) == {}


def test_only_answers_keep_the_word_that_they_begin_with() -> None:
    found = said_words(places({"b": [["- "]] * 2, "a": [["red, "]] * 2}, ["given", "uniform"]), least=1)
    np.testing.assert_array_equal(found.by_side["a"].toarray(), [[1], [0]])
    np.testing.assert_array_equal(found.difference.toarray(), [[1], [0]])
    np.testing.assert_array_equal(found.rows(np.array([1, 0])).difference.toarray(), [[0], [1]])
