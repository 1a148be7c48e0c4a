"""Starts HAProxy for Ray Serve: `python haproxy_launcher.py PARENT HAPROXY ARGUMENTS...`, in HAProxy's place.

Ray Serve lets HAProxy's own statistics and metrics listen on every interface, and an HAProxy whose Ray was killed goes
on listening. Here both listen on this machine alone, and HAProxy ends with the process that started it. It is run as a
file and needs nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

# The sections of Ray Serve's configuration that are not the service; and where one of them listens.
_OWN_SECTIONS = ("frontend prometheus", "listen stats")
_PLACE = re.compile(r"(\s*bind\s+)(?:\*|127\.0\.0\.1)?(:\d+)\s*")
_SECTION = re.compile(r"\w")
_PR_SET_PDEATHSIG = 1


def on_loopback(configuration: str) -> str:
    """The configuration with HAProxy's statistics and metrics on loopback.

    Args:
        configuration: What Ray Serve wrote.

    Raises:
        ValueError: One of the two is not where it was in the Ray Serve that this was written for.
    """
    lines, section, found = [], "", set()
    for line in configuration.splitlines():
        if _SECTION.match(line):
            section = line.strip()
        elif section in _OWN_SECTIONS and (place := _PLACE.fullmatch(line)):
            line = f"{place[1]}127.0.0.1{place[2]}"
            found.add(section)
        lines.append(line)
    if missing := set(_OWN_SECTIONS) - found:
        raise ValueError(f"nothing says where {' and '.join(sorted(missing))} listens")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """Becomes HAProxy."""
    parent, binary, *arguments = argv
    file = Path(arguments[arguments.index("-f") + 1])
    try:
        configuration = on_loopback(file.read_text(encoding="utf-8"))
    except ValueError as error:
        sys.exit(f"{file}: {error}; with RAY_SERVE_ENABLE_HA_PROXY=0 Ray Serve does without HAProxy")
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    partial.write_text(configuration, encoding="utf-8")
    partial.replace(file)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the process that started HAProxy has ended")
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
