"""One training loop for all systems, with its checkpoints, run folder and strategies."""
