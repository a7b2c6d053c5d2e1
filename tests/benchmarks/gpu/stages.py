"""The stages on the bundled pair of models: the device's artifacts against those that the CPU makes of the same inputs.

Every stage runs on the CPU, once, and on the device from the CPU's inputs, so that a fault of one is not another's.
The models run in float32 in both: what is left is rounding, and what rounding decides (which entry is the last active
one, which of two words is the likelier).

Legend: B prompts, T tokens, V vocabulary, F features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import h5py
import numpy as np
import torch

import modeldiff
from modeldiff.catalogue import stored
from modeldiff.catalogue.contrast import read_contrast
from modeldiff.console import unheard
from modeldiff.contrast.cause import shown
from modeldiff.contrast.continuations import Continuations
from modeldiff.crosscoder import load
from modeldiff.demo.texts import write_probing_corpus
from modeldiff.demo.truth import MODEL_A, MODEL_B, PLANTED
from modeldiff.linear.stitch import DIRECTIONS, load_stitch
from modeldiff.lm.batches import padded
from modeldiff.lm.generate import continue_tokens
from modeldiff.lm.load import load_model
from modeldiff.lm.ref import ModelRef
from modeldiff.lm.residual import take_off
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact
from modeldiff.workspace.activations import ActivationStore
from modeldiff.workspace.files import read_json
from tests.benchmarks.gpu.correct import apart
from tests.benchmarks.gpu.harness import Bench

MODELS = {"a": MODEL_A, "b": MODEL_B}
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, 24, 16
# Where nothing is said: relative deviations, of float32 and of bfloat16.
CLOSE, COARSE = 1e-4, 3e-2


class Stages:
    """The bundled pair through every stage. Each public method but `on_cpu` is a phase."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.sizes = bench, bench.sizes
        self.workspace = modeldiff.Workspace(bench.folder / "bundled")

    @cached_property
    def texts(self) -> str:
        self.workspace.create()
        return str(write_probing_corpus(self.bench.folder / "texts.jsonl"))

    def settings(self, stage: str, **more: Any) -> Any:
        """What a stage is asked for, in both places."""
        pair = {"model_a": str(MODEL_A), "model_b": str(MODEL_B), "texts": (self.texts,), "dtype": "float32"}
        size = self.sizes
        match stage:
            case "harvest":
                values = {**pair, "pairs": size.pairs, "shard_pairs": 1 + size.pairs // 2, "storage": "float32"}
            case "train":
                values = {"features": size.features, "k": 8, "steps": size.features // 2, "batch": 256, "lr": 2e-3}
                values |= {"activations": self.on_cpu("harvest").ref, "precision": "float32", "audits": 2}
                values |= {"audit_pairs": 1024}
            case "features":
                values = {"crosscoder": self.on_cpu("train").ref}
            case "stitch":
                values = {"activations": self.on_cpu("harvest").ref}
            case "evaluate":
                values = {"crosscoder": self.on_cpu("train").ref, "pairs": size.pairs // 4, "dtype": "float32"}
            case "continuations":
                values = {**pair, "places": size.places, "tokens": NEW_TOKENS}
            case "contrast":
                # So little asked of an entry that some are listed, and their causes sampled.
                values = {"rate": 0.9, "smallest": 0.0, "least": 4, "top": 3, "cause_places": 8, "dtype": "float32"}
                values |= {"continuations": self.on_cpu("continuations").ref, "crosscoder": self.on_cpu("train").ref}
            case "steer":
                fires_F = stored.read_arrays(self.on_cpu("features"), stored.STATISTICS_NAME)["firing_count"]
                shared = load(self.on_cpu("train")).slices["shared"]
                values = {"feature": shared.start + int(fires_F[shared].argmax()), "model": "A", "both": True}
                values |= {"features": self.on_cpu("features").ref, "prompt": tuple(PLANTED[0].prompts[:2])}
                values |= {"strength": (1.0, 2.0), "max_new_tokens": NEW_TOKENS, "dtype": "float32"}
        name = "TrainSettings" if stage == "train" else f"{stage.title()}Settings"
        return getattr(modeldiff, name)(**{**values, **more})

    @cache  # noqa: B019 (one object a run)
    def on_cpu(self, stage: str) -> Artifact:
        with unheard():
            return self._run(stage)(self.settings(stage, device="cpu"), self.workspace)

    def on_device(self, stage: str, **more: Any) -> Artifact:
        """Made anew, though the workspace may have it: the device is no part of what it is known by."""
        settings = self.settings(stage, device=str(self.bench.device), **more)
        with unheard():
            made = self._run(stage)(settings, self.workspace, force=True)
        self.bench.speed(f"the stage {stage} on the device", made.manifest.seconds, "s")
        return made

    def _run(self, stage: str) -> Callable[..., Artifact]:
        return getattr(modeldiff, f"run_{stage}")

    def harvest(self) -> None:
        """Rows of both models."""
        right = ActivationStore(self.on_cpu("harvest"))
        for precision, more, most in (
            ("float32", {}, CLOSE),
            ("bfloat16", {"dtype": "bfloat16", "storage": "bfloat16"}, COARSE),
        ):
            store = ActivationStore(self.on_device("harvest", **more))
            self.bench.right("pairs that only one of both has", abs(store.pairs - right.pairs), 0, precision)
            for side in SIDES:
                x, y = (
                    torch.cat([one.read_side(side, block) for block in one.blocks(4096)]).float()
                    for one in (store, right)
                )
                worst = float(((x - y).norm(dim=1) / y.norm(dim=1)).max())
                self.bench.right(f"rows of {side.upper()}, all", apart(x, y), most, precision)
                self.bench.right(f"rows of {side.upper()}, the worst one", worst, 10 * most, precision)

    def train(self) -> None:
        """The stage with its audits, as a GPU runs it if nothing is said; its steps alone are another phase's."""
        right = self.on_cpu("train").metrics["held_out"]["fve"]
        found = self.on_device("train", precision="bfloat16").metrics["held_out"]["fve"]
        gap = max(abs(found[side] - right[side]) for side in SIDES)
        self.bench.right("variance explained of held-out pairs, difference", gap, 0.02, "bfloat16")

    def features(self) -> None:
        """Statistics, the strongest examples, twins and evidence."""
        here, there = self.on_cpu("features"), self.on_device("features")
        right, found = (stored.read_arrays(one, stored.STATISTICS_NAME) for one in (here, there))
        for name in ("firing_count", "mean_activation", "max_activation", "activation_by_source", "relative_norm"):
            self.bench.right(name, apart(torch.from_numpy(found[name]), torch.from_numpy(right[name])), 1e-3)
        self.bench.least("share of the examples that are the same", _shared_examples(here, there), 0.98)
        twins = [stored.read_arrays(one, stored.TWINS_NAME)["feature"] for one in (here, there)]
        self.bench.least("share of the twins that are the same", float((twins[0] == twins[1]).mean()), 0.95)
        for side in SIDES:
            for name in (f"r2_{side}", f"null_{side}", f"reference_{side}_other"):
                same = np.isclose(found[name], right[name], rtol=0, atol=2e-3, equal_nan=True)
                self.bench.least(f"evidence: share of {name} within 0.002", float(same.mean()) if same.size else 1, 0.95)

    def stitch(self) -> None:
        """Maps between the models, and what they explain."""
        right, found = (load_stitch(one) for one in (self.on_cpu("stitch"), self.on_device("stitch")))
        for name in DIRECTIONS:
            gap = abs(found.info["maps"][name]["r2"] - right.info["maps"][name]["r2"])
            self.bench.right(f"R² of {name}, difference", gap, CLOSE)
            self.bench.right(f"weights of {name}", apart(getattr(found, name).w_DD, getattr(right, name).w_DD), 1e-2)

    def contrast(self) -> None:
        """What both models say, by the likeliest word and drawn; places, contexts, entries and causes."""
        self._greedy()
        right, made = (Continuations(one) for one in (self.on_cpu("continuations"), self.on_device("continuations")))
        places = [{(one.document, one.end): one.divergence for one in found.places} for found in (right, made)]
        common = places[0].keys() & places[1].keys()
        self.bench.least("share of the places that are the same", len(common) / len(right.places), 0.95)
        gap = max(abs(places[0][one] - places[1][one]) for one in common)
        self.bench.right("bits between the next words of both models at them, difference", gap, 1e-2)
        said = np.mean([bool(text.strip()) for one in made.places for texts in one.said.values() for text in texts])
        self.bench.least("share of the places at which something is said", float(said), 0.95)
        here, there = (read_contrast(one) for one in (self.on_cpu("contrast"), self.on_device("contrast")))
        right_contexts, contexts = (sum(one["contexts"].values()) for one in (here, there))
        self.bench.right("contexts, difference", abs(contexts - right_contexts) / right_contexts, 0.02)
        entries = [
            {(one["side"], *one["context"].values()) for one in found["differences"] + found["not_verified"]}
            for found in (here, there)
        ]
        same = len(entries[0] & entries[1]) / max(1, len(entries[0] | entries[1]))
        self.bench.least("share of the entries that are the same", same, 0.5)
        causes = [one["cause"] for one in there["differences"] if one.get("cause")]
        self.bench.least("entries whose cause was sampled", len(causes), 1)

    @torch.inference_mode()
    def _greedy(self) -> None:
        """The likeliest continuations, and predictions with features taken off, by the models alone."""
        crosscoder = load(self.on_cpu("train"))
        shared, features = crosscoder.slices["shared"], self.on_cpu("features")
        fires_F = stored.read_arrays(features, stored.STATISTICS_NAME)["firing_count"]
        taken = (shared.start + fires_F[shared].argsort()[-3:]).tolist()
        for side, path in MODELS.items():
            store = ActivationStore(self.on_cpu("harvest"))
            prompts = [one.tokens[side].ids[:PROMPT_TOKENS].tolist() for one in store.plan(0).documents[:PROMPTS]]
            ids_BT, mask_BT = padded([torch.tensor(one) for one in prompts])
            written, logits = [], []
            layer = int(getattr(crosscoder.config, f"layer_{side}"))
            for device in (torch.device("cpu"), self.bench.device):
                lm = load_model(ModelRef(str(path)), device, torch.float32)
                with unheard():
                    made = continue_tokens(lm, prompts, max_new_tokens=NEW_TOKENS)
                written.append([token for one in made for token in (one.new_ids + [-1] * NEW_TOKENS)[:NEW_TOKENS]])
                with take_off(lm, layer, [shown(crosscoder, taken, side)] * len(prompts)):
                    logits.append(lm.logits(ids_BT, mask_BT).float().cpu()[mask_BT.bool()])
            same = float(np.mean([a == b for a, b in zip(*written, strict=True)]))
            self.bench.least(f"share of the likeliest words that {side.upper()} says on both", same, 0.95)
            self.bench.right(f"predictions of {side.upper()} with features taken off", apart(logits[1], logits[0]), CLOSE)

    def steer(self) -> None:
        """What a push does to the predictions of both models."""
        rows = []
        self.on_cpu("stitch")
        for made in (self.on_cpu("steer"), self.on_device("steer")):
            dose = read_json(made.file("steering.json"))["dose"]
            rows.append({(one["model"], one["direction"], one["strength"]): one["kl"] for one in dose})
        right, found = rows
        gap = max(abs(found[key] - kl) / max(kl, 1e-3) for key, kl in right.items())
        self.bench.right(f"KL of {len(right)} pushes, the worst one", gap, 2e-2)
        self.bench.least("the largest KL, so that there is something to compare", max(right.values()), 1e-3)

    def evaluate(self) -> None:
        """The models' losses with the reconstruction in place."""
        right, found = (
            read_json(made.file("evaluation.json"))["sides"]
            for made in (self.on_cpu("evaluate"), self.on_device("evaluate"))
        )
        for side in SIDES:
            for scope in ("all", "replaced"):
                here, there = (one[side][scope]["losses"] for one in (right, found))
                gap = max(abs(there[name][what] - here[name][what]) for name in here for what in ("loss", "kl"))
                self.bench.right(f"losses and KL of {side.upper()}, {scope}, nats", gap, 2e-3)


def _shared_examples(here: Artifact, there: Artifact) -> float:
    """Of all examples (feature and row) of either, the share that both have."""
    found: list[set[tuple[int, int]]] = []
    for artifact in (here, there):
        with h5py.File(artifact.file(stored.EXAMPLES_NAME)) as file:
            feature_E = np.repeat(np.arange(len(file["offsets"]) - 1), np.diff(file["offsets"]))
            found.append(set(zip(feature_E.tolist(), file["row"][:].tolist(), strict=True)))
    return len(found[0] & found[1]) / max(1, len(found[0] | found[1]))
