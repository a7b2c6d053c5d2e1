"""Plans: cutting long documents, filling shards, going on after an interruption without tokenizing again."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from modeldiff.errors import InputError
from modeldiff.harvest.pieces import Piece
from modeldiff.harvest.planner import Cursor, Planner
from modeldiff.harvest.report import Counts
from modeldiff.harvest.run import open_pair, open_readers
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.sides import SIDES
from modeldiff.texts.sources import Record, parse_source
from modeldiff.texts.tokenize import Reader
from modeldiff.workspace.activations import plan_name
from modeldiff.workspace.plan import Tokens, read_plan
from modeldiff.workspace.stage import Work
from tests.harvest.conftest import make_texts
from tests.texts.tokenizers_for_tests import bytes_trimmed, bytes_untrimmed, lower_case, readers
from tests.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

CONTEXT = {"a": 40, "b": 48}
LONG = Record("s", " ".join(make_texts(12)))


def settings(**changes) -> HarvestSettings:
    return HarvestSettings(model_a="a", model_b="b", texts=("t.txt",), **changes)


def planned(record: Record, both=None, context=CONTEXT, counts: Counts | None = None, **changes) -> list[Piece]:
    both = both or readers(bytes_trimmed(), bytes_untrimmed())
    cut = Planner(settings(**changes), [], both, context).cutter.cut(record)
    if counts:
        counts.merge(cut.counts)
    return cut.pieces


def test_a_long_document_is_cut_into_pieces_that_fit_and_follow_each_other() -> None:
    pieces = planned(LONG)
    assert len(pieces) > 5
    assert "".join(document.text for document, _ in pieces) == LONG.text
    for document, pairs in pieces:
        for side in SIDES:
            tokens = document.tokens[side]
            assert len(tokens.ids) <= CONTEXT[side]
            assert (tokens.starts[tokens.starts >= 0] <= len(document.text)).all()
            # A pair is the token that ends there.
            ends = tokens.ends[pairs.token[side]].tolist()
            for end, char_end in zip(ends, pairs.char_end.tolist(), strict=True):
                assert document.text[:end].rstrip() == document.text[:char_end]
        assert document.tokens["b"].ids[0] == 0  # <s> begins every piece of B
        assert document.tokens["b"].starts[0] == -1


def test_special_tokens_in_a_text_stand_where_they_stand_in_it() -> None:
    """Those that a tokenizer adds stand around every piece."""
    words = " ".join(make_texts(6))
    pieces = planned(Record("s", f"<s>{words}</s>{words}</s>"))
    assert len(pieces) > 3
    read = {side: [document.tokens[side].ids.tolist() for document, _ in pieces] for side in SIDES}
    for side in SIDES:
        assert [ids.count(1) for ids in read[side]].count(1) == 2
        assert read[side][-1][-1] == 1  # </s>
    assert [ids.count(0) for ids in read["a"]] == [1] + [0] * (len(pieces) - 1)
    assert [ids.count(0) for ids in read["b"]] == [2] + [1] * (len(pieces) - 1)
    assert all(ids[0] == 0 for ids in read["b"])


@pytest.mark.parametrize("pair_at", ["words", "tokens"])
def test_the_pieces_hold_the_pairs_of_the_whole_document(pair_at: str) -> None:
    def places(context):
        found, offset = [], 0
        for document, pairs in planned(LONG, context=context, pair_at=pair_at):
            ids = [document.tokens[side].ids[pairs.token[side]].tolist() for side in SIDES]
            windows = [pairs.window[side].tolist() for side in SIDES]
            found += list(zip((pairs.char_end + offset).tolist(), *ids, *windows, strict=True))
            offset += len(document.text)
        return found

    assert places(CONTEXT) == places({"a": 10_000, "b": 10_000})


def test_in_a_chat_only_the_contents_are_paired() -> None:
    chat = Record(
        "s",
        "The quick fox?\n  It was 1989.",
        ({"role": "user", "content": "The quick fox?"}, {"role": "assistant", "content": "  It was 1989."}),
    )
    both = {
        "a": Reader(tiny_tokenizer(chat_template=CHAT_TEMPLATE)),
        "b": Reader(tiny_tokenizer(vocab_size=280)),  # without a template
    }
    ((document, pairs),) = planned(chat, both)
    words = [chat.text[:end].split()[-1] for end in pairs.char_end.tolist()]
    assert words == ["The", "quick", "fox", "fox?", "It", "was", "1989", "1989."]
    tokens = document.tokens["a"]
    assert both["a"].decode(tokens.ids[tokens.starts < 0].tolist()).count("<|im_start|>") == 2
    assert len(tokens.ids) > len(bytes_trimmed()(chat.text)["input_ids"])


def test_a_chat_longer_than_the_context_loses_its_end() -> None:
    chat = Record("s", LONG.text, ({"role": "user", "content": LONG.text},))
    counts = Counts()
    ((document, _),) = planned(chat, counts=counts)
    assert all(len(document.tokens[side].ids) <= CONTEXT[side] for side in SIDES)
    assert counts.data["chats_cut"] == 1
    # Only what both models were shown counts as theirs; the rest of the characters was not covered.
    assert counts.shares()["a"]["characters"] < 0.2


def test_shares_by_script_and_lost_tails() -> None:
    counts = Counts()
    both = {"a": Reader(bytes_trimmed()), "b": Reader(lower_case())}
    planned(Record("s", "the quick brown Fox jumps"), both, counts=counts, align="greedy", pair_at="tokens")
    lost = counts.data["lost_tails"]
    assert lost["documents"] == 1
    assert lost["tokens_a"] > 0
    counts = Counts()
    planned(Record("s", "the 東京 1989"), readers(bytes_trimmed(), bytes_trimmed()), counts=counts)
    for side in SIDES:
        shares = counts.shares()[side]["by_script"]
        assert set(shares) == {"Latin", "CJK", "number"}
        assert shares["CJK"]["characters"] == 1.0
    assert counts.data["lost_tails"]["documents"] == 0


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    records = [{"text": text, "source": f"s{i % 3}"} for i, text in enumerate(make_texts(30))]
    records.insert(9, {"text": LONG.text})
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def plan(folder: Path, texts: Path, **changes) -> tuple[Cursor, list[Path]]:
    """(cursor, plan files)."""
    both, work = readers(bytes_trimmed(), bytes_untrimmed()), Work(folder)
    cursor = Planner(settings(**changes), [parse_source(str(texts))], both, CONTEXT).plan(work, 10**6)
    return cursor, [folder / plan_name(shard) for shard in range(len(cursor.shards))]


def test_shards_end_with_a_piece_and_the_last_one_with_the_pairs_asked_for(tmp_path: Path, texts: Path) -> None:
    cursor, files = plan(tmp_path / "work", texts, pairs=500, shard_pairs=64)
    assert cursor.pairs == sum(cursor.pairs_by_source.values()) == 500
    assert not cursor.ran_out
    assert all(64 <= pairs < 64 + 40 for pairs in cursor.shards[:-1])
    plans = [read_plan(file) for file in files]
    assert [len(plan.pairs) for plan in plans] == cursor.shards
    for one in plans:
        assert np.unique(one.pairs.document).tolist() == list(range(len(one.documents)))
    found = {document.index for one in plans for document in one.documents}
    assert sorted(found) == list(range(plans[-1].documents[-1].index + 1))


def test_texts_without_pairs_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "\\u200b"}\n')
    with pytest.raises(InputError, match=r"no pair of tokens was found in 1 documents.*--pair-at tokens"):
        plan(tmp_path / "work", path)


def test_a_chat_that_a_template_refuses_is_left_out_and_named(tmp_path: Path) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT_TEMPLATE
    both = readers(tiny_tokenizer(chat_template=CHAT_TEMPLATE), tiny_tokenizer(chat_template=refusing))
    user, system = ({"role": role, "content": "The quick fox."} for role in ("user", "system"))
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in ([user], [system, user], [user])))
    sources = [parse_source(str(path))]
    cursor = Planner(settings(), sources, both, CONTEXT).plan(Work(tmp_path / "work"), 10**6)
    assert cursor.counts["documents"] == 2
    assert cursor.counts["left_out"]["records"] == 1
    (named,) = cursor.counts["left_out"]["first"]
    assert named.startswith(f"{path}, line 2: the chat template of ")
    assert named.endswith("refuses the messages: no system role")
    with pytest.raises(InputError, match=r"chats\.jsonl, line 2: .*no system role"):
        Planner(settings(strict=True), sources, both, CONTEXT).plan(Work(tmp_path / "strict"), 10**6)


@pytest.mark.parametrize("pairs", [500, 10**6])
def test_an_interrupted_plan_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    texts = tmp_path / "t.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + '\n{"text": null}\n' for text in make_texts()))
    whole, files = plan(tmp_path / "straight", texts, pairs=pairs, shard_pairs=64)
    read: list[str] = []
    read_one, commit = Reader.read, Work.commit

    def counted(reader: Reader, record: Record) -> Tokens:
        read.append(record.text)
        return read_one(reader, record)

    def commit_and_stop(work: Work, temporary: Path, name: str) -> None:
        commit(work, temporary, name)
        raise KeyboardInterrupt

    monkeypatch.setattr(Reader, "read", counted)
    with monkeypatch.context() as patch:
        patch.setattr(Work, "commit", commit_and_stop)
        for _ in range(len(whole.shards)):
            with pytest.raises(KeyboardInterrupt):
                plan(tmp_path / "broken", texts, pairs=pairs, shard_pairs=64)
    resumed, resumed_files = plan(tmp_path / "broken", texts, pairs=pairs, shard_pairs=64)
    assert resumed == whole
    assert resumed.counts["left_out"]["records"] > 10
    assert [file.read_bytes() for file in resumed_files] == [file.read_bytes() for file in files]
    # A document is tokenized again (once a side) only when a shard ended inside it.
    assert len(read) - 2 * len(set(read)) < 2 * len(whole.shards)


@pytest.mark.parametrize("name", ["resume/plan-00001.json", "shards/00001.plan.h5"])
def test_what_is_planned_behind_a_damaged_shard_is_planned_again(tmp_path: Path, texts: Path, name: str) -> None:
    """Also when the cursor still reads as a cursor, with another number in it."""
    whole, files = plan(tmp_path / "work", texts, pairs=500, shard_pairs=64)
    expected = [file.read_bytes() for file in files]
    damaged = tmp_path / "work" / name
    content = damaged.read_bytes()
    damaged.write_bytes(content.replace(b'"records": ', b'"records": 1') if name.endswith("json") else content[:-1])
    again, files = plan(tmp_path / "work", texts, pairs=500, shard_pairs=64)
    assert again == whole
    assert [file.read_bytes() for file in files] == expected


@pytest.fixture
def in_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also these few pairs are worth two processes, which are given three records at a time."""
    for name, value in {"available_cores": lambda: 4, "_PAIRS_A_PROCESS": 250, "_GROUP_RECORDS": 3}.items():
        monkeypatch.setattr(f"modeldiff.harvest.planner.{name}", value)


