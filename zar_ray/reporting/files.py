"""Files that reports are written to: whole or not at all, in folders and at URIs."""

from __future__ import annotations

from zar_ray.storage import Storage, is_uri


def write_file(content: bytes, output: str) -> str:
    """Writes a file whole or not at all; returns where it is.

    Raises:
        RunError: It cannot be written.
    """
    place = output if is_uri(output) else Storage(output).location
    folder, _, name = place.rpartition("/")
    Storage(folder or "/").write(name, content)
    return place
