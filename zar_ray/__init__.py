"""Zero-shot action recognition by per-video prompt tuning, evaluated and served on a Ray cluster."""

__version__ = "0.1.0"
