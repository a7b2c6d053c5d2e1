"""Do crosscoders mean the same to the libraries that they come from and go to?

    python -m tests.benchmarks.interchange --peers FOLDER

Each row writes files with one side and reads them with the other: the libraries' own classes, from checkouts in FOLDER
(see peers.py) and, for SAELens, installed beside this project. Codes are compared as the library's `encode` gives them,
reconstructions likewise, on the same raw activations. An entry that rounding puts on the other side of a threshold is
counted, and its pair is left out of the differences. Exit code 1 when a difference is above 1e-5, or more than one
entry in 10^5 is on the other side.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging.config
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig, load
from modeldiff.interchange import dictionary_learning, saelens
from modeldiff.interchange.run import ORIGIN_NAME, run
from modeldiff.interchange.settings import ImportSettings
from modeldiff.workspace import Workspace
from tests.benchmarks.checkouts import load as load_checkout
from tests.benchmarks.peers import DFC, FORK
from tests.made_activations import make_activations

CROSSCODE = "oli-clive-griffin-crosscode"
ANTEBE = "Antebe-model_diffing_crosscoders"
LIMIT = 1e-5
WIDTH, FEATURES, ROWS = 48, 160, 4096
_GENERATOR = torch.Generator().manual_seed(0)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    library: str
    what: str
    latents: float | None
    """Largest difference; None where it could not be measured."""
    reconstructions: float | None
    active: float
    """Active features a pair: that 0 equals 0 shows nothing."""
    flipped: float = 0.0
    """Share of the entries that are active on one side alone."""
    note: str = ""


def random_like(module: Any, *, masked: bool = False) -> Any:
    """Every parameter random, of size 0.1; masked: what is 0 in a matrix stays 0, as with dedicated features."""
    with torch.no_grad():
        for parameter in module.parameters():
            kept = (parameter != 0) | (not masked or parameter.dim() == 1)
            parameter.copy_(torch.randn(parameter.shape, generator=_GENERATOR) * 0.1 * kept)
    return module


def activations(width_b: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    """Of norms as models have them, the two models' apart, with means that are not 0."""
    x_a = torch.randn(ROWS, WIDTH, generator=_GENERATOR) * 1.5 + torch.randn(WIDTH, generator=_GENERATOR)
    x_b = torch.randn(ROWS, width_b, generator=_GENERATOR) * 0.6 - 0.2
    return x_a, x_b


class Reader:
    """A workspace with activations, into which files are imported and compared with what the library says."""

    def __init__(self, folder: Path) -> None:
        self.x = activations()
        self.folder = folder
        self.workspace = Workspace(folder / "workspace")
        make_activations(self.workspace, *self.x)

    def row(self, library: str, what: str, latents: torch.Tensor, xhat: list[torch.Tensor], *files: Path) -> Row:
        artifact = run(ImportSettings(source=tuple(map(str, files)), device="cpu"), self.workspace)
        origin = load_file(artifact.folder / ORIGIN_NAME)
        crosscoder = load(artifact)
        sizes = ", ".join(f"{part} {size}" for part, size in crosscoder.sizes.items())
        theirs_BF = latents[:, origin["feature"]]
        return compared(library, f"{what} -> modeldiff", crosscoder, self.x, theirs_BF, xhat, origin["scale"], sizes)


def compared(
    library: str,
    what: str,
    crosscoder: Crosscoder,
    x: tuple[torch.Tensor, torch.Tensor],
    latents: torch.Tensor,
    xhat: list[torch.Tensor],
    scale_F: torch.Tensor | float = 1.0,
    note: str = "",
) -> Row:
    f_BF = crosscoder.encode(*x)
    differs_BF = (f_BF > 0) != (latents > 0)
    kept_B = ~differs_BF.any(dim=1)

    def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        return float((ours - theirs)[kept_B].abs().max())

    active, flipped = float((latents > 0).sum(dim=1).float().mean()), float(differs_BF.float().mean())
    reconstructions = max(map(apart, crosscoder.decode(f_BF), xhat))
    return Row(library, what, apart(f_BF / scale_F, latents), reconstructions, active, flipped, note)


