"""What may be over in a moment is tried again, what is not is not, and nothing secret is said of either."""

import errno
import logging

import pytest
import requests

from zar_ray import retries
from zar_ray.errors import RunError, StorageError
from zar_ray.retries import retried

_S3 = "When reading key 'a ACCESS_DENIED NO_SUCH_KEY.mp4' in bucket 'b': AWS Error {} during HeadObject operation: x"


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(retries.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def _failing(errors):
    left = list(errors)

    def work():
        if left:
            raise left.pop(0)
        return "done"

    return work


def _answered(status):
    answer = requests.Response()
    answer.status_code = status
    return requests.HTTPError(f"{status} said", response=answer)


MAY_PASS = [
    OSError(_S3.format("SLOW_DOWN")),
    OSError(_S3.format("UNKNOWN (HTTP status 500)")),
    OSError(_S3.format("UNKNOWN (HTTP status 429)")),
    OSError(_S3.format("NETWORK_CONNECTION")),
    ConnectionResetError("reset"),
    TimeoutError("late"),
    OSError("google::cloud::Status(UNAVAILABLE: try later)"),
    _answered(503),
    _answered(429),
    requests.ConnectionError("gone"),
]
FOR_GOOD = [
    OSError(_S3.format("ACCESS_DENIED")),
    OSError(_S3.format("NO_SUCH_BUCKET")),
    OSError(_S3.format("UNKNOWN (HTTP status 403)")),
    OSError(_S3.format("INVALID_ACCESS_KEY_ID")),
    OSError("google::cloud::Status(PERMISSION_DENIED: no)"),
    FileNotFoundError("gone"),
    PermissionError("no"),
    _answered(403),
    _answered(404),
]


@pytest.mark.parametrize("error", MAY_PASS, ids=str)
def test_what_may_pass_is_waited_for(error):
    assert retried(_failing([error] * 5), "s3://b/a", "read") == "done"


@pytest.mark.parametrize("error", FOR_GOOD, ids=str)
def test_what_will_not_pass_is_told_at_once(error, clock):
    with pytest.raises(OSError, match=r".") as caught:
        retried(_failing([error]), "s3://b/a", "read")
    assert not isinstance(caught.value, StorageError)
    assert clock[0] == 100.0


def test_patience_ends_in_one_line_that_stops_a_run(clock, monkeypatch):
    monkeypatch.setenv("ZAR_STORAGE_PATIENCE", "20")
    with pytest.raises(
        StorageError, match=r"^s3://b/a: cannot be read \(slow down\); tried \d+ times in \d+ s$"
    ) as told:
        retried(_failing([OSError("slow\ndown")] * 1000), "s3://b/a", "read")
    assert isinstance(told.value, RunError)
    assert 110.0 < clock[0] <= 120.0
    monkeypatch.setenv("ZAR_STORAGE_PATIENCE", "0")
    with pytest.raises(StorageError, match="tried 1 times in 0 s"):
        retried(_failing([OSError("slow down")]), "s3://b/a", "read")


@pytest.mark.parametrize(("number", "again"), [(errno.ESTALE, True), (errno.ENOSPC, False), (errno.EIO, False)])
def test_a_disk_is_waited_for_where_its_server_is_gone(number, again, clock):
    work = _failing([OSError(number, "said")])
    if again:
        assert retried(work, "/a", "read", remote=False) == "done"
    else:
        with pytest.raises(OSError, match="said"):
            retried(work, "/a", "read", remote=False)


def test_secrets_are_in_no_message_and_in_no_log(monkeypatch, caplog):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setattr(retries, "_told_at", -1e9)
    said = "key hunter2hunter2, hf_abcdefgh, at https://h/a.mp4?sig=abc and url: /a?X-Amz-Signature=def (x)"
    with caplog.at_level(logging.WARNING), pytest.raises(StorageError) as caught:
        retried(_failing([OSError(said)] * 1000), "s3://b/a", "read")
    assert caplog.messages
    for text in (str(caught.value), *caplog.messages):
        assert not [one for one in ("hunter2", "hf_abc", "sig=", "Signature") if one in text]
    assert len(caplog.messages) <= 3
