"""Reads Jane Austen's six novels (public domain) out of the Debian package ``r-cran-janeaustenr``.

The package keeps them in R's "lazy load" format: ``Rdata.rdx`` lists where each object lies in ``Rdata.rdb``;
the PyPI package ``rdata`` parses the objects. A folder of plain ``<novel>.txt`` files works as well.
"""

from __future__ import annotations

import gzip
import re
import subprocess
import tempfile
import zlib
from pathlib import Path

TRAINING_NOVELS = ("emma", "mansfieldpark", "northangerabbey", "prideprejudice", "sensesensibility")
HELD_OUT_NOVEL = "persuasion"
# Characters of one document: about 150 to 200 tokens, so that it fits the models' window of 256.
PASSAGE_CHARS = 650


def read_novels(source: Path) -> dict[str, str]:
    """Text of each novel by its short name.

    ``source``: the ``.deb`` file, a folder that holds ``Rdata.rdb`` and ``Rdata.rdx`` somewhere below it, or a
    folder with one ``.txt`` per novel. Raises FileNotFoundError naming the novels that are missing.
    """
    if source.suffix == ".deb":
        with tempfile.TemporaryDirectory() as unpacked:
            subprocess.run(["dpkg", "-x", str(source), unpacked], check=True)
            return read_novels(Path(unpacked))
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(source.glob("*.txt"))}
    for index in sorted(source.rglob("Rdata.rdx")):
        texts |= _read_lazy_load(index)
    missing = {*TRAINING_NOVELS, HELD_OUT_NOVEL} - texts.keys()
    if missing:
        raise FileNotFoundError(f"{source}: expected the novels {sorted(missing)}; see --help for where to get them")
    return texts


def _read_lazy_load(index_path: Path) -> dict[str, str]:
    import rdata

    def parse(raw: bytes) -> object:
        return rdata.conversion.convert(rdata.parser.parse_data(raw, extension=".rds"))

    variables: dict[str, tuple[int, int]] = parse(gzip.decompress(index_path.read_bytes()))["variables"]  # type: ignore[index]
    store = index_path.with_suffix(".rdb").read_bytes()
    texts = {}
    for name, (offset, length) in variables.items():
        # Four bytes give the inflated size; a zlib stream follows.
        lines = parse(zlib.decompress(store[int(offset) + 4 : int(offset) + int(length)]))
        texts[str(name)] = "\n".join(str(line) for line in lines)  # type: ignore[attr-defined]
    return texts


def paragraphs(text: str) -> list[str]:
    """Paragraphs on one line each; titles, chapter headings and other short scraps are left out."""
    joined = (" ".join(block.split()) for block in text.split("\n\n"))
    return [block for block in joined if len(block) >= 60 and not block.isupper()]


def passages(text: str, size: int = PASSAGE_CHARS) -> list[str]:
    """Consecutive clauses of whole paragraphs, cut into pieces of about ``size`` characters."""
    pieces: list[str] = []
    piece = ""
    for paragraph in paragraphs(text):
        for sentence in re.split(r"(?<=[.;!?]) |(?<=[.;!?][\"']) |(?<=--)", paragraph):
            if piece and len(piece) + len(sentence) > size:
                pieces.append(piece)
                piece = ""
            piece = f"{piece} {sentence}".strip()
    return [*pieces, piece]
