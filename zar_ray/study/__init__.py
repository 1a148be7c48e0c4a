"""Studies: base options and axes, planned once, run once, collected into one record."""
