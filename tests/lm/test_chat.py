"""Chats rendered as text, with the place of every message's content."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import pytest
import transformers

from modeldiff.errors import InputError
from modeldiff.lm.chat import open_chat, render_chat, uses_chat
from modeldiff.lm.tokens import encode
from tests.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

STRIPPING = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
# As some models do: the system message goes into the first turn of the user, which must be first.
MERGING = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "[{{ m['role'] }}]{% if loop.first %}{{ system }}{% endif %}{{ m['content'] }}{% endfor %}"
)
# As reasoning models do: what was thought is left out of earlier answers.
FORGETTING = CHAT_TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1]")
SHOUTING = CHAT_TEMPLATE.replace("message['content']", "message['content'] | upper")
COUNTING = "{% for m in messages %}{{ m['role'] }} {{ m['content'] | length }}: {{ m['content'] }}\n{% endfor %}"


def _tokenizer(template: str | None, add_bos: bool = False) -> transformers.PreTrainedTokenizerFast:
    return tiny_tokenizer(chat_template=template, add_bos=add_bos)


def _contents(template: str | None, *messages: tuple[str, str]) -> list[str]:
    text, spans = render_chat(_tokenizer(template), [{"role": r, "content": c} for r, c in messages])
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    return [text[start:end] for start, end in spans]


def test_the_tokenizers_own_template_is_used_without_a_prompt_for_an_answer() -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    text, spans = render_chat(_tokenizer(CHAT_TEMPLATE), messages)
    assert text == "<s><|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
    assert [text[a:b] for a, b in spans] == ["Hello", "Hi."]


def test_contents_that_look_like_the_template_are_found_at_their_own_place() -> None:
    text, spans = render_chat(_tokenizer(CHAT_TEMPLATE), [{"role": "user", "content": c} for c in ("user", "user", "")])
    assert [text[a:b] for a, b in spans] == ["user", "user", ""]
    assert spans[0][0] == len("<s><|im_start|>user\n")
    assert _contents(CHAT_TEMPLATE, ("user", "<|im_end|>\n<|im_start|>"), ("assistant", "s")) == [
        "<|im_end|>\n<|im_start|>",
        "s",
    ]


def test_white_space_is_in_the_span_exactly_if_it_is_in_the_text() -> None:
    assert _contents(CHAT_TEMPLATE, ("user", "  a b \n"), ("assistant", "\n")) == ["  a b \n", "\n"]
    assert _contents(STRIPPING, ("user", "  a b \n"), ("assistant", "\n")) == ["a b", ""]


def test_messages_that_a_template_merges_keep_their_spans() -> None:
    assert _contents(MERGING, ("system", "Be kind."), ("user", "kind"), ("assistant", "Be")) == [
        "Be kind.",
        "kind",
        "Be",
    ]


def test_a_content_changed_only_in_part_of_the_cases_is_found_where_it_is_kept() -> None:
    assert _contents(FORGETTING, ("user", "Why?"), ("assistant", "Because.")) == ["Why?", "Because."]
    with pytest.raises(InputError, match=r"chat template of .* changes the messages"):
        _contents(FORGETTING, ("user", "Why?"), ("assistant", "<think>hm</think>Because."))
    with pytest.raises(InputError, match="changes the messages"):
        _contents(SHOUTING, ("user", "quiet"))


def test_where_the_template_depends_on_contents_they_must_be_unambiguous() -> None:
    assert _contents(COUNTING, ("user", "Hello"), ("assistant", "world")) == ["Hello", "world"]
    with pytest.raises(InputError, match="changes the messages"):
        _contents(COUNTING, ("user", "user"), ("assistant", "world"))


def test_messages_that_the_template_refuses_are_a_one_line_error() -> None:
    with pytest.raises(InputError, match="refuses the messages: roles must alternate user/assistant"):
        _contents(MERGING, ("user", "a"), ("user", "b"))


@pytest.mark.parametrize("messages", [[], ["text"], [{"role": "user"}], [{"role": "user", "content": None}]])
def test_records_that_are_no_chat_are_refused(messages: list[object]) -> None:
    with pytest.raises(InputError, match="chat"):
        render_chat(_tokenizer(CHAT_TEMPLATE), messages)


def test_without_a_template_a_plain_form_is_used() -> None:
    messages = [{"role": "user", "content": "Hi "}, {"role": "assistant", "content": "User: x"}]
    text, spans = render_chat(_tokenizer(None), messages)
    assert text == "User: Hi \n\nAssistant: User: x\n\n"
    assert [text[a:b] for a, b in spans] == ["Hi ", "User: x"]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None])
def test_a_rendered_chat_begins_as_the_tokenizer_begins_texts(template: str | None) -> None:
    tokenizer = _tokenizer(template, add_bos=True)
    text, _ = render_chat(tokenizer, [{"role": "user", "content": "Hi"}])
    ids = encode(tokenizer, text, add_special_tokens=False).ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_a_prompt_is_opened_up_to_where_the_answer_begins() -> None:
    assert open_chat(_tokenizer(CHAT_TEMPLATE), "Hi").endswith("Hi<|im_end|>\n<|im_start|>assistant\n")
    assert open_chat(_tokenizer(None), "Hi") == "User: Hi\n\nAssistant:"


@pytest.mark.parametrize(
    ("template", "chat", "expected"),
    [
        (CHAT_TEMPLATE, "auto", True),
        (None, "auto", False),
        (CHAT_TEMPLATE, "no", False),
        (None, "yes", True),
    ],
)
def test_prompts_are_messages_where_there_is_a_template_or_as_asked(
    template: str | None, chat: Literal["auto", "yes", "no"], expected: bool
) -> None:
    assert uses_chat(_tokenizer(template), chat) is expected
