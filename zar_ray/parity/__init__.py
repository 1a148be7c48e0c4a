"""Reference vectors of official implementations against this code, one line an array."""
