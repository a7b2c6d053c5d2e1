"""`modeldiff train --plan`: what a training would take, as a table or as JSON."""

from __future__ import annotations

from typing import Any

from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.errors import MachineError
from modeldiff.format import duration, print_json, table
from modeldiff.workspace import Workspace
from modeldiff.workspace.files import human_bytes
from modeldiff.workspace.ranks import launched

_PARTS = {
    "moments": "Adam's moments",
    "pre_activations": "pre-activations",
    "batch": "batch and active entries",
    "dead_features": "dead features (if a tenth)",
    "buffer": "pairs read ahead",
}


def print_plan(settings: TrainSettings, workspace: Workspace, processes: int | None, *, as_json: bool) -> None:
    """Print it, in the first of several processes. Raises MachineError if the run would not fit."""
    from modeldiff.crosscoder.training.run import plan

    if not launched()[0].first:
        return
    planned = plan(settings, workspace, processes=processes)
    if as_json:
        print_json(planned)
    else:
        table("plan: nothing was trained", [("what", "left"), ("", "right")], _rows(planned))
    if not planned["fits"]:
        raise MachineError("it does not fit: " + "; and ".join(planned["problems"]))


def _rows(planned: dict[str, Any]) -> list[list[str]]:
    features, memory, disk, time = (planned[name] for name in ("features", "memory", "disk", "time"))
    part, on_machine = "a step", ""
    if planned["processes"] > 1:
        part, on_machine = "a process", f", on this machine {planned['processes_per_machine']}"
    split = ", ".join(f"{name} {size:,}" for name, size in features.items())
    places = {"host": "memory", "device": "device memory"}
    return [
        ["activations", planned["activations"]],
        ["features", f"{sum(features.values()):,} ({split})"],
        ["parameters", f"{planned['parameters'] / 1e6:,.2f} M"],
        ["k, batch", f"{planned['k']}, {planned['batch']:,}"],
        ["device, precision", f"{planned['device']}, {planned['precision']}"],
        ["processes", f"{planned['processes']:,}{on_machine}"],
        *([f"{part}: {_PARTS.get(name, name)}", human_bytes(size)] for name, size in memory["parts"].items()),
        *([f"{name}: needed, free", _against(memory[place])] for place, name in places.items() if place in memory),
        ["disk: checkpoint, artifact", f"{human_bytes(disk['checkpoint'])}, {human_bytes(disk['artifact'])}"],
        ["disk: needed, free", _against(disk)],
        ["time of a step", f"{time['step']:.3g} s, {time['pairs_per_second']:,.0f} pairs/s"],
        [f"time of {planned['steps']:,} steps", duration(time["run"])],
    ]


def _against(place: dict[str, int]) -> str:
    return f"{human_bytes(place['needed'])}, {human_bytes(place['free'])}"
