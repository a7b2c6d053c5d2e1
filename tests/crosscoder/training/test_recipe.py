"""Settings: what is refused, what is derived from the activations, and the schedules."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.recipe import make_recipe
from modeldiff.errors import InputError
from modeldiff.settings import field_docs


def test_the_papers_run_follows_from_the_papers_settings() -> None:
    settings = TrainSettings(features=131072, steps=100_000)
    recipe = make_recipe(settings, widths=(4096, 4096), pairs=100_000_000)
    assert (recipe.n_a_only, recipe.n_shared, recipe.n_b_only) == (6528, 118016, 6528), "multiples of 64"
    assert recipe.k in range(200, 206)
    assert recipe.k_start == 5 * recipe.k
    assert (recipe.anneal_steps, recipe.warmup, recipe.dead_pairs) == (5000, 1000, 10_000_000)
    assert recipe.lr == pytest.approx(1e-4, rel=0.5)
    assert make_recipe(settings, widths=(4096, 2880), pairs=10**8).auxk == 1744


@pytest.mark.parametrize(
    ("features", "share", "count"), [(4095, 0.05, 205), (4096, 0.05, 192), (8192, 0.0625, 512), (131072, 0.0001, 13)]
)
def test_large_partitions_are_multiples_of_64(features: int, share: float, count: int) -> None:
    recipe = make_recipe(TrainSettings(features=features, exclusive=share), widths=(64, 64), pairs=10**5)
    assert (recipe.n_a_only, recipe.n_shared, recipe.n_b_only) == (count, features - 2 * count, count)


def test_defaults_suit_small_models_and_short_runs() -> None:
    recipe = make_recipe(TrainSettings(), widths=(128, 192), pairs=200_000)
    assert recipe.n_a_only + recipe.n_shared + recipe.n_b_only == 1280
    assert (recipe.k, recipe.steps) == (16, 2000)
    assert recipe.dead_pairs == 200 * 2048, "a tenth of the run, not 10 M pairs"
    assert make_recipe(TrainSettings(), widths=(8, 8), pairs=4_000_000).steps == 3906
    assert make_recipe(TrainSettings(tokens=1_000_000), widths=(8, 8), pairs=10**6).steps == 488


@pytest.mark.parametrize(("decay", "middle", "last"), [("none", 1, 1), ("linear", 0.5, 0.05), ("cosine", 0.5, 0.006)])
def test_learning_rate_rises_stays_and_falls(decay: Any, middle: float, last: float) -> None:
    settings = TrainSettings(lr=2.0, warmup=10, decay=decay, steps=100)
    recipe = make_recipe(settings, widths=(8, 8), pairs=10**4)
    assert [recipe.lr_at(step) / 2 for step in (0, 4, 9, 50, 80)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    assert recipe.lr_at(90) / 2 == pytest.approx(middle)
    assert recipe.lr_at(99) / 2 == pytest.approx(last, abs=1e-3)


def audits(steps: int, wanted: int, batches: int, **values: Any) -> list[int]:
    """The steps that end with an audit, of which each looks at `batches` batches."""
    settings = TrainSettings(
        **{"features": 40, "exclusive": 0.1, "k": 2, "steps": steps, "batch": 10, **values},
        audits=wanted,
        audit_pairs=10 * batches,
    )
    recipe = make_recipe(settings, widths=(8, 8), pairs=1000)
    found = [step for step in range(steps) if recipe.next_audit(step) == step]
    assert tuple(found) == recipe.audit_steps
    assert recipe.audit_batches == max(2, batches)
    return found


@given(steps=st.integers(1, 400), wanted=st.integers(0, 30), batches=st.integers(1, 30))
def test_every_audit_has_pairs_of_its_own_and_one_closes_the_run(steps: int, wanted: int, batches: int) -> None:
    found = audits(steps, wanted, batches)
    assert len(found) <= wanted
    assert found[-1:] in ([], [steps - 1])
    assert all(after - before >= 2 for before, after in itertools.pairwise([-1, *found]))


@pytest.mark.parametrize("values", [{"architecture": "standard"}, {"exclusive": 0.0}, {"architecture": "dsf-norms"}])
def test_without_exclusive_features_there_is_nothing_to_audit(values: dict[str, Any]) -> None:
    assert audits(1000, 8, 16, **values) == []


@pytest.mark.parametrize(
    ("width", "batch", "expected"), [(64, 1024, 16384), (1024, 1024, 16384), (4096, 1024, 65536), (4096, 3000, 66000)]
)
def test_an_audit_looks_at_more_pairs_than_a_regression_has_weights(width: int, batch: int, expected: int) -> None:
    settings = TrainSettings(features=400, batch=batch, steps=10**5, audits=8)
    recipe = make_recipe(settings, widths=(8, width), pairs=10**6)
    assert (len(recipe.audit_steps), recipe.audit_batches * batch) == (8, expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"exclusive": 0.5}, "--exclusive must be at least 0 and below 0.5"),
        ({"features": 10, "k": 11}, r"--k must be at most the number of features \(10\), found 11"),
        ({"k": 8, "k_start": 4}, r"--k-start must be at least k \(8\)"),
        ({"steps": 5, "tokens": 5}, "give one of them"),
        ({"lr": float("nan")}, "--lr must be above 0"),
        ({"holdout": 0.0}, "--holdout"),
        ({"k": 65}, r"--k must be at most the number of features \(64\), found 65"),
        ({"features": 8}, "--exclusive 0.05 of 8 features leaves a partition empty"),
        ({"features": 8, "exclusive": 0.49, "k": 2}, "leaves a partition empty"),
        ({"batch": 1001}, r"--batch must be at most the pairs there are to train on \(1000\), found 1001"),
    ],
)
def test_settings_that_are_senseless_or_do_not_fit_the_activations_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_recipe(TrainSettings(**values), widths=(8, 8), pairs=1000)


def test_every_setting_has_a_help_text() -> None:
    assert field_docs(TrainSettings).keys() == set(TrainSettings().to_json())
    assert TrainSettings(**TrainSettings(k=9).to_json()) == TrainSettings(k=9)
