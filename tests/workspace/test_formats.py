"""Every kind of artifact, made on tiny models and read as somebody without modeldiff would: with h5py, safetensors,
json and numpy, by what workspace/README.md and the sections *Layout* say.

What takes modeldiff is what makes the artifacts (`world`), and what is compared with in the end.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import transformers
from blake3 import blake3
from numpy.typing import NDArray
from safetensors.numpy import load_file

from modeldiff.cli.main import run as run_command
from modeldiff.contrast.run import run as run_contrast
from modeldiff.contrast.settings import ContrastSettings
from modeldiff.crosscoder import load
from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.workspace import Workspace
from tests.attack.world import Stage, prepare
from tests.contrast.made_continuations import made_continuations, planted
from tests.judge.fake_endpoint import leave_alone, said, serving
from tests.workspace import layouts
from tests.workspace.layouts import Entry, bare, check_file, check_names, read_arrays

KINDS = list(layouts.files_of_kinds())
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with an artifact of each kind, beside the models `a` and `b` that they are of."""
    folder = tmp_path_factory.mktemp("formats")
    stages = prepare(folder)
    again = ("train", "--features", "48", "--k", "8", "--steps", "20", "--batch", "256", "--audits", "1")
    score = ("features", "score", "--sample", "1", "--random-directions", "1", "--strength", "1", "--prompt", "ab")
    with pytest.MonkeyPatch.context() as patch, serving(lambda *_: said("Because.\nRATING: 4")) as judge:
        leave_alone(patch)
        by = ("--judge", "openai", "--judge-model", "wise", "--judge-base-url", judge.base_url)
        stages += [
            Stage("crosscoder", (*again, "--device", "cpu")),
            Stage("match", ("features", "match", "1", "2", "--device", "cpu")),
            Stage("score", (*score, *by, "--max-new-tokens", "3", "--device", "cpu")),
            Stage("report", ("report",)),
        ]
        for stage in stages:
            with pytest.raises(SystemExit, match="0"):
                run_command(["--workspace", str(folder / "ws"), *stage.args])
    return folder


def artifacts(world: Path, kind: str) -> list[Path]:
    found = sorted(path for path in (world / "ws" / kind).iterdir() if path.name.isdigit())
    assert found
    return found


def names_in(folder: Path) -> dict[str, list[Path]]:
    """The files of an artifact by what documents call them: those of all shards by the first one's name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = re.sub(r"^shards/\d{5}", "shards/00000", path.relative_to(folder).as_posix())
        found.setdefault(name, []).append(path)
    return found


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def decoded(bits_ND: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16, by the sentence of bits.py."""
    return (bits_ND.astype(np.uint32) << 16).view(np.float32)


def written_entries(kind: str) -> dict[str, Entry]:
    """What is written of each file of a kind, by its name with its ending."""
    known = layouts.sections()
    return known[kind] | known["every"]


def test_the_table_the_list_and_the_sections_speak_of_the_same_kinds_and_files() -> None:
    assert set(layouts.formats()) == set(KINDS)
    for kind, files in layouts.files_of_kinds().items():
        assert {bare(name) for name in written_entries(kind)} == files, kind