@torch.no_grad()
def of_forks(peers: Path | None, reader: Reader) -> Iterator[Row]:
    x_B2D = torch.stack(reader.x, dim=1)
    normaliser = {"activation_mean": x_B2D.mean(dim=0), "activation_std": x_B2D.std(dim=0)}
    for checkout in (FORK, DFC):
        name = checkout.partition("-dic")[0] if checkout == FORK else "dfc_learning"
        loaded = load_checkout(peers, checkout, "dictionary_learning.dictionary")
        if isinstance(loaded, str):
            yield Row(name, "", None, None, 0, note=loaded)
            continue
        (library,) = loaded
        kinds: list[tuple[str, dict[str, Any]]] = [("CrossCoder", {})]
        kinds += [
            ("BatchTopKCrossCoder", {"code_normalization": one}) for one in ("CROSSCODER", "SAE", "MIXED", "NONE")
        ]
        if checkout == DFC:
            kinds = [("DedicatedFeatureCrossCoder", {}), ("DedicatedFeatureBatchTopKCrossCoder", {})]
        for number, (kind, values) in enumerate(kinds):
            for about, more in (("", {}), (", normaliser", normaliser)):
                if "BatchTopK" in kind:
                    more = {"k": 9, **more}
                made = getattr(library, kind)(activation_dim=WIDTH, dict_size=FEATURES, num_layers=2, **values, **more)
                random_like(made, masked=checkout == DFC)
                if "BatchTopK" in kind:
                    made.threshold = torch.tensor(_threshold(made, x_B2D))
                folder = reader.folder / f"{checkout}-{number}{about}"
                if checkout == FORK and values.get("code_normalization") == "SAE":
                    made.save_pretrained(folder)  # as on the hub
                else:
                    folder.mkdir()
                    torch.save(made.state_dict(), folder / "ae.pt")
                code_BF = made.encode(x_B2D.clone())
                what = f"{kind} {values.get('code_normalization', '')}".strip() + about
                yield reader.row(name, what, code_BF, list(made.decode(code_BF).unbind(dim=1)), folder)
        yield from to_forks(name, library, reader.folder)


def _threshold(made: Any, x_B2D: torch.Tensor) -> float:
    *_, scaled_BF = made.encode(x_B2D.clone(), return_active=True)
    return float(scaled_BF.quantile(0.9, dim=1).mean())


@torch.no_grad()
def to_forks(name: str, library: ModuleType, folder: Path) -> Iterator[Row]:
    """Into `BatchTopKCrossCoder`: the class of dedicated features cannot be loaded from safetensors, since its state
    dict holds more than tensors. Its weights are the same."""
    for number, (selection, combine, width_b) in enumerate(
        [("activation", "sum", WIDTH), ("l2", "mean", WIDTH), ("sum", "sum", WIDTH), ("activation", "sum", WIDTH - 9)]
    ):
        crosscoder, x = of_ours(selection=selection, combine=combine, width_b=width_b)
        files = folder / f"{name}-ours-{number}"
        files.mkdir()
        order = dictionary_learning.write(crosscoder, files)["order"]
        theirs = library.BatchTopKCrossCoder.from_pretrained(str(files), from_hub=True)
        padded = torch.nn.functional.pad(x[1], (0, WIDTH - width_b))
        code_BF = theirs.encode(torch.stack([x[0], padded], dim=1))
        back_F = torch.cat([torch.arange(*order[part]) for part in ("A", "shared", "B")])
        xhat = theirs.decode(code_BF)
        what = f"modeldiff {selection}, {combine}, widths {WIDTH}, {width_b} -> BatchTopKCrossCoder"
        yield compared(name, what, crosscoder, x, code_BF[:, back_F], [xhat[:, 0], xhat[:, 1, :width_b]])


def of_ours(*, width_b: int, **config: Any) -> tuple[Crosscoder, tuple[torch.Tensor, torch.Tensor]]:
    x = activations(width_b)
    sizes = {"n_a_only": 13, "n_shared": FEATURES - 30, "n_b_only": 17, "k": 9}
    made = Crosscoder(
        CrosscoderConfig(width_a=WIDTH, width_b=width_b, scale_a=0.61, scale_b=1.7, threshold=0.6, **sizes, **config)
    )
    return random_like(made), x


@torch.no_grad()
def of_crosscode(peers: Path | None, reader: Reader) -> Iterator[Row]:
    with mock.patch.object(logging.config, "dictConfig"), mock.patch.object(Path, "mkdir"):  # it would open a log there
        loaded = load_checkout(peers, CROSSCODE, "crosscode.models.activations", "crosscode.models.acausal_crosscoder")
    if isinstance(loaded, str):
        yield Row("crosscode", "", None, None, 0, note=loaded)
        return
    functions, models = loaded
    x_BMPD = torch.stack(reader.x, dim=1)[:, :, None]
    for name, function in (
        ("ReLU", functions.ReLUActivation()),
        ("JumpReLU", functions.AnthropicSTEJumpReLUActivation(FEATURES, bandwidth=0.1)),
    ):
        for folded in (False, True):
            made = models.ModelHookpointAcausalCrosscoder(2, 1, WIDTH, FEATURES, function)
            random_like(made)
            if folded:
                made.fold_activation_scaling_into_weights_(torch.tensor([[0.4], [1.9]]))
            folder = reader.folder / f"crosscode-{name}-{folded}"
            made.save(folder)
            done = made.forward_train(x_BMPD)
            what = f"{name}{', scale folded in' if folded else ''}"
            yield reader.row("crosscode", what, done.latents_BL, list(done.recon_acts_BMPD[:, :, 0].unbind(1)), folder)


