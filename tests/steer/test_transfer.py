"""Transfer of directions: end to end on tiny models, the files it reads, the paper's rule on known decoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import modeldiff.lm.harvested as harvested_module
from modeldiff.cli.main import cli
from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.errors import DamagedError, InputError
from modeldiff.features.measures.stitch import StitchSettings
from modeldiff.features.measures.stitch.run import run as run_stitch
from modeldiff.linear.stitch import load_stitch
from modeldiff.lm.generate import generate, generate_tokens
from modeldiff.lm.load import ModelRef
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import add_to_residual, residual_after
from modeldiff.steer.prompts import read_prompts
from modeldiff.steer.transfer import Decoders, cosine, paper_rule, read_vectors, run
from modeldiff.workspace import Artifact
from tests.steer.made import LAYERS, OF_B, PROMPTS, SCALES, Made, info, lines, opened, publish, transfer

POSITIVE = ("The quick brown fox", "A single man", "It was 1989")
NEGATIVE = ("Nobody minded", "A good fortune", "The lazy dog")
RULES = {"paper", "stitch"}


@pytest.fixture
def prompts(tmp_path: Path) -> tuple[Path, Path]:
    files = tmp_path / "positive.txt", tmp_path / "negative.txt"
    for file, texts in zip(files, (POSITIVE, NEGATIVE), strict=True):
        file.write_text("\n".join(texts))
    return files


def vectors_of(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.file("vectors.safetensors"))


def by_hand(lm: LanguageModel, layer: int, responses: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Mean over (prompt, response) of the mean residual over the response's tokens, one sequence at a time."""
    means = []
    for prompt_ids, ids in responses:
        ids_BT = torch.tensor([prompt_ids + ids])
        means.append(residual_after(lm, layer, ids_BT, torch.ones_like(ids_BT))[0, len(prompt_ids) :].mean(dim=0))
    return torch.stack(means).mean(dim=0)


def asked(lm: LanguageModel, prompts: tuple[str, ...]) -> list[tuple[list[int], list[int]]]:
    made = generate_tokens(lm, list(prompts), max_new_tokens=6)
    # The end of a text is no part of the response.
    return [(one.prompt_ids, [token for token in one.new_ids if token != 1]) for one in made]


