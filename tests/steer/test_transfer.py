"""Transfer end to end on tiny models: what is written, and what each number is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modeldiff.lm.harvested as harvested_module
from modeldiff.linear.stitch import load_stitch
from modeldiff.lm.generate import generate, generate_tokens
from modeldiff.lm.load import ModelRef, load_model
from modeldiff.lm.residual import add_to_residual, residual_after
from modeldiff.steer.transfer import run
from modeldiff.steer.transfer_contrast import Contrast, resampled
from modeldiff.steer.transfer_rules import RULES, Decoders, cosine, paper_rule
from tests.steer.made_transfer import LAYERS, NEGATIVE, POSITIVE, Made, info_of, make, settings_of, vectors_of


def model(folders: dict[str, Path], side: str) -> Any:
    return load_model(ModelRef(str(folders[side])), torch.device("cpu"), torch.float32)


def contrast_by_hand(lm: Any, layer: int, prompts: tuple[str, ...]) -> torch.Tensor:
    """Mean over prompts of the mean residual over the response's tokens, one sequence at a time."""
    means = []
    for one in generate_tokens(lm, list(prompts), max_new_tokens=6):
        ids = [token for token in one.new_ids if token != 1]  # the end of a text is no part of the response
        ids_BT = torch.tensor([one.prompt_ids + ids])
        means.append(residual_after(lm, layer, ids_BT, torch.ones_like(ids_BT))[0, len(one.prompt_ids) :].mean(dim=0))
    return torch.stack(means).mean(dim=0)


