"""Plans: cutting long documents, filling shards, going on after an interruption without tokenizing again."""

import json
from pathlib import Path

import numpy as np
import pytest

from modeldiff.errors import InputError
from modeldiff.harvest.planner import make_plan, plan_record
from modeldiff.harvest.report import Counts
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.sides import SIDES
from modeldiff.texts.sources import Record, parse_sources
from modeldiff.texts.tokenize import Reader
from modeldiff.workspace.activations import plan_name
from modeldiff.workspace.plan import read_plan
from modeldiff.workspace.stage import Work
from tests.harvest.conftest import make_texts
from tests.texts.tokenizers_for_tests import bytes_trimmed, bytes_untrimmed, lower_case, readers
from tests.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

CONTEXT = {"a": 40, "b": 48}
LONG = Record("s", " ".join(make_texts(12)))


def settings(**changes) -> HarvestSettings:
    return HarvestSettings(model_a="a", model_b="b", texts=("t.txt",), **changes)


def planned(record: Record, both=None, context=CONTEXT, counts: Counts | None = None, **changes):
    both = both or readers(bytes_trimmed(), bytes_untrimmed())
    return plan_record(record, both, settings(**changes), context, counts)


def test_a_long_document_is_cut_into_pieces_that_fit_and_follow_each_other() -> None:
    pieces = planned(LONG)
    assert len(pieces) > 5
    assert "".join(piece.document.text for piece in pieces) == LONG.text
    for piece in pieces:
        for side in SIDES:
            tokens = piece.document.tokens[side]
            assert len(tokens.ids) <= CONTEXT[side]
            assert (tokens.starts[tokens.starts >= 0] <= len(piece.document.text)).all()
        assert piece.document.tokens["b"].ids[0] == 0  # <s> begins every piece of B
        assert piece.document.tokens["b"].starts[0] == -1


@pytest.mark.parametrize("pair_at", ["words", "tokens"])
def test_the_pieces_hold_the_pairs_of_the_whole_document(pair_at: str) -> None:
    def places(context):
        found, offset = [], 0
        for piece in planned(LONG, context=context, pair_at=pair_at):
            ids = [piece.document.tokens[side].ids[piece.token[side]].tolist() for side in SIDES]
            windows = [piece.window[side].tolist() for side in SIDES]
            found += list(zip((piece.char_end + offset).tolist(), *ids, *windows, strict=True))
            offset += len(piece.document.text)
        return found

    assert places(CONTEXT) == places({"a": 10_000, "b": 10_000})


def test_a_pair_is_the_token_that_ends_there() -> None:
    for piece in planned(LONG):
        for side in SIDES:
            tokens = piece.document.tokens[side]
            ends = tokens.ends[piece.token[side]].tolist()
            for end, char_end in zip(ends, piece.char_end.tolist(), strict=True):
                assert piece.document.text[:end].rstrip() == piece.document.text[:char_end]


def test_in_a_chat_only_the_contents_are_paired() -> None:
    chat = Record(
        "s",
        "The quick fox?\n  It was 1989.",
        ({"role": "user", "content": "The quick fox?"}, {"role": "assistant", "content": "  It was 1989."}),
    )
    both = {
        "a": Reader(tiny_tokenizer(chat_template=CHAT_TEMPLATE), True),
        "b": Reader(tiny_tokenizer(vocab_size=280), True),  # without a template
    }
    (piece,) = planned(chat, both)
    ends = piece.char_end.tolist()
    assert [chat.text[:end].split()[-1] for end in ends] == [
        "The",
        "quick",
        "fox",
        "fox?",
        "It",
        "was",
        "1989",
        "1989.",
    ]
    tokens = piece.document.tokens["a"]
    assert both["a"].decode(tokens.ids[tokens.starts < 0].tolist()).count("<|im_start|>") == 2
    assert len(tokens.ids) > len(bytes_trimmed()(chat.text)["input_ids"])