@pytest.mark.parametrize("kind", KINDS)
def test_an_artifact_holds_the_files_fields_and_arrays_that_are_written(world: Path, kind: str) -> None:
    written = written_entries(kind)
    entries = {bare(name): entry for name, entry in written.items()}
    for folder in artifacts(world, kind):
        found = names_in(folder)
        check_names(set(found), set(written), str(folder))
        for name, paths in found.items():
            for path in paths:
                check_file(path, entries[name])
        numbers = [read(path).get("format") for path in folder.glob("*.json") if path.name != "manifest.json"]
        assert [number for number in numbers if number] == [number for number in [layouts.formats()[kind]] if number]


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_has_its_own_digest_and_those_of_all_files(world: Path, kind: str) -> None:
    for folder in artifacts(world, kind):
        content = (folder / "manifest.json").read_bytes()
        manifest = json.loads(content)
        start = content.rindex(b',\n  "check": ')
        rest = content[start:].split(b"\n", 2)[2]
        assert rest == b"}\n"
        assert hashlib.sha256(content[:start] + b"\n" + rest).hexdigest() == manifest["check"]
        assert (manifest["kind"], str(manifest["version"])) == (kind, folder.name)
        files = {path.relative_to(folder).as_posix(): path for paths in names_in(folder).values() for path in paths}
        del files["manifest.json"]
        found = {name: {"size": path.stat().st_size, "blake3": blake3(path.read_bytes()).hexdigest()}
                 for name, path in files.items()}  # fmt: skip
        assert found == manifest["files"]


