"""A judge that misbehaves: silent, endless, huge, broken, hostile. The command ends in one line or with an explanation,
within its deadline, and nothing of an answer acts on the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from tests.attack.child import Outcome, call
from tests.attack.terminal import HOSTILE, raw
from tests.attack.world import World
from tests.judge.fake_endpoint import Reply, failed, said, serving

_TIMEOUT = 0.5
# Start, sampling of the texts, and three tries of each of few questions, each within the timeout.
_MOST_SECONDS = 90.0
_OK, _CHUNKED = b"HTTP/1.1 200 OK\r\n", b"Transfer-Encoding: chunked\r\n\r\n"
REPLIES = {
    "says nothing": Reply(hang=True),
    "hangs up": Reply(drop=True),
    "continues without end": Reply(endless=(b"", b"HTTP/1.1 100 Continue\r\n\r\n")),
    "dribbles headers": Reply(endless=(_OK, b"X-Slow: 1\r\n")),
    "dribbles an answer": Reply(endless=(_OK + _CHUNKED, b"1\r\n \r\n")),
    "dribbles an error": Reply(endless=(b"HTTP/1.1 500 Oops\r\n" + _CHUNKED, b"1\r\n \r\n")),
    "answers without end": Reply(endless=(_OK + _CHUNKED, b"2710\r\n" + b" " * 10_000 + b"\r\n")),
    "sends no HTTP": Reply(endless=(b"\x00\xff" * 500, b"\x00")),
    "fails": failed(500, message=HOSTILE),
    "refuses": failed(401, message=HOSTILE),
    "sends pages": Reply(body=b"<html>welcome</html>"),
    "sends deep JSON": Reply(body=b"[" * 100_000),
    "sends huge numbers": Reply(body=b'{"choices": ' + b"9" * 5000 + b"}"),
    "sends no text": said(None),
    "sends hostile text": said(json.dumps({"explanation": HOSTILE, "concern": HOSTILE, "reason": HOSTILE})),
    "sends hostile words": said(HOSTILE * 20),
    "redirects": Reply(302, b"", {"Location": "file:///etc/passwd"}),
}


def attack(world: World, folder: Path, _count: int, _seed: int) -> Iterator[tuple[Outcome, str | None]]:
    """Every kind of misbehaviour."""
    asked = ("features", "explain", "--pairs", "1500", "--top", "1", "--texts", "4", "--judge", "openai")
    how = ("--judge-model", "made", "--judge-timeout", str(_TIMEOUT), "--device", "cpu")
    for name, reply in REPLIES.items():
        workspace = world.copy(folder / "judge")
        with serving(lambda _request, _before, reply=reply: reply) as server:
            args = ("--workspace", str(workspace), *asked, "--judge-base-url", server.base_url, *how)
            outcome = call(*args, seconds=_MOST_SECONDS, before=_no_proxy)
        outcome.what = f"judge {name}"
        yield outcome, outcome.fault or raw(outcome)


def _no_proxy() -> None:
    os.environ["no_proxy"] = "*"
