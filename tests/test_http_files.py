"""Videos behind HTTP come from hosts that were named, by ranges or whole, and from no other."""

import http.server
import threading
from functools import partial

import pytest

from zar_ray.data.listing import list_csv
from zar_ray.data.probing import probe_listing
from zar_ray.errors import RunError, StorageError
from zar_ray.http_files import HOSTS, is_allowed
from zar_ray.storage import Storage

pytestmark = pytest.mark.process

_CONTENT = bytes(range(256)) * 99


class _Host(http.server.BaseHTTPRequestHandler):
    fails, asked = [], []

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Range")))
        if self.fails:
            self.send_response(self.fails.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.2:{self.server.server_port}/a.bin")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, status = self.server.content, 200
        if self.path == "/none":
            content, status = b"", 404
        ranged = self.headers.get("Range") if "whole" not in self.path else None
        if ranged and status == 200:
            first, last = map(int, ranged.removeprefix("bytes=").split("-"))
            content, status = content[first : last + 1], 206
        self.send_response(status)
        if "whole" not in self.path:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def host(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Host)
    server.content = _CONTENT
    _Host.fails, _Host.asked = [], []
    thread = threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True)
    thread.start()
    monkeypatch.setenv(HOSTS, f"elsewhere, 127.0.0.1:{server.server_port}")
    monkeypatch.setenv("ZAR_STORAGE_PATIENCE", "5")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("named", "url", "allowed"),
    [
        ("", "http://a/x", False),
        ("a", "http://a/x", True),
        ("a", "https://A/x", True),
        ("a", "http://a:8080/x", False),
        ("a:8080", "http://a:8080/x", True),
        ("a:443", "https://a/x", True),
        ("a", "http://a.b/x", False),
        ("b", "http://a/?@b/", False),
        ("b, a", "http://a/x?b=1", True),
        ("::1", "http://[::1]/x", False),
        ("[::1]", "http://[::1]/x", True),
        ("a", "http://a:x/x", False),
    ],
)
def test_only_named_hosts_are_asked(monkeypatch, named, url, allowed):
    monkeypatch.setenv(HOSTS, named)
    assert is_allowed(url) == allowed


@pytest.mark.parametrize("name", ["a.bin", "whole.bin"])
def test_a_file_is_read_whole_and_by_parts_though_the_host_fails(host, name):
    folder = Storage(f"http://127.0.0.1:{host.server_port}/")
    _Host.fails = [500, 503]
    assert folder.read(name) == _CONTENT
    _Host.fails = [429]
    assert folder.read_range(name, 1000, 50) == _CONTENT[1000:1050]
    assert folder.state(name).size == len(_CONTENT)


def test_what_is_not_there_fails_or_leads_away_is_told(host):
    folder = Storage(f"http://127.0.0.1:{host.server_port}")
    with pytest.raises(RunError, match=r"/none: cannot be read") as caught:
        folder.read("none")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(RunError, match=r"/away: cannot be read \(the host sends on to another one"):
        folder.read("away")
    _Host.fails = [500] * 999
    with pytest.raises(StorageError, match=r"/a.bin: cannot be read \(500 .*tried \d+ times"):
        folder.read("a.bin")


def test_a_host_that_nobody_named_is_not_asked(host, monkeypatch, tmp_path):
    monkeypatch.delenv(HOSTS)
    with pytest.raises(RunError, match=r"cannot be used \(its host is not among those that ZAR_HTTP_HOSTS names\)"):
        Storage(f"http://127.0.0.1:{host.server_port}/a.bin")
    (tmp_path / "list.csv").write_text(f"path\nhttp://127.0.0.1:{host.server_port}/a.mp4\n")
    (row,) = probe_listing(list_csv(tmp_path / "list.csv"), workers=1).rows()
    assert "not among those that ZAR_HTTP_HOSTS names" in row.error
    assert not _Host.asked


def test_a_video_at_a_host_is_indexed(host, make_video, tmp_path):
    host.content = make_video(tmp_path / "v.mp4", frames=11).read_bytes()
    where = f"http://127.0.0.1:{host.server_port}/some%20folder/v.mp4?version=2"
    (tmp_path / "list.csv").write_text(f"path,label\n{where},walk\n")
    (row,) = probe_listing(list_csv(tmp_path / "list.csv"), workers=1).rows()
    assert (row.error, row.frames, row.path, row.size) == (None, 11, where, len(host.content))
