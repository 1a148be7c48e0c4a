"""Published results, and the runs that stand beside them."""
