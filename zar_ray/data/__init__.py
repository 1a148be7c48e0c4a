"""A dataset on disk to a manifest, one row a video."""
