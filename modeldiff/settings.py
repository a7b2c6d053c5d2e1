"""What every stage's settings have in common: a frozen dataclass with bounds and a docstring for each field.

The docstrings are the help texts of the command line, and types and bounds are its checks, so a setting is described in
one place only. This file imports nothing heavy: `modeldiff --help` reads settings without torch.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
from typing import Any, Literal, TypeVar, dataclass_transform

from modeldiff import records

Stage = TypeVar("Stage", bound="Settings")


def setting(
    *,
    default: Any = dataclasses.MISSING,
    result: bool = True,
    flag: str | None = None,
    argument: bool = False,
    **bounds: float,
) -> Any:
    """A field of a settings dataclass; without a default the user must give a value.

    result: False when the value cannot change the artifact; then the cache ignores it; flag: the option, where it
    cannot be called like the field; argument: the values stand behind the command's name, without an option; bounds:
    least, above, most, below: of the number, or of each number of a tuple.
    """
    return records.bounded(default=default, result=result, flag=flag, argument=argument, **bounds)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(setting, dataclasses.field))
def settings(cls: type) -> type:
    """Class decorator: a frozen, keyword-only dataclass."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@settings
class Settings:
    """Base of the settings dataclasses: every value is checked against its field's type and bounds. Subclasses check in
    `check` what concerns several fields. Raises InputError: a value that does not fit, named by its option."""

    def __post_init__(self) -> None:
        records.check(self, option_of)
        self.check()

    def check(self) -> None:
        """Raise InputError where values do not go together."""

    def to_json(self) -> dict[str, Any]:
        """Every field as JSON data (paths as strings, tuples as lists)."""
        return dict(records.to_json(self))

    def result_json(self) -> dict[str, Any]:
        """Only the fields that can change the artifact."""
        changing = {field.name for field in dataclasses.fields(self) if field.metadata["result"]}
        return {name: value for name, value in self.to_json().items() if name in changing}

    def part(self, stage: type[Stage], **values: Any) -> Stage:
        """The settings of a stage: `values`, and what these have under the same names."""
        names = {field.name for field in dataclasses.fields(stage)} - values.keys()
        same = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name in names}
        return stage(**same, **values)


@settings
class OnDevice(Settings):
    """Settings of what may run on a GPU."""

    device: str = setting(default="auto", result=False)
    """auto, cpu, cuda, cuda:N or mps."""


@settings
class RemoteCode(Settings):
    """Settings of what opens models. That code may be run is asked of each command and kept nowhere: what allowed it
    before was another user, perhaps, or another version of the code."""

    trust_remote_code: bool = setting(default=False)
    """Run Python code that comes with a model. Only for models whose authors you trust."""


@settings
class HarvestedModels(RemoteCode, OnDevice):
    """Settings of what runs the two models of a harvest again."""

    # The weights are an input with a digest: where they lie makes no difference.
    model_path_a: str | None = setting(default=None, result=False)
    """Where model A is now, if not where it was at harvest time (a folder, a GGUF file or a hub name)."""
    model_path_b: str | None = setting(default=None, result=False)
    """The same for model B."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(default="auto", result=False)
    """Number format of the models; auto: bfloat16 on CUDA, float32 elsewhere. Best the one of the harvest."""


@settings
class OfRecords(Settings):
    """Settings of what reads records of texts."""

    text_field: str = setting(default="text")
    """Field or column that holds the text in .jsonl, .parquet and data sets; with dots inside others: `meta.text`."""
    source_field: str = setting(default="source")
    """Field or column with a label of the record's own, likewise."""
    strict: bool = setting(default=False)
    """Stop at the first record that cannot be used. Otherwise it is left out, counted and named."""


@settings
class Drawing(Settings):
    """Settings of what lets a model write."""

    max_new_tokens: int = setting(default=80, least=1)
    """Length of each text in tokens, at most."""
    temperature: float = setting(default=0.0, least=0)
    """0: always the likeliest token; otherwise draw."""
    top_p: float = setting(default=1.0, above=0, most=1)
    """When drawing: only from the likeliest tokens that hold this much of the probability."""
    chat: Literal["auto", "yes", "no"] = setting(default="auto")
    """Put each prompt to a model as a user's message, in its chat format; auto: when its tokenizer has one."""


def option_of(field: dataclasses.Field[Any]) -> str:
    """The option of the command line that gives a field: `--top-p`."""
    return field.metadata["flag"] or "--" + field.name.replace("_", "-")


def own_first(cls: type[Settings]) -> list[dataclasses.Field[Any]]:
    """The fields of a settings class as its help lists them: its own first, then those of its bases."""
    order = [name for base in cls.__mro__ for name in inspect.get_annotations(base)]
    return sorted(dataclasses.fields(cls), key=lambda field: order.index(field.name))


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a settings class (its bases included), by field name. A field that is declared
    again without one keeps it."""
    return {name: doc for base in reversed(cls.__mro__[:-1]) for name, doc in _own_docs(base).items()}


@functools.cache  # many settings have the same bases, and this reads source files
def _own_docs(cls: type) -> dict[str, str]:
    docs: dict[str, str] = {}
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    for field, doc in itertools.pairwise(body.body):
        match field, doc:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
    return docs
