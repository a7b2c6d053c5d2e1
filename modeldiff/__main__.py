"""Entry point of `modeldiff` and `python -m modeldiff`."""

from __future__ import annotations


def main() -> None:
    from modeldiff.cli.main import run

    run()


if __name__ == "__main__":
    main()
