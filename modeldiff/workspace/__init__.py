"""Artifacts: versioned, fingerprinted, cached, locked, crash-safe, verified."""

from modeldiff.workspace.artifact import Artifact
from modeldiff.workspace.manifest import Input
from modeldiff.workspace.stage import Order, Work, produce
from modeldiff.workspace.workspace import Workspace, default_folder

__all__ = ["Artifact", "Input", "Order", "Work", "Workspace", "default_folder", "produce"]
