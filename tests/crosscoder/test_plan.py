"""`train --plan`: what is said to be needed is what torch takes, and what does not fit is said with what mends it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modeldiff.cli.main import run
from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder import plan as plan_module
from modeldiff.crosscoder.plan import Job, disk, forecast, needed, scaled, seconds_of_a_step, step_parts
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.checkpoint import write_checkpoint
from modeldiff.crosscoder.training.recipe import initial_config, make_recipe
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.workspace import Workspace, free
from tests.crosscoder.made import centred
from tests.made_activations import make_activations

PAPER: dict[str, Any] = {"features": 131_072, "k": 200, "architecture": "standard", "steps": 100_000}
SMALL: dict[str, Any] = {"features": 60, "exclusive": 0.1, "k": 4, "k_start": 4, "batch": 32, "steps": 50}
# 2 (131,072 x 4096 + 131,072 x 4096) weights, 131,072 + 4096 + 4096 biases.
PAPER_PARAMETERS = 2_147_622_912
GIB = 1 << 30


def job(
    settings: dict[str, Any], widths: tuple[int, int], *, precision: str = "float32", device: str = "cpu", **kwargs: Any
) -> Job:
    wanted = TrainSettings(**settings)
    recipe = make_recipe(wanted, widths=widths, pairs=10**8)
    config = initial_config(wanted, recipe, centred(*widths))
    values: dict[str, Any] = {"pairs": 10**8, "block_rows": 256, "buffer_bytes": 256 << 20, **kwargs}
    values |= {"device": torch.device(device), "pair_bytes": 2 * sum(widths)}
    return Job(config=config, recipe=recipe, precision=precision, **values)


def paper(**kwargs: Any) -> Job:
    return job(PAPER, (4096, 4096), **kwargs)


def test_what_lasts_is_what_torch_holds(tmp_path: Path) -> None:
    planned = job(SMALL, (16, 24))
    crosscoder = Crosscoder.initialised(planned.config, centred(16, 24), seed=0)
    trainer = Trainer(crosscoder, planned.recipe)
    for _ in range(2):
        trainer.update(torch.randn(32, 16), torch.randn(32, 24))

    parts = step_parts(planned)
    assert parts["weights"] == sum(one.nbytes for one in crosscoder.parameters())
    assert parts["gradients"] == sum(one.grad.nbytes for one in crosscoder.parameters())
    moments = trainer.optimizer.state.values()
    assert parts["moments"] == sum(state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes for state in moments)
    write_checkpoint(tmp_path / "checkpoint.json", trainer, "")
    (part,) = tmp_path.glob("*.safetensors")
    written = part.stat().st_size
    assert 0 < written - disk(planned.config)["checkpoint"] < 4096, "names and numbers"


def test_the_papers_size_by_hand() -> None:
    planned = paper(precision="bfloat16", device="cuda")
    assert planned.config.parameters == PAPER_PARAMETERS
    parts = step_parts(planned)
    assert parts["weights"] == parts["gradients"] == 4 * PAPER_PARAMETERS
    assert parts["moments"] == 8 * PAPER_PARAMETERS
    assert parts["pre_activations"] == 6 * 2048 * 131_072, "products in bfloat16, and in float32 for the selection"
    assert parts["batch"] > 2 * 131_072 * 8192, "the encoders in bfloat16"
    assert parts["dead_features"] > 0.1 * (4 * PAPER_PARAMETERS + 4 * 2048 * 131_072), "rows, and what they make"
    assert "buffer" not in parts
    host, device = needed(planned, "host"), needed(planned, "device")
    assert host["start"] == 4 * PAPER_PARAMETERS
    assert host["step"] == (256 << 20) + 4 * 2048 * 2 * 8192, "what is read, batches begun and on their way"
    assert host["checkpoint"] > 12 * PAPER_PARAMETERS, "copied from the device"
    assert 4 * PAPER_PARAMETERS < device["evaluation"] < 8 * PAPER_PARAMETERS, "gradients and moments are gone"
    assert disk(planned.config)["artifact"] == 4 * PAPER_PARAMETERS
    assert disk(planned.config)["needed"] == 2 * (12 * PAPER_PARAMETERS + 8 * 131_072)


def test_processes_share_the_features_and_a_machine_holds_its_processes() -> None:
    alone, eight, on_cpu = paper(device="cuda"), paper(device="cuda", processes=8, local=4), paper(processes=8, local=4)
    lasting = ("weights", "gradients", "moments", "pre_activations")
    one, each = (sum(step_parts(planned)[name] for name in lasting) for planned in (alone, eight))
    assert each == pytest.approx(one / 8, rel=1e-4), "biases of the decoder are everyone's"
    for moment in ("start", "checkpoint"):
        four = needed(eight, "host")[moment]
        assert four == pytest.approx(needed(alone, "host")[moment] / 2, rel=0.1), "four of eight parts"
    evaluated = needed(eight, "device")["evaluation"]
    assert evaluated > 4 * (eight.part.parameters + PAPER_PARAMETERS), "rank 0 puts the whole one beside its part"
    assert needed(on_cpu, "host")["step"] == 4 * sum(step_parts(on_cpu).values())
    assert 8 * PAPER_PARAMETERS < needed(on_cpu, "host")["checkpoint"] < 10 * PAPER_PARAMETERS, "nobody gathers"


def test_what_a_container_may_take_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = tmp_path / "groups"
    (groups / "inner").mkdir(parents=True)
    for folder, limit in ((groups, "max"), (groups / "inner", "5000000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("4000000\n")
        (folder / "memory.stat").write_text("anon 3\ninactive_file 500000\nactive_file 1000\n")
    own, meminfo = tmp_path / "own", tmp_path / "meminfo"
    own.write_text("0::/inner\n")
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    for name, path in (("_CGROUPS", groups), ("_OWN_CGROUP", own), ("_MEMINFO", meminfo)):
        monkeypatch.setattr(free, name, path)
    assert free.free_memory() == 5_000_000 - 4_000_000 + 501_000
    own.write_text("0::/\n")
    assert free.free_memory() == 8000 * 1024


def test_the_time_of_a_step_grows_with_the_features() -> None:
    planned = job(SMALL, (16, 24))
    large = dataclasses.replace(planned, config=scaled(planned.config, 1 << 17))
    assert seconds_of_a_step(large) > seconds_of_a_step(planned) > 0


Room = Callable[..., None]


@pytest.fixture
def with_room(monkeypatch: pytest.MonkeyPatch) -> Room:
    """Sets what is free on this machine; timing takes no time; a crosscoder must not be made."""

    def set_room(memory: int, disk: int = 10**13) -> None:
        monkeypatch.setattr(Crosscoder, "__init__", lambda *_: pytest.fail("a crosscoder was made"))
        for name, answer in {"free_memory": memory, "free_on": memory, "free_bytes": disk}.items():
            monkeypatch.setattr(plan_module, name, lambda *_, answer=answer: answer)
        monkeypatch.setattr(plan_module, "seconds_of_a_step", lambda *_: 0.25)

    return set_room


def test_the_largest_dictionary_that_fits_is_proposed(with_room: Room) -> None:
    with_room(150 * GIB)
    planned = job({**PAPER, "batch": 1 << 18}, (512, 512), buffer_bytes=64 * GIB)
    (problem,) = forecast(planned, Path("here"))["problems"]
    features = int(re.findall(r"--features (\d+) or fewer", problem)[0])
    for size, fits in ((features, True), (features + 1024, False)):
        assert forecast(dataclasses.replace(planned, config=scaled(planned.config, size)), Path("here"))["fits"] is fits


def test_a_small_disk_is_named(with_room: Room) -> None:
    with_room(64 * GIB, disk=20 * 10**9)
    (problem,) = forecast(paper(), Path("here"))["problems"]
    assert problem.startswith("disk in here: 51.5 GB needed, 20.0 GB free; use --features 50176 or fewer, or")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few pairs of models as wide as the paper's."""
    folder = tmp_path_factory.mktemp("wide") / "w"
    x_ND = torch.randn(2200, 4096, generator=torch.Generator().manual_seed(0)).half()
    make_activations(Workspace(folder), x_ND, x_ND, 1100, encoding="float16")
    return folder


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(workspace: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Exit code, stdout and stderr of `modeldiff train --plan` at the paper's size."""

    def call(*args: str) -> tuple[int, str, str]:
        given = ["--features", "131072", "--architecture", "standard", "--k", "200", "--device", "cpu"]
        with pytest.raises(SystemExit) as caught:
            run(["--workspace", str(workspace), "train", "--plan", *given, *args])
        captured = capsys.readouterr()
        return int(str(caught.value.code)), captured.out, captured.err

    return call


def test_the_papers_dictionary_does_not_fit_a_laptop(call: Call, with_room: Room, workspace: Path) -> None:
    with_room(24 * GIB)
    before = sorted(workspace.rglob("*"))
    code, out, err = call()
    assert code == 1
    *_, last = err.splitlines()
    assert last.startswith("modeldiff: it does not fit: memory of this machine: ")
    assert "25.8 GB free; use --features " in last
    lines = {line[:45].strip(): line[45:].strip() for line in out.splitlines()}
    assert max(map(len, out.splitlines())) <= 80
    assert lines["parameters"] == "2,147.62 M"
    assert lines["a step: weights"] == lines["a step: gradients"] == "8.6 GB"
    assert lines["a step: Adam's moments"] == "17.2 GB"
    assert lines["disk: checkpoint, artifact"] == "25.8 GB, 8.6 GB"
    assert lines["time of a step"] == "0.25 s, 8,192 pairs/s"
    code, out, _ = call("--json")
    planned = json.loads(out)
    assert (code, planned["fits"], planned["parameters"]) == (1, False, PAPER_PARAMETERS)
    assert planned["problems"][0] in err
    assert planned["memory"]["host"]["free"] == 24 * GIB
    assert planned["memory"]["host"]["needed"] > sum(planned["memory"]["parts"].values()) > 16 * PAPER_PARAMETERS
    assert planned["time"]["run"] == planned["steps"] * 0.25
    assert sorted(workspace.rglob("*")) == before, "nothing was begun"


def test_it_fits_enough_processes(call: Call, with_room: Room) -> None:
    with_room(12 * GIB)
    code, _, err = call()
    assert code == 1
    assert "or more processes by torchrun" in err
    assert call("--processes", "2")[0] == 1
    code, out, _ = call("--processes", "4")
    assert code == 0
    assert "a process: weights" in out


def test_under_torchrun_the_first_process_answers_for_all(
    call: Call, with_room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_room(200 * GIB)
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2"), ("MASTER_ADDR", "-"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "0")
    planned = json.loads(call("--json")[1])
    assert (planned["processes"], planned["processes_per_machine"]) == (4, 2)
    monkeypatch.setenv("RANK", "1")
    assert call() == (0, "", "")


def test_processes_belong_to_the_plan(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["--workspace", str(workspace), "train", "--processes", "2"])
    assert caught.value.code == 2
    assert "--processes goes with --plan" in capsys.readouterr().err
