"""Who may ask: by name, by origin, by token."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import Request

from zar_ray.serving.options import ServeConfig
from zar_ray.serving.problems import RequestError

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
# Kubernetes asks these by an address of the machine, and they tell a stranger nothing.
_HEALTH_ROUTES = ("/healthz", "/readyz")
# A browser loads the page before anyone could enter a token.
_PAGE_ROUTES = re.compile(r"/(page/[^/]*)?")


def refusal(request: Request, config: ServeConfig) -> RequestError | None:
    """Why a request is not let in, or None.

    Without tokens any page in a user's browser could ask a service on that user's machine, by a name of its own that
    was made to lead there (DNS rebinding); so the name must be this machine's or one of `allowed_hosts`. With or
    without, no page of another site may ask, but for those of `allowed_origins`.

    Args:
        request: What is asked, of which nothing but the head is looked at.
        config: The service's options.
    """
    # Not of `request.url`, into which what a stranger writes as host and query goes too.
    path, headers = request.scope["path"], request.headers
    if path in _HEALTH_ROUTES:
        return None
    host, origin = headers.get("host", ""), headers.get("origin")
    known = (*_THIS_MACHINE, *config.allowed_hosts)
    if not config.tokens and "*" not in known and _name_in(host) not in known:
        return RequestError("forbidden", f'the service is not called "{host[:80]}"; allowed_hosts takes further names')
    if origin is not None and origin not in config.allowed_origins and origin.partition("://")[2] != host:
        return RequestError("forbidden", f"a page of {origin[:80]} may not ask; allowed_origins takes further sites")
    # What a browser asks before it sends a token.
    asks_leave = request.method == "OPTIONS" and "access-control-request-method" in headers
    if (
        not config.tokens
        or asks_leave
        or _PAGE_ROUTES.fullmatch(path)
        or authorised(headers.get("authorization"), config.tokens)
    ):
        return None
    return RequestError("unauthorized", "send Authorization: Bearer TOKEN")


def authorised(header: str | None, hashes: Sequence[str]) -> bool:
    """Whether an Authorization header holds a token of which one of the SHA-256 hashes is.

    All hashes are compared, each in constant time, so that the answer's time tells nothing of them.
    """
    scheme, _, token = (header or "").partition(" ")
    found = hashlib.sha256(token.strip().encode()).hexdigest()
    matches = [hmac.compare_digest(found, known) for known in hashes]
    return scheme.lower() == "bearer" and any(matches)


def _name_in(host: str) -> str | None:
    """The name in a Host header, without its port; None where it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
