"""The parts of ``examples/train_bundled_pair.py``, which trains the two bundled models."""
