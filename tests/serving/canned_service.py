"""A real HTTP server whose answers a test writes down beforehand, for the tests of clients."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

MODEL = {
    "name": "tiny",
    "fingerprint": "f00d",
    "version": "0.1.0",
    "input_size": 32,
    "methods": ["zar", "zero_shot"],
    "random_weights": False,
}
ANSWER = {
    "request_id": "r1",
    "model": MODEL,
    "method": "zar",
    "seed": 0,
    "steps": 1,
    "candidates": 2,
    "before": [{"label": "zumba", "score": 0.6}, {"label": "yoga\u2028\x85", "score": 0.4}],
    "after": [{"label": "zumba", "score": 0.7}, {"label": "yoga\u2028\x85", "score": 0.3}],
    "entropy_before": 0.6,
    "entropy_after": 0.5,
    "views": [],
    "images_encoded": 16,
    "video": {
        "name": "a.mp4",
        "frames": 20,
        "fps": 25.0,
        "width": 64,
        "height": 48,
        "duration": 0.8,
        "decoder": "pyav",
        "warning": None,
        "frames_decoded": 16,
        "evaluation_frames": [0, 1],
    },
    "timings": {"receive": 0, "decode": 0, "encode": 0, "adapt": 0, "explain": 0, "total": 0},
}
JSON, PROBLEM, STREAM = "application/json", "application/problem+json", "text/event-stream"


def problem(code="overloaded", status=503, detail="16 requests wait", **headers):
    document = {"title": "It cannot", "status": status, "code": code, "detail": detail, "request_id": "r9"}
    return status, {"Content-Type": PROBLEM, **headers}, [json.dumps(document).encode()]


def fine(content=ANSWER):
    return 200, {"Content-Type": JSON}, [json.dumps(content, ensure_ascii=False).encode()]


def window(number):
    return {"number": number, "start": 1.0 * number, "end": number + 2.0, "start_frame": 25 * number, "result": ANSWER}


def event(name, data, end="\n"):
    return f"event: {name}{end}data: {json.dumps(data, ensure_ascii=False)}{end}{end}".encode()


def stream(*chunks):
    return 200, {"Content-Type": STREAM, "X-Request-ID": "r5"}, chunks


def form(request):
    """A multipart body's parts: (name, file name or None, content)."""
    said = Message()
    said["Content-Type"] = request.headers["Content-Type"]
    parts = []
    for part in request.body.split(b"--" + said.get_param("boundary").encode())[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").removesuffix(b"\r\n").partition(b"\r\n\r\n")
        about = Message()
        about["Content-Disposition"] = head.split(b"\r\n")[0].decode().partition(": ")[2]
        parts.append((about.get_param("name", header="Content-Disposition"), about.get_filename(), content))
    return parts


@pytest.fixture
def server():
    """A server: `answers` are given in turn, `requests` are what it was sent."""
    answers, requests = deque(), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            length = self.headers.get("Content-Length")
            body = self.rfile.read(int(length)) if length else self._chunked()
            requests.append(SimpleNamespace(path=self.path, headers=self.headers, body=body, at=time.monotonic()))
            self._answer()

        def do_GET(self):
            requests.append(SimpleNamespace(path=self.path, headers=self.headers, body=b"", at=time.monotonic()))
            self._answer()

        def _answer(self):
            status, headers, chunks = answers.popleft()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for chunk in chunks:
                if callable(chunk):
                    chunk()
                    continue
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

        def _chunked(self):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{httpd.server_port}", answers=answers, requests=requests)
    httpd.shutdown()
    httpd.server_close()
    thread.join()
