"""The Python API; users import its names from `zar_ray` (docs/python.md)."""
