"""Requests of all kinds, good, bad and hostile, byte by byte, each with what docs/service.md says it is answered by.

A connection carries one request, and is read to its end: what comes after the first answer would be a second one.
"""

from __future__ import annotations

import io
import json
import select
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from service import make_long_video, make_video

from zar_ray.serving.problems import PROBLEMS

LABELS = ("riding a horse", "walking the dog", "cooking an egg", "playing chess")
OK, LEFT, REFUSED, UNANSWERED = "ok", "left", "refused", "unanswered"
WINDOWS = 3
_LONG_SECONDS, _WINDOW_SECONDS = 12, 4
_AT_ONCE = 2**16
_BOUNDARY = "between-the-parts"
_PAGES = ("/", "/page/page.js", "/docs", "/openapi.json", "/v1/models", "/v1/methods", "/v1/labels", "/v1/samples")
_LARGEST_SIDE = 5000
_ON_SERVER = "in/a.mp4"


@dataclass(frozen=True)
class Files:
    """What a service is asked about.

    Attributes:
        root: A folder whose videos may be named, with `_ON_SERVER` in it.
        video: A short video.
        long: One of `WINDOWS` windows.
        huge: A picture larger than any that is taken.
    """

    root: Path
    video: bytes
    long: bytes
    huge: bytes


@dataclass(frozen=True)
class Site:
    """A service.

    Attributes:
        port: Where it listens on this machine.
        body_bytes: Its ``limits.body_bytes``.
        token: What it wants to be told; None where it wants nothing.
        files: What it is asked about.
    """

    port: int
    body_bytes: int
    token: str | None
    files: Files

    @property
    def token_header(self) -> dict[str, str]:
        """The header that lets a request in."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}


def make_files(folder: Path) -> Files:
    """Makes the files, and beside their root one that nobody may name."""
    root = folder / "root"
    (root / _ON_SERVER).parent.mkdir(parents=True)
    video = make_video(root / _ON_SERVER).read_bytes()
    (folder / "outside.mp4").write_bytes(video)
    (root / "link.mp4").symlink_to(folder / "outside.mp4")
    picture = io.BytesIO()
    Image.new("P", (_LARGEST_SIDE, _LARGEST_SIDE)).save(picture, "GIF")
    long = make_long_video(folder / "long.mp4", _LONG_SECONDS)
    return Files(root, video, long.read_bytes(), picture.getvalue())


@dataclass(frozen=True)
class Ask:
    """What a client does.

    Attributes:
        parts: What it sends, and the seconds that it waits in between.
        leaves: Seconds after which it hangs up when all is sent; None for one that waits.
    """

    parts: tuple[bytes | float, ...]
    leaves: float | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    Attributes:
        make: Makes one, for a service, by chance, with an id.
        codes: What it is answered by in quiet times, by codes of docs/service.md; ``ok`` for status 200.
        weight: How often it comes, beside the others.
        reaches: Whether the ingress sees and logs it under its id.
        head: Whether its answer has no body.
        stream: Whether an answer is a stream of windows.
        windows: How many it has; None where that is not known.
        classifies: Whether it is one that the service is there for.
    """

    make: Callable[[Site, Random, str], Ask]
    codes: frozenset[str]
    weight: int = 1
    reaches: bool = True
    head: bool = False
    stream: bool = False
    windows: int | None = None
    classifies: bool = False


@dataclass(frozen=True)
class Reply:
    """What a client got.

    Attributes:
        code: ``ok``, a problem's code, ``left`` where the client did not wait, ``refused`` where nothing listened,
            ``unanswered`` where the connection ended without an answer or amid it.
        status: The HTTP status, where there is one.
        detail: What is said besides.
        faults: What is wrong with the answer in itself.
    """

    code: str
    status: int | None = None
    detail: str = ""
    faults: tuple[str, ...] = field(default=())


def send(site: Site, kind: Kind, ask: Ask, request_id: str, seconds: float) -> Reply:
    """Sends a request, and reads what comes until the service hangs up."""
    received, left, trouble = bytearray(), False, ""
    until = time.monotonic() + seconds
    try:
        with closing(socket.create_connection(("127.0.0.1", site.port), timeout=seconds)) as connection:
            connection.setblocking(False)
            try:
                _send_parts(connection, ask.parts, until)
            except OSError as error:
                # Whoever has answered need not read the rest, and hangs up; the answer may have come all the same.
                trouble = str(error)
            if ask.leaves is not None:
                until = min(until, time.monotonic() + ask.leaves)
            while not left:
                if not select.select([connection], [], [], max(0.0, until - time.monotonic()))[0]:
                    left = True
                elif data := connection.recv(_AT_ONCE):
                    received += data
                else:
                    break
    except ConnectionRefusedError:
        return Reply(REFUSED)
    except OSError as error:
        trouble = str(error)
    if left:
        return Reply(LEFT) if ask.leaves is not None else Reply(UNANSWERED, detail=f"for {seconds:g} s")
    return read(bytes(received), kind, request_id, trouble)


