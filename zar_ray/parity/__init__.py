"""Holds this code against reference vectors that official implementations gave on made-up weights."""