def test_a_contrast_is_made_moved_and_compared(
    made: Made, stitch: Artifact, folders: dict[str, Path], prompts: tuple[Path, Path]
) -> None:
    artifact = run(transfer(from_prompts=prompts), made.workspace)
    found, described = vectors_of(artifact), info(artifact)
    hand = {
        side: by_hand(lm, LAYERS[side], asked(lm, POSITIVE)) - by_hand(lm, LAYERS[side], asked(lm, NEGATIVE))
        for side, lm in ((side, opened(folders[side])) for side in ("a", "b"))
    }
    torch.testing.assert_close(found["source"][0], hand["a"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["own"][0], hand["b"], atol=1e-5, rtol=1e-4)
    # The stitch's matrix, and the paper's rule on decoders in raw units; both rescaled in median norms.
    median = described["median_norms"]
    norm = float(hand["a"].norm()) * median["b"] / median["a"]
    maps = load_stitch(stitch)
    expected = {"stitch": hand["a"] @ maps.a_to_b.w_DD}
    alive_F = torch.ones(15, dtype=torch.bool)
    expected["paper"] = paper_rule(Decoders.of(made.crosscoder, "a", alive_F), 4, hand["a"][None])[0][0]
    assert set(described["truth"]["rules"]) == RULES
    for rule, expected_D in expected.items():
        wanted_D = expected_D * norm / expected_D.norm()
        torch.testing.assert_close(found[rule][0], wanted_D, atol=1e-4, rtol=1e-3)
        compared = described["truth"]["rules"][rule]
        assert compared["cosine"] == pytest.approx(float(cosine(expected_D, hand["b"])), abs=1e-4)
        norms = described["moved"][rule][0]["norm_in_medians"], described["source_norms"][0]["norm_in_medians"]
        assert norms[0] == pytest.approx(norms[1])
        assert 0 < compared["random"] < 1
    assert described["stitch_r2"] == maps.a_to_b.r2 == pytest.approx(1, abs=1e-3)
    for side in ("a", "b"):
        answers = generate(opened(folders[side]), [*POSITIVE, *NEGATIVE], max_new_tokens=6)
        assert described["prompts"][side] == {"positive": 3, "negative": 3, "silent": 0, "answers": answers}


def test_directions_of_a_file_need_no_model(
    made: Made, stitch: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvested_module, "load_model", lambda *_: pytest.fail("a model was loaded"))
    v_ND = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    np.save(tmp_path / "v.npy", v_ND)
    artifact = run(transfer(vector=tmp_path / "v.npy"), made.workspace)
    found, described = vectors_of(artifact), info(artifact)
    np.testing.assert_array_equal(found["source"].numpy(), v_ND)
    ratio = described["median_norms"]["b"] / described["median_norms"]["a"]
    for rule in RULES:
        assert found[rule].shape == (3, 16)
        np.testing.assert_allclose(found[rule].norm(dim=1), np.linalg.norm(v_ND, axis=1) * ratio, rtol=1e-4)
    assert described["truth"] is None
    # The same array elsewhere is the same input.
    np.save(tmp_path / "w.npy", v_ND)
    assert run(transfer(vector=tmp_path / "w.npy"), made.workspace).ref == artifact.ref


def test_from_b_to_a_a_feature_and_its_continuations(made: Made, stitch: Artifact, folders: dict[str, Path]) -> None:
    wanted = transfer(source="B", vector_from_feature=4, prompt=PROMPTS, strength=(2.0,))
    artifact = run(wanted, made.workspace)
    found = vectors_of(artifact)
    row_D = made.crosscoder.w_dec_b[4 - 2].detach() / SCALES["b"]
    torch.testing.assert_close(cosine(found["source"][0], row_D), torch.tensor(1.0, dtype=torch.float64))
    records = lines(artifact)
    order = [("unsteered", 0.0), ("paper", 2.0), ("stitch", 2.0), ("random", 2.0)]
    assert [(one["rule"], one["strength"]) for one in records[::2]] == order
    lm = opened(folders["a"])
    assert [one["text"] for one in records[:2]] == generate(lm, list(PROMPTS), max_new_tokens=6)
    drawn_D = torch.randn(32, generator=torch.Generator().manual_seed(0))
    of_norm = {"stitch": found["stitch"][0], "random": drawn_D / drawn_D.norm() * found["stitch"][0].norm()}
    for rule, vector_D in of_norm.items():
        with add_to_residual(lm, LAYERS["a"], 2 * vector_D):
            steered = generate(lm, list(PROMPTS), max_new_tokens=6)
        assert [one["text"] for one in records if one["rule"] == rule] == steered


def test_responses_of_a_file_and_a_chat_format(made_with_chat: Made, tmp_path: Path, folders: dict[str, Path]) -> None:
    run_stitch(StitchSettings(device="cpu"), made_with_chat.workspace)
    files = (tmp_path / "positive.jsonl", tmp_path / "negative.jsonl")
    answers = (" Yes, sir.", " No.")
    for file, answer in zip(files, answers, strict=True):
        records = [{"prompt": p, "system": "Be brief.", "response": answer} for p in POSITIVE[:2]]
        file.write_text("\n".join(map(json.dumps, records)))
    found = vectors_of(run(transfer(from_prompts=files), made_with_chat.workspace))
    chat = "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    for key, folder, layer, template in (
        ("source", "a", LAYERS["a"], "Be brief.\n\n{}"),
        ("own", "chat", LAYERS["b"], chat),
    ):
        lm = opened(folders[folder])
        means = []
        for answer in answers:
            ids = lm.tokenizer(answer, add_special_tokens=False)["input_ids"]
            texts = [template.format(prompt) for prompt in POSITIVE[:2]]
            openings = lm.tokenizer(texts, add_special_tokens=folder == "a")["input_ids"]
            means.append(by_hand(lm, layer, [(opening, ids) for opening in openings]))
        torch.testing.assert_close(found[key][0], means[0] - means[1], atol=1e-5, rtol=1e-4)


