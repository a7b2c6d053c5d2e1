"""Text sources: what is read from each, what is refused and how, and how several are mixed."""

import itertools
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from modeldiff.errors import DamagedError, InputError
from modeldiff.texts.sources import LeftOut, mix, parse_source, read_source, source_digest


def jsonl(path: Path, *records) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read(entry: str | Path, field: str = "text") -> list[tuple[str, str]]:
    """(label, text) of each record."""
    return [(record.source, record.text) for record in read_source(parse_source(str(entry)), field)]


def texts_of(entry: str | Path, field: str = "text") -> list[str]:
    return [text for _, text in read(entry, field)]


def test_a_txt_file_is_cut_at_blank_lines_into_documents_of_about_2000_characters(tmp_path: Path) -> None:
    paragraphs = [f"{i}" * 900 for i in range(1, 8)]
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(paragraphs))
    assert [text.split() for text in texts_of(path)] == [paragraphs[:3], paragraphs[3:6], paragraphs[6:]]
    # Without blank lines, at line ends and blanks.
    path.write_text("x" * 900 + "\n" + "\n".join("word " * 180 for _ in range(12)) + "word " * 3000 + "y" * 9000)
    found = texts_of(path)
    assert "".join(found) == path.read_text()
    assert all(2000 <= len(text) <= 4000 for text in found[:-1])
    assert all(text[-1] in "\n y" for text in found)
    # Line ends are kept.
    path.write_bytes("\ufeffone\r\ntwo\rthree\r\n".encode())
    assert texts_of(path) == ["one\r\ntwo\rthree\r\n"]


def test_jsonl_records_and_their_labels(tmp_path: Path) -> None:
    records = [{"text": "one", "body": "two"}, {"text": "a\ud800b 😀", "source": "other"}, {"text": "  "}]
    path = jsonl(tmp_path / "some.jsonl", *records)
    # Lone surrogates, which JSON can spell and tokenizers refuse, become replacement characters.
    assert read(f"mine={path}@0.5") == [("mine", "one"), ("other", "a\ufffdb 😀")]
    jsonl(path, records[0])
    assert texts_of(path, "body") == ["two"]


@pytest.mark.parametrize("field", ["messages", "conversation"])
def test_chats(tmp_path: Path, field: str) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]},
    ]
    (record,) = read_source(parse_source(str(jsonl(tmp_path / "c.jsonl", {field: messages}))), "text")
    assert record.text == "Hi\nHello\nthere"
    assert [message["role"] for message in record.messages] == ["user", "assistant"]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", "two"], "n": [1, 2], "source": ["x", None]}), path)
    assert read(path) == [("x", "one"), ("t", "two")]
    with pytest.raises(InputError, match=r"column 'body' is missing \(columns: text, n, source\)"):
        texts_of(path, "body")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DamagedError, match=r"t\.parquet: cannot be read as Parquet"):
        texts_of(path)


def test_a_data_set_in_a_local_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    jsonl(folder / "train.jsonl", {"text": "one"}, {"text": "two"})
    source = parse_source(f"hf:{folder}")
    assert [record.text for record in read_source(source, "text")] == ["one", "two"]
    before = source_digest(source, lambda path: path.read_text())
    jsonl(folder / "train.jsonl", {"text": "one"}, {"text": "three"})
    assert source_digest(source, lambda path: path.read_text()) != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'\n{"text": \n', r"bad\.jsonl, line 2: not valid JSON"),
        (b"[1]\n", r"line 1: expected a JSON object, found list"),
        (b'{"text": 3}\n', r"line 1: field 'text' must be a text, found int"),
        (b'{"body": "one"}\n', r"line 1: field 'text' is missing \(fields: body\).*--text-field"),
        (b'{"text": "a", "source": 3}\n', r"line 1: field 'source' must be a text, found int"),
        (b'{"messages": []}\n', r"line 1: field 'messages' must be a list"),
        (b'{"conversation": ["Hi"]}\n', r"line 1: each of the 'conversation' needs"),
        (b'{"messages": [{"role": "user"}]}\n', r"line 1: each of the 'messages' needs"),
        (b'\n{"text": " "}\n', r"bad\.jsonl holds no text"),
        (b"", r"bad\.jsonl is empty"),
        (b"caf\xe9", "not UTF-8"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        texts_of(path)
    assert "\n" not in str(caught.value)


def test_records_that_cannot_be_used_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    picture = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "x.png"}}]
    bad = {
        2: '{"text": ',
        3: "[1]",
        4: '{"text": null}',
        5: '{"text": "b", "source": {"url": "x"}}',
        6: json.dumps({"messages": [{"role": "user", "content": picture}]}),
        7: '{"messages": [{"role": "assistant", "content": null, "tool_calls": []}]}',
        8: "[" * 100_000,
    }
    good = ['{"text": "a", "source": null}', '{"text": "z", "n": ' + "9" * 5000 + "}"]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join([good[0], *bad.values(), good[1]]) + "\n")
    left_out = LeftOut()
    records = list(left_out.usable(read_source(parse_source(str(path)))))
    assert [(record.text, record.source, record.where) for record in records] == [
        ("a", "mixed", f"{path}, line 1"),
        ("z", "mixed", f"{path}, line 9"),
    ]
    assert left_out.data["records"] == len(bad)
    assert [named.split(": ")[0] for named in left_out.data["first"]] == [f"{path}, line {line}" for line in bad]
    assert str(left_out).startswith(f"7 records left out: {path}, line 2: not valid JSON")
    with pytest.raises(InputError, match=r"mixed\.jsonl, line 2: not valid JSON"):
        list(LeftOut(strict=True).usable(read_source(parse_source(str(path)))))


