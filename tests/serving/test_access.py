"""Who may ask: names and origins, where no token keeps a stranger's page out."""

from __future__ import annotations

import hashlib

import pytest

TOKEN = {"authorization": "Bearer mine"}
HASHES = [hashlib.sha256(b"mine").hexdigest()]


def code(response):
    return response.status_code if response.status_code == 200 else response.json()["code"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "LOCALHOST", "zar.example:8443"]
)
def test_names_of_this_machine_and_allowed_ones_are_answered(served, host):
    client, _ = served(allowed_hosts=["zar.example"])
    assert code(client.get("/v1/models", headers={"host": host})) == 200


@pytest.mark.parametrize(
    "host",
    [
        "rebound.example",
        "rebound.example:8000",
        "localhost.rebound.example",
        "127.0.0.1.rebound.example",
        "",
        "[",
        "a@b",
        "rebound.example/healthz?",
        "rebound.example/page/a#",
    ],
)
def test_a_name_that_was_made_to_lead_here_is_not_answered(served, host, make_video, tmp_path):
    make_video(tmp_path / "private.mp4")
    client, _ = served(samples=str(tmp_path))
    for path in ("/", "/v1/samples", "/v1/models", "/metrics", "/docs", "/openapi.json"):
        answer = client.get(path, headers={"host": host})
        assert (answer.status_code, code(answer)) == (403, "forbidden"), path
        assert "private" not in answer.text
    ask = {"path": "private.mp4", "candidate_labels": ["a", "b"], "explain": True}
    assert code(client.post("/v1/classify", json=ask, headers={"host": host})) == "forbidden"
    # Kubernetes asks by an address.
    assert (
        code(client.get("/healthz", headers={"host": host}))
        == code(client.get("/readyz", headers={"host": host}))
        == 200
    )


def test_any_name_is_answered_where_tokens_or_the_options_say_so(served):
    guarded, _ = served(tokens=HASHES)
    assert code(guarded.get("/v1/models", headers={"host": "zar.example", **TOKEN})) == 200
    everywhere, _ = served(allowed_hosts=["*"])
    assert code(everywhere.get("/v1/models", headers={"host": "10.0.0.7:8000"})) == 200


@pytest.mark.parametrize("options", [{}, {"tokens": HASHES}])
def test_a_page_of_another_site_may_not_ask(served, options):
    client, _ = served(**options)
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9999", "http://localhost", "", "127.0.0.1"):
        answer = client.get("/v1/models", headers={"origin": origin, **TOKEN})
        assert code(answer) == "forbidden", origin
        assert "access-control-allow-origin" not in answer.headers
    assert code(client.get("/v1/models", headers={"origin": "http://127.0.0.1", **TOKEN})) == 200
    at_port = {"origin": "http://localhost:8000", "host": "localhost:8000", **TOKEN}
    assert code(client.get("/v1/models", headers=at_port)) == 200


@pytest.mark.parametrize("options", [{}, {"tokens": HASHES}])
def test_a_page_of_an_allowed_site_may_ask_and_read(served, options):
    origin = {"origin": "https://page.example"}
    client, _ = served(allowed_origins=["https://page.example"], **options)
    answer = client.get("/v1/models", headers={**origin, **TOKEN})
    assert code(answer) == 200
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    leave = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    granted = client.options("/v1/classify", headers={**origin, **leave})
    assert granted.status_code == 200
    assert granted.headers["access-control-allow-headers"]
    assert client.options("/v1/classify", headers={**leave, "origin": "https://evil.example"}).status_code == 403
