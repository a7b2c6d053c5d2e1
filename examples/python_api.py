"""The pipeline from Python: harvest the bundled pair, train, list what only A has, steer with the first of it.

    python examples/python_api.py [WORKSPACE]

A reduced size (20,000 pairs, 300 steps): about a minute on two CPU cores. Run it twice: the second time everything
is up to date.
"""

import sys
from pathlib import Path

import modeldiff
from modeldiff.demo.texts import write_probing_corpus
from modeldiff.demo.truth import MODEL_A, MODEL_B


def main() -> None:
    workspace = modeldiff.Workspace(sys.argv[1] if len(sys.argv) > 1 else "api-workspace")
    workspace.create()
    texts = write_probing_corpus(Path(workspace.folder) / "probing.jsonl")

    activations = modeldiff.run_harvest(
        modeldiff.HarvestSettings(model_a=str(MODEL_A), model_b=str(MODEL_B), texts=(str(texts),), pairs=20_000),
        workspace,
    )
    crosscoder = modeldiff.run_train(
        modeldiff.TrainSettings(activations=activations.ref, features=512, exclusive=0.05, k=16, steps=300), workspace
    )
    print("FVE and more, on held-out pairs:", crosscoder.metrics)

    features = modeldiff.run_features(modeldiff.FeaturesSettings(crosscoder=crosscoder.ref), workspace)
    table = modeldiff.FeatureTable(features)
    rows = table.rows(partition="A", top=5)
    for row in rows:
        print(f"feature {row.id}: fires on {row.density:.3%} of pairs, at most {row.max_activation:.1f}")

    steering = modeldiff.run_steer(
        modeldiff.SteerSettings(model="A", feature=rows[0].id, strength=(2.0,), prompt=("Question: What is",)),
        workspace,
    )
    print((steering.folder / "generations.jsonl").read_text())


if __name__ == "__main__":
    main()
