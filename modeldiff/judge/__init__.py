"""Judges: language models that are asked about what features do, behind one interface; questions and their answers."""
