"""Judges behind an endpoint that know some features of a screened pair, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from modeldiff.features.explain.stored import Explained
from tests.judge.fake_endpoint import Answering, Reply, Request, said

_TEXT = re.compile(r"\[begin text \d+ (\w+)\]\n(.*?)\n\[end text \d+ \1\]", re.DOTALL)


def knowing(explained: Mapping[int, Explained], known: set[int], explanation: str = "Something.") -> Answering:
    """A judge that explains everything alike and tells the texts of the known features right; it takes those of the
    others for silent."""
    active = {}
    for feature in known:
        tried = [one for one in explained[feature].texts if one.kinds != ["spread"]]
        active[frozenset(one.text for one in tried)] = {one.text for one in tried if one.activation > 0}

    def answer(request: Request, _: int) -> Reply:
        if "[begin description" not in request.user:
            return said(f"EXPLANATION: {explanation}\nCONCERNING: no\nREASON: It is harmless.")
        texts = [text for _, text in _TEXT.findall(request.user)]
        firing = active.get(frozenset(texts), set())
        return said(json.dumps([int(text in firing) for text in texts]))

    return answer
