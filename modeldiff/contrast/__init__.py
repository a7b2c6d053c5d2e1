"""Contrast: what two models say next from the same places in texts, and where that differs."""
