"""Diff: all stages in one call, from two models and texts to the list of differences."""
