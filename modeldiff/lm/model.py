"""A language model in memory: the transformers model, its tokenizer, its decoder blocks.

The blocks are found by what flows through them, never by the model's name.
Shapes: B batch, T tokens, D width of the residual stream, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from modeldiff.errors import InputError
from modeldiff.lm.geometry import Geometry
from modeldiff.lm.ref import ModelRef

# Enough positions to tell (B, T, D) from (T, B, D) or (B * T, D).
_PROBE_TOKENS = 5
# Where parallel streams are numbered, by the shapes of `_shapes`.
_AXES = (None, 0, 2)


class Decoder(Geometry):
    """A causal language model of transformers, as it is, with its geometry (name, n_layers, width, ...).

    model: the transformers causal LM; blocks: the decoder blocks in order; axis: of the streams in what a block gives,
    where there are several (`hidden_of`).
    Raises InputError when the blocks cannot be found (`find_blocks`).
    """

    def __init__(self, model: transformers.PreTrainedModel, name: str) -> None:
        super().__init__(**vars(Geometry.of(model.config, name)))
        self.model = model
        self.blocks, self.axis = find_blocks(model)

    @property
    def device(self) -> torch.device:
        """Where tokens go and what is read comes from, also where the model is spread over several devices."""
        return device_of(self.model)


class LanguageModel(Decoder):
    """A decoder with its tokenizer, frozen and in evaluation mode.

    body: the model without the head that makes logits; tokenizer; ref: where it came from; recommended: the generation
    settings of the model's files. They are taken off the model, for transformers would fill in from them whatever a
    call leaves out. Raises as `Decoder`.
    """

    def __init__(
        self, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, ref: ModelRef
    ) -> None:
        super().__init__(model.eval().requires_grad_(False), ref.short_name)
        self.recommended, model.generation_config = model.generation_config, transformers.GenerationConfig()
        self.tokenizer = tokenizer
        self.ref = ref
        self.body: nn.Module = model.base_model
        if self.max_positions is not None:
            self.max_positions -= _not_for_text(model, self.max_positions)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def logits(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Logits of the next token at every token, (B, T, V), in the model's dtype and on its device. ids_BT: int64,
        padded on the right with any valid id; mask_BT: 1 at tokens, 0 at padding. Autograd stays as it is."""
        made: Tensor = self.model(
            input_ids=ids_BT.to(self.device), attention_mask=mask_BT.to(self.device), use_cache=False
        ).logits
        return made


