"""Requests of the service's tests: how they are sent, and what a refusal holds."""

from __future__ import annotations

import json

LABELS = ("riding a horse", "walking the dog", "cooking an egg", "playing chess")


def post(client, file, **fields):
    fields.setdefault("candidate_labels", list(LABELS))
    with file.open("rb") as stream:
        return client.post("/v1/classify", files={"video": (file.name, stream)}, data=fields)


def problem(response, status, code):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert (document["status"], document["code"]) == (status, code)
    assert document["request_id"] == response.headers["x-request-id"]
    assert document["title"]
    return document["detail"]


def events(response):
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))
