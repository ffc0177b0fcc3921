"""What a number is measured on: the papers' protocols, splits, the networks that see, probes."""
