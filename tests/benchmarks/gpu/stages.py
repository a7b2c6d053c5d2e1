"""The stages on the bundled pair of models: the device's artifacts against those that the CPU makes of the same inputs.

Every stage runs on the CPU, once, and on the device from the CPU's inputs: a fault of one is not another's. The models
run in float32 in both places: what is left is rounding, and what rounding decides (which entry is the last active one,
which of two words is the likelier).

Legend: B prompts, T tokens, F features, E examples.
"""

from __future__ import annotations

from functools import cache
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

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, 24, 16
# Relative deviations, where nothing else is said: in float32 and, of activations, in bfloat16.
CLOSE, COARSE = 1e-4, 3e-2
STATISTICS = ("firing_count", "mean_activation", "max_activation", "activation_by_source", "relative_norm")


class Stages:
    """The bundled pair through every stage; the methods without arguments are phases."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.workspace = bench, modeldiff.Workspace(bench.folder / "bundled")
        self.workspace.create()
        texts = str(write_probing_corpus(bench.folder / "texts.jsonl"))
        self.pair = {"model_a": str(MODEL_A), "model_b": str(MODEL_B), "texts": (texts,), "dtype": "float32"}

    @cache  # noqa: B019 (one object a run)
    def on_cpu(self, stage: str) -> Artifact:
        return self._run(stage, "cpu", force=False)

    def on_device(self, stage: str, **more: Any) -> Artifact:
        """Made anew, though the workspace may have it: by which device is no part of what it is known by."""
        self.on_cpu(stage)
        made = self._run(stage, str(self.bench.device), force=True, **more)
        self.bench.speed(f"the stage {stage}", made.manifest.seconds, "s", more.get("dtype", ""))
        return made

    def both(self, stage: str) -> tuple[Artifact, Artifact]:
        """The CPU's, the device's."""
        return self.on_cpu(stage), self.on_device(stage)

    def _run(self, stage: str, device: str, *, force: bool, **more: Any) -> Artifact:
        kind = getattr(modeldiff, f"{stage.title()}Settings")
        with unheard():
            settings = kind(**{**self._values(stage), "device": device, **more})
            made: Artifact = getattr(modeldiff, f"run_{stage}")(settings, self.workspace, force=force)
        return made

    def _values(self, stage: str) -> dict[str, Any]:
        """Of a stage's settings, in both places."""
        size, exact = self.bench.sizes, {"dtype": "float32"}
        match stage:
            case "harvest":
                return {**self.pair, "pairs": size.pairs, "shard_pairs": 1 + size.pairs // 2, "storage": "float32"}
            case "train":
                values = {"features": size.features, "k": 8, "steps": size.features // 2, "batch": 256, "lr": 2e-3}
                values |= {"precision": "float32", "audits": 2, "audit_pairs": 1024}
                return {**values, "activations": self.on_cpu("harvest").ref}
            case "features":
                return {"crosscoder": self.on_cpu("train").ref}
            case "stitch":
                return {"activations": self.on_cpu("harvest").ref}
            case "evaluate":
                return {"crosscoder": self.on_cpu("train").ref, "pairs": size.pairs // 4, **exact}
            case "continuations":
                return {**self.pair, "places": size.places, "tokens": NEW_TOKENS}
            case "contrast":
                # So little is asked of an entry that some are listed, and their causes sampled.
                values = {"rate": 0.9, "smallest": 0.0, "least": 4, "top": 3, "cause_places": 8, **exact}
                refs = {"continuations": self.on_cpu("continuations").ref, "crosscoder": self.on_cpu("train").ref}
                return values | refs
            case _:  # steer
                self.on_cpu("stitch")
                values = {"feature": self._frequent(1)[0], "model": "A", "both": True, "other_by": "stitch"}
                values |= {"strength": (1.0, 2.0), "max_new_tokens": NEW_TOKENS, **exact}
                return values | {"features": self.on_cpu("features").ref, "prompt": tuple(PLANTED[0].prompts[:2])}

    def _frequent(self, count: int) -> list[int]:
        """The shared features that fire most often."""
        shared = load(self.on_cpu("train")).slices["shared"]
        fires_F = stored.read_arrays(self.on_cpu("features"), stored.STATISTICS_NAME)["firing_count"][shared]
        return [shared.start + int(feature) for feature in fires_F.argsort()[-count:]]

    def harvest(self) -> None:
        """Rows of both models."""
        half = {"dtype": "bfloat16", "storage": "bfloat16"}
        for precision, more, most in (("float32", {}, CLOSE), ("bfloat16", half, COARSE)):
            stores = [ActivationStore(one) for one in (self.on_cpu("harvest"), self.on_device("harvest", **more))]
            self.bench.right("pairs, difference", abs(stores[0].pairs - stores[1].pairs), precision, most=0)
            for side in SIDES:
                right_ND, found_ND = (
                    torch.cat([store.read_side(side, block).float() for block in store.blocks(4096)])
                    for store in stores
                )
                worst = ((found_ND - right_ND).norm(dim=1) / right_ND.norm(dim=1)).max()
                self.bench.right(f"rows of {side.upper()}, all", apart(found_ND, right_ND), precision, most=most)
                self.bench.right(f"rows of {side.upper()}, the worst one", worst, precision, most=10 * most)

    def features(self) -> None:
        """Statistics, the strongest examples, twins and evidence."""
        made = self.both("features")
        right, found = (stored.read_arrays(one, stored.STATISTICS_NAME) for one in made)
        for name in STATISTICS:
            gap = apart(torch.from_numpy(found[name]), torch.from_numpy(right[name]))
            self.bench.right(f"{name} of all features", gap, most=1e-3)
        self.bench.right("share of examples that are the same", _common(*map(_examples, made)), least=0.98)
        twins = [stored.read_arrays(one, stored.TWINS_NAME)["feature"] for one in made]
        self.bench.right("share of twins that are the same", (twins[0] == twins[1]).mean(), least=0.95)
        for name in sorted(name for name in right if name.startswith(("r2", "null", "reference", "difference"))):
            same = np.isclose(found[name], right[name], rtol=0, atol=2e-3, equal_nan=True)
            self.bench.right(f"evidence: share of {name} within 0.002", same.mean() if same.size else 1, least=0.95)

    def stitch(self) -> None:
        """Maps between the models, and what they explain."""
        right, found = map(load_stitch, self.both("stitch"))
        for name in DIRECTIONS:
            gap = abs(found.info["maps"][name]["r2"] - right.info["maps"][name]["r2"])
            self.bench.right(f"R² of {name}, difference", gap, most=CLOSE)
            self.bench.right(f"map {name}", apart(getattr(found, name).w_DD, getattr(right, name).w_DD), most=1e-2)

    @torch.inference_mode()
    def words(self) -> None:
        """The models alone: the likeliest continuations, and predictions with features taken off."""
        crosscoder, taken = load(self.on_cpu("train")), self._frequent(3)
        documents = ActivationStore(self.on_cpu("harvest")).plan(0).documents[:PROMPTS]
        for side, path in zip(SIDES, (MODEL_A, MODEL_B), strict=True):
            prompts = [one.tokens[side].ids[:PROMPT_TOKENS].tolist() for one in documents]
            ids_BT, mask_BT = padded([torch.tensor(one) for one in prompts])
            layer, said, logits = int(getattr(crosscoder.config, f"layer_{side}")), [], []
            for device in (torch.device("cpu"), self.bench.device):
                lm = load_model(ModelRef(str(path)), device, torch.float32)
                made = continue_tokens(lm, prompts, max_new_tokens=NEW_TOKENS)
                said.append(
                    {(i, place, token) for i, one in enumerate(made) for place, token in enumerate(one.new_ids)}
                )
                with take_off(lm, layer, [shown(crosscoder, taken, side)] * len(prompts)):
                    logits.append(lm.logits(ids_BT, mask_BT).cpu()[mask_BT.bool()])
            what = f"share of {side.upper()}'s likeliest words that are the same"
            self.bench.right(what, _common(*said), least=0.95)
            self.bench.right(f"predictions of {side.upper()} with features taken off", apart(*logits[::-1]), most=CLOSE)

    def contrast(self) -> None:
        """Places, what is said there, contexts, entries and causes. What is drawn depends on the device's generator."""
        here, there = map(Continuations, self.both("continuations"))
        bits = [{(one.document, one.end): one.divergence for one in made.places} for made in (here, there)]
        self.bench.right("share of places that are the same", _common(*map(set, bits)), least=0.95)
        gap = max(abs(bits[0][place] - bits[1][place]) for place in bits[0].keys() & bits[1].keys())
        self.bench.right("bits between both models' next words there, difference", gap, most=1e-2)
        said = [bool(text.strip()) for one in there.places for texts in one.said.values() for text in texts]
        self.bench.right("share of places at which something is said", np.mean(said), least=0.95)
        found = [read_contrast(one) for one in self.both("contrast")]
        contexts = [sum(one["contexts"].values()) for one in found]
        self.bench.right("contexts, difference of their numbers", abs(contexts[1] / contexts[0] - 1), most=0.02)
        entries = [
            {(entry["side"], *entry["context"].values()) for entry in one["differences"] + one["not_verified"]}
            for one in found
        ]
        self.bench.right("share of entries that are the same", _common(*entries), least=0.5)
        causes = sum(entry["cause"] is not None for entry in found[1]["differences"])
        self.bench.right("entries of which a cause was sampled", causes, least=1)

    def steer(self) -> None:
        """What a push does to the predictions of both models."""
        doses = [read_json(made.file("steering.json"))["dose"] for made in self.both("steer")]
        right, found = (
            {(one["model"], one["direction"], one["strength"]): one["kl"] for one in dose} for dose in doses
        )
        gap = max(abs(found[push] - kl) / max(kl, 1e-3) for push, kl in right.items())
        self.bench.right(f"KL of {len(right)} pushes, the worst one", gap, most=2e-2)
        self.bench.right("the CPU's largest KL", max(right.values()), least=1e-2)

    def evaluate(self) -> None:
        """The models' losses with the reconstruction in place."""
        right, found = (read_json(made.file("evaluation.json"))["sides"] for made in self.both("evaluate"))
        for side in SIDES:
            here, there = (one[side]["replaced"]["losses"] for one in (right, found))
            gap = max(abs(there[name][what] - here[name][what]) for name in here for what in ("loss", "kl"))
            self.bench.right(f"losses and KL of {side.upper()}, nats, the worst one", gap, most=2e-3)

    def train(self) -> None:
        """The stage with its audits, as a GPU runs it if nothing is said."""
        found = self.on_device("train", precision="bfloat16").metrics["held_out"]["fve"]
        right = self.on_cpu("train").metrics["held_out"]["fve"]
        gap = max(abs(found[side] - right[side]) for side in SIDES)
        self.bench.right("variance of held-out pairs that is explained, difference", gap, "bfloat16", most=0.05)


def _common(one: set[Any], other: set[Any]) -> float:
    """Of what either has, the share that both have."""
    return len(one & other) / max(1, len(one | other))


def _examples(features: Artifact) -> set[tuple[int, int]]:
    """Feature and row of each."""
    with h5py.File(features.file(stored.EXAMPLES_NAME)) as file:
        feature_E = np.repeat(np.arange(len(file["offsets"]) - 1), np.diff(file["offsets"]))
        return set(zip(feature_E.tolist(), file["row"][:].tolist(), strict=True))
