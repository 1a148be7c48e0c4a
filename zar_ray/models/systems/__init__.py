"""The published systems, one file each: what it adds to CLIP, how its files are read, and how it is trained."""
