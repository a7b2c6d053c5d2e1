"""Pushing a feature's direction into a model and reading what it then writes."""
