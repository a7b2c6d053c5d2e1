"""Nonsense as input: texts, options, arrays, JSON, chat templates, files of tokenizers and models, most of them sound
ones with random changes. Nothing may end in a traceback or a crash, or take longer than ten seconds to refuse."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
from safetensors.numpy import save

from tests.attack.child import Outcome, call_each
from tests.attack.world import TINY_TOY, World
from tests.cli.commands import command_paths

_BATCH = 20
# What inputs of people and programs have that programmers forget.
_ODD_NUMBERS = [
    "0",
    "-1",
    "1e309",
    "nan",
    "inf",
    "-inf",
    "99999999999999999999999",
    "0x10",
    "1_000",
    "١",
    "1.5",
    "true",
    "null",
]
_ODD_TEXTS = ["", " ", "\x00", "\ufeff", "\ud800", "\u202e", "a" * 10_000, "../..", "/", "~", "%s", "{}", "[", "]", ":"]
_ODD_JSON = [
    "null", "[]", "{}", "1e999", "9" * 5000, '"x"', "[" * 4000, '{"text": {"text": 1}}', '{"text": "a", "source": []}',
    '{"messages": [{"role": 1, "content": "x"}]}', '{"messages": [{"content": [{"type": "image"}]}]}', "NaN",
    '{"text": "\\ud800"}', '{"text": "' + "\\u0301" * 500 + '"}', '{"text": "a", "text": null}', '{"ends": [-1, 2]}',
    '{"prompt": ""}', '{"text": "ab", "ends": [1e9]}', '{"messages": {"role": "user"}}', '{"text": "\\u0000"}',
]  # fmt: skip
_TEMPLATES = [
    "{% for i in range(10**9) %}x{% endfor %}", "{{ 'x' * 10**10 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages[5].content }}", "{% for m in messages %}{{ m.content[::-1] }}{% endfor %}",
    "{{ ''.__class__.__mro__ }}", "{% if %}", "", "{{ messages }}", "{{ 1 / 0 }}", "{{ messages | tojson }}", "\x00",
]  # fmt: skip

Write = Callable[[World, Path, random.Random], list[str]]
"""Writes an input into a folder, and gives the words of the command that reads it."""


def attack(world: World, folder: Path, count: int, seed: int) -> Iterator[tuple[Outcome, str | None]]:
    """`count` commands, of all kinds in turn."""
    rng = random.Random(seed)
    kinds: list[Write] = [texts, options, arrays, records, template, tokenizer, config, options, prompts, records]
    place = folder / "fuzz"
    for start in range(0, count, _BATCH):
        shutil.rmtree(place, ignore_errors=True)
        commands, names = [], []
        for number in range(start, min(count, start + _BATCH)):
            here = place / str(number)
            here.mkdir(parents=True)
            write = kinds[number % len(kinds)]
            commands.append(["--workspace", str(here / "ws"), *write(world, here, rng)])
            names.append(f"{write.__name__} {number}")
        for outcome, name in zip(call_each(commands), names, strict=True):
            outcome.what = name
            yield outcome, outcome.fault


def harvest(world: World, texts: Path, a: Path | None = None) -> list[str]:
    """The words of a small harvest."""
    models = ["--model-a", str(a or world.folder / "a"), "--model-b", str(world.folder / "b")]
    return ["harvest", *models, "--texts", str(texts), "--pairs", "40", "--context", "16", "--device", "cpu"]


def texts(world: World, folder: Path, rng: random.Random) -> list[str]:
    """Bytes of a text file, changed or drawn."""
    sound = (world.folder / "texts.jsonl").read_bytes()[:2000]
    path = folder / f"t.{rng.choice(('txt', 'jsonl', 'parquet', 'TXT', 'json'))}"
    path.write_bytes(rng.choice((mutated(sound, rng), rng.randbytes(rng.randint(0, 300)))))
    return harvest(world, path)


def records(world: World, folder: Path, rng: random.Random) -> list[str]:
    """Lines of JSON that nobody expects, some among sound ones."""
    path = folder / "t.jsonl"
    sound = ['{"text": "abc def gh"}'] * rng.randint(0, 2)
    path.write_text("\n".join([*sound, *rng.choices(_ODD_JSON, k=rng.randint(1, 3))]), encoding="utf-8")
    if rng.random() < 0.3:
        np.save(folder / "a.npy", np.ones((4, 3), np.float32))
        rows = str(folder / "a.npy")
        return ["harvest", "--import-a", rows, "--import-b", rows, "--import-texts", str(path)]
    return harvest(world, path)


def prompts(world: World, folder: Path, rng: random.Random) -> list[str]:
    """A file of prompts."""
    path = folder / f"p.{rng.choice(('txt', 'jsonl'))}"
    path.write_bytes("\n".join(rng.choices([*_ODD_JSON, *_ODD_TEXTS], k=3)).encode("utf-8", "surrogatepass"))
    shutil.copytree(world.workspace, folder / "ws", ignore=shutil.ignore_patterns(".*", "toy", "impact", "contrast"))
    named = ["--model", "A", "--feature", "0", "--prompts", str(path), "--strength", "1", "--max-new-tokens", "2"]
    return ["steer", *named, "--device", "cpu"]


def arrays(world: World, folder: Path, rng: random.Random) -> list[str]:
    """Activations to import: sound ones changed, and shapes, types and values that are senseless."""
    del world
    shape = rng.choice([(0, 3), (5,), (5, 0), (3, 4), (20, 3), (2, 3, 4), (), (20, 4)])
    dtype = rng.choice(["f4", "f8", "f2", "i4", "u1", "c8", "?", "U3"])
    value = rng.choice([0, 1, np.nan, np.inf, 1e38])
    with np.errstate(all="ignore"):
        array = np.full(shape, value).astype(dtype)
    named = []
    for side in "ab":
        kind = rng.choice(("npy", "safetensors", "h5"))
        path, buffer = folder / f"{side}.{kind}", io.BytesIO()
        if kind == "npy" or dtype in ("U3", "c8"):
            np.save(buffer, array)
            path = path.with_suffix(".npy")
        elif kind == "safetensors":
            buffer.write(save({"x": np.ascontiguousarray(array)}))
        else:
            with h5py.File(buffer, "w") as file:
                file["x"] = array
        content = buffer.getvalue()
        path.write_bytes(mutated(content, rng) if rng.random() < 0.5 else content)
        named += [f"--import-{side}", f"{path}:x" if kind == "h5" and path.suffix == ".h5" else str(path)]
    return ["harvest", *named]


def template(world: World, folder: Path, rng: random.Random) -> list[str]:
    """A chat template."""
    sound = (world.folder / "a" / "chat_template.jinja").read_text()
    chosen = rng.choice([*_TEMPLATES, mutated(sound.encode(), rng).decode("utf-8", "replace")])
    model = _copied(world, folder)
    (model / "chat_template.jinja").write_text(chosen, encoding="utf-8")
    path = folder / "t.jsonl"
    messages = [{"role": "user", "content": "abc def"}, {"role": "assistant", "content": "gh ab."}]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    return harvest(world, path, model)


def tokenizer(world: World, folder: Path, rng: random.Random) -> list[str]:
    """tokenizer.json or its configuration."""
    return _model_file(world, folder, rng, ("tokenizer.json", "tokenizer_config.json"))


def config(world: World, folder: Path, rng: random.Random) -> list[str]:
    """config.json, the weights' header, or the configuration of what is generated."""
    return _model_file(world, folder, rng, ("config.json", "model.safetensors", "generation_config.json"))