def _send_parts(connection: socket.socket, parts: tuple[bytes | float, ...], until: float) -> None:
    """Sends until all is sent, or an answer comes: a service need not read what it has refused."""
    for part in parts:
        if not isinstance(part, bytes):
            if select.select([connection], [], [], part)[0]:
                return
            continue
        rest = memoryview(part)
        while rest:
            readable, writable, _ = select.select([connection], [connection], [], max(0.0, until - time.monotonic()))
            if readable or not writable:
                return
            rest = rest[connection.send(rest[:_AT_ONCE]) :]


class _Received(io.BytesIO):
    """Bytes that the standard library's reader of answers takes for a connection, and leaves open."""

    def makefile(self, *_: object) -> _Received:
        return self

    def close(self) -> None:
        pass


def read(received: bytes, kind: Kind, request_id: str, trouble: str = "") -> Reply:
    """What was received comes to.

    Args:
        received: All of it.
        kind: What was asked.
        request_id: The id that was sent.
        trouble: What the connection broke with.
    """
    stream = _Received(received)
    response = HTTPResponse(stream, method="HEAD" if kind.head else None)  # type: ignore[arg-type]
    try:
        response.begin()
        body = response.read()
    except (HTTPException, OSError) as error:
        return Reply(UNANSWERED, detail=f"{trouble or type(error).__name__} after {len(received)} bytes")
    faults = []
    if rest := len(received) - stream.tell():
        faults.append(f"{rest} bytes follow the answer")
    names = response.headers.get_all("X-Request-ID") or []
    if len(names) != 1 or (kind.reaches and names != [request_id]):
        faults.append(f"its X-Request-ID is {names}")
    if response.status == 200:
        code, detail = _read_ok(response.headers, body, kind, request_id, faults)
    elif kind.head:
        code, detail = next((code for code, (status, _) in PROBLEMS.items() if status == response.status), ""), ""
    else:
        code, detail = _read_problem(response.status, response.headers, body, faults)
    return Reply(code, response.status, detail, tuple(faults))


def _read_ok(headers: HTTPMessage, body: bytes, kind: Kind, request_id: str, faults: list[str]) -> tuple[str, str]:
    if not kind.stream:
        if kind.classifies:
            _check_result(json.loads(body), request_id, faults)
        return OK, ""
    blocks = [block.split("\n") for block in body.decode().split("\n\n") if block]
    events = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]
    name, last = events.pop() if events else ("", {})
    for number, (_, window) in enumerate(events):
        if window["number"] != number:
            faults.append(f"window {window['number']} comes as number {number}")
        _check_result(window["result"], request_id, faults)
    if name == "error":
        return _read_problem(last["status"], headers, json.dumps(last).encode(), faults, event=True)
    if name != "end":
        return UNANSWERED, f"a stream of {len(blocks)} events without an end"
    if len(events) != last["windows"] or kind.windows not in (None, len(events)):
        faults.append(f"{len(events)} windows, and an end that speaks of {last['windows']}")
    return OK, ""


def _check_result(result: Mapping[str, object], request_id: str, faults: list[str]) -> None:
    timings, after = result["timings"], result["after"]
    assert isinstance(timings, dict)
    assert isinstance(after, list)
    if result["request_id"] != request_id:
        faults.append(f"it is about request {result['request_id']}")
    if not {"receive", "decode", "encode", "adapt", "explain", "total"} <= timings.keys():
        faults.append(f"it has the timings {sorted(timings)}")
    if not after:
        faults.append("it has no labels")


