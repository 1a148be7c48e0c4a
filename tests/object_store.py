"""A real S3 server on loopback (moto's), and in front of it what fails, slows down and cuts connections, seeded."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from contextlib import contextmanager
from urllib.request import Request, urlopen

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

KEY, SECRET = "loopbackkey", "secretofloopback"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Weather:
    """Passes requests on to an application, but for a share of them, of which each kind of fault takes a part.

    One is refused before anything is done, one is done and its answer is lost, one's answer is cut in the middle.
    """

    def __init__(self, application, share=0.0, seed=0, delay=0.0):
        self.share, self.delay = share, delay
        self.faults, self.requests = Counter(), Counter()
        self._application = application
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def __call__(self, environ, start_response):
        with self._lock:
            self.requests[environ["REQUEST_METHOD"]] += 1
            fault = None
            if self._random.random() < self.share:
                fault = self._random.choice(["500 Internal Server Error", "503 Slow Down", "lost", "cut"])
                self.faults[fault] += 1
        if self.delay:
            time.sleep(self.delay)
        if fault in (None, "lost", "cut"):
            said = []
            body = b"".join(self._application(environ, lambda *start: said.append(start)))
            if fault is None:
                start_response(*said[0][:2])
                return [body]
            if fault == "cut" and len(body) > 1:
                start_response(*said[0][:2])
                return _cut(body)
            fault = "500 Internal Server Error"
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(fault, [("Content-Length", "0")])
        return [b""]


def _cut(body):
    yield body[: len(body) // 2]
    raise ConnectionAbortedError


class _Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass

    def connection_dropped(self, *_):
        self.close_connection = True


@contextmanager
def served(application):
    """The address of an application that threads of this process serve."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Quiet)
    server.log = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class ObjectStore:
    """The server's address, its faults, and a client that meets none of them."""

    def __init__(self, address, weather):
        self.address, self.weather = address, weather
        self._client = boto3.client(
            "s3", endpoint_url=address, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
        )

    def bucket(self, name):
        self._calmly(self._client.create_bucket, Bucket=name)
        return f"s3://{name}"

    def put(self, bucket, key, content):
        self._calmly(self._client.put_object, Bucket=bucket, Key=key, Body=content)

    def keys(self, bucket):
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return self._calmly(lambda: [one["Key"] for page in pages for one in page.get("Contents", [])])

    def get(self, bucket, key):
        return self._calmly(lambda: self._client.get_object(Bucket=bucket, Key=key)["Body"].read())

    def _calmly(self, work, **arguments):
        share, delay = self.weather.share, self.weather.delay
        self.weather.share = self.weather.delay = 0.0
        try:
            return work(**arguments)
        finally:
            self.weather.share, self.weather.delay = share, delay


@contextmanager
def object_store(monkeypatch, share=0.0, seed=0, delay=0.0):
    """An empty S3 server that this process, and those that it starts, find by the environment."""
    weather = Weather(DomainDispatcherApplication(create_backend_app), 0.0, seed, delay)
    with served(weather) as address:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        urlopen(Request(f"{address}/moto-api/reset", method="POST")).close()  # servers of one process share all
        weather.share = share
        yield ObjectStore(address, weather)
