"""The training job on Ray Train."""
