"""The settings of `modeldiff harvest`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from modeldiff.errors import InputError
from modeldiff.settings import OfRecords, RemoteCode, setting, settings
from modeldiff.texts.readers import SUFFIXES

Encoding = Literal["bfloat16", "float16", "float32"]
_EXPECTED = {
    "model": "a hub name, a model folder or a .gguf file",
    "texts": f"one or more {SUFFIXES} files or hf:NAME",
    "import": "activations of both sides",
}


@settings
class HarvestSettings(RemoteCode, OfRecords):
    """Texts and two models give paired activations; or activations captured elsewhere are imported."""

    model_a: str | None = setting(default=None)
    """Model A: a name on the hub, a local folder or a .gguf file; of a model or a PEFT adapter. May be left out only
    with --import-a."""
    model_b: str | None = setting(default=None)
    """Model B: a name on the hub, a local folder or a .gguf file. May be left out only with --import-b."""
    revision_a: str | None = setting(default=None)
    """Branch, tag or commit of model A on the hub."""
    revision_b: str | None = setting(default=None)
    """Branch, tag or commit of model B on the hub."""
    # Not part of the result as they are written: what counts is their content, label and weight (see run.py).
    texts: tuple[str, ...] = setting(default=(), result=False)
    """Text sources, each as [LABEL=]SOURCE[@WEIGHT], e.g. `news=data/cnn.jsonl@0.5`. SOURCE is a .txt, .jsonl or
    .parquet file, or `hf:NAME[:CONFIG[:SPLIT]]` for a hub data set. Sources are mixed by weight, counted in characters
    (default 1 each), until they run out. LABEL (default: the file's name) is kept with every text; a record's own
    label goes first (--source-field). A .txt file is cut into documents of 2,000 to 4,000 characters, at blank lines
    where there are any. Records with a list `messages` or `conversation` are chats: each model gets its own chat
    template, and only the message contents are compared."""
    sample: float = setting(default=1.0, above=0, most=1)
    """Share of the documents to use, chosen at random by --seed. With a large corpus and few pairs, a small share
    spreads the pairs over all of it instead of taking its beginning."""
    seed: int = setting(default=0)
    """Seed of that choice."""
    pairs: int = setting(default=1_000_000, least=1)
    """Number of pairs of activations to harvest; fewer if the texts run out."""
    layer_a: int | None = setting(default=None, least=0)
    """Block of model A after which the residual stream is read, counted from 0; default: the middle one."""
    layer_b: int | None = setting(default=None, least=0)
    """Block of model B after which the residual stream is read, counted from 0; default: the middle one."""
    align: Literal["offsets", "greedy"] = setting(default="offsets")
    """How tokens of A and B are paired: `offsets` pairs tokens that end at the same character; `greedy` is the paper's
    Algorithm 1 on decoded text, for comparison."""
    pair_at: Literal["words", "tokens"] = setting(default="words")
    """`words` keeps only pairs where both tokens end a word, a number or a punctuation mark; `tokens` keeps all. Inside
    words the tokenizations differ, which shows up as features that only the tokenizers explain."""
    context: int = setting(default=512, least=8)
    """Most tokens of a text that a model reads at once, special tokens included. Longer texts are cut where both
    tokenizations end, so that both models read the same pieces; longer chats lose their end."""
    storage: Encoding = setting(default="bfloat16")
    """Number format on disk."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(default="auto")
    """Number format the models compute in; auto: bfloat16 on a GPU, float32 elsewhere."""
    device: str = setting(default="auto", result=False)
    """auto, cpu, cuda, cuda:N or mps; auto takes the GPU where there is one; under torchrun, each process its own."""
    batch_tokens: int | None = setting(default=None, result=False, least=1)
    """Tokens, padding included, that a model reads in one batch; default 2,048 on the CPU, 16,384 on a GPU. Changes
    activations by rounding only."""
    shard_pairs: int = setting(default=65_536, least=1)
    """Pairs per shard. An interruption loses at most the shard being written; one side of a shard is held in memory."""
    import_a: str | None = setting(default=None)
    """Activations of model A captured elsewhere: a .npy file, FILE.safetensors[:KEY] or FILE.h5:DATASET of shape
    (pairs, width); row i of A belongs with row i of B."""
    import_b: str | None = setting(default=None)
    """Activations of model B captured elsewhere."""
    import_texts: Path | None = setting(default=None)
    """Texts of imported activations: a .jsonl file, one record per document in the order of the rows: {"text": ...,
    "ends": [character offset at which pair 0 ends, ...], "source": optional label, "ids_a", "ids_b": optional token
    ids, one per pair}."""

    def check(self) -> None:
        needed = ("import_a", "import_b") if self.importing else ("model_a", "model_b", "texts")
        for name in needed:
            if not getattr(self, name):
                raise InputError(f"--{name.replace('_', '-')} is missing: expected {_EXPECTED[name.split('_')[0]]}")
        if self.importing and self.texts:
            raise InputError("--texts cannot be used with --import-a: give the texts of the rows with --import-texts")
        if not self.importing and self.import_texts is not None:
            raise InputError("--import-texts goes with --import-a and --import-b; give texts to read as --texts")

    @property
    def importing(self) -> bool:
        return self.import_a is not None or self.import_b is not None
