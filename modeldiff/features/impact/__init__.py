"""What each feature does to its model, and how much of its activation the surface of the text explains."""
