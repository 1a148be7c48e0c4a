"""The `zar` command: one file a verb."""
