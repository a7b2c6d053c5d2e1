"""Producing an artifact by all processes of a run: rank 0 does what stage.py says, the others work in the same folder.

The folder of the workspace is the same for all of them (on several machines: a shared file system). What each rank
commits is kept when another one dies, and the same command with any number of processes goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modeldiff.errors import MachineError
from modeldiff.workspace.artifact import Artifact
from modeldiff.workspace.ranks import Ranks
from modeldiff.workspace.stage import Order, Work, produce
from modeldiff.workspace.workspace import PARTIAL, Workspace

Build = Callable[[Work], dict[str, Any]]


def produce_together(
    ranks: Ranks,
    workspace: Workspace,
    prepare: Callable[[], tuple[Order, Build]],
    *,
    name: str | None = None,
    force: bool = False,
) -> Artifact:
    """`produce` by every rank; each gets the artifact.

    Args:
        ranks: the processes of this run; of one alone this is `produce`.
        prepare: gives what is wanted and how it is made. Rank 0 calls it first: what is wrong with the input is said
            once. The others call it when there is something to build, and must come to the same order.
        name, force: as in `produce`.

    Raises:
        MachineError: as `produce`; or a process was lost, or sees other inputs than rank 0. A `build` that needs the
            others to be done waits for them by `ranks.barrier`; the metrics are those that rank 0's gives.
    """
    if ranks.first:
        order, build = prepare()

        def lead(work: Work) -> dict[str, Any]:
            ranks.broadcast(("build", work.folder.name, order.fingerprint))
            return build(work)

        artifact = produce(workspace, order, lead, name=name, force=force)
        ranks.broadcast(("made", artifact.kind, artifact.manifest.version))
        return artifact
    told = ranks.broadcast()
    if told[0] == "build":
        order, build = prepare()
        if order.fingerprint != told[2]:
            raise MachineError(
                f"process {ranks.rank} of this run has other inputs or another number format than process 0: "
                "give all of them the same files, and --dtype where their devices differ"
            )
        build(Work(workspace.folder / PARTIAL / told[1], ranks.rank))
        told = ranks.broadcast()
    return workspace.find(told[1], told[2])
