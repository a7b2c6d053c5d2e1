"""Artifacts: versioned, fingerprinted, cached, locked, crash-safe, verified."""

from modeldiff.workspace.artifact import Artifact, Input
from modeldiff.workspace.stage import Order, Work, produce
from modeldiff.workspace.workspace import Workspace

__all__ = ["Artifact", "Input", "Order", "Work", "Workspace", "produce"]