def _read_problem(
    status: int, headers: HTTPMessage, body: bytes, faults: list[str], event: bool = False
) -> tuple[str, str]:
    try:
        document = json.loads(body)
        code, detail = document["code"], document["detail"]
        if PROBLEMS[code] != (status, document["title"]) or document["status"] != status:
            faults.append(f"{code} with status {status} and {document['status']}")
        if [document["request_id"]] != headers.get_all("X-Request-ID"):
            faults.append(f"its document is about request {document['request_id']}")
    except (ValueError, KeyError, TypeError):
        return f"status {status}", body[:200].decode("utf-8", "replace")
    if not event:
        if headers.get_content_type() != "application/problem+json":
            faults.append(f"{code} as {headers.get_content_type()}")
        if status == 503 and not headers.get("Retry-After", "").isdecimal():
            faults.append(f"{code} without Retry-After")
    return code, detail


def _head(site: Site, method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = {"Host": f"127.0.0.1:{site.port}", "Connection": "close", **site.token_header, **headers}
    return "\r\n".join([f"{method} {path} HTTP/1.1", *(f"{n}: {v}" for n, v in lines.items()), "", ""]).encode(
        "latin-1"
    )


def _get(path: str, method: str = "GET", **headers: str) -> Callable[[Site, Random, str], Ask]:
    def make(site: Site, chance: Random, name: str) -> Ask:
        return Ask((_head(site, method, path, {"X-Request-ID": name, **headers}),))

    return make


def _post(
    site: Site, name: str, body: bytes, kind: str = "application/json", address: str = "/v1/classify", **headers: str
) -> tuple[bytes, bytes]:
    lines = {"Content-Type": kind, "Content-Length": str(len(body)), "X-Request-ID": name, **headers}
    return _head(site, "POST", address, lines), body


def _form(site: Site, name: str, video: bytes | None, stream: bool = False, **fields: object) -> tuple[bytes, bytes]:
    """A form's head and body; a field may be a list of several."""
    given = {"candidate_labels": list(LABELS), "method": "zero_shot", **fields}
    parts = []
    for key, value in given.items():
        parts += [(f'name="{key}"', str(one).encode()) for one in (value if isinstance(value, list) else [value])]
    if video is not None:
        parts.append(('name="video"; filename="a video.mp4"', video))
    body = b"".join(
        f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {key}\r\n\r\n".encode() + value + b"\r\n"
        for key, value in parts
    )
    body += f"--{_BOUNDARY}--\r\n".encode()
    address = "/v1/classify:stream" if stream else "/v1/classify"
    return _post(site, name, body, f"multipart/form-data; boundary={_BOUNDARY}", address)


def _json(site: Site, name: str, **fields: object) -> tuple[bytes, bytes]:
    return _post(site, name, json.dumps({"candidate_labels": LABELS, "method": "zero_shot", **fields}).encode())


def mutated(video: bytes, chance: Random) -> bytes:
    """A video with some bytes changed, cut out or doubled."""
    content = bytearray(video)
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = chance.randrange(len(content))
        how = chance.randrange(8)
        if how < 6:
            content[place] = chance.randrange(256)
        elif how == 6:
            del content[place : place + chance.randrange(1, 64)]
        else:
            content[place:place] = content[place : place + chance.randrange(1, 64)]
    return bytes(content[: chance.randrange(1, len(content))] if chance.random() < 0.2 else content)


def _whole(site: Site, chance: Random, name: str) -> Ask:
    return Ask(_form(site, name, site.files.video))


def _tuned(site: Site, chance: Random, name: str) -> Ask:
    seed = chance.randrange(9)
    return Ask(_form(site, name, site.files.video, method="zar", options='{"steps": 2}', seed=seed, explain="true"))


def _label_set(site: Site, chance: Random, name: str) -> Ask:
    return Ask(_form(site, name, site.files.video, candidate_labels=[], label_set=chance.choice(("hmdb51", "ucf101"))))


def _path(site: Site, chance: Random, name: str) -> Ask:
    return Ask(_json(site, name, path=_ON_SERVER))


def _stream(site: Site, chance: Random, name: str) -> Ask:
    return Ask(_form(site, name, site.files.long, stream=True, window=_WINDOW_SECONDS))


def _many_windows(site: Site, chance: Random, name: str) -> Ask:
    return Ask(_form(site, name, site.files.long, stream=True, window=0.01))


def _mutated(site: Site, chance: Random, name: str) -> Ask:
    return Ask(_form(site, name, mutated(site.files.video, chance)))


def _mutated_stream(site: Site, chance: Random, name: str) -> Ask:
    return Ask(_form(site, name, mutated(site.files.long, chance), stream=True, window=_WINDOW_SECONDS))


def _broken(site: Site, chance: Random, name: str) -> Ask:
    content = chance.choice((b"", b"no video", site.files.video[: len(site.files.video) // 9], chance.randbytes(5000)))
    return Ask(_form(site, name, content))


def _huge(site: Site, chance: Random, name: str) -> Ask:
    return Ask(_form(site, name, site.files.huge))


def _large_labels(site: Site, chance: Random, name: str) -> Ask:
    labels = chance.choice((["a" * 201], ["a" + "\u0301\u0316" * 100_000], [str(n) for n in range(1001)], ["a", "a"]))
    return Ask(_form(site, name, site.files.video, candidate_labels=labels))


def _long_texts(site: Site, chance: Random, name: str) -> Ask:
    return Ask(_form(site, name, site.files.video, candidate_labels=["a" * 2**20, "b"]))


def _fields(site: Site, chance: Random, name: str) -> Ask:
    unfit: tuple[dict[str, Any], ...] = ({"method": "magic"}, {"top_k": -1}, {"options": "{"}, {"steps": 11}, {"at": 1})
    fields = chance.choice(unfit)
    return Ask(_form(site, name, site.files.video, **fields))


def _bad_json(site: Site, chance: Random, name: str) -> Ask:
    body = chance.choice((b"", b"{", b"[" * 10_000, b'{"path": "\xff"}', b'{"path": "\\ud800"', b"{'path': 1}"))
    return Ask(_post(site, name, body))


def _other_json(site: Site, chance: Random, name: str) -> Ask:
    body = chance.choice((b"[]", b"null", b'{"path": 1}', b'{"path": "a", "candidate_labels": {}}', b'{"paths": []}'))
    return Ask(_post(site, name, body))


def _bad_form(site: Site, chance: Random, name: str) -> Ask:
    kind = chance.choice(("multipart/form-data", "multipart/form-data; boundary=elsewhere"))
    return Ask(_post(site, name, _form(site, name, site.files.video)[1], kind))


def _no_video(site: Site, chance: Random, name: str) -> Ask:
    return Ask(_form(site, name, None))


def _other_media(site: Site, chance: Random, name: str) -> Ask:
    return Ask(_post(site, name, site.files.video, chance.choice(("video/mp4", "text/plain", "", "application/xml"))))


def _forbidden_path(site: Site, chance: Random, name: str) -> Ask:
    paths = ("../outside.mp4", "link.mp4", "/etc/passwd", "/proc/self/environ", "http://127.0.0.1/a", "in", "a\x00b")
    return Ask(_json(site, name, path=chance.choice(paths)))


def _large_body(site: Site, chance: Random, name: str) -> Ask:
    head, body = _form(site, name, bytes(site.body_bytes))
    if chance.random() < 0.5:
        return Ask((head, body))
    head = head.replace(f"Content-Length: {len(body)}".encode(), b"Transfer-Encoding: chunked")
    chunks = [body[at : at + _AT_ONCE] for at in range(0, len(body), _AT_ONCE)]
    return Ask((head, b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"))


def _slow_body(site: Site, chance: Random, name: str) -> Ask:
    head, body = _form(site, name, site.files.video)
    return Ask((head, body[: chance.randrange(len(body) - 1)], 60.0))


def _half_head(site: Site, chance: Random, name: str) -> Ask:
    head = _head(site, "POST", "/v1/classify", {})
    return Ask((head[: chance.randrange(1, len(head) - 2)], 60.0))


def _large_head(site: Site, chance: Random, name: str) -> Ask:
    return Ask((_head(site, "GET", "/", {"Cookie": "a" * chance.randrange(2**16 + 1, 2**18)}),))


def _no_http(site: Site, chance: Random, name: str) -> Ask:
    return Ask(
        (chance.choice((b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"GET / HTTP/9\r\n\r\n")),)
    )


def _leaver(site: Site, chance: Random, name: str) -> Ask:
    """Hangs up amid its head, its body, its wait or its stream."""
    windows: dict[str, Any] = chance.choice(({}, {"stream": True, "window": 1}))
    head, body = _form(site, name, site.files.long, **windows)
    parts = chance.choice(((head[:50],), (head,), (head, body[: len(body) // 2]), (head, body), (head, body)))
    return Ask(parts, leaves=chance.uniform(0.0, 1.0))


def _foreign_page(site: Site, chance: Random, name: str) -> Ask:
    head, body = _form(site, name, site.files.video)
    return Ask((head.replace(b"\r\n", b"\r\nOrigin: http://evil.example\r\n", 1), body))


def _foreign_name(site: Site, chance: Random, name: str) -> Ask:
    """As a page asks whose name was made to lead here: of its own site, as far as the browser knows."""
    path = chance.choice(("/v1/labels", "/v1/samples", "/metrics"))
    return Ask((_head(site, "GET", path, {"X-Request-ID": name, "Host": "evil.example:8000"}),))


def _wrong_token(site: Site, chance: Random, name: str) -> Ask:
    token = chance.choice(("Bearer no", "Bearer", "Basic bm86bm8=", "Bearer " + "x" * 10_000, "\xe4"))
    return Ask((_head(site, "GET", "/v1/models", {"X-Request-ID": name, "Authorization": token}),))


def _odd_name(site: Site, chance: Random, name: str) -> Ask:
    odd = chance.choice(("\xe9", "a b", "x" * 30_000, "<script>", ""))
    return Ask((_head(site, "GET", "/v1/methods", {"X-Request-ID": odd}),))


def _page(site: Site, chance: Random, name: str) -> Ask:
    return _get(chance.choice(_PAGES))(site, chance, name)


def _page_head(site: Site, chance: Random, name: str) -> Ask:
    return _get(chance.choice(_PAGES), "HEAD")(site, chance, name)


def _nothing_there(site: Site, chance: Random, name: str) -> Ask:
    return _get(chance.choice(("/v2", "/page/../../conf", "/page/%2e%2e", "/v1/classify/", "//", "/.env")))(
        site, chance, name
    )


def _other_method(site: Site, chance: Random, name: str) -> Ask:
    return _get("/v1/classify", chance.choice(("GET", "DELETE", "PUT")))(site, chance, name)


def kinds_of(tokens: bool) -> dict[str, Kind]:
    """All kinds of requests by name, for a service that wants tokens or lets in who is on this machine."""
    damaged = frozenset({OK, "unusable-video", "video-too-large"})

    def one(*codes: str) -> frozenset[str]:
        return frozenset(codes)

    return {
        "whole video": Kind(_whole, one(OK), 8, classifies=True),
        "tuned and explained": Kind(_tuned, one(OK), 2, classifies=True),
        "label set": Kind(_label_set, one(OK), 1, classifies=True),
        "path": Kind(_path, one(OK), 2, classifies=True),
        "stream": Kind(_stream, one(OK), 3, stream=True, windows=WINDOWS, classifies=True),
        "mutated video": Kind(_mutated, damaged, 4),
        "mutated stream": Kind(_mutated_stream, damaged, 2, stream=True),
        "broken video": Kind(_broken, one("unusable-video"), 2),
        "huge picture": Kind(_huge, one("video-too-large")),
        "too many windows": Kind(_many_windows, one("video-too-large")),
        "oversized labels": Kind(_large_labels, one("invalid-parameters"), 2),
        "long texts": Kind(_long_texts, one("bad-request")),
        "unfit fields": Kind(_fields, one("invalid-parameters")),
        "no JSON": Kind(_bad_json, one("bad-request")),
        "other JSON": Kind(_other_json, one("invalid-parameters")),
        "no form": Kind(_bad_form, one("bad-request")),
        "no video": Kind(_no_video, one("invalid-parameters")),
        "other media": Kind(_other_media, one("unsupported-media-type")),
        "forbidden path": Kind(_forbidden_path, one("path-not-allowed"), 2),
        "large body": Kind(_large_body, one("body-too-large")),
        "slow body": Kind(_slow_body, one("timeout")),
        "half a head": Kind(_half_head, one("slow-head"), 2, reaches=False),
        "large head": Kind(_large_head, one("head-too-large"), reaches=False),
        "no HTTP": Kind(_no_http, one("bad-request"), reaches=False),
        "leaver": Kind(_leaver, one(LEFT, OK, "overloaded"), 3, reaches=False),
        "foreign page": Kind(_foreign_page, one("forbidden")),
        "foreign name": Kind(_foreign_name, one(OK if tokens else "forbidden")),
        "wrong token": Kind(_wrong_token, one("unauthorized" if tokens else OK)),
        "odd request id": Kind(_odd_name, one(OK), reaches=False),
        "page": Kind(_page, one(OK), 2),
        "HEAD": Kind(_page_head, one(OK), head=True),
        "nothing there": Kind(_nothing_there, one("not-found")),
        "other method": Kind(_other_method, one("method-not-allowed")),
        "health": Kind(_get("/healthz"), one(OK)),
        "readiness": Kind(_get("/readyz"), one(OK)),
        "metrics": Kind(_get("/metrics"), one(OK)),
    }
