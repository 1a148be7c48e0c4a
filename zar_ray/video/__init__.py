"""A file to pixels: reading, view plans, resizing, crops and normalisation."""
