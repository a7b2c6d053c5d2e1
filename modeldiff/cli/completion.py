"""`modeldiff completion`: the script by which a shell completes commands, options and artifacts."""

from __future__ import annotations

import click

from modeldiff.cli.common import examples
from modeldiff.console import echo

# References have colons (crosscoder:1), at which bash would begin a new word.
_COLONS = "COMP_WORDBREAKS=${COMP_WORDBREAKS//:}"


def _print(shell: str) -> None:
    from click.shell_completion import get_completion_class

    from modeldiff.cli.main import cli

    made = get_completion_class(shell)
    assert made is not None
    script = made(cli, {}, "modeldiff", "_MODELDIFF_COMPLETE").source()
    echo(*script.rstrip().split("\n"), *([_COLONS] if shell == "bash" else []))


command = click.Command(
    "completion",
    callback=_print,
    params=[click.Argument(["shell"], type=click.Choice(["bash", "zsh", "fish"]))],
    help="Print what makes a shell complete commands, options and artifacts at the tab key: put the line for yours "
    "into ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish.",
    epilog=examples(
        [
            'eval "$(modeldiff completion bash)"',
            'eval "$(modeldiff completion zsh)"',
            "modeldiff completion fish | source",
        ]
    ),
)
