"""Harvest: from texts and two models to paired activations."""
