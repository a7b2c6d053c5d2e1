"""Entry point of `modeldiff` and `python -m modeldiff`."""

from modeldiff.cli.main import run as main

if __name__ == "__main__":
    main()
