"""Files that survive: written whole or not at all, sealed checkpoints, states of random generators."""
