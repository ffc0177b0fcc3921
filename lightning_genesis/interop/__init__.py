"""Import of the authors' released checkpoints."""