def test_a_chat_longer_than_the_context_loses_its_end() -> None:
    chat = Record("s", LONG.text, ({"role": "user", "content": LONG.text},))
    counts = Counts()
    (piece,) = planned(chat, counts=counts)
    assert all(len(piece.document.tokens[side].ids) <= CONTEXT[side] for side in SIDES)
    assert counts.data["chats_cut"] == 1
    # Only what both models were shown counts as theirs; the rest of the characters was not covered.
    assert counts.shares()["a"]["characters"] < 0.2


def test_shares_by_script_and_lost_tails() -> None:
    counts = Counts()
    both = {"a": Reader(bytes_trimmed(), False), "b": Reader(lower_case(), False)}
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


class CountingReader(Reader):
    read_texts: list[str]

    def read(self, record: Record):
        self.__dict__.setdefault("read_texts", []).append(record.text)
        return super().read(record)


def counting() -> dict[str, Reader]:
    return {"a": CountingReader(bytes_trimmed(), True), "b": CountingReader(bytes_untrimmed(), True)}


def plan_files(work: Work, shards: int) -> list[bytes]:
    return [(work.folder / plan_name(shard)).read_bytes() for shard in range(shards)]


def test_shards_end_with_a_piece_and_the_last_one_with_the_pairs_asked_for(tmp_path: Path, texts: Path) -> None:
    chosen = settings(pairs=500, shard_pairs=64)
    work = Work(tmp_path / "work")
    cursor = make_plan(work, chosen, parse_sources((str(texts),)), counting(), CONTEXT)
    assert cursor.pairs == 500
    assert not cursor.ran_out
    assert all(64 <= pairs < 64 + 40 for pairs in cursor.shards[:-1])
    assert sum(cursor.pairs_by_source.values()) == 500
    plans = [read_plan(work.folder / plan_name(shard)) for shard in range(len(cursor.shards))]
    assert [len(plan.pairs) for plan in plans] == cursor.shards
    for plan in plans:
        assert np.unique(plan.pairs.document).tolist() == list(range(len(plan.documents)))
    assert sorted({document.index for plan in plans for document in plan.documents}) == list(
        range(plans[-1].documents[-1].index + 1)
    )


def test_texts_that_run_out_give_what_there_is(tmp_path: Path, texts: Path) -> None:
    chosen = settings(pairs=10**6, shard_pairs=200)
    cursor = make_plan(Work(tmp_path / "work"), chosen, parse_sources((str(texts),)), counting(), CONTEXT)
    assert cursor.ran_out
    assert 500 < cursor.pairs < 5000


def test_texts_without_pairs_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "\\u200b"}\n')
    with pytest.raises(InputError, match=r"no pair of tokens was found in 1 documents.*--pair-at tokens"):
        make_plan(Work(tmp_path / "work"), settings(), parse_sources((str(path),)), counting(), CONTEXT)


@pytest.mark.parametrize("pairs", [500, 10**6])
def test_an_interrupted_plan_goes_on_where_it_was(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, pairs: int
) -> None:
    chosen, sources = settings(pairs=pairs, shard_pairs=64), parse_sources((str(texts),))
    straight = Work(tmp_path / "straight")
    whole = make_plan(straight, chosen, sources, counting(), CONTEXT)
    commit = Work.commit

    def commit_and_stop(work: Work, temporary: Path, name: str) -> None:
        commit(work, temporary, name)
        raise KeyboardInterrupt

    seen: list[str] = []
    for _ in range(len(whole.shards)):
        monkeypatch.setattr(Work, "commit", commit_and_stop)
        both = counting()
        with pytest.raises(KeyboardInterrupt):
            make_plan(Work(tmp_path / "broken"), chosen, sources, both, CONTEXT)
        seen += both["a"].read_texts
    monkeypatch.setattr(Work, "commit", commit)
    both = counting()
    work = Work(tmp_path / "broken")
    resumed = make_plan(work, chosen, sources, both, CONTEXT)
    assert resumed == whole
    assert plan_files(work, len(whole.shards)) == plan_files(straight, len(whole.shards))
    # A document is tokenized again only when a shard ended inside it.
    assert len(seen) - len(set(seen)) < len(whole.shards)
