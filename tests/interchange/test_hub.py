"""push and pull with a double of the hub: a folder for each repository."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from modeldiff.crosscoder import load
from modeldiff.errors import DamagedError, InputError
from modeldiff.interchange import hub as hub_module
from modeldiff.interchange.card import card
from modeldiff.interchange.hub import pull, push
from modeldiff.workspace import Artifact, Workspace
from tests.features.made_crosscoder import made_crosscoder, publish
from tests.interchange import foreign
from tests.made_activations import make_activations


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"

    class Api:
        def __init__(self, **_about: str) -> None:
            pass

        def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
            assert exist_ok
            (folder / repository).mkdir(parents=True, exist_ok=True)
            (folder / repository / ".private").write_text(str(private))

        def create_commit(self, repository: str, operations: list[Any], *, commit_message: str) -> str:
            for one in operations:
                target = folder / repository / one.path_in_repo
                target.parent.mkdir(parents=True, exist_ok=True)
                with one.as_file() as file:
                    target.write_bytes(file.read())
            return f"{repository}: {commit_message}"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr(hub_module, "from_hub", lambda repository, _patterns: folder / repository)
    return folder


@pytest.fixture
def crosscoder(workspace: Workspace) -> Artifact:
    return publish(workspace, made_crosscoder(), make_activations(workspace, *foreign.activations()))


def test_what_is_pushed_can_be_pulled_and_loaded(hub: Path, crosscoder: Artifact, tmp_path: Path) -> None:
    assert push(crosscoder, "me/diff", private=True) == "me/diff: Upload crosscoder:1"
    assert (hub / "me/diff/.private").read_text() == "True"
    there = Workspace(tmp_path / "other")
    pulled = pull("me/diff", there, name="theirs")
    assert (pulled.ref, pulled.manifest.name) == ("crosscoder:1", "theirs")
    assert pulled.manifest.digest == crosscoder.manifest.digest
    assert pulled.problems() == []
    assert pull("me/diff", there).ref == pulled.ref, "it is there already"
    assert load(hub / "me/diff").config == load(pulled).config == load(crosscoder).config
    with pytest.raises(InputError, match="was made from activations:1, which is not in"):
        there.source_of(pulled, "activations")


def _other_weights(repository: Path) -> None:
    content = bytearray((repository / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (repository / "model.safetensors").write_bytes(content)


def _outside(repository: Path) -> None:
    manifest = json.loads((repository / "manifest.json").read_text())
    manifest["files"]["../../escaped"] = manifest["files"]["config.json"]
    (repository / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_other_weights, "me/diff: model.safetensors: is damaged"),
        (_outside, "no artifact has a file called '../../escaped'"),
        (lambda repository: (repository / "config.json").unlink(), "me/diff: config.json is missing"),
    ],
)
def test_a_damaged_or_hostile_repository_leaves_nothing(
    hub: Path, crosscoder: Artifact, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    push(crosscoder, "me/diff")
    damage(hub / "me/diff")
    there = Workspace(tmp_path / "other")
    with pytest.raises(DamagedError, match=message):
        pull("me/diff", there)
    assert not there.artifacts()
    assert not there.partials()


def test_a_repository_without_an_artifact(hub: Path, workspace: Workspace) -> None:
    (hub / "me/else").mkdir(parents=True)
    with pytest.raises(InputError, match=r"me/else has no manifest.json.* see `import`"):
        pull("me/else", workspace)


def test_a_damaged_artifact_is_not_pushed(hub: Path, crosscoder: Artifact) -> None:
    shutil.copy(crosscoder.folder / "config.json", crosscoder.folder / "model.safetensors")
    with pytest.raises(DamagedError, match=r"model\.safetensors: is damaged"):
        push(crosscoder, "me/diff")
    assert not hub.exists()


def test_the_card_says_what_it_is_and_holds_hostile_names_in_code(crosscoder: Artifact) -> None:
    crosscoder.manifest.settings["texts"] = ["/home/me/secret/texts.jsonl", "hf:user/set"]
    crosscoder.manifest.settings["note"] = "`</code><script>alert(1)</script>|\n# x"
    text = card(crosscoder, "me/diff")
    head, body = text.split("---\n")[1:]
    assert yaml.safe_load(head)["library_name"] == "modeldiff"
    assert 'Crosscoder.from_pretrained("me/diff")' in body
    assert crosscoder.manifest.digest in body
    (line,) = [one for one in body.splitlines() if "script" in one]
    assert "| `texts` | `texts.jsonl`, `hf:user/set` |" in body
    assert line == "| `note` | `'</code><script>alert(1)</script>/⏎# x` |"
