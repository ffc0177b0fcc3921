"""A run's folder: its model, results, loggers."""
