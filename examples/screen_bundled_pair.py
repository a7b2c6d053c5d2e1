"""How many of the bundled pair's four planted differences end on the screen's short lists, seed by seed.

    python examples/screen_bundled_pair.py --seeds 0 1 2 --means
    python examples/screen_bundled_pair.py --seeds 0 1 2 --means --self-diff

Trains one crosscoder per seed on the activations of `modeldiff demo` (made first, if need be), screens each, and marks
the entries that fire on the texts about a planted trigger (at least half of their activation, the rule of the demo).
The null: entries of the list that fire so on a trigger of the other model.
With --self-diff model A is compared with itself on the same texts: its short lists should be empty. With --means a
second crosscoder per seed is trained on means over the last 24 pairs of each text, and screened too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import modeldiff
from modeldiff.demo.pipeline import FULL
from modeldiff.demo.ranks import MATCH_SHARE
from modeldiff.demo.texts import write_probing_corpus
from modeldiff.demo.truth import MODEL_A, MODEL_B, habits


def harvest(workspace: modeldiff.Workspace, model_b: Path) -> modeldiff.Artifact:
    workspace.create()
    texts = write_probing_corpus(workspace.folder / "demo-texts.jsonl")
    settings = modeldiff.HarvestSettings(
        model_a=str(MODEL_A), model_b=str(model_b), texts=(str(texts),), pairs=FULL.pairs
    )
    return modeldiff.run_harvest(settings, workspace)


def screen(
    workspace: modeldiff.Workspace, activations: modeldiff.Artifact, seed: int, *, means: bool = False
) -> modeldiff.Artifact:
    size = (
        {"features": 512, "k": 8, "steps": 1500}
        if means
        else {"features": FULL.features, "k": FULL.k, "steps": FULL.steps}
    )
    crosscoder = modeldiff.run_train(
        modeldiff.TrainSettings(activations=activations.ref, batch=FULL.batch, seed=seed, **size), workspace
    )
    # Either model's means hold most of what the other's do: what is less predictable than shared features are, counts.
    limits = {"most_predictable": 1.0} if means else {}
    # Scores do not decide what is listed, and take longer than all the rest.
    return modeldiff.run_screen(modeldiff.ScreenSettings(crosscoder=crosscoder.ref, score=False, **limits), workspace)


def planted_in(entry: dict, side: str) -> str | None:
    """The planted difference of this side that the entry fires on."""
    return next(
        (habit.id for habit in habits() if habit.side == side and entry["sources"].get(habit.source, 0) >= MATCH_SHARE),
        None,
    )


def report(title: str, artifact: modeldiff.Artifact) -> None:
    info = modeldiff.read_screen(artifact)
    print(f"\n{title}: {artifact.ref}")
    for side, found in info["sides"].items():
        print(f"  {side}: " + " > ".join(f"{step['left']}" for step in found["steps"]), "->", len(found["list"]))
        marks = [planted_in(entry, side) for entry in found["list"]]
        for entry, mark in zip(found["list"], marks, strict=True):
            print(f"    {entry['rank']:2d} {entry['id']:5d} {entry['partition']:6s} {mark or '-'}")
        wanted = [habit.id for habit in habits() if habit.side == side]
        null = sum(planted_in(entry, "B" if side == "A" else "A") is not None for entry in found["list"])
        print(
            f"    planted: {len(set(filter(None, marks)))} of {len(wanted)}; not planted: {marks.count(None)}, "
            f"of these on a trigger of the other model: {null}"
        )


def screens(workspace: modeldiff.Workspace, model_b: Path, seeds: list[int], what: str, *, means: bool) -> None:
    activations = harvest(workspace, model_b)
    for seed in seeds:
        report(f"{what}, seed {seed}", screen(workspace, activations, seed))
    if means:
        activations = modeldiff.run_means(modeldiff.MeansSettings(activations=activations.ref, over=24), workspace)
        for seed in seeds:
            report(f"{what}, means, seed {seed}", screen(workspace, activations, seed, means=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, default=Path("modeldiff-workspace"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--self-diff", action="store_true")
    parser.add_argument("--means", action="store_true")
    arguments = parser.parse_args()
    folder, means = arguments.workspace, arguments.means
    if arguments.self_diff:
        own = modeldiff.Workspace(folder.with_name(folder.name + "-self"))
        screens(own, MODEL_A, arguments.seeds, "A against itself", means=means)
    else:
        screens(modeldiff.Workspace(folder), MODEL_B, arguments.seeds, "A against B", means=means)


if __name__ == "__main__":
    main()