def test_processes_write_the_bytes_of_one(
    make_settings, models: dict[str, Path], tmp_path: Path, texts: Path, request: pytest.FixtureRequest, capsys
) -> None:
    changed = make_settings(texts=(str(texts),), pairs=500, shard_pairs=64)
    pair, sources = open_pair(changed), [parse_source(str(texts))]
    planner = Planner(changed, sources, open_readers(pair), pair.context, pair.ref)
    made = []
    for name in ("one", "two"):
        if name == "two":
            request.getfixturevalue("in_two")
        cursor = planner.plan(Work(tmp_path / name), 10**6)
        files = sorted((tmp_path / name / "shards").iterdir())
        made.append((cursor, [(file.name, file.read_bytes()) for file in files]))
    assert "tokenizing and aligning in 2 processes" in capsys.readouterr().err
    assert len(made[0][0].shards) > 4
    assert made[0] == made[1]


def test_what_is_wrong_with_a_record_is_raised_in_its_place(
    tmp_path: Path, in_two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that are read ahead may not be needed."""
    both, good = readers(bytes_trimmed(), bytes_untrimmed()), [Record("s", text) for text in make_texts(20)]

    def records(_planner: Planner) -> Iterator[Record]:
        yield from good
        yield Record("s", "", where="t.txt, line 21", problem="no text")
        raise InputError("the file ends in the middle of a line")

    monkeypatch.setattr(Planner, "_records", records)
    cutter = Planner(settings(), [], both, CONTEXT).cutter
    monkeypatch.setattr("modeldiff.harvest.planner.in_processes", lambda *_: nullcontext(cutter.cut_all))
    enough = Planner(settings(pairs=500, strict=True), [], both, CONTEXT, ref={})
    assert enough.plan(Work(tmp_path / "enough"), 10**6).pairs == 500
    for name, strict, message in (("strict", True, "line 21: no text"), ("broken", False, "in the middle of a line")):
        more = Planner(settings(pairs=5000, strict=strict), [], both, CONTEXT, ref={})
        with pytest.raises(InputError, match=message):
            more.plan(Work(tmp_path / name), 10**6)
