"""How many of the bundled pair's four planted differences end on the screen's short lists, seed by seed.

    python examples/screen_bundled_pair.py --seeds 0 1 2 --self-diff

Trains one crosscoder per seed on the activations of `modeldiff demo` (made first, if need be), screens each, and marks
the entries that fire on the texts about a planted trigger (at least half of their activation, the rule of the demo).
The null: entries of the list that fire so on a trigger of the other model.
With --self-diff model A is compared with itself on the same texts: its short lists should be empty.
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


def screen(workspace: modeldiff.Workspace, activations: modeldiff.Artifact, seed: int) -> modeldiff.Artifact:
    crosscoder = modeldiff.run_train(
        modeldiff.TrainSettings(
            activations=activations.ref, features=FULL.features, k=FULL.k, steps=FULL.steps, batch=FULL.batch, seed=seed
        ),
        workspace,
    )
    # Scores do not decide what is listed, and take longer than all the rest.
    return modeldiff.run_screen(modeldiff.ScreenSettings(crosscoder=crosscoder.ref, score=False), workspace)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, default=Path("modeldiff-workspace"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--self-diff", action="store_true")
    arguments = parser.parse_args()
    workspace = modeldiff.Workspace(arguments.workspace)
    if arguments.seeds:
        activations = harvest(workspace, MODEL_B)
        for seed in arguments.seeds:
            report(f"A against B, seed {seed}", screen(workspace, activations, seed))
    if arguments.self_diff:
        workspace = modeldiff.Workspace(arguments.workspace.with_name(arguments.workspace.name + "-self"))
        for seed in arguments.seeds or [0]:
            report(f"A against itself, seed {seed}", screen(workspace, harvest(workspace, MODEL_A), seed))


if __name__ == "__main__":
    main()
