"""Importing activations captured elsewhere, from each format; what cannot be imported is refused."""

import errno
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modeldiff.errors import DamagedError, InputError
from modeldiff.harvest.run import estimate, run
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore, Block
from tests.full_disk import files_up_to

GENERATOR = torch.Generator().manual_seed(3)
X_A = torch.randn(50, 4, generator=GENERATOR)
X_B = torch.randn(50, 6, generator=GENERATOR) * 100


def write(path: Path, x: torch.Tensor) -> str:
    """The file, as an option names its array."""
    if path.suffix == ".npy":
        np.save(path, x.numpy())
    elif path.suffix == ".safetensors":
        save_file({"acts": x, "other": torch.zeros(1)}, path)
        return f"{path}:acts"
    else:
        with h5py.File(path, "w") as file:
            file["group/acts"] = x.numpy()
    return str(path)


def settings(a: str, b: str, **changes) -> HarvestSettings:
    return HarvestSettings(import_a=a, import_b=b, **{"storage": "float32", "shard_pairs": 20, **changes})


def rows(store: ActivationStore, side: str) -> torch.Tensor:
    return torch.cat([store.read_side(side, block) for block in store.blocks(7)])


@pytest.fixture
def five(tmp_path: Path) -> tuple[str, str]:
    """Five rows of each side."""
    return write(tmp_path / "a.npy", X_A[:5]), write(tmp_path / "b.npy", X_B[:5])


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".h5"])
def test_each_format(tmp_path: Path, workspace: Workspace, suffix: str) -> None:
    a, b = write(tmp_path / f"a{suffix}", X_A), write(tmp_path / f"b{suffix}", X_B)
    planned = estimate(settings(a, b), workspace)
    assert (planned["pairs"], planned["a"]["width"], planned["b"]["width"]) == (50, 4, 6)
    assert planned["bytes_needed"] >= 50 * 10 * 4
    assert not workspace.folder.exists()
    store = ActivationStore(run(settings(a, b, model_a="org/one", layer_a=7), workspace))
    assert torch.equal(rows(store, "a"), X_A)
    assert torch.equal(rows(store, "b"), X_B)
    assert store.info.shards == [20, 20, 10]
    assert (store.info.sides["a"].model, store.info.sides["a"].layer) == ("org/one", 7)
    assert store.info.sides["b"].model is None
    np.testing.assert_allclose(store.info.sides["b"].median_norm, np.median(X_B.norm(dim=1)), rtol=1e-6)
    with pytest.raises(InputError, match="imported without texts"):
        store.plan(0)


def test_the_storage_dtype_is_rounded_to(tmp_path: Path, workspace: Workspace) -> None:
    changed = {
        "double.npy": (X_A.double(), X_A),
        "half.npy": (X_A.half(), X_A.half()),
        "bfloat16.safetensors": (X_A.to(torch.bfloat16), X_A),
    }
    for name, (given, expected) in changed.items():
        entry = write(tmp_path / name, given)
        store = ActivationStore(run(settings(entry, entry, storage="bfloat16"), workspace))
        assert torch.equal(rows(store, "a"), expected.to(torch.bfloat16))


def test_texts_give_the_places_of_the_rows(tmp_path: Path, workspace: Workspace, five: tuple[str, str]) -> None:
    texts = tmp_path / "texts.jsonl"
    records = [
        {"text": "one two", "ends": [3, 7], "source": "x", "ids_a": [5, 6]},
        {"text": "a b c", "ends": [1, 3, 5]},
    ]
    texts.write_text("".join(json.dumps(record) + "\n" for record in records))
    store = ActivationStore(run(settings(*five, import_texts=texts, shard_pairs=2), workspace))
    assert store.info.has_texts
    assert store.info.shards == [2, 3]
    assert store.info.sources == ["x", "imported"]
    plan = store.plan(0)
    assert plan.documents[0].text == "one two"
    assert plan.documents[0].tokens["a"].ids.tolist() == [5, 6]
    assert plan.documents[0].tokens["b"].ids.tolist() == [-1, -1]
    assert plan.pairs.char_end.tolist() == [3, 7]
    assert store.plan(1).documents[0].source == 1
    assert torch.equal(store.read(Block(1, 0, 3))[0], X_A[2:5])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "one two", "ends": [3]}, "its documents have 1 'ends', but the activations have 5 rows"),
        ({"text": "one", "ends": [3, 9]}, "line 1: 'ends' must be rising"),
        ({"text": "one", "ends": [3, 2]}, "line 1: 'ends' must be rising"),
        ({"text": "one"}, "line 1: expected"),
        ({"text": "one", "ends": [3], "ids_a": [1, 2]}, "line 1: 'ids_a' must be a list of 1 token ids"),
    ],
)
def test_texts_that_do_not_fit(
    tmp_path: Path, workspace: Workspace, five: tuple[str, str], record: dict, message: str
) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(record))
    with pytest.raises(InputError, match=message):
        run(settings(*five, import_texts=tmp_path / "t.jsonl"), workspace)


