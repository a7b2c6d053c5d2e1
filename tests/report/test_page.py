"""The page: what a reader finds in it, and that nothing from models, texts and names acts in it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from modeldiff.catalogue.contrast import read_contrast
from modeldiff.catalogue.table import FeatureTable
from modeldiff.cli.main import run as run_command
from modeldiff.diff.run import Diff
from modeldiff.diff.run import run as run_diff
from modeldiff.diff.settings import DiffSettings
from modeldiff.report.content import content
from modeldiff.report.page import page
from modeldiff.report.run import run
from modeldiff.report.settings import ReportSettings
from modeldiff.report.sources import Sources
from modeldiff.workspace import Workspace
from tests.contrast.conftest import make_texts
from tests.report.made_entry import FEATURE, entry
from tests.tiny_models import save_tiny

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}\x1b[2J\u202eevil"
SHOWN = "</script><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}␛[2J\ufffdevil"


class Read(HTMLParser):
    """A page as a browser takes it: its elements, and the text outside of style and script."""

    def __init__(self, made: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self.text = ""
        self._in = ""
        self.feed(made.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in = tag

    def handle_data(self, data: str) -> None:
        if self._in in ("script", "style"):
            self.inside.setdefault(self._in, []).append(data)
        else:
            self.text += data

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self._in = ""

    @property
    def policy(self) -> str:
        return next(str(one["content"]) for tag, one in self.elements if tag == "meta" and "http-equiv" in one)

    @property
    def browse(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(self.inside["script"][0])))
        return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Diff:
    """Two tiny models that differ in nothing that anybody planted; the label of one source is hostile."""
    folder, texts = tmp_path_factory.mktemp("report"), make_texts(120)
    save_tiny(folder / "a", "gpt2", texts=texts, width=16, layers=2)
    save_tiny(folder / "b", "llama", texts=texts[:20], width=24, vocab_size=400, layers=2, seed=1)
    lines = [json.dumps({"text": text, "source": ("web", EVIL)[i % 2]}) for i, text in enumerate(texts)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    settings = DiffSettings(
        model_a=str(folder / "a"), model_b=str(folder / "b"), texts=(str(folder / "texts.jsonl"),), pairs=2400,
        features=32, k=4, steps=10, places=40, cause=False, device="cpu",
    )  # fmt: skip
    return run_diff(settings, Workspace(folder / "ws"))


@pytest.fixture
def sources(done: Diff) -> Sources:
    return Sources.of(Workspace(done.contrast.folder.parents[1]), done.contrast)


def with_a_difference(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> Read:
    found = {**read_contrast(sources.contrast), "differences": [entry(EVIL)], "found": 1, "candidates": 2}
    monkeypatch.setattr("modeldiff.report.content.read_contrast", lambda _: found)
    return Read(page(content(sources, ReportSettings())))


def test_the_answer_stands_first_and_what_is_missing_has_its_command(done: Diff) -> None:
    made = Read(done.report.file("report.html").read_bytes())
    assert "Nothing beyond chance" in made.text.split("Differences")[0]
    assert "modeldiff features impact --crosscoder crosscoder:1" in made.text
    for one in (done.activations, done.crosscoder, done.features, done.stitch, done.contrast):
        assert one.ref in made.text
        assert one.manifest.digest in made.text


def test_a_difference_opens_to_its_evidence(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_a_difference(sources, monkeypatch)
    assert ("details", {"class": "entry", "id": "difference-1"}) in made.elements
    for said in (
        f"after “{SHOWN}”", "effect 40%", "[20%, 60%]", "a cause", "not 60% (random directions removed: 55%; A: 10%)",
        f"feature {FEATURE}", "predictable", "modeldiff steer --model B --feature 3",
    ):  # fmt: skip
        assert said in made.text
    assert sources.table is not None
    example = sources.table.row(FEATURE, examples=1).examples[0]
    marked = [one for tag, one in made.elements if tag == "mark"]
    assert any(one["title"] == f"{example.activation:.2f}" and "centre" in str(one["class"]) for one in marked)


def test_nothing_from_data_acts(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_a_difference(sources, monkeypatch)
    assert made.text.count(SHOWN) >= 6
    assert not {tag for tag, _ in made.elements} & {"img", "iframe", "link", "object", "form", "base"}
    # Nothing runs but the page's own script, and nothing is fetched: every address is a place in the page.
    assert [one for tag, one in made.elements if tag == "script"] == [{"type": "text/plain", "id": "data"}, {}]
    for _, attributes in made.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style")]
        assert str(attributes.get("href", "#")).startswith("#")
    for kind, content_of in (("style", made.inside["style"][0]), ("script", made.inside["script"][1])):
        digest = base64.b64encode(hashlib.sha256(content_of.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in made.policy
    assert "default-src 'none'" in made.policy
    assert SHOWN in {one["source"][0] for one in made.browse["shown"].values()}


def test_every_feature_has_its_numbers_and_the_strongest_their_examples(done: Diff, sources: Sources) -> None:
    table = FeatureTable(done.features)
    found = Read(page(content(sources, ReportSettings(evidence=5, examples=2)))).browse
    assert found["sizes"] == {"A": 2, "shared": 28, "B": 2}
    for values in found["columns"].values():
        assert len(values) == 32
    row = table.row(FEATURE, examples=0)
    assert found["columns"]["density"][FEATURE] == pytest.approx(row.density, rel=5e-3)
    assert found["columns"]["r2_own"][FEATURE] == pytest.approx(row.r2_own, rel=5e-3)
    assert found["verdicts"][found["columns"]["verdict"][FEATURE]] == row.verdict
    assert sorted(map(int, found["shown"])) == sorted(table.select(top=5).ids)
    strongest = table.select(top=1).ids[0]
    example = table.row(strongest, examples=1).examples[0]
    about, *parts = found["shown"][str(strongest)]["examples"][0]
    assert f"document {example.document}" in about
    assert "".join(parts[::2]) in f"{example.before}{example.word}{example.after}"
    # The word of the example has its activation with a minus.
    assert [text for text, value in zip(parts[::2], parts[1::2], strict=True) if value < 0] == [example.word]


def test_the_page_made_again_is_the_same_to_the_byte(done: Diff, sources: Sources) -> None:
    before = done.report.file("report.html").read_bytes()
    again = run(ReportSettings(), sources.workspace, force=True)
    assert again.ref != done.report.ref
    assert again.file("report.html").read_bytes() == before


def test_a_list_without_a_crosscoder_has_a_page_too(done: Diff, sources: Sources) -> None:
    words = Sources(sources.workspace, done.contrast, sources.continuations, None, None, None, {}, [])
    made = Read(page(content(words, ReportSettings())))
    assert "Nothing beyond chance" in made.text
    assert [one for tag, one in made.elements if tag == "script"] == [{}]


def test_the_command_says_where_the_page_is(
    done: Diff, sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sub" / "diff.html"
    with pytest.raises(SystemExit, match="0"):
        run_command(["--workspace", str(sources.workspace.folder), "report", "--out", str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["page"] == str(out)
    assert out.read_bytes() == done.report.file("report.html").read_bytes()
