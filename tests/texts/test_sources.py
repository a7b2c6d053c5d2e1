"""Text sources: what is read from each, what is refused and how, and how several are mixed."""

import itertools
import json
from pathlib import Path

import pytest

from modeldiff.errors import DamagedError, InputError
from modeldiff.texts.sources import mix, parse_source, parse_sources, read_source, source_digest


def jsonl(path: Path, *records) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def texts_of(entry: str | Path, field: str = "text") -> list[str]:
    return [record.text for record in read_source(parse_source(str(entry)), field)]


def test_a_txt_file_is_cut_at_blank_lines_into_documents_of_about_2000_characters(tmp_path: Path) -> None:
    paragraphs = [f"{i}" * 900 for i in range(1, 8)]
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(paragraphs))
    found = texts_of(path)
    assert [text.split() for text in found] == [paragraphs[:3], paragraphs[3:6], paragraphs[6:]]


def test_a_txt_file_without_blank_lines_is_cut_at_line_ends_and_blanks(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("x" * 900 + "\n" + "\n".join("word " * 180 for _ in range(12)) + "word " * 3000 + "y" * 9000)
    found = texts_of(path)
    assert "".join(found) == path.read_text()
    assert all(2000 <= len(text) <= 4000 for text in found[:-1])
    assert all(text[-1] in "\n y" for text in found)


def test_a_very_long_text_becomes_several_documents(tmp_path: Path) -> None:
    text = "some words " * 30_000
    found = texts_of(jsonl(tmp_path / "long.jsonl", {"text": text}))
    assert "".join(found) == text
    assert [len(part) > 99_000 for part in found] == [True, True, True, False]


def test_line_ends_of_a_txt_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "dos.txt"
    path.write_bytes("\ufeffone\r\ntwo\rthree\r\n".encode())
    assert texts_of(path) == ["one\r\ntwo\rthree\r\n"]


def test_jsonl_records_and_their_labels(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "some.jsonl", {"text": "one"}, {"text": "two", "source": "other"}, {"text": "  "})
    records = list(read_source(parse_source(f"mine={path}@0.5"), "text"))
    assert [(record.source, record.text) for record in records] == [("mine", "one"), ("other", "two")]


def test_the_text_field_can_be_chosen(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "some.jsonl", {"body": "one"})
    assert texts_of(path, "body") == ["one"]
    with pytest.raises(InputError, match=r"line 1: field 'text' is missing \(fields: body\).*--text-field"):
        texts_of(path)


def test_chats(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]},
    ]
    (record,) = read_source(parse_source(str(jsonl(tmp_path / "c.jsonl", {"messages": messages}))), "text")
    assert record.text == "Hi\nHello\nthere"
    assert [message["role"] for message in record.messages] == ["user", "assistant"]


def test_lone_surrogates_become_replacement_characters(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n')
    assert texts_of(path) == ["a\ufffdb 😀"]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", "two"], "n": [1, 2], "source": ["x", None]}), path)
    records = list(read_source(parse_source(str(path)), "text"))
    assert [(record.source, record.text) for record in records] == [("x", "one"), ("t", "two")]
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
        ('{"text": "one"}\n{"text": \n', r"bad\.jsonl, line 2: not valid JSON"),
        ("[1]\n", r"line 1: expected a JSON object, found list"),
        ('{"text": 3}\n', r"line 1: field 'text' must be a text, found int"),
        ('{"text": "a", "source": 3}\n', r"line 1: field 'source' must be a text, found int"),
        ('{"messages": []}\n', r"line 1: field 'messages' must be a list"),
        ('{"messages": [{"role": "user"}]}\n', r"line 1: each of the 'messages' needs"),
        ("\n\n", r"bad\.jsonl holds no text"),
        ('{"text": " "}\n', r"bad\.jsonl holds no text"),
        ("", r"bad\.jsonl is empty"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        texts_of(path)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        texts_of(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("none.txt", "there is no text file none.txt"),
        ("{folder}", "is a folder"),
        ("{folder}/a.csv", r"ends in '\.csv': expected .txt, .jsonl or .parquet"),
        ("{folder}/a.txt@zero", "'zero' after @ is no weight"),
        ("{folder}/a.txt@-1", "'-1' after @ is no weight"),
        ("hf:", "names no data set"),
    ],
)
def test_sources_that_do_not_exist(tmp_path: Path, entry: str, message: str) -> None:
    for name in ("a.csv", "a.txt"):
        (tmp_path / name).write_text("text")
    with pytest.raises(InputError, match=message):
        parse_source(entry.format(folder=tmp_path))


def test_a_file_that_exists_is_taken_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a=b@2.txt"
    path.write_text("text")
    source = parse_source(str(path))
    assert (source.location, source.label, source.weight) == (str(path), "a=b@2", 1.0)
    source = parse_source(f"label={path}@3")
    assert (source.location, source.label, source.weight) == (str(path), "label", 3.0)


def test_hub_names() -> None:
    source = parse_source("news=hf:org/name:config:test@2")
    assert (source.location, source.label, source.weight, source.hub) == ("org/name:config:test", "news", 2.0, True)


def test_sources_are_mixed_by_weight_in_characters_until_they_run_out(tmp_path: Path) -> None:
    long = jsonl(tmp_path / "long.jsonl", *({"text": "x" * 30} for _ in range(20)))
    short = jsonl(tmp_path / "short.jsonl", *({"text": "y" * 10} for _ in range(90)))
    sources = parse_sources((f"{long}@3", f"{short}@1"))
    order = list(mix(sources, "text"))
    assert len(order) == 110
    given = {"long": 0, "short": 0}
    for record in itertools.islice(order, 36):
        given[record.source] += len(record.text)
    assert abs(given["long"] - 3 * given["short"]) <= 60
    assert [r.source for r in order] == [r.source for r in mix(sources, "text")]
    assert all(record.source == "short" for record in order[-60:])


def test_a_sample_is_spread_over_the_source_and_chosen_by_the_seed(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "many.jsonl", *({"text": str(i)} for i in range(1000)))
    sources = parse_sources((str(path),))
    chosen = [int(record.text) for record in mix(sources, "text", sample=0.2, seed=1)]
    assert 150 < len(chosen) < 250
    assert min(chosen) < 50 < 950 < max(chosen)
    assert chosen == [int(record.text) for record in mix(sources, "text", sample=0.2, seed=1)]
    assert chosen != [int(record.text) for record in mix(sources, "text", sample=0.2, seed=2)]
