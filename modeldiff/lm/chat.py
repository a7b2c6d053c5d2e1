"""Chat records as text, by a tokenizer's own template, and where each message's content stands in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import transformers

from modeldiff.errors import InputError, MachineError, first_line
from modeldiff.lm.bounded import bounded

# Characters for private use: no template mentions them, and stripping white space leaves them alone.
_MARK_OPEN, _MARK_CLOSE = "\ue0f1", "\ue0f2"
# What the rendering of a chat may take, which usually takes less than a millisecond, and the characters it may add.
_MOST_SECONDS, _MOST_BYTES, _MOST_ADDED = 10.0, 1 << 30, 1_000_000


class ChatError(InputError):
    """A tokenizer's template refuses the messages of a chat, or changes them; other chats may fare better."""


def render_chat(
    tokenizer: transformers.PreTrainedTokenizerBase, messages: list[dict[str, Any]]
) -> tuple[str, list[tuple[int, int]]]:
    """The chat as one text, and for each message the (start, end) characters of its content in that text.

    The text has no prompt for a next answer, and holds every special token the tokenizer wants: encode it with
    add_special_tokens=False. Where the template strips white space around a content, so does its span. A
    tokenizer without a template gets "User: ...\\n\\nAssistant: ...\\n\\n", after its token for begin of text if it
    usually adds one; where it leaves out a part of a content (earlier reasoning), the span is of what is left. Raises
    ChatError for messages that the template refuses, or whose content it changes; MachineError: the template takes more
    than 10 s or 1 GB, or adds more than a million characters.

    messages: each {"role": ..., "content": ...}; at least one.
    """
    with bounded(_template_of(tokenizer), _MOST_SECONDS, _MOST_BYTES):
        text = _render(tokenizer, messages)
        spans = _spans(tokenizer, messages, text)
    if spans is None:
        what = f"{_template_of(tokenizer)} changes the messages"
        raise ChatError(f"{what}: their contents cannot be found in its text")
    return text, spans


def open_chat(tokenizer: transformers.PreTrainedTokenizerBase, prompt: str, system: str | None = None) -> str:
    """The prompt as a user's message, after a `system` message if there is one, up to where the answer begins: what to
    give a chat model to continue, without more special tokens. Raises as `render_chat`."""
    before = [{"role": "system", "content": system}] if system else []
    return open_answer(tokenizer, [*before, {"role": "user", "content": prompt}])


def open_answer(tokenizer: transformers.PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> str:
    """The messages of a chat, of which the last is a user's, up to where the answer begins. As `open_chat`."""
    with bounded(_template_of(tokenizer), _MOST_SECONDS, _MOST_BYTES):
        return _render(tokenizer, [dict(message) for message in messages], answer=True)


def uses_chat(tokenizer: transformers.PreTrainedTokenizerBase, chat: Literal["auto", "yes", "no"]) -> bool:
    """Whether prompts are put to a model as a user's messages; auto: if its tokenizer has a template for them."""
    return chat == "yes" or (chat == "auto" and bool(tokenizer.chat_template))


def _render(
    tokenizer: transformers.PreTrainedTokenizerBase, messages: list[dict[str, Any]], *, answer: bool = False
) -> str:
    if not getattr(tokenizer, "chat_template", None):
        begin = tokenizer.bos_token_id
        bos = str(tokenizer.bos_token) if begin is not None and begin in tokenizer("")["input_ids"][:1] else ""
        turns = [f"{message['role'].capitalize()}: {message['content']}\n\n" for message in messages]
        return bos + "".join(turns) + ("Assistant:" if answer else "")
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer))
    except MemoryError:
        raise
    except Exception as error:  # whatever a program can raise
        raise ChatError(f"{_template_of(tokenizer)} refuses the messages: {first_line(error)}") from error
    content = sum(len(str(message.get("content"))) for message in messages)
    if len(text) > 2 * content + _MOST_ADDED:
        raise MachineError(
            f"{_template_of(tokenizer)} makes {len(text):,} characters of messages with {content:,}: it is not used"
        )
    return text


def _spans(
    tokenizer: transformers.PreTrainedTokenizerBase, messages: list[dict[str, Any]], text: str
) -> list[tuple[int, int]] | None:
    """Spans from a second rendering with marks for contents: what stands between marks is the template's own text.
    Exact even where a content occurs elsewhere ("user"). None if the template treats the marks otherwise."""
    marks = [f"{_MARK_OPEN}{i}{_MARK_CLOSE}" for i in range(len(messages))]
    marked = _render(tokenizer, [{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)])
    position, rest, spans = 0, marked, []
    for message, mark in zip(messages, marks, strict=True):
        before, found, rest = rest.partition(mark)
        if not found or mark in rest or not text.startswith(before, position):
            return None
        position += len(before)
        content = _written_at(text, position, message["content"], rest)
        if content is None:
            return None
        spans.append((position, position + len(content)))
        position += len(content)
    return spans if text[position:] == rest else None


def _written_at(text: str, position: int, content: str, marked_rest: str) -> str | None:
    """The form of `content`, or the longest part of it, that stands at `position`, followed by what the template writes
    next."""
    follows = marked_rest.partition(_MARK_OPEN)[0]
    for form in dict.fromkeys((content, content.strip(), content.lstrip(), content.rstrip())):
        if text.startswith(form + follows, position):
            return form
    part, stop = None, text.find(follows, position) if follows else len(text)
    while stop >= 0 and text[position:stop] in content:
        part, stop = text[position:stop], text.find(follows, stop + 1)
    return part


def _template_of(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
    return f"the chat template of {name_of(tokenizer)}"


def name_of(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
