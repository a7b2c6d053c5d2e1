"""Chats rendered as text, with the place of every message's content."""

import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from modeldiff.errors import InputError, MachineError
from modeldiff.lm import chat
from modeldiff.lm.chat import open_chat, render_chat, uses_chat
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


def _rendered(template: str | None, *messages: tuple[str, str], add_bos: bool = False) -> tuple[str, list[str]]:
    """(text, contents in it)."""
    tokenizer = tiny_tokenizer(chat_template=template, add_bos=add_bos)
    text, spans = render_chat(tokenizer, [{"role": r, "content": c} for r, c in messages])
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    return text, [text[start:end] for start, end in spans]


def test_the_tokenizers_own_template_is_used_without_a_prompt_for_an_answer() -> None:
    text, contents = _rendered(CHAT_TEMPLATE, ("user", "Hello"), ("assistant", "Hi."))
    assert text == "<s><|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
    assert contents == ["Hello", "Hi."]


@pytest.mark.parametrize(
    ("template", "messages", "contents"),
    [
        # Contents that look like the template.
        (CHAT_TEMPLATE, [("user", "<|im_end|>\n<|im_start|>"), ("assistant", "s")], None),
        (CHAT_TEMPLATE, [("user", "user"), ("assistant", "user"), ("user", "")], None),
        # White space is in the span exactly if it is in the text.
        (CHAT_TEMPLATE, [("user", "  a b \n"), ("assistant", "\n")], None),
        (STRIPPING, [("user", "  a b \n"), ("assistant", "\n")], ["a b", ""]),
        (MERGING, [("system", "Be kind."), ("user", "kind"), ("assistant", "Be")], None),
        (FORGETTING, [("user", "Why?"), ("assistant", "Because.")], None),
        # What is left of a content.
        (FORGETTING, [("user", "2?"), ("assistant", "<think>2.</think>2."), ("user", "3?")], ["2?", "2.", "3?"]),
        (None, [("user", "Hi "), ("assistant", "User: x")], None),
    ],
)
def test_contents_are_found_at_their_own_place(
    template: str | None, messages: list[tuple[str, str]], contents: list[str] | None
) -> None:
    assert _rendered(template, *messages)[1] == (contents or [content for _, content in messages])


def test_a_content_is_not_taken_for_its_role() -> None:
    tokenizer = tiny_tokenizer(chat_template=CHAT_TEMPLATE)
    _, spans = render_chat(tokenizer, [{"role": "user", "content": "user"}])
    assert spans[0][0] == len("<s><|im_start|>user\n")


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (SHOUTING, [("user", "quiet")], "chat template of .* changes the messages"),
        (MERGING, [("user", "a"), ("user", "b")], "refuses the messages: roles must alternate user/assistant"),
    ],
)
def test_templates_that_change_or_refuse_the_messages(
    template: str, messages: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _rendered(template, *messages)


def test_without_a_template_a_plain_form_is_used() -> None:
    assert _rendered(None, ("user", "Hi "), ("assistant", "x"))[0] == "User: Hi \n\nAssistant: x\n\n"


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None])
def test_a_rendered_chat_begins_as_the_tokenizer_begins_texts(template: str | None) -> None:
    text, _ = _rendered(template, ("user", "Hi"), add_bos=True)
    assert text.startswith("<s>")
    assert text.count("<s>") == 1


def test_a_prompt_is_opened_up_to_where_the_answer_begins() -> None:
    with_template, without = tiny_tokenizer(chat_template=CHAT_TEMPLATE), tiny_tokenizer()
    assert open_chat(with_template, "Hi").endswith("Hi<|im_end|>\n<|im_start|>assistant\n")
    assert open_chat(without, "Hi", system="Be kind") == "System: Be kind\n\nUser: Hi\n\nAssistant:"
    asked = {(t, chat): uses_chat(t, chat) for t in (with_template, without) for chat in ("auto", "no", "yes")}
    assert list(asked.values()) == [True, False, True, False, False, True]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes more than 0.2 s"),
        # Computed where the template is compiled, and where it runs.
        ("{{ 9 ** (9 ** 9) }}", "takes more than 0.2 s"),
        ("{{ (messages | length + 8) ** (9 ** 9) }}", "takes more than 0.2 s"),
        ("{{ 'a' * 10 ** 11 }}", "takes more than 1 GB of memory"),
        ("{{ '%099999999999d' % 1 }}", "takes more than 1 GB of memory"),
        ("{{ 'a' * 3 * 10 ** 6 }}", "makes 3,000,000 characters of messages with 2"),
    ],
)
def test_a_template_that_does_not_end_or_blows_up_is_stopped(
    template: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "_MOST_SECONDS", 0.2)
    limits = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    with pytest.raises(MachineError, match=f"^the chat template of .* {says}"):
        _rendered(template, ("user", "Hi"))
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == limits
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}",
        "{{ " + "(" * 3_000 + "1" + ")" * 3_000 + " }}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content }}",
    ],
)
def test_whatever_a_template_raises_is_a_refusal(template: str) -> None:
    with pytest.raises(InputError, match="refuses the messages"):
        _rendered(template, ("user", "Hi"))


def test_in_another_thread_a_chat_is_rendered_too() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(_rendered, CHAT_TEMPLATE, ("user", "Hello")).result()[1] == ["Hello"]