def test_inputs_are_called_by_the_digest_of_their_files(world: Path) -> None:
    def digest(kind: str) -> str:
        files = read(world / "ws" / kind / "1/manifest.json")["files"]
        content = {name: f"blake3:{one['blake3']}" for name, one in files.items() if not name.startswith("logs/")}
        return hashlib.sha256(json.dumps([kind, content], sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    inputs = read(world / "ws/features/1/manifest.json")["inputs"]
    assert {kind: one["digest"] for kind, one in inputs.items()} == {kind: digest(kind) for kind in inputs}
    assert {one["label"] for one in inputs.values()} == {"crosscoder:1", "activations:1"}


def test_the_workspace_knows_the_newest_versions(world: Path) -> None:
    head = read(world / "ws/workspace.json")
    assert (head["format"], head["versions"]["crosscoder"]) == (3, 2)
    assert set(head) == {"format", "versions"}
    assert set(head["versions"]) == set(KINDS)


@pytest.mark.parametrize("side", ["a", "b"])
def test_row_i_is_what_the_model_makes_of_the_token_at_which_pair_i_ends(world: Path, side: str) -> None:
    store = world / "ws/activations/1"
    layer = read(store / "store.json")["sides"][side]["layer"]
    model = transformers.AutoModelForCausalLM.from_pretrained(world / side).eval()
    blocks = model.transformer.h if side == "a" else model.model.layers
    seen: list[torch.Tensor] = []
    blocks[layer].register_forward_hook(lambda _block, _given, made: seen.append(made))
    tokenizer = transformers.AutoTokenizer.from_pretrained(world / side)
    plan = read_arrays(store / "shards/00001.plan.h5")
    with h5py.File(store / f"shards/00001.{side}.h5") as file:
        assert file["activations"].attrs["encoding"] == "bfloat16"
        x_ND = decoded(file["activations"][()])
    for document in (1, 3):
        first, last = plan[f"tokens_{side}/offsets"][document : document + 2]
        ids, starts, ends = (plan[f"tokens_{side}/{name}"][first:last] for name in ("ids", "starts", "ends"))
        text_first, text_last = plan["documents/text_offsets"][document : document + 2]
        text = plan["documents/text_bytes"][text_first:text_last].tobytes().decode()
        rows = np.flatnonzero(plan["pairs/document"] == document)
        assert len(rows)
        at = plan[f"pairs/token_{side}"][rows]
        assert ends[at].tolist() == plan["pairs/char_end"][rows].tolist()
        for one in at:
            assert tokenizer.decode([int(ids[one])]).strip() == text[starts[one] : ends[one]].strip()
        with torch.inference_mode():
            model(torch.from_numpy(ids[None].astype(np.int64)))
        expected = seen[-1][0].numpy()[at]
        # bfloat16 has 8 bits.
        np.testing.assert_allclose(x_ND[rows], expected, rtol=2**-7, atol=1e-5)


def test_pieces_of_rows_have_their_digests(world: Path) -> None:
    store = world / "ws/activations/1"
    arrays = load_file(store / "statistics.safetensors")
    for side in "ab":
        rows = []
        for path in sorted(store.glob(f"shards/*.{side}.h5")):
            with h5py.File(path) as file:
                bits, chunk_rows = file["activations"][()], file["activations"].chunks[0]
            piece = min(chunk_rows, 2 ** int(np.log2((512 << 10) // bits[0].nbytes)))
            pieces = [bits[start : start + piece].tobytes() for start in range(0, len(bits), piece)]
            expected = [list(blake3(one).digest()) for one in pieces]
            assert arrays[f"shards/{path.name}"].tolist() == expected
            rows.append(decoded(bits).astype(np.float64))
        x_ND = np.concatenate(rows)
        info = read(store / "store.json")
        assert [len(one) for one in rows] == info["shards"]
        assert np.median(np.linalg.norm(x_ND, axis=1)) == pytest.approx(info["sides"][side]["median_norm"], rel=1e-6)
        np.testing.assert_allclose(arrays[f"mean_{side}"], x_ND.mean(axis=0), rtol=1e-12, atol=1e-12)


def rows_of(store: Path, side: str) -> Floats:
    """All rows (N, D), shard after shard."""
    found = [read_arrays(path)["activations"] for path in sorted(store.glob(f"shards/*.{side}.h5"))]
    return decoded(np.concatenate(found)).astype(np.float64)


def codes_of(folder: Path, x_a: Floats, x_b: Floats) -> tuple[Floats, Floats, Floats]:
    """(codes (N, F), both reconstructions) of raw activations, by the formula of crosscoder/saving.py in float64."""
    config = read(folder / "config.json")
    weights = {name: array.astype(np.float64) for name, array in load_file(folder / "model.safetensors").items()}
    n_a, n_s, n_b = (config[name] for name in ("n_a_only", "n_shared", "n_b_only"))
    shared, pre = slice(n_a, n_a + n_s), np.zeros((len(x_a), n_a + n_s + n_b))
    pre[:, : n_a + n_s] += x_a * config["scale_a"] @ weights["w_enc_a"].T
    pre[:, n_a:] += x_b * config["scale_b"] @ weights["w_enc_b"].T
    if config["combine"] == "mean":
        pre[:, shared] /= 2
    pre += weights["b_enc"]
    norm_a, norm_b = np.zeros(pre.shape[1]), np.zeros(pre.shape[1])
    norm_a[: n_a + n_s] = np.linalg.norm(weights["w_dec_a"], axis=1)
    norm_b[n_a:] = np.linalg.norm(weights["w_dec_b"], axis=1)
    s = {"activation": np.ones_like(norm_a), "l2": np.hypot(norm_a, norm_b), "sum": norm_a + norm_b,
         "mean": norm_a + norm_b}[config["selection"]]  # fmt: skip
    if config["selection"] == "mean":
        s[shared] /= 2
    threshold = np.full(len(s), config["threshold"])
    threshold[shared][: config["n_designated"]] = config["threshold_designated"]
    f = np.where(pre * s > threshold, pre, 0)
    back_a = (f[:, : n_a + n_s] @ weights["w_dec_a"] + weights["b_dec_a"]) / config["scale_a"]
    back_b = (f[:, n_a:] @ weights["w_dec_b"] + weights["b_dec_b"]) / config["scale_b"]
    return f, back_a, back_b


def same_as_modeldiff(folder: Path, x_a: Floats, x_b: Floats) -> None:
    crosscoder = load(folder)
    found = codes_of(folder, x_a, x_b)
    f = crosscoder.encode(torch.from_numpy(x_a), torch.from_numpy(x_b))
    expected = [one.numpy() for one in (f, *crosscoder.decode(f))]
    fires = expected[0] > 0
    # At the very threshold the two may differ: float32 rounds.
    assert ((found[0] > 0) != fires).mean() < 1e-4
    for one, other in zip(found, expected, strict=True):
        same = ((found[0] > 0) == fires).all(axis=1)
        np.testing.assert_allclose(one[same], other[same], rtol=1e-4, atol=1e-4)
    assert 0.01 < fires.mean() < 0.9


def test_the_formula_is_that_of_the_crosscoder_that_was_trained(world: Path) -> None:
    store = world / "ws/activations/1"
    same_as_modeldiff(world / "ws/crosscoder/1", rows_of(store, "a"), rows_of(store, "b"))


@pytest.mark.parametrize(
    "values",
    [
        {"selection": "l2", "combine": "mean"},
        {"selection": "sum", "combine": "sum"},
        {"selection": "mean", "combine": "mean"},
        {"n_a_only": 0, "n_b_only": 0, "n_designated": 6, "tie": "norms", "threshold_designated": 1.2},
    ],
)
def test_the_formula_holds_for_every_selection(tmp_path: Path, values: dict[str, Any]) -> None:
    sizes = {"width_a": 6, "width_b": 9, "scale_a": 0.7, "scale_b": 1.6, "n_a_only": 5, "n_shared": 20, "n_b_only": 4}
    crosscoder = Crosscoder(CrosscoderConfig(**{**sizes, "k": 3, "threshold": 0.5, **values}))
    generator = torch.Generator().manual_seed(0)
    for parameter in crosscoder.parameters():
        parameter.data.normal_(generator=generator)
    crosscoder.save_pretrained(tmp_path)
    x = np.random.default_rng(0)
    same_as_modeldiff(tmp_path, x.standard_normal((50, 6)), x.standard_normal((50, 9)))


def test_examples_and_statistics_are_of_these_codes(world: Path) -> None:
    store, features = world / "ws/activations/1", world / "ws/features/1"
    x, info = {side: rows_of(store, side) for side in "ab"}, read(store / "store.json")
    codes_NF, _, _ = codes_of(world / "ws/crosscoder/1", x["a"], x["b"])
    statistics, examples = load_file(features / "statistics.safetensors"), read_arrays(features / "examples.h5")
    feature_E = np.repeat(np.arange(codes_NF.shape[1]), np.diff(examples["offsets"]))
    np.testing.assert_allclose(examples["activation"], codes_NF[examples["row"], feature_E], rtol=1e-4)
    kept_N = np.all([np.linalg.norm(x[side], axis=1) <= 2 * info["sides"][side]["median_norm"] for side in "ab"], 0)
    described = read(features / "features.json")
    assert (described["pairs"], described["outliers"]) == (kept_N.sum(), (~kept_N).sum())
    # One that is at the threshold may count or not.
    assert np.abs((codes_NF[kept_N] > 0).sum(axis=0) - statistics["firing_count"]).max() <= 1
    np.testing.assert_allclose(statistics["max_activation"], codes_NF[kept_N].max(axis=0), rtol=1e-4)
    firings_FGH = load_file(features / "histogram.safetensors")["firings"]
    assert firings_FGH.shape[1] == len(described["sources"]) == 1
    assert (firings_FGH.sum(axis=(1, 2)) == statistics["firing_count"]).all()
    assert (described["partitions"]["A"], described["partitions"]["B"]) == ([0, 3], [61, 64])


def test_an_example_shows_the_text_that_ends_at_its_pair(world: Path) -> None:
    store, shown = world / "ws/activations/1", read_arrays(world / "ws/features/1/examples.h5")
    plans = [read_arrays(path) for path in sorted(store.glob("shards/*.plan.h5"))]
    first = np.cumsum([0, *read(store / "store.json")["shards"]])
    for example in range(0, len(shown["row"]), 97):
        shard = int(np.searchsorted(first, shown["row"][example], side="right")) - 1
        plan, pair = plans[shard], shown["row"][example] - first[shard]
        document = plan["pairs/document"][pair]
        assert shown["document"][example] == plan["documents/index"][document]
        begin, stop = plan["documents/text_offsets"][document : document + 2]
        before = plan["documents/text_bytes"][begin:stop].tobytes().decode()[: plan["pairs/char_end"][pair]]
        begin, stop = shown["text/offsets"][example : example + 2]
        text = shown["text/bytes"][begin:stop].tobytes().decode()
        word = shown["words/offsets"][example] + shown["centre"][example]
        assert text[: shown["words/end"][word]]
        assert before.endswith(text[: shown["words/end"][word]])
        assert shown["words/activation"][word] == pytest.approx(shown["activation"][example], rel=1e-5)
        for side in "ab":
            here = slice(*shown[f"tokens_{side}/offsets"][example : example + 2])
            at = shown[f"tokens_{side}/end"][here] == shown["words/end"][word]
            assert shown["words/activation"][word] in shown[f"tokens_{side}/activation"][here][at]


def test_a_stitch_maps_rows_of_one_model_to_the_other(world: Path) -> None:
    store, stitch = world / "ws/activations/1", world / "ws/stitch/1"
    maps, described = load_file(stitch / "maps.safetensors"), read(stitch / "stitch.json")
    x, norms = {side: rows_of(store, side) for side in "ab"}, read(store / "store.json")["sides"]
    report_N = np.zeros(len(x["a"]), bool)
    for begin, stop, part in zip(*(maps[f"stretch.{name}"] for name in ("first", "stop", "part")), strict=True):
        report_N[begin:stop] = part == 2
    for side in "ab":
        report_N &= np.linalg.norm(x[side], axis=1) <= described["outlier_factor"] * norms[side]["median_norm"]
    assert report_N.sum() == described["pairs"]["report"]
    for name in ("a_to_b", "b_to_a"):
        source, target = (x[side][report_N] for side in name.split("_to_"))
        left = target - source @ maps[f"{name}.w"] - maps[f"{name}.bias"]
        r2 = 1 - np.square(left).sum() / np.square(target - target.mean(axis=0)).sum()
        assert r2 == pytest.approx(described["maps"][name]["r2"], abs=0.01)


def test_a_context_holds_at_the_places_that_are_stored(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    made_continuations(workspace, **planted())
    folder = run_contrast(ContrastSettings(cause=False, device="cpu"), workspace).folder
    for name in ("contrast.json", "places.safetensors"):
        check_file(folder / name, written_entries("contrast")[name])
    continuations = workspace.folder / "continuations/1"
    documents, places = lines(continuations / "documents.jsonl"), lines(continuations / "places.jsonl")
    arrays, found = load_file(folder / "places.safetensors"), read(folder / "contrast.json")
    (entry,) = found["differences"]
    assert len(arrays["offsets"]) == 1 + len(found["differences"]) + len(found["not_verified"])
    holds = set(arrays["indices"][: arrays["offsets"][1]].tolist())
    assert len(holds) == entry["places"]
    for number, place in enumerate(places):
        words = documents[place["document"]]["text"][: place["end"]].split()
        assert (entry["context"]["name"] in words) == (number in holds)
    said = {side: lines(continuations / f"said_{side}.jsonl") for side in "ab"}
    assert len(said["a"]) == len(said["b"]) == len(places)


def test_flat_names_of_a_toy_are_paths_into_the_whole_result(world: Path) -> None:
    folder = world / "ws/toy/1"
    with (folder / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = read(folder / "cells.json")["cells"]
    for row, cell in zip(rows, cells, strict=True):
        assert float(row["fve_a"]) == cell["result"]["fve"]["a"]
        assert int(row["concepts"]) == cell["spec"]["world"]["concepts"]
        assert row["recall_any_A"] == str(cell["result"]["recall"]["any"]["A"])
    summed = [one for one in read(folder / "summary.json")["rows"] if one["architecture"] == "dfc"]
    (dfc,) = [cell for cell in cells if cell["spec"]["architecture"] == "dfc"]
    assert [one["figures"]["stitch_a_to_b"]["mean"] for one in summed] == [dfc["result"]["stitch"]["a_to_b"]]