@torch.no_grad()
def of_antebe(peers: Path | None, reader: Reader) -> Iterator[Row]:
    """Its selection is fitted here: compared are entries that are active in both, and what both decode its code to."""
    name, path = "model_diffing_crosscoders", (peers or Path()) / ANTEBE / "sweep_eval.py"
    try:
        spec = importlib.util.spec_from_file_location("sweep_eval", path)
        assert spec
        assert spec.loader
        library = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(library)
    except Exception as error:  # whatever its file does when it is run
        yield Row(name, "", None, None, 0, note=f"cannot be imported: {error}")
        return
    for kind in (library.CrossCoder, library.DFCCrossCoder):
        made = random_like(kind(WIDTH, FEATURES, 9))
        folder = reader.folder / kind.__name__
        folder.mkdir()
        torch.save(made.state_dict(), folder / "model.pt")
        (folder / "config.json").write_text('{"k": 9}')
        settings = ImportSettings(source=(str(folder),), device="cpu", fit_threshold=True)
        artifact = run(settings, reader.workspace)
        crosscoder, feature_F = load(artifact), load_file(artifact.folder / ORIGIN_NAME)["feature"]
        code_BF = made.encode(torch.stack(reader.x, dim=1))[:, feature_F]
        f_BF = crosscoder.encode(*reader.x)
        both_BF = (f_BF > 0) & (code_BF > 0)
        through = max(
            float((ours - theirs).abs().max())
            for ours, theirs in zip(
                crosscoder.decode(code_BF), made.decode(code_BF[:, feature_F.argsort()]).unbind(1), strict=True
            )
        )
        same = f"{artifact.metrics['threshold_fitted']['same']:.0%} of the active entries are the same"
        latents = float((f_BF - code_BF)[both_BF].abs().max())
        yield Row(name, f"{kind.__name__} -> modeldiff, threshold fitted", latents, through, 9.0, note=same)


@torch.no_grad()
def of_saelens(reader: Reader) -> Iterator[Row]:
    try:
        from sae_lens import SAE, __version__
        from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
        from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    except ImportError as error:
        yield Row("SAELens", "", None, None, 0, note=f"not installed ({error})")
        return
    name = f"SAELens {__version__}"
    for what, kind, config in (
        ("two standard", StandardSAE, StandardSAEConfig), ("two JumpReLU", JumpReLUSAE, JumpReLUSAEConfig),
    ):  # fmt: skip
        codes, xhat, folders = [], [], []
        for side, x_BD in zip("ab", reader.x, strict=True):
            made = random_like(kind(config(d_in=WIDTH, d_sae=FEATURES, apply_b_dec_to_input=side == "a")))
            if "threshold" in dict(made.named_parameters()):
                made.threshold.abs_().add_(0.5)
            folders.append(reader.folder / f"{what} {side}")
            made.save_model(folders[-1])
            codes.append(made.encode(x_BD))
            xhat.append(made.decode(codes[-1]))
        yield reader.row(name, what, torch.cat(codes, dim=1), xhat, *folders)
    for selection, width_b in (("activation", WIDTH), ("mean", WIDTH - 9), ("sum", WIDTH)):
        crosscoder, x = of_ours(selection=selection, combine="mean", width_b=width_b)
        folder = reader.folder / f"sae-{selection}"
        folder.mkdir()
        saelens.write(crosscoder, folder)
        sae = SAE.load_from_disk(str(folder))
        code_BF = sae.encode(torch.cat(x, dim=1))
        whole = sae.decode(code_BF)
        what = f"modeldiff {selection}, mean, widths {WIDTH}, {width_b} -> {type(sae).__name__}"
        yield compared(name, what, crosscoder, x, code_BF, list(whole.split([WIDTH, width_b], dim=1)))
        if width_b == WIDTH:
            yield reader.row(name, f"the same {type(sae).__name__}", *_on(sae, reader.x), folder)


def _on(sae: Any, x: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    code_BF = sae.encode(torch.cat(x, dim=1))
    return code_BF, list(sae.decode(code_BF).split([WIDTH, WIDTH], dim=1))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.interchange", description=__doc__)
    parser.add_argument("--peers", type=Path, help="folder with checkouts of the libraries")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(Path(folder))
        ways: list[Callable[[], Iterator[Row]]] = [
            lambda: of_forks(arguments.peers, reader),
            lambda: of_crosscode(arguments.peers, reader),
            lambda: of_antebe(arguments.peers, reader),
            lambda: of_saelens(reader),
        ]
        for way in ways:
            rows += way()
    table = Table("library", "direction", "latents", "reconstructions", "active", "flipped", "note")
    for row in rows:
        numbers = [("-" if one is None else f"{one:.1e}") for one in (row.latents, row.reconstructions)]
        table.add_row(row.library, row.what, *numbers, f"{row.active:.1f}", f"{row.flipped:.0e}", row.note)
    Console(width=160).print(table)
    measured = [one for row in rows for one in (row.latents, row.reconstructions) if one is not None]
    return 1 if not measured or max(measured) > LIMIT or max(row.flipped for row in rows) > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