def broken(x: torch.Tensor, row: int, value: float) -> torch.Tensor:
    x = x.clone()
    x[row, 1] = value
    return x


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (X_A, X_B[:49], "has 50 rows and .* has 49"),
        (broken(X_A, 33, float("nan")), X_B, "--import-a: row 33 of .* NaN"),
        (X_A, broken(X_B, 7, float("-inf")), "--import-b: row 7 of .* infinity"),
        (X_A, broken(X_B, 2, 1e6), "row 2 of .* is too large for float16: use --storage bfloat16 or float32"),
        (X_A[0], X_B, r"has shape \(4,\): expected \(pairs, width\)"),
        (X_A[:0], X_B, r"is empty: its shape is \(0, 4\)"),
        (X_A.to(torch.int32), X_B, "has type torch.int64: expected"),
        (X_A, X_B * (torch.arange(50) < 24)[:, None], "--import-b: more than half of the rows of .*b.npy are zero"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path: Path, workspace: Workspace, a, b, message: str) -> None:
    given = (write(tmp_path / "a.npy", a), write(tmp_path / "b.npy", b))
    with pytest.raises(InputError, match=message) as caught:
        run(settings(*given, storage="float16"), workspace)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ("none.npy", InputError, "there is no file none.npy"),
        ("{folder}/a.txt", InputError, "expected .npy, .safetensors or .h5"),
        ("{folder}/s.safetensors:nothing", InputError, "has no 'nothing': it holds acts, other"),
        ("{folder}/s.safetensors", InputError, "It holds acts, other; choose one as"),
        ("{folder}/torn.npy", DamagedError, "torn.npy: cannot be read"),
        ("{folder}/torn.safetensors:acts", DamagedError, "torn.safetensors: cannot be read"),
        ("{folder}/torn.h5:acts", DamagedError, "torn.h5: cannot be read"),
        ("{folder}/objects.npy", DamagedError, "objects.npy: cannot be read"),
        ("{folder}/empty.npy", DamagedError, "empty.npy: cannot be read"),
        ("{folder}/several.npy", DamagedError, "several.npy: cannot be read"),
        ("{folder}/nothing.h5", InputError, "nothing.h5:x has shape"),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, workspace: Workspace, five: tuple[str, str], entry: str, error, message: str
) -> None:
    (tmp_path / "a.txt").write_text("text")
    write(tmp_path / "s.safetensors", X_A)
    for name in ("torn.npy", "torn.safetensors", "torn.h5"):
        write(tmp_path / name, X_A)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) - 300])
    (tmp_path / "empty.npy").touch()
    with (tmp_path / "several.npy").open("wb") as file:
        np.savez(file, a=X_A.numpy())
    with h5py.File(tmp_path / "nothing.h5", "w") as file:
        file["x"] = h5py.Empty("f4")
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(error, match=message) as caught:
        run(settings(entry.format(folder=tmp_path), five[1]), workspace)
    assert "\n" not in str(caught.value)


def test_a_write_that_fails_is_not_blamed_on_the_input_and_the_same_command_goes_on(
    tmp_path: Path, workspace: Workspace
) -> None:
    given = (write(tmp_path / "a.npy", X_A), write(tmp_path / "b.npy", X_B))
    with files_up_to(2_000), pytest.raises(OSError, match="File too large") as caught:
        run(settings(*given, shard_pairs=1000), workspace)
    assert Path(caught.value.filename).is_relative_to(workspace.folder)
    made = ActivationStore(run(settings(*given, shard_pairs=1000), workspace))
    assert torch.equal(rows(made, "b"), X_B)


def test_other_content_under_the_same_name_is_imported_anew(
    tmp_path: Path, workspace: Workspace, five: tuple[str, str]
) -> None:
    assert run(settings(*five), workspace).ref == run(settings(*five), workspace).ref == "activations:1"
    write(tmp_path / "a.npy", X_A[:5] * 2)
    assert run(settings(*five), workspace).ref == "activations:2"
    with pytest.raises(InputError, match="--import-b is missing"):
        HarvestSettings(import_a="a.npy")


def test_a_failed_write_is_not_blamed_on_what_is_read(
    workspace: Workspace, five: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "the-workspace")

    monkeypatch.setattr("modeldiff.workspace.bits.RowWriter.append", full)
    with pytest.raises(OSError, match="No space left on device: 'the-workspace'"):
        run(settings(*five), workspace)
