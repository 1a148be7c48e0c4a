"""The evaluation job on Ray Data: workers, result files, metrics."""
