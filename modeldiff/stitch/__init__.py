"""Affine maps between the two models' activations, both ways: an activations artifact in, a `stitch` artifact out.

To use one from another stage: modeldiff/crosscoder/stitch.py.
"""
