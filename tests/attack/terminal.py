"""Hostile text through every way to the terminal: nothing of it may reach it as it is, and tables stay whole."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.attack.child import Outcome, call
from tests.attack.world import World, build

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil\u2066\u2069\r\x08\x00\x85\u2028[red]x[/red]"
"""Clears a screen, sets a title, turns the direction of text around, goes back over what was printed."""
# Control characters (line feeds apart), and those that change the direction of text or break lines unseen.
_RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
WIDTH = 80


def attack(world: World, folder: Path, _count: int, _seed: int) -> Iterator[tuple[Outcome, str | None]]:
    """A harvest of hostile texts and labels, and every command that shows what comes of it."""
    hostile = folder / "hostile"
    shutil.rmtree(hostile, ignore_errors=True)
    made = build_hostile(world, hostile)
    for name, args in commands(world, made).items():
        outcome = call("--workspace", str(made), *args)
        outcome.what = name
        yield outcome, outcome.fault or raw(outcome)


def raw(outcome: Outcome) -> str | None:
    """What of a command's output a terminal would obey, or a line that is wider than the terminal."""
    for stream in (outcome.out, outcome.err):
        if found := _RAW.search(stream.replace("\r\n", "\n")):
            return f"{found[0]!r} reaches the terminal: {stream[max(0, found.start() - 20) : found.end() + 10]!r}"
    if "--json" in outcome.args:
        json.loads(outcome.out)
    return None


def build_hostile(world: World, folder: Path, hostile: str = HOSTILE) -> Path:
    """A workspace whose texts, labels, names and settings are hostile."""
    folder.mkdir()
    records = [json.loads(line) for line in (world.folder / "texts.jsonl").read_text().splitlines()]
    texts = folder / "texts.jsonl"
    lines = [json.dumps({"text": f"{hostile} {one['text']} {hostile}", "source": hostile}) for one in records]
    texts.write_text("\n".join([*lines, '{"text": 3}', json.dumps({hostile: 1})]) + "\n")
    workspace = folder / "ws"
    for stage in world.stages:
        args = [str(texts) if word == str(world.folder / "texts.jsonl") else word for word in stage.args]
        if stage.kind in ("activations", "crosscoder", "features", "stitch", "continuations", "contrast", "explain"):
            outcome = call("--workspace", str(workspace), *args)
            if outcome.code:
                raise RuntimeError(f"{' '.join(args)}: {outcome.last_line}")
    return workspace


def commands(world: World, workspace: Path) -> dict[str, tuple[str, ...]]:
    """What shows something, by name."""
    texts = str(workspace.parent / "texts.jsonl")
    models = ("--model-a", str(world.folder / "a"), "--model-b", str(world.folder / "b"))
    write = ("--strength", "1", "--max-new-tokens", "4", "--device", "cpu")
    return {
        "list": ("workspace", "list"),
        "show activations": ("workspace", "show", "activations:1"),
        "show crosscoder": ("workspace", "show", "crosscoder:1"),
        "verify": ("workspace", "verify"),
        "features": ("features", "--shared"),
        "features, JSON": ("features", "--shared", "--json"),
        "a feature": ("features", "show", "20"),
        "explain": ("features", "explain", "--shared", "--top", "3"),
        "contrast": ("contrast", "--show", "latest", "--numbers", "--all"),
        "contrast, JSON": ("contrast", "--show", "latest", "--json"),
        "strict": ("harvest", *models, "--texts", texts, "--strict"),
        "a label": ("harvest", *models, "--texts", f"{HOSTILE.replace(chr(0), '')}={texts}", "--pairs", "200"),
        "a field": ("harvest", *models, "--texts", texts, "--text-field", "\x1b[2Jx"),
        "a prompt": (
            "steer",
            "--model",
            "A",
            "--feature",
            "20",
            "--prompt",
            f"ab {HOSTILE}".replace("\x00", ""),
            *write,
        ),
        "a name": ("features", "stitch", "--name", "\x1b[2Jname\u202e"),
        "a reference": ("workspace", "show", "crosscoder:\x1b[2J\u202e"),
        "no such file": ("harvest", *models, "--texts", "\x1b[2J\u202e.jsonl"),
        "no such option": ("harvest", "--\x1b[2J\u202e"),
        "no such command": ("\x1b[2J\u202e",),
        "no such model": ("harvest", "--model-a", "\x1b[2J\u202e", "--model-b", "y", "--texts", texts),
    }


def build_world(folder: Path) -> World:
    """The stages that hostile texts go through."""
    return build(folder, ["activations", "crosscoder", "features", "stitch", "continuations", "contrast", "explain"])
