"""Answers on disk: whole or absent, whatever happens to the end of the file, from several threads at once."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeldiff.errors import MachineError
from modeldiff.judge.base import Answer, Prompt
from modeldiff.judge.cache import ANSWERS_NAME, AnswerCache

PROMPT = Prompt("feature 1", "similarity", "system", "user")


def filled(folder: Path, count: int) -> AnswerCache:
    cache = AnswerCache(folder)
    for n in range(count):
        cache.add(f"key{n}", PROMPT, Answer(f"text {n}"))
    return cache


def kept(folder: Path) -> dict[str, str | None]:
    return {key: answer.text for key, answer in AnswerCache(folder)._answers.items()}


def test_what_was_added_is_read_again(tmp_path: Path) -> None:
    cache = filled(tmp_path / "new" / "folder", 2)
    cache.add("none", PROMPT, Answer(None, "the answer is empty"))
    again = AnswerCache(tmp_path / "new" / "folder")
    assert again.get("key1") == Answer("text 1")
    assert again.get("none") == Answer(None, "the answer is empty")
    assert again.get("other") is None


@settings(max_examples=25)
@given(text=st.text(st.characters(exclude_categories=())), reason=st.none() | st.text())
def test_any_text_survives(tmp_path: Path, text: str, reason: str | None) -> None:
    AnswerCache(tmp_path).add("key", PROMPT, Answer(text, reason))
    assert AnswerCache(tmp_path).get("key") == Answer(text, reason)


def test_a_line_torn_anywhere_loses_that_answer_alone(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    path = tmp_path / ANSWERS_NAME
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(last, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert kept(tmp_path) == {"key0": "text 0", "key1": "text 1"}
        AnswerCache(tmp_path).add("key9", PROMPT, Answer("after the crash"))
        assert kept(tmp_path) == {"key0": "text 0", "key1": "text 1", "key9": "after the crash"}
    path.write_bytes(whole[:-1])  # only the line feed is missing
    AnswerCache(tmp_path).add("key9", PROMPT, Answer("after the crash"))
    assert len(kept(tmp_path)) == 4


@pytest.mark.parametrize("line", [b"nonsense", b"[1]", b"{}", b'{"key": 1, "text": "t", "reason": null, "check": ""}'])
def test_damaged_lines_are_said_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes) -> None:
    filled(tmp_path, 2)
    path = tmp_path / ANSWERS_NAME
    one, two = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([one, line, two.replace(b"text 1", b"text 7"), b""]))
    assert kept(tmp_path) == {"key0": "text 0"}
    assert "2 lines are cut short or altered" in capsys.readouterr().err


def test_several_writers_do_not_mix_their_lines(tmp_path: Path) -> None:
    caches = [AnswerCache(tmp_path) for _ in range(2)]  # as two processes have them

    def write(number: int) -> None:
        for n in range(10):
            caches[number % 2].add(f"{number}/{n}", PROMPT, Answer("x" * 500))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept(tmp_path)) == 40
    assert all(json.loads(line) for line in (tmp_path / ANSWERS_NAME).read_bytes().splitlines())


def test_a_place_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "place")
    (tmp_path / "place").write_text("a file where the folder should be")
    with pytest.raises(MachineError, match="an answer cannot be kept"):
        cache.add("key", PROMPT, Answer("text"))
    (tmp_path / "folder" / ANSWERS_NAME).mkdir(parents=True)
    with pytest.raises(MachineError, match="the kept answers cannot be read"):
        AnswerCache(tmp_path / "folder")
