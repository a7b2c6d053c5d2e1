"""A language model in memory: the transformers model, its tokenizer, its decoder blocks.

The blocks are found by what flows through them, never by the model's name.
Shapes: B batch, T tokens, D width of the residual stream, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from modeldiff.errors import InputError
from modeldiff.lm.ref import ModelRef

# Enough positions to tell (B, T, D) from (T, B, D) or (B * T, D).
_PROBE_TOKENS = 5


class LanguageModel:
    """A causal language model, frozen and in evaluation mode.

    model: the transformers causal LM; body: the same without the head that makes logits; tokenizer; blocks: the
    decoder blocks in order; n_layers; width: of the residual stream (D); vocabulary: number of tokens (V);
    max_positions: the longest sequence its configuration allows, or None; ref: where it came from; recommended: the
    generation settings of the model's files. They are taken off the model, for transformers would fill in from them
    whatever a call leaves out.
    Raises InputError when the blocks cannot be found (`find_blocks`).
    """

    def __init__(
        self, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, ref: ModelRef
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.recommended, model.generation_config = model.generation_config, transformers.GenerationConfig()
        self.tokenizer = tokenizer
        self.ref = ref
        self.body: nn.Module = model.base_model
        self.blocks = find_blocks(model)
        self.n_layers = len(self.blocks)
        config = model.config.get_text_config(decoder=True)
        self.width: int = config.hidden_size
        self.vocabulary: int = config.vocab_size
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None)

    @property
    def name(self) -> str:
        return self.ref.short_name

    @property
    def device(self) -> torch.device:
        return self.model.device

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

    def check_layer(self, layer: int) -> None:
        """Raise InputError unless `layer` is the index of a block, counted from 0."""
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer {layer} is out of range: model {self.name} has blocks 0 to {self.n_layers - 1}")

    def check_length(self, n_tokens: int) -> None:
        """Raise InputError if a sequence of `n_tokens` is longer than the model has positions."""
        if self.max_positions is not None and n_tokens > self.max_positions:
            raise InputError(
                f"{n_tokens} tokens are too long for model {self.name}, which has {self.max_positions} positions"
            )


def find_blocks(model: transformers.PreTrainedModel) -> list[nn.Module]:
    """The decoder blocks of a transformers causal LM, in order.

    They are the one ModuleList of `config.num_hidden_layers` members (of the text configuration, where there are
    several) through which the residual stream runs in a short pass: each member is called once, takes and gives
    (B, T, D) with D = `config.hidden_size`, and takes exactly what the one before gave.
    Raises InputError when no list, or more than one, does that.
    """
    n_layers, width = layers_and_width(model.config, type(model).__name__)
    lists = {name: list(m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers}
    calls = _probe(model, [block for members in lists.values() for block in members])
    stacks = {name: members for name, members in lists.items() if _is_residual_stack(members, calls, width)}
    # A list inside a block of another stack (possible with a single layer) is a part of it.
    outer = [name for name in stacks if not any(name.startswith(f"{other}.") for other in stacks)]
    if len(outer) != 1:
        found = f"{len(outer)} of them" if outer else f"none among {len(lists)} lists of that length"
        raise InputError(
            f"{type(model).__name__} is not supported: expected one list of {n_layers} blocks that hand on a residual "
            f"stream of width {width}, found {found}"
        )
    return stacks[outer[0]]


def layers_and_width(config: transformers.PretrainedConfig, name: str) -> tuple[int, int]:
    """(number of blocks, width) by a model's configuration. Raises InputError: it does not say them."""
    config = config.get_text_config(decoder=True)
    n_layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not n_layers or not width:
        raise InputError(f"model {name} has no num_hidden_layers and hidden_size: expected a language model")
    return n_layers, width


def probe_ids(model: transformers.PreTrainedModel) -> Tensor:
    """(1, T) token ids for a short pass: low in the vocabulary, where no placeholders for images are."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    device = next(model.parameters()).device
    return ((3 + 7 * torch.arange(_PROBE_TOKENS, device=device)) % vocabulary).unsqueeze(0)


@torch.inference_mode()
def short_pass(model: transformers.PreTrainedModel, **options: Any) -> Any:
    """What the model without its head makes of `probe_ids`."""
    ids_BT = probe_ids(model)
    return model.base_model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False, **options)


def hidden_of(output: Any) -> Tensor:
    """The residual stream in a block's output: the tensor itself, or the first member of a tuple, as the architecture
    and the release of transformers have it."""
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(hidden, Tensor):
        raise InputError(f"a block gave {type(hidden).__name__}: expected a tensor or a tuple that starts with one")
    return hidden


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[..., Any], *, with_kwargs: bool = False) -> Iterator[None]:
    """While the context is open, the modules have this forward hook; it is removed also on an error."""
    handles = [module.register_forward_hook(hook, with_kwargs=with_kwargs) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _probe(model: transformers.PreTrainedModel, modules: list[nn.Module]) -> dict[nn.Module, list[tuple[Any, Any]]]:
    """What each module took and gave in a short pass, per call."""
    calls: dict[nn.Module, list[tuple[Any, Any]]] = {module: [] for module in modules}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        taken = args[0] if args else kwargs.get("hidden_states")
        calls[module].append((taken, output[0] if isinstance(output, (tuple, list)) and output else output))

    with hooked(calls, note, with_kwargs=True):
        short_pass(model)
    return calls


def _is_residual_stack(members: list[nn.Module], calls: dict[nn.Module, list[tuple[Any, Any]]], width: int) -> bool:
    if any(len(calls[member]) != 1 for member in members):
        return False
    passed = [tensor for member in members for tensor in calls[member][0]]
    if any(not isinstance(x, Tensor) or x.shape != (1, _PROBE_TOKENS, width) for x in passed):
        return False
    # `is` first: not-a-number in an overflowing float16 pass is not equal to itself.
    handed_on = zip(passed[1:-1:2], passed[2::2], strict=True)
    return all(given is taken or torch.equal(given, taken) for given, taken in handed_on)
