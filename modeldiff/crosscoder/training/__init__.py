"""The training loop: recipe, data, losses, what a step does, checkpoints."""