def test_fields_inside_others(tmp_path: Path) -> None:
    record = {"meta": {"body": {"en": "one"}, "from": "x"}, "meta.flat": "two"}
    source = parse_source(str(jsonl(tmp_path / "in.jsonl", record)))
    (found,) = read_source(source, "meta.body.en", "meta.from")
    assert (found.text, found.source) == ("one", "x")
    (found,) = read_source(source, "meta.flat")
    assert found.text == "two"
    path = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([record]), path)
    (found,) = read_source(parse_source(str(path)), "meta.body.en", "meta.from")
    assert (found.text, found.source) == ("one", "x")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("none.txt", "there is no text file none.txt"),
        ("{folder}", "is a folder"),
        ("{folder}/a.doc", r"ends in '\.doc': expected .txt, .jsonl or .parquet"),
        ("{folder}/a.txt@zero", "'zero' after @ is no weight"),
        ("{folder}/a.txt@-1", "'-1' after @ is no weight"),
        ("hf:", "names no data set"),
    ],
)
def test_sources_that_do_not_exist(tmp_path: Path, entry: str, message: str) -> None:
    for name in ("a.doc", "a.txt"):
        (tmp_path / name).write_text("text")
    with pytest.raises(InputError, match=message):
        parse_source(entry.format(folder=tmp_path))


def test_labels_and_weights(tmp_path: Path) -> None:
    # A file that exists is taken by its name.
    path = tmp_path / "a=b@2.txt"
    path.write_text("text")
    for entry, location, label, weight, hub in (
        (str(path), str(path), "a=b@2", 1.0, False),
        (f"label={path}@3", str(path), "label", 3.0, False),
        ("news=hf:org/name:config:test@2", "org/name:config:test", "news", 2.0, True),
    ):
        source = parse_source(entry)
        assert (source.location, source.label, source.weight, source.hub) == (location, label, weight, hub)


def test_sources_are_mixed_by_weight_in_characters_until_they_run_out(tmp_path: Path) -> None:
    long = jsonl(tmp_path / "long.jsonl", *({"text": "x" * 30} for _ in range(20)))
    short = jsonl(tmp_path / "short.jsonl", *({"text": "y" * 10} for _ in range(90)))
    order = list(mix([parse_source(f"{long}@3"), parse_source(f"{short}@1")], "text"))
    assert len(order) == 110
    given = {"long": 0, "short": 0}
    for record in itertools.islice(order, 36):
        given[record.source] += len(record.text)
    assert abs(given["long"] - 3 * given["short"]) <= 60
    assert all(record.source == "short" for record in order[-60:])


def test_a_sample_is_spread_over_the_source_and_chosen_by_the_seed(tmp_path: Path) -> None:
    sources = [parse_source(str(jsonl(tmp_path / "many.jsonl", *({"text": str(i)} for i in range(1000)))))]
    first, again, other = (
        [int(record.text) for record in mix(sources, "text", sample=0.2, seed=seed)] for seed in (1, 1, 2)
    )
    assert 150 < len(first) < 250
    assert min(first) < 50 < 950 < max(first)
    assert first == again != other
