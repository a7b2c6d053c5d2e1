"""Files of unfinished work: what a kill at any moment leaves is sound, what changed afterwards is not."""

from pathlib import Path
from typing import Any

import pytest

from modeldiff.workspace import kept
from modeldiff.workspace.files import write_bytes
from modeldiff.workspace.kept import is_sound, keep_bytes


def test_what_was_kept_is_sound_and_what_changed_is_named_and_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "one"
    assert not is_sound(path)
    keep_bytes(path, b"first")
    keep_bytes(path, b"other")
    assert is_sound(path)
    path.write_bytes(b"0ther")
    assert not is_sound(path)
    assert f"{path} is damaged: it is dropped, and what it held is made again" in capsys.readouterr().err
    assert list(path.parent.iterdir()) == []


def test_a_file_whose_digest_is_damaged_or_missing_is_not_trusted(tmp_path: Path) -> None:
    for damage in (b"", b'{"files": [{"size": "5", "blake3": "x"}]}', None):
        keep_bytes(tmp_path / "one", b"first")
        (digest,) = tmp_path.glob("*.digest")
        digest.unlink() if damage is None else digest.write_bytes(damage)
        assert not is_sound(tmp_path / "one")


def test_a_kill_between_digest_and_file_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as it happens."""
    path = tmp_path / "checkpoint"
    keep_bytes(path, b"step 1")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    for step in (b"step 2", b"step 3", b"step 4"):
        with monkeypatch.context() as patch:
            patch.setattr(kept, "rename_into", die)
            with pytest.raises(KeyboardInterrupt):
                keep_bytes(path, step)
        assert is_sound(path)
        assert path.read_bytes() == b"step 1"
    keep_bytes(path, b"step 5")
    assert is_sound(path)
    write_bytes(path, b"step 1")
    assert is_sound(path), "the one before the newest: which of the two there was cannot be known"
    write_bytes(path, b"step 4")
    assert not is_sound(path)