def options(world: World, folder: Path, rng: random.Random) -> list[str]:
    """Options of any command, with values that are not theirs."""
    del world, folder
    path = rng.choice(command_paths()[1:])
    if path == ["demo"]:
        path = ["workspace", "list"]
    words = [word for option in rng.choices(_options(path), k=rng.randint(1, 3)) for word in (option, _odd(rng))]
    if path == ["toy"]:  # it needs no input: what happens to be sensible would run for minutes
        path = ["toy", *TINY_TOY]
    return [*path, *words, *([_odd(rng)] if rng.random() < 0.3 else [])]


def _odd(rng: random.Random) -> str:
    return rng.choice(rng.choice((_ODD_NUMBERS, _ODD_TEXTS))).replace("\x00", "\x01").replace("\ud800", "\udc80")


def _options(path: list[str]) -> list[str]:
    import click

    from modeldiff.cli.main import cli

    command: click.Command | None = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), name)
    assert command is not None
    return [param.opts[0] for param in command.params if isinstance(param, click.Option)] or ["--json"]


def _copied(world: World, folder: Path) -> Path:
    """Model A, in files of its own."""
    return Path(shutil.copytree(world.folder / "a", folder / "model"))


def _model_file(world: World, folder: Path, rng: random.Random, names: tuple[str, ...]) -> list[str]:
    model = _copied(world, folder)
    path = model / rng.choice(names)
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.7:
        data = json.loads(content)
        _change_value(data, rng)
        path.write_text(json.dumps(data))
    else:
        path.write_bytes(mutated(content, rng))
    shutil.copy(world.folder / "texts.jsonl", folder / "t.jsonl")
    return harvest(world, folder / "t.jsonl", model)


def _change_value(data: dict[str, object], rng: random.Random) -> None:
    """Another type, or another size, of a random value at any depth."""
    key = rng.choice(list(data))
    inner = data[key]
    if isinstance(inner, dict) and inner and rng.random() < 0.7:
        _change_value(inner, rng)
        return
    data[key] = rng.choice([None, -1, 0, 10**12, 1.5, "x", [], {}, True, [None], {"type": "Nope"}])


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A few bytes flipped, dropped, doubled or put in, or the end lost."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        way = rng.randrange(5)
        if way == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            del changed[at : at + rng.randint(1, 20)]
        elif way == 2:
            changed[at:at] = changed[at : at + rng.randint(1, 20)]
        elif way == 3:
            changed[at:at] = rng.randbytes(rng.randint(1, 8))
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)
