"""The whole diff from Python: the bundled pair, its differences, what only A has, and A pushed along the first of it.

    python examples/python_api.py [WORKSPACE]

The notebooks beside it show the same with more words. A reduced size: about two minutes on two CPU cores. Run it twice:
the second time everything is up to date.
"""

import sys

import transformers

import modeldiff
from modeldiff.demo.texts import write_probing_corpus
from modeldiff.demo.truth import MODEL_A, MODEL_B


def main() -> None:
    workspace = modeldiff.Workspace(sys.argv[1] if len(sys.argv) > 1 else "api-workspace")
    workspace.create()
    texts = write_probing_corpus(workspace.folder / "probing.jsonl")

    done = modeldiff.run_diff(
        modeldiff.DiffSettings(
            model_a=str(MODEL_A), model_b=str(MODEL_B), texts=(str(texts),), pairs=20_000, features=256, k=16,
            steps=150, places=3000, contexts=("everywhere", "word", "feature"), steer=False,
        ),
        workspace,
    )  # fmt: skip
    print(modeldiff.Differences(done.contrast))
    print("FVE and more, on held-out pairs:", done.crosscoder.metrics)

    rows = modeldiff.FeatureTable(done.features).rows(partition="A", top=5)
    for row in rows:
        print(f"feature {row.id}: fires on {row.density:.3%} of pairs, at most {row.max_activation:.1f}")

    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL_A)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_A)
    prompt = tokenizer("Question: What is", return_tensors="pt")
    with modeldiff.steered(model, modeldiff.direction(workspace, rows[0].id, "A"), strength=2.0):
        print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40)[0]))


if __name__ == "__main__":
    main()
