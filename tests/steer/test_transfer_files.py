"""Files of directions and of prompts: what is read, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modeldiff.errors import DamagedError, InputError
from modeldiff.steer.transfer_prompts import Prompt, read_prompt_pair, read_prompts
from modeldiff.steer.transfer_vectors import read_vectors


def test_one_direction_or_several_from_either_format(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5))
    np.save(tmp_path / "one.npy", rows[0])
    np.save(tmp_path / "several.npy", rows)
    save_file({"v": torch.from_numpy(rows).to(torch.bfloat16), "w": torch.ones(5)}, tmp_path / "two.safetensors")
    save_file({"w": torch.ones(5)}, tmp_path / "single.safetensors")
    expected = torch.from_numpy(rows).float()
    torch.testing.assert_close(read_vectors(tmp_path / "one.npy", 5, "A"), expected[:1])
    torch.testing.assert_close(read_vectors(tmp_path / "several.npy", 5, "A"), expected)
    chosen = read_vectors(Path(f"{tmp_path / 'two.safetensors'}:v"), 5, "A")
    torch.testing.assert_close(chosen, expected.to(torch.bfloat16).float())
    torch.testing.assert_close(read_vectors(tmp_path / "single.safetensors", 5, "A"), torch.ones(1, 5))


def _write_bad(folder: Path) -> None:
    np.save(folder / "wide.npy", np.ones(6))
    np.save(folder / "cube.npy", np.ones((1, 1, 5)))
    np.save(folder / "none.npy", np.ones((0, 5)))
    np.save(folder / "whole.npy", np.ones(5, np.int64))
    np.save(folder / "nan.npy", np.array([1, 2, np.nan, 4, 5]))
    np.save(folder / "zero.npy", np.stack([np.ones(5), np.zeros(5)]))
    np.save(folder / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (folder / "vector.pt").write_bytes(b"x")
    save_file({"v": torch.ones(5), "w": torch.ones(5)}, folder / "two.safetensors")
    save_file({"v": torch.ones(5, dtype=torch.int32)}, folder / "whole.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.npy", "there is no file"),
        ("wide.npy", r"shape \(6,\): expected \(5,\) or \(N, 5\), the width of model B"),
        ("cube.npy", "shape"),
        ("none.npy", "shape"),
        ("whole.npy", "floating-point"),
        ("nan.npy", "not finite"),
        ("zero.npy", "no direction"),
        ("pickle.npy", "pickled objects, which are not read"),
        ("vector.pt", "expected .npy or .safetensors"),
        ("two.safetensors", "holds 2 tensors"),
        ("two.safetensors:x", "no tensor 'x'"),
        ("wide.npy:x", "leave out ':x'"),
        ("whole.safetensors", "floating-point"),
    ],
)
def test_directions_that_are_refused(tmp_path: Path, name: str, message: str) -> None:
    _write_bad(tmp_path)
    with pytest.raises(InputError, match=message):
        read_vectors(tmp_path / name, 5, "B")


@pytest.mark.parametrize("name", ["v.npy", "v.safetensors"])
def test_damaged_files_of_directions(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "v.npy", np.ones(5))
    save_file({"v": torch.ones(5)}, tmp_path / "v.safetensors")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-7])
    with pytest.raises(DamagedError, match=name):
        read_vectors(tmp_path / name, 5, "A")


def test_prompts_of_both_formats(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("One?\r\n\nTwo? \n")
    records = [{"prompt": "One?"}, {"prompt": "Two? ", "system": "Be kind.", "response": " Yes."}]
    (tmp_path / "n.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    assert read_prompts(tmp_path / "p.txt", "--x") == (Prompt("One?"), Prompt("Two? "))
    assert read_prompts(tmp_path / "n.jsonl", "--x") == (Prompt("One?"), Prompt("Two? ", "Be kind.", " Yes."))
    pair = read_prompt_pair((tmp_path / "p.txt", tmp_path / "n.jsonl"), "--x")
    assert len(pair.all) == 4
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_text("One?\nTwo? ")
    assert read_prompt_pair((elsewhere, tmp_path / "n.jsonl"), "--x").as_input().digest == pair.as_input().digest


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "Only one\n", "holds 1 prompts"),
        ("p.txt", b"caf\xe9\n\n", "UTF-8"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": }', "line 2: not valid JSON"),
        ("p.jsonl", '["a"]', "line 1: expected a JSON object"),
        ("p.jsonl", '{"prompt": 3}', "'prompt' is missing or not a text"),
        ("p.jsonl", '{"prompt": "a", "answer": "b"}', "'answer' is unknown"),
        ("p.jsonl", '{"prompt": "a", "response": ""}', "the response is empty"),
        ("p.jsonl", '{"prompt": " "}', "the prompt is empty"),
    ],
)
def test_prompts_that_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_prompts(tmp_path / name, "--from-prompts")
    assert str(caught.value).startswith("--from-prompts: ")


def test_a_contrast_of_something_with_itself(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("One?\nTwo?\n")
    with pytest.raises(InputError, match="no contrast"):
        read_prompt_pair((tmp_path / "p.txt", tmp_path / "p.txt"), "--x")
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        read_prompt_pair((tmp_path / "p.txt", tmp_path / "nowhere.txt"), "--x")