def test_a_contrast_is_made_moved_and_compared(made: Made, folders: dict[str, Path]) -> None:
    artifact = run(settings_of(from_prompts=made.prompts), made.workspace)
    found, info = vectors_of(artifact), info_of(artifact)
    hand = {
        side: contrast_by_hand(lm, LAYERS[side], POSITIVE) - contrast_by_hand(lm, LAYERS[side], NEGATIVE)
        for side, lm in ((side, model(folders, side)) for side in ("a", "b"))
    }
    torch.testing.assert_close(found["source"][0], hand["a"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["own"][0], hand["b"], atol=1e-5, rtol=1e-4)
    # The stitch's matrix, and the paper's rule on decoders in raw units; both rescaled in median norms.
    median = info["median_norms"]
    norm = float(hand["a"].norm()) * median["b"] / median["a"]
    stitch = load_stitch(made.workspace.find("stitch")).a_to_b
    expected = {"stitch": hand["a"] @ stitch.w_DD}
    decoders = Decoders.of(made.crosscoder, "a")
    expected["paper"] = paper_rule(decoders, hand["a"][None], 4).target_ND[0]
    for rule, expected_D in expected.items():
        wanted_D = expected_D * norm / expected_D.norm()
        torch.testing.assert_close(found[rule][0], wanted_D, atol=1e-4, rtol=1e-3)
        assert info["truth"]["rules"][rule]["cosine"] == pytest.approx(float(cosine(expected_D, hand["b"])), abs=1e-4)
        assert info["moved"][rule][0]["norm_in_medians"] == pytest.approx(info["source_norms"][0]["norm_in_medians"])
    assert set(info["truth"]["rules"]) == set(RULES)
    assert 0 < info["truth"]["rules"]["stitch"]["random"] < 1
    assert info["prompts"] == {side: {"positive": 3, "negative": 3, "silent": 0} for side in ("a", "b")}
    answers = [json.loads(line) for line in artifact.file("answers.jsonl").read_bytes().splitlines()]
    assert [one["prompt"] for one in answers] == [*POSITIVE, *NEGATIVE] * 2


def test_directions_of_a_file_need_no_model(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harvested_module, "load_model", lambda *_: pytest.fail("a model was loaded"))
    v_ND = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    np.save(tmp_path / "v.npy", v_ND)
    artifact = run(settings_of(vector=tmp_path / "v.npy"), made.workspace)
    found, info = vectors_of(artifact), info_of(artifact)
    np.testing.assert_array_equal(found["source"].numpy(), v_ND)
    ratio = info["median_norms"]["b"] / info["median_norms"]["a"]
    for rule in RULES:
        assert found[rule].shape == (3, 16)
        np.testing.assert_allclose(found[rule].norm(dim=1), np.linalg.norm(v_ND, axis=1) * ratio, rtol=1e-4)
    assert info["truth"] is None
    # The same array elsewhere is the same input.
    np.save(tmp_path / "w.npy", v_ND)
    assert run(settings_of(vector=tmp_path / "w.npy"), made.workspace).ref == artifact.ref


def test_from_b_to_a_a_feature_and_its_continuations(made: Made, folders: dict[str, Path]) -> None:
    prompts = ("The quick", "It is a truth")
    wanted = settings_of(source="B", target="A", vector_from_feature=4, prompt=prompts, strength=(2.0,))
    artifact = run(wanted, made.workspace)
    found = vectors_of(artifact)
    row_D = made.crosscoder.w_dec_b[4 - 2].detach() / 0.5
    torch.testing.assert_close(cosine(found["source"][0], row_D), torch.tensor(1.0, dtype=torch.float64))
    records = [json.loads(line) for line in artifact.file("generations.jsonl").read_bytes().splitlines()]
    assert [(one["rule"], one["strength"]) for one in records[::2]] == [("unsteered", 0.0), *((r, 2.0) for r in RULES)]
    lm = model(folders, "a")
    assert [one["text"] for one in records[:2]] == generate(lm, list(prompts), max_new_tokens=6)
    with add_to_residual(lm, LAYERS["a"], 2 * found["stitch"][0]):
        steered = generate(lm, list(prompts), max_new_tokens=6)
    assert [one["text"] for one in records if one["rule"] == "stitch"] == steered


def test_responses_of_a_file_and_a_chat_format(tmp_path: Path, folders: dict[str, Path]) -> None:
    made = make(tmp_path, (str(folders["a"]), str(folders["chat"])))
    for name, answer in (("positive", " Yes, sir."), ("negative", " No.")):
        lines = [{"prompt": p, "system": "Be brief.", "response": answer} for p in POSITIVE[:2]]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = (tmp_path / "positive.jsonl", tmp_path / "negative.jsonl")
    found = vectors_of(run(settings_of(from_prompts=files), made.workspace))
    for side, template in (
        ("a", "Be brief.\n\n{}"),
        ("chat", "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"),
    ):
        lm = model(folders, side)
        means = {}
        for answer in (" Yes, sir.", " No."):
            means[answer] = []
            for prompt in POSITIVE[:2]:
                opening = lm.tokenizer(template.format(prompt), add_special_tokens=side == "a")["input_ids"]
                ids_BT = torch.tensor([opening + lm.tokenizer(answer, add_special_tokens=False)["input_ids"]])
                x_TD = residual_after(lm, LAYERS[side[:1].replace("c", "b")], ids_BT, torch.ones_like(ids_BT))[0]
                means[answer].append(x_TD[len(opening) :].mean(dim=0))
        hand_D = torch.stack(means[" Yes, sir."]).mean(dim=0) - torch.stack(means[" No."]).mean(dim=0)
        key = "source" if side == "a" else "own"
        torch.testing.assert_close(found[key][0], hand_D, atol=1e-5, rtol=1e-4)


def test_contrasts_are_resampled_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    rows_ND = torch.randn(20, 6, generator=generator)
    shift_D = torch.tensor([100.0, 0, 0, 0, 0, 0])
    said: Any = [object()] * 40
    one = Contrast(rows_ND + shift_D, rows_ND, said, [""] * 40, 20)
    other = Contrast(2 * (rows_ND + shift_D), 2 * rows_ND, said, [""] * 40, 20)
    first_RD, second_RD = resampled([one, other], 50, seed=3)
    torch.testing.assert_close(2 * first_RD, second_RD)
    torch.testing.assert_close(first_RD.mean(dim=0), one.vector_D, atol=0.3, rtol=0)
    assert first_RD[:, 1].std() == pytest.approx((2 / 20) ** 0.5, rel=0.5)
    # Prompts that one of the models says nothing to count for nothing.
    silent = Contrast(rows_ND[1:] + shift_D, rows_ND, [None, *said[1:]], [""] * 40, 20)
    assert silent.silent == 1
    torch.testing.assert_close(resampled([silent], 400, 3)[0].mean(dim=0), silent.vector_D, atol=0.2, rtol=0)
