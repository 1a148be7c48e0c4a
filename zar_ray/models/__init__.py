"""Pixels and text to features: CLIP, prompts and checkpoint formats."""
