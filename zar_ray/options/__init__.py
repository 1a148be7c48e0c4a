"""The base of all options, and how they are layered; each group lives with what it configures."""
