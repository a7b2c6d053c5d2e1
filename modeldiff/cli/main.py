"""`modeldiff`: the group of commands. A command's module, and with it torch, is imported only when it runs."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

import click

from modeldiff import __version__
from modeldiff.cli.common import examples, workspace_option
from modeldiff.cli.edge import TRACEBACK_ENV, explained, open_streams, written
from modeldiff.console import progress_as_json, say_error
from modeldiff.errors import DamagedError, ModeldiffError, first_line

# Where another process of a run has gone, torch prints a page of its own beside our line. Read when torch is imported.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
# For how long OpenMP's threads turn round while they wait for each other, read likewise. With its default the steps of
# a training take 0.86 to 0.99 times as long alone, and 2 to 4 times as long where others want the cores
# (`python -m tests.benchmarks.waiting`).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# name, also of the module -> one-line help. The help stands here so that `modeldiff --help` imports no command.
_COMMANDS = {
    "diff": "Two models + texts -> what one does that the other does not.",
    "demo": "The diff of a bundled pair of small models, with the truth.",
    "harvest": "Texts + two models -> paired activations.",
    "train": "Activations -> a crosscoder: features of A, shared, of B.",
    "sweep": "Several crosscoders: seeds, sizes, k, and how good they are.",
    "features": "Crosscoder -> its features, listed and shown in context.",
    "contrast": "What each model says that the other does not, and where.",
    "steer": "What a model writes when a feature is pushed.",
    "report": "All of it -> one page that a colleague opens.",
    "toy": "A benchmark of dictionaries on data whose truth is known.",
    "workspace": "List, show, verify, remove and clean artifacts.",
    "import": "Another library's crosscoder + activations -> a crosscoder.",
    "export": "A crosscoder or features as files of another library.",
    "push": "Upload an artifact to the hub, with a model card.",
    "pull": "Download an artifact from the hub into the workspace.",
    "completion": "What makes a shell complete commands at the tab key.",
}
# Those that share a module, as `commands` in it (`import` could be none's name).
_TOGETHER = dict.fromkeys(("import", "export", "push", "pull"), "interchange")


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        home = importlib.import_module(f"modeldiff.cli.{_TOGETHER.get(cmd_name, cmd_name)}")
        command: click.Command = home.commands[cmd_name] if cmd_name in _TOGETHER else home.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError as error:  # of a file: click would take it for the end of what a user types
            raise DamagedError(f"a file ends too early ({first_line(error)})") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


cli = _Lazy(
    "modeldiff",
    params=[
        workspace_option(),
        click.Option(
            ["--progress"],
            type=click.Choice(["text", "json"]),
            default="text",
            envvar="MODELDIFF_PROGRESS",
            expose_value=False,
            callback=lambda _ctx, _param, value: progress_as_json(value == "json"),
            help="How progress is written to stderr; json: an object a line, for programs. Also MODELDIFF_PROGRESS.",
        ),
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
    help="What does this language model do or represent that the other one does not?\n\n"
    "modeldiff lets two models of any architecture, width and tokenizer continue the same texts and lists what they "
    "say differently, where, and whether it holds; its crosscoder, one dictionary on both models' activations, says "
    "where that is represented, and either model can be steered with it.",
    epilog=examples(
        [
            "modeldiff demo",
            "modeldiff diff --model-a gpt2 --model-b distilgpt2 --texts corpus.jsonl",
            "modeldiff contrast --show latest --numbers",
            "modeldiff features --exclusive A --top 20",
            'modeldiff steer --model A --feature 17 --strength 1 2 4 --prompt "I think"',
        ]
    ),
)
click.version_option(__version__, prog_name="modeldiff")(cli)


def run(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage or input. An error is one line; see edge.py."""
    open_streams()
    try:
        code: Any = cli.main(args=args, prog_name="modeldiff", standalone_mode=False)
        if lost := written(sys.stdout):
            raise lost
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get(TRACEBACK_ENV):
            traceback.print_exception(error)
        code = _failed(error)
    written(sys.stderr)
    code = code if isinstance(code, int) else 0
    if code and "WORLD_SIZE" in os.environ:
        from modeldiff.workspace.ranks import launched

        # Python's way out closes NCCL's connections; that waits for the other processes, which wait for this one.
        if launched()[0].world > 1:
            os._exit(code)
    sys.exit(code)


def _failed(error: Exception | KeyboardInterrupt) -> int:
    """Say what went wrong; the exit code."""
    lost = written(sys.stdout)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return 2
    if isinstance(error, click.UsageError):
        place = error.ctx.command_path if error.ctx else "modeldiff"
        message, code = f"{error.format_message().rstrip('.')}; see `{place} --help`", error.exit_code
    elif isinstance(error, click.ClickException):
        message, code = error.format_message(), error.exit_code
    elif isinstance(error, ModeldiffError):
        message, code = str(error), error.exit_code
    elif isinstance(error, click.Abort) and isinstance(error.__context__, EOFError):
        message, code = "there was no answer, so nothing was done", 1
    elif isinstance(error, click.Abort | KeyboardInterrupt):
        message, code = "interrupted: the same command continues where this one stopped", 130
    elif isinstance(error, BrokenPipeError):  # the reader of a pipe (`| head`) has gone
        return 1
    else:
        message, code = explained(lost or error), 1
    say_error(message)
    return code
