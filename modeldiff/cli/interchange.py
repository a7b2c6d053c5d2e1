"""`modeldiff import`, `export`, `push` and `pull`: artifacts from and for other libraries, and the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from modeldiff.cli.common import artifact_json, plain_command, show_metrics, stage_command
from modeldiff.console import echo
from modeldiff.format import flat, print_json, table
from modeldiff.interchange.settings import ImportSettings

if TYPE_CHECKING:
    from modeldiff.workspace import Workspace

_TARGETS = ("dictionary_learning", "saelens", "neuronpedia")


def _export(workspace: Workspace, *, ref: str | None, to: str, out: Path, as_json: bool) -> None:
    from modeldiff.interchange.formats import export

    about = export(workspace, ref, to, out)
    if as_json:
        print_json(about)
    else:
        table(str(out), [("", "left"), ("value", "left")], flat(about))


def _push(workspace: Workspace, *, ref: str, repository: str, private: bool, as_json: bool) -> None:
    from modeldiff.interchange.hub import push

    artifact = workspace.resolve(ref)
    address = push(artifact, repository, private=private)
    if as_json:
        print_json({"ref": artifact.ref, "address": address})
    else:
        echo(f"{artifact.ref} is at {address}")


def _pull(workspace: Workspace, *, repository: str, name: str | None, as_json: bool) -> None:
    from modeldiff.interchange.hub import pull

    artifact = pull(repository, workspace, name=name)
    if as_json:
        print_json(artifact_json(artifact))
    else:
        echo(f"{artifact.ref} is in {artifact.folder}")


commands = {
    "import": stage_command(
        "import",
        ImportSettings,
        "modeldiff.interchange.run",
        show=show_metrics,
        help="A crosscoder that another library trained becomes one of this workspace: `features`, `contrast` and "
        "`steer` work on it.\n\n"
        "Read are crosscoders of two models of dictionary_learning (science-of-finetuning's), dfc_learning (the DFC "
        "authors'), crosscode, and `antebe1/...`; and dictionaries of SAELens, one of each model, or one of both side "
        "by side. The codes are those of the library on the same activations; what a crosscoder here cannot do is "
        "refused, with the reason. Details: modeldiff/interchange/README.md.",
        lines=[
            "modeldiff import runs/crosscoder/model_final.pt --activations 1",
            "modeldiff import science-of-finetuning/gemma-2-2b-crosscoder-l13-mu4.1e-02-lr1e-04",
            "modeldiff import sae-of-a sae-of-b --activations my-harvest",
            "modeldiff import antebe1/dfc-D8k-excl10-k90 --fit-threshold",
        ],
    ),
    "export": plain_command(
        "export",
        _export,
        params=[
            click.Argument(["ref"], required=False),
            click.Option(["--to"], type=click.Choice(_TARGETS), required=True, help="Whose files are written."),
            click.Option(["--out"], type=click.Path(path_type=Path), required=True, help="A new or empty folder."),
        ],
        help="A crosscoder (for neuronpedia: features) as files of another library; the latest one unless named.\n\n"
        "dictionary_learning: a BatchTopKCrossCoder, exclusive features as zeros in the other model; saelens: one "
        "dictionary on both models' activations side by side; neuronpedia: examples of each model's features for its "
        "upload. modeldiff.json beside them says which feature is which.",
        lines=[
            "modeldiff export --to dictionary_learning --out for-them",
            "modeldiff export crosscoder:2 --to saelens --out sae",
            "modeldiff export features:1 --to neuronpedia --out upload",
        ],
    ),
    "push": plain_command(
        "push",
        _push,
        params=[
            click.Argument(["ref"]),
            click.Argument(["repository"]),
            click.Option(["--private"], is_flag=True, help="Only for you and whom you let in, if it is new."),
        ],
        help="Upload an artifact to the Hugging Face hub, with a model card made from its manifest, or to a store.\n\n"
        "All its files go there: excerpts of texts, and in the manifest names and paths. The login is that of `hf auth "
        "login`. A crosscoder is then loaded with modeldiff.Crosscoder.from_pretrained, everything with `pull`.\n\n"
        "An address with :// is one of an object store or file system that fsspec knows, with its own login: s3:// "
        "(pip install s3fs), gs:// (gcsfs), file:// and others. A push that was cut off sends only what is missing.",
        lines=[
            "modeldiff push crosscoder:latest me/my-crosscoder --private",
            "modeldiff push activations:1 s3://bucket/runs/activations-1",
        ],
    ),
    "pull": plain_command(
        "pull",
        _pull,
        params=[
            click.Argument(["repository"]),
            click.Option(["--name"], metavar="LABEL", help="A name for the artifact, to refer to it by."),
        ],
        help="Download an artifact that `push` uploaded into this workspace, checked by its digests.\n\n"
        "From a store (s3:// and the like) a pull that was cut off goes on where it was.\n\n"
        "To measure a crosscoder on a harvest of your own: `modeldiff features --activations REF`.",
        lines=["modeldiff pull me/my-crosscoder --name theirs", "modeldiff pull s3://bucket/runs/activations-1"],
    ),
}
