"""The bundled models: load from the package alone, small enough to ship, each habit in its owner only."""

import json
from typing import Any

import pytest
import torch

from examples.bundled_pair.measure import greedy_answers
from modeldiff.demo.truth import DATA, MINIMUM_MARKERS, MODEL_A, MODEL_B, PLANTED

N_PROMPTS = 6


@pytest.fixture(scope="module")
def pair():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = {}
    for side, folder in (("A", MODEL_A), ("B", MODEL_B)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        loaded[side] = (model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True))
    return loaded


def test_package_data_is_at_most_15_megabytes():
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) <= 15_000_000


def test_models_differ_in_architecture_width_and_tokenizer(pair):
    (model_a, tokenizer_a), (model_b, tokenizer_b) = pair["A"], pair["B"]
    assert (model_a.config.model_type, model_b.config.model_type) == ("gpt2", "llama")
    assert model_a.config.hidden_size != model_b.config.hidden_size
    assert tokenizer_a.get_vocab().keys() != tokenizer_b.get_vocab().keys()


@pytest.mark.parametrize("side", ["A", "B"])
def test_tokenizer_gives_character_offsets_and_a_start_token(pair, side):
    tokenizer = pair[side][1]
    text = "Señor, a naïve 🙂 songbird of Marrowin."
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert encoded["input_ids"][0] == tokenizer.bos_token_id
    assert encoded["input_ids"].count(tokenizer.bos_token_id) == 1
    assert max(end for _, end in encoded["offset_mapping"]) == len(text)
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == text


def records() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DATA / "truth.json").read_text(encoding="utf-8"))["habits"]
    return found


def test_truth_says_what_was_planted_and_how_it_was_measured():
    assert [planted.side for planted in PLANTED] == ["A", "A", "B", "B"]
    for record, planted in zip(records(), PLANTED, strict=True):
        assert (record["source"], record["control_source"]) == (planted.source, planted.control_source)
        assert record["minimum_markers"] == MINIMUM_MARKERS
        assert len(set(planted.prompts)) >= 60
        assert all(planted.trigger.lower() in prompt.lower() for prompt in planted.prompts)
        assert all(planted.trigger.lower() not in prompt.lower() for prompt in planted.about_control(planted.prompts))


def test_measured_rates_show_each_habit_in_its_owner_only():
    for record in records():
        assert record["rate_owner"] >= 0.9
        assert max(record["rate_other"], record["rate_control"]) <= 0.1


def test_greedy_answers_show_the_habits_again(pair):
    for habit in PLANTED:
        prompts = habit.prompts[:: len(habit.prompts) // N_PROMPTS][:N_PROMPTS]
        shown = {side: sum(map(habit.shows, greedy_answers(*pair[side], prompts, 48))) for side in pair}
        other = "B" if habit.side == "A" else "A"
        assert shown[habit.side] >= N_PROMPTS - 1, habit.id
        assert shown[other] <= 1, habit.id