def test_an_interrupted_run_keeps_the_sources_contrast(
    made: Made, stitch: Artifact, prompts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, names = harvested_module.load_model, []

    def dying(ref: ModelRef, *args: Any) -> Any:
        names.append(ref.name)
        if len(names) == 2:
            raise KeyboardInterrupt
        return loaded(ref, *args)

    monkeypatch.setattr(harvested_module, "load_model", dying)
    wanted = transfer(from_prompts=prompts)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, made.workspace)
    artifact = run(wanted, made.workspace)
    assert len(names) == 3  # the source's contrast was there
    again = run(wanted, made.workspace, force=True)
    assert again.manifest.digest == artifact.manifest.digest


def test_what_is_missing_is_named_with_its_command(made: Made, prompts: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="run `modeldiff features stitch --activations activations:1`"):
        run(transfer(vector_from_feature=4), made.workspace)
    run_stitch(StitchSettings(device="cpu"), made.workspace)
    with pytest.raises(InputError, match="feature 14 is B-exclusive"):
        run(transfer(vector_from_feature=OF_B), made.workspace)
    with pytest.raises(InputError, match="no contrast"):
        run(transfer(from_prompts=(prompts[0], prompts[0])), made.workspace)
    publish(made.workspace, made.activations, n_shared=0, number=1)
    with pytest.raises(InputError, match="crosscoder:2 has no shared features"):
        run(transfer(vector_from_feature=1), made.workspace)


def test_the_command(
    made: Made, stitch: Artifact, prompts: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def printed(*args: str) -> str:
        capsys.readouterr()
        first = ["--workspace", str(made.workspace.folder), "steer", "transfer", "--from", "A"]
        cli.main([*first, *args, "--max-new-tokens", "6", "--device", "cpu"], standalone_mode=False)
        return capsys.readouterr().out

    args = ["--from-prompts", *map(str, prompts), "--prompt", "The [bold]quick", "It is", "--strength", "-1", "2"]
    out = printed(*args)
    for word in (*RULES, "held-out R²", "cos in B", "random", "The [bold]quick", "unsteered", "stitch -1", "own +2"):
        assert word in out
    found = json.loads(printed(*args, "--json"))
    assert found["truth"]["rules"].keys() == RULES
    assert len(found["generations"]) == 2 * (1 + 2 * (len(RULES) + 2))
    np.save(tmp_path / "v.npy", np.ones((2, 32), np.float32))
    moved = printed("--vector", str(tmp_path / "v.npy"))
    assert "features used most" in moved
    # The tiny models also write control characters, which take no room.
    lines_of = [line for line in (out + moved).split("\n") if str(tmp_path) not in line]
    assert max(sum(character.isprintable() for character in line) for line in lines_of) <= 80


def test_directions_of_either_format_and_damaged_files(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5))
    expected = torch.from_numpy(rows).float()
    np.save(tmp_path / "one.npy", rows[0])
    np.save(tmp_path / "several.npy", rows)
    save_file({"v": torch.from_numpy(rows).to(torch.bfloat16)}, tmp_path / "v.safetensors")
    torch.testing.assert_close(read_vectors(tmp_path / "one.npy", 5, "A"), expected[:1])
    torch.testing.assert_close(read_vectors(tmp_path / "several.npy", 5, "A"), expected)
    found = read_vectors(tmp_path / "v.safetensors", 5, "A")
    torch.testing.assert_close(found, expected.to(torch.bfloat16).float())
    for name in ("one.npy", "v.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-7])
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("one.npy", "v.safetensors", "pickle.npy"):
        with pytest.raises(DamagedError, match=name):
            read_vectors(tmp_path / name, 5, "A")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("wide.npy", np.ones(6), r"shape \(6,\): expected \(5,\) or \(N, 5\), the width of model B"),
        ("whole.npy", np.ones(5, np.int64), "floating-point"),
        ("nan.npy", np.array([1, 2, np.nan, 4, 5]), "not finite"),
        ("zero.npy", np.stack([np.ones(5), np.zeros(5)]), "a vector of zeros"),
        ("vector.pt", np.ones(5), "expected .npy or .safetensors"),
    ],
)
def test_directions_that_are_refused(tmp_path: Path, name: str, array: np.ndarray, message: str) -> None:
    with (tmp_path / name).open("wb") as file:
        np.save(file, array)
    with pytest.raises(InputError, match=message):
        read_vectors(tmp_path / name, 5, "B")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"Only one\n", "holds 1 prompts"),
        ("p.jsonl", b'{"prompt": 3}', "'prompt' is missing, empty or not a text"),
        ("p.jsonl", b'{"prompt": "a", "answer": "b"}', "'answer' is unknown"),
        ("p.jsonl", b'{"prompt": "a", "response": ""}', "'response' is missing, empty"),
    ],
)
def test_prompts_that_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name)


