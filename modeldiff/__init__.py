"""modeldiff: what does this language model represent that the other one does not?"""

__version__ = "0.1.0"
