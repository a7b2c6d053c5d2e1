"""Attacks on the tool as a whole: kills, damage, nonsense, full disks, odd environments, hostile text, architectures.

`python -m tests.attack` runs the long form and prints a table; the tests in this folder run a short one.
"""
