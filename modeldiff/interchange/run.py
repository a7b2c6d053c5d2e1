"""The stage `import`: a dictionary of another library and activations in, a `crosscoder` artifact out.

config.json, model.safetensors   the crosscoder
origin.safetensors               feature (F,) int64: the number each feature has in the library's file; scale (F,)
                                 float32: activations here are the library's times this
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import save

from modeldiff.console import say
from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.saving import CONFIG_NAME, WEIGHTS_NAME
from modeldiff.crosscoder.settings import PAPER_OUTLIER_FACTOR
from modeldiff.crosscoder.training.evaluation import evaluate
from modeldiff.errors import InputError
from modeldiff.interchange.dictionary import Dictionary, one_sided
from modeldiff.interchange.files import Source, open_source
from modeldiff.interchange.formats import read
from modeldiff.interchange.settings import ImportSettings
from modeldiff.lm.device import resolve_device
from modeldiff.splits import spread_blocks
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from modeldiff.workspace.activations import ActivationStore

SCHEMA = 1
ORIGIN_NAME = "origin.safetensors"
# What a dictionary is measured on, and what a threshold is fitted on: pairs spread over all.
_PAIRS, _BLOCK = 16384, 512
# Below this share of variance explained, something about the activations is probably wrong.
_SUSPICIOUS = 0.3


def run(settings: ImportSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Make a crosscoder of this workspace from a dictionary that was trained elsewhere.

    Raises:
        InputError: there are no such files or activations, the format is not known, or the dictionary selects or
            normalises in a way that a crosscoder here cannot; the message says what differs.
        DamagedError: files that cannot be read, or do not fit together.
    """
    activations = workspace.find("activations", settings.activations)
    if settings.activations is None:
        say(f"import for {activations.ref} (the latest)")
    store = ActivationStore(activations)
    sources = [open_source(one) for one in settings.source]
    device = resolve_device(settings.device)
    inputs = {"activations": activations.as_input()}
    for number, source in enumerate(sources):
        inputs[f"source {number + 1}"] = Input(f"file {source.name}", source.digest(workspace.digest_of))

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype="float32")
        return _build(settings, sources, store, device, work)

    return produce(workspace, Order("crosscoder", settings, inputs, SCHEMA), build, name=name, force=force)


def _build(
    settings: ImportSettings, sources: list[Source], store: ActivationStore, device: torch.device, work: Work
) -> dict[str, Any]:
    format_name, dictionary = read(sources, store.widths)
    _say_about(dictionary, store)
    imported = dictionary.crosscoder(store)
    crosscoder = imported.crosscoder.to(device)
    sizes = ", ".join(f"{name} {size:,}" for name, size in crosscoder.sizes.items())
    say(f"{format_name}: {crosscoder.n_features:,} features ({sizes})")
    fitted: dict[str, Any] = {}
    if dictionary.per_pair:
        if not settings.fit_threshold:
            raise InputError(
                f"{sources[0].name} keeps the {dictionary.k} largest entries of each token, at inference too; here a "
                "crosscoder has a threshold: --fit-threshold sets one that keeps as many on average, and measures it"
            )
        fitted = {"threshold_fitted": _fit_threshold(crosscoder, store)}
    blocks = spread_blocks(store.blocks(_BLOCK), _PAIRS)
    evaluation = evaluate(crosscoder, store, blocks, PAPER_OUTLIER_FACTOR)
    if dictionary.k is None:
        k = min(max(1, round(evaluation["l0"])), crosscoder.n_features)
        crosscoder.config = dataclasses.replace(crosscoder.config, k=k)
    for side, share in evaluation["fve"].items():
        if share < _SUSPICIOUS:
            say(
                f"the variance of model {side.upper()} is explained badly (FVE {share:.2f}): are these the models, "
                "layers and order that the dictionary was trained on, and positions of tokens like those?"
            )
    work.write_bytes(ORIGIN_NAME, save({"feature": imported.theirs_F, "scale": imported.scale_F}))
    work.write_json(CONFIG_NAME, crosscoder.config.to_json())
    weights = work.temporary(WEIGHTS_NAME)
    crosscoder.write_weights(weights)
    work.commit(weights, WEIGHTS_NAME)
    return {
        "from": format_name,
        "notes": dictionary.notes,
        "numbers": imported.numbers,
        "features": crosscoder.sizes,
        "parameters": crosscoder.config.parameters,
        "k": crosscoder.config.k,
        **fitted,
        "held_out": evaluation,
    }


def _say_about(dictionary: Dictionary, store: ActivationStore) -> None:
    for model, count in one_sided(dictionary).items():
        if count:
            dictionary.notes.append(
                f"{count:,} features write to model {model} alone but read both: they are shared features here"
            )
    for side, layer in dictionary.layers.items():
        held = store.info.sides[side].layer
        if None not in (layer, held) and layer != held:
            dictionary.notes.append(
                f"its config says layer {layer}, {store.artifact.ref} holds layer {held} of model {side.upper()} "
                "(counted from 0, after the block)"
            )
    for note in dictionary.notes:
        say(note)


def _fit_threshold(crosscoder: Crosscoder, store: ActivationStore) -> dict[str, float]:
    """Set the threshold that keeps k entries of each pair on average: the mean, over blocks, of the smallest entry
    that BatchTopK keeps. `same`: of the entries that are active with the k largest of each pair or with the threshold,
    the share that is with both; `l0` with the threshold."""
    k, least = crosscoder.config.k, []
    blocks = spread_blocks(store.blocks(_BLOCK), _PAIRS // 4)

    def pre() -> Iterator[torch.Tensor]:
        return (crosscoder.pre_activations(*crosscoder.normalise(*store.read(block))) for block in blocks)

    for pre_BF in pre():
        kept = pre_BF.flatten().topk(min(k * len(pre_BF), pre_BF.numel())).values
        least.append(max(0.0, float(kept[-1])))
    crosscoder.set_threshold(sum(least) / len(least))
    both = either = active = 0
    for pre_BF in pre():
        largest_BK = pre_BF.topk(k, dim=1).indices
        top_BF = torch.zeros_like(pre_BF, dtype=torch.bool).scatter_(1, largest_BK, True) & (pre_BF > 0)
        ours_BF = crosscoder.active(pre_BF) > 0
        both += int((top_BF & ours_BF).sum())
        either += int((top_BF | ours_BF).sum())
        active += int(ours_BF.sum())
    found = {
        "threshold": crosscoder.config.threshold,
        "same": both / max(1, either),
        "l0": active / sum(map(len, blocks)),
    }
    say(
        f"a threshold of {found['threshold']:.3g} stands for the {k} largest entries of each token: "
        f"{found['same']:.0%} of the active entries are the same, {found['l0']:.1f} a token"
    )
    return found
