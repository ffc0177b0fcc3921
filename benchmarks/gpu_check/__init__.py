"""All that has to be looked at on a GPU, in one go: `python3 -m benchmarks.gpu_check` (docs/gpu.md)."""
