"""Model organisms with known differences: short fine-tunes of the bundled models. See README.md beside this file."""

from .catalogue import KINDS, NULLS, ORGANISMS, PAIRS, PLANTED, Organism, Pair, organism

__all__ = ["KINDS", "NULLS", "ORGANISMS", "PAIRS", "PLANTED", "Organism", "Pair", "organism"]