def known_decoders(scales: tuple[float, float]) -> tuple[Crosscoder, torch.Tensor]:
    """A crosscoder whose nine shared B decoders are a known map M (12, 7), raw units, of the A decoders."""
    generator = torch.Generator().manual_seed(0)
    config = CrosscoderConfig(
        width_a=12, width_b=7, n_a_only=2, n_shared=9, n_b_only=3, k=2, scale_a=scales[0], scale_b=scales[1]
    )
    crosscoder = Crosscoder(config)
    map_DD = torch.randn(12, 7, generator=generator)
    raw_FD = torch.randn(11, 12, generator=generator)
    with torch.no_grad():
        for weight in crosscoder.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
        crosscoder.w_dec_a.copy_(raw_FD * scales[0])
        crosscoder.w_dec_b[:9] = raw_FD[2:] @ map_DD * scales[1]
    return crosscoder, map_DD


def test_decoders_are_in_raw_units_and_only_of_what_fires() -> None:
    crosscoder, map_DD = known_decoders((2.0, 0.25))
    alive_F = torch.ones(14, dtype=torch.bool)
    decoders = Decoders.of(crosscoder, "b", alive_F)
    torch.testing.assert_close(decoders.source_FD, crosscoder.w_dec_b[:9] / 0.25)
    torch.testing.assert_close(decoders.target_FD @ map_DD, decoders.source_FD)
    # The same decoders at other scales: the same vectors.
    v_ND = torch.randn(4, 12, generator=torch.Generator().manual_seed(5))
    other = known_decoders((1.0, 1.0))[0]
    moved = [paper_rule(Decoders.of(one, "a", alive_F), 3, v_ND)[0] for one in (crosscoder, other)]
    torch.testing.assert_close(*moved)
    with torch.no_grad():
        crosscoder.w_dec_a[2 + 6].zero_()
    alive_F[3] = False
    assert Decoders.of(crosscoder, "a", alive_F).ids_F.tolist() == [2, 4, 5, 6, 7, 9, 10]


def test_the_papers_rule_by_hand() -> None:
    source_FD = torch.tensor([[2.0, 0.0], [3.0, 3.0], [0.0, 5.0], [-1.0, 0.0]])
    target_FD = torch.tensor([[1.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 7.0], [9.0, 9.0, 9.0]])
    decoders = Decoders(source_FD, target_FD, torch.tensor([10, 11, 12, 13]))
    # Cosines with (1, 0): 1, 1/sqrt(2), 0, -1. The top two, weighted, the decoders as long as they are.
    half = 2**-0.5
    target_ND, features_NK, weights_NK = paper_rule(decoders, 2, torch.tensor([[0.5, 0.0]]))
    torch.testing.assert_close(target_ND, torch.tensor([[1.0, 4 * half, 0.0]]) / (1 + half))
    assert features_NK.tolist() == [[10, 11]]
    torch.testing.assert_close(weights_NK, torch.tensor([[1.0, half]]))
