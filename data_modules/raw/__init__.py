"""Readers of the publishers' own files: streaming, in bounded memory, without TensorFlow."""
