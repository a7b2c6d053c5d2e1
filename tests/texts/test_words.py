"""Where words, numbers and punctuation marks end."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.texts.words import word_ends


def marked(text: str) -> str:
    """The text with a bar at every word end."""
    ends = word_ends(text)
    return "".join(char + "|" * bool(ends[i + 1]) for i, char in enumerate(text))


@pytest.mark.parametrize(
    "expected",
    [
        "the| quick| fox|.|",
        "don't| stop|",
        "l’homme|",
        "'|quoted|'| text|",
        "it|'| s|",
        "pi| is| 3.14|,| or| 3|.|",
        "1,000|,| 2|,| x|",
        "GPT4| and| 3rd| snake_case|",
        "well|-|known|",
        "wait|.|.|.|",
        "x|=|1|;|",
        "a|\r\nb|\r\n",
        "cafe\u0301|!|",
        "東|京|都| is| 日|本|",
        "か|な|カ|ナ|",
        "ไ|ท|ย|",
        "กำ|",
        "ผี|",
        "안녕| 세상|",
        "नमस्ते| दुनिया|",
        "مرحبا| بالعالم|",
        "می\u200cخواهم|",
        "👨\u200d👩\u200d👧| ok|",
        "👍🏽|👍|",
        "❤\ufe0f|",
        "🇩🇪|",
        "a|東|b|",
        "A|\u200bB|",
        "",
        " ",
    ],
)
def test_word_ends(expected: str) -> None:
    assert marked(expected.replace("|", "")) == expected


@given(st.text())
def test_no_word_ends_in_white_space_or_before_a_mark(text: str) -> None:
    ends = word_ends(text)
    assert len(ends) == len(text) + 1
    assert not ends[0]
    for position in range(1, len(text) + 1):
        if ends[position]:
            assert not text[position - 1].isspace()
            assert position == len(text) or unicodedata.category(text[position])[0] != "M"


@given(st.text(alphabet=st.characters(categories=["Lu", "Ll", "Nd"], max_codepoint=0x24F), min_size=1))
def test_letters_and_digits_end_once(text: str) -> None:
    assert word_ends(text + " ").nonzero()[0].tolist() == [len(text)]
