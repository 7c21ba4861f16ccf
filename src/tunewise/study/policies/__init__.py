"""Which runs a study does next: all of a grid, or a search for learning rates."""