def find_blocks(model: transformers.PreTrainedModel) -> tuple[list[nn.Module], int | None]:
    """(the decoder blocks of a transformers causal LM, in order; the axis of the streams in what they give).

    They are the one ModuleList of as many members as the configuration (of the text part, where there are several) has
    blocks, through which the residual stream runs in a short pass (`not_handed_on`).
    Raises InputError when no list, or more than one, does that.
    """
    geometry = Geometry.of(model.config, type(model).__name__)
    modules = [(name, list(m)) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    lists = {name: members for name, members in modules if len(members) == geometry.n_layers}
    calls = probe(model, [block for members in lists.values() for block in members])
    wrong = {name: not_handed_on(members, calls, geometry) for name, members in lists.items()}
    stacks = [name for name, reason in wrong.items() if not reason]
    # A list inside a block of another stack (possible with a single layer) is a part of it.
    outer = [name for name in stacks if not any(name.startswith(f"{other}.") for other in stacks)]
    if len(outer) != 1:
        raise InputError(_unsupported(geometry, outer, wrong))
    blocks = lists[outer[0]]
    return blocks, _AXES[_shapes(geometry).index(_given(_ran(blocks, calls)[0])[0])]


def _unsupported(geometry: Geometry, found: list[str], wrong: Mapping[str, str]) -> str:
    """What is said of a model that has no stack of blocks, or several; wrong: what keeps each list from being one."""
    number = f"{len(found)} of them" if found else f"none among {len(wrong)} lists of that length"
    reason = "" if found else next((f" ({name}: {reason})" for name, reason in wrong.items()), "")
    return (
        f"{geometry.name} is not supported: expected one list of {geometry.n_layers} blocks that hand on a residual "
        f"stream of width {geometry.width}, found {number}{reason}"
    )


def _not_for_text(model: transformers.PreTrainedModel, positions: int) -> int:
    """How many positions are no token's: those up to the one for padding, where positions have an embedding of it."""
    embeddings = [one for one in model.modules() if isinstance(one, nn.Embedding) and one.num_embeddings == positions]
    padding = [one.padding_idx for one in embeddings if one is not model.get_input_embeddings()]
    return max((index + 1 for index in padding if index is not None), default=0)


def device_of(model: transformers.PreTrainedModel) -> torch.device:
    """Of its first weights that are not kept elsewhere until they are needed."""
    devices = (one.device for one in model.parameters() if one.device.type != "meta")
    return next(devices, torch.device("cpu"))


def probe_ids(model: transformers.PreTrainedModel) -> Tensor:
    """(1, T) token ids for a short pass: low in the vocabulary, where no placeholders for images are."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    device = device_of(model)
    return ((3 + 7 * torch.arange(_PROBE_TOKENS, device=device)) % vocabulary).unsqueeze(0)


@torch.inference_mode()
def short_pass(model: transformers.PreTrainedModel, **options: Any) -> Any:
    """What the model without its head makes of `probe_ids`."""
    ids_BT = probe_ids(model)
    return model.base_model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False, **options)


def hidden_of(output: Any, axis: int | None = None) -> Tensor:
    """The residual stream (B, T, D) in a block's output: the tensor itself, or the first member of a tuple, as the
    architecture and the release of transformers have it. axis: where parallel streams are numbered in that tensor; they
    stand beside one another in D."""
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(hidden, Tensor):
        raise InputError(f"a block gave {type(hidden).__name__}: expected a tensor or a tuple that starts with one")
    return hidden if axis is None else hidden.movedim(axis, 2).flatten(2)


def with_hidden(output: Any, x_BTD: Tensor, axis: int | None = None) -> Any:
    """A block's output with another residual stream in its place."""
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    if axis is not None:
        x_BTD = x_BTD.unflatten(2, (hidden.shape[axis], -1)).movedim(2, axis)
    if isinstance(output, Tensor):
        return x_BTD
    return output._replace(**{output._fields[0]: x_BTD}) if hasattr(output, "_fields") else (x_BTD, *output[1:])


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """While the context is open, the modules have this forward hook; it is removed also on an error."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Call:
    """One call of a module in a pass: copies, so that a later change in place would show."""

    taken: list[Tensor]
    """The tensors among its arguments."""
    given: Tensor | None = None
    """Its output, or the first member of it."""

    def takes(self, before: Call) -> bool:
        """Whether exactly what another call gave. Not-a-number, which an overflowing float16 pass gives, is equal to
        itself."""
        given = before.given
        if given is None:
            return False
        alike = [one.to(given.device) for one in self.taken if one.shape == given.shape]
        return any(torch.allclose(one, given, rtol=0, atol=0, equal_nan=True) for one in alike)


def probe(model: transformers.PreTrainedModel, modules: Iterable[nn.Module]) -> dict[nn.Module, list[Call]]:
    """What each module took and gave in a short pass, by module."""
    calls: dict[nn.Module, list[Call]] = {module: [] for module in modules}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module].append(Call([one.clone() for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]))

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        calls[module][-1].given = first.clone() if isinstance(first, Tensor) else None

    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in calls]
    try:
        with hooked(calls, after):
            short_pass(model)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def not_handed_on(blocks: Sequence[nn.Module], calls: Mapping[nn.Module, list[Call]], geometry: Geometry) -> str:
    """What keeps blocks from handing on a residual stream; nothing if each is called once, gives what it should, and
    takes exactly what the one before gave. Blocks that only run beside an image are passed over."""
    ran = _ran(blocks, calls)
    if 2 * len(ran) <= len(blocks):
        return f"only {len(ran)} of them run"
    if (most := max(map(len, ran))) > 1:
        return f"they run {most} times"
    stream = [call for (call,) in ran]
    shapes = _given(stream)
    if len(set(shapes)) > 1 or shapes[0] not in _shapes(geometry):
        return f"for {_PROBE_TOKENS} tokens they give {' and '.join(sorted({str(shape) for shape in shapes}))}"
    if not all(call.takes(before) for before, call in itertools.pairwise(stream)):
        return "they do not take what the one before gives"
    return ""


def _ran(blocks: Sequence[nn.Module], calls: Mapping[nn.Module, list[Call]]) -> list[list[Call]]:
    return [calls[block] for block in blocks if calls[block]]


def _given(stream: Sequence[Call]) -> list[tuple[int, ...]]:
    return [() if call.given is None else tuple(call.given.shape) for call in stream]


def _shapes(geometry: Geometry) -> list[tuple[int, ...]]:
    """What a block may give in a short pass: one stream, or several, numbered before the sequences or behind the
    tokens."""
    whole, streams, width = geometry.width, geometry.streams, geometry.width // geometry.streams
    return [(1, _PROBE_TOKENS, whole), (streams, 1, _PROBE_TOKENS, width), (1, _PROBE_TOKENS, streams, width)]
