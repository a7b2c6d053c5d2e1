"""Linear maps of activations: ridge regression, maps between the two models, and what they say of a feature."""
