"""Official annotations of published benchmarks to listings, one module a kind of annotation."""
