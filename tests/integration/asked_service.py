"""A running service as a client sees it, and its processes."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

import psutil
import requests

LABELS = ["riding a horse", "walking the dog", "cooking an egg", "playing chess"]
TOKEN = "let me in"


class Service:
    """The running service, as a client sees it, and its processes."""

    def __init__(self, port):
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.headers = {"Authorization": f"Bearer {TOKEN}"}

    def get(self, path, **options):
        return requests.get(self.url + path, timeout=60, headers=self.headers, **options)

    def ask(self, file, address="/v1/classify", **fields):
        fields.setdefault("candidate_labels", LABELS)
        with Path(file).open("rb") as stream:
            files = {"video": (Path(file).name, stream)}
            return requests.post(self.url + address, files=files, data=fields, headers=self.headers, timeout=120)

    def ask_path(self, path):
        body = {"path": str(path), "candidate_labels": LABELS}
        return requests.post(self.url + "/v1/classify", json=body, headers=self.headers, timeout=120)

    @staticmethod
    def processes(name):
        """The processes of a deployment, or of the proxy, that are there now."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                title = process.cmdline()[0]
                # A process that is at work is called by its method, too.
                if title.startswith("ray::") and name in title:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
                continue
        return found

    def replica(self, deployment):
        (process,) = self.processes(f"ServeReplica:zar:{deployment}")
        return process

    def log(self, deployment):
        """What its present replica has logged."""
        files = [Path(file.path) for file in self.replica(deployment).open_files() if "/logs/serve/" in file.path]
        return "".join(file.read_text() for file in files)

    def stop_decoding(self):
        """Stops the decoding process in the middle of a video."""
        child = self.decoding_process()
        before = sum(child.cpu_times()[:2])
        limit = time.monotonic() + 20
        while sum(child.cpu_times()[:2]) < before + 0.1:
            assert time.monotonic() < limit, "it decodes nothing"
            time.sleep(0.005)
        child.suspend()
        return child

    def decoding_processes(self):
        """Those of the decoder; that of whole videos first, as those of streams give way to it."""
        found = [one for one in self.replica("decoder").children() if "sandbox" in " ".join(one.cmdline())]
        return sorted(found, key=psutil.Process.nice)

    def decoding_process(self):
        return self.decoding_processes()[0]

    def stream(self, file, **fields):
        """Streams a file with a small method; gives the name and the data of each event."""
        fields = {"candidate_labels": LABELS, "method": "zero_shot", **fields}
        with Path(file).open("rb") as stream, requests.Session() as session:
            response = session.post(
                self.url + "/v1/classify:stream",
                files={"video": stream},
                data=fields,
                headers=self.headers,
                stream=True,
                timeout=120,
            )
            assert response.status_code == 200, response.text
            with closing(response):
                name = ""
                for line in response.iter_lines(decode_unicode=True):
                    if line.startswith("event: "):
                        name = line.removeprefix("event: ")
                    elif line:
                        yield name, json.loads(line.removeprefix("data: "))


def problem(response, status, code):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert (document["status"], document["code"]) == (status, code), document
    return document["detail"]
