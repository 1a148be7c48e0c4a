"""The OpenAPI document is what the service does: requests made from it never meet a failure of the server."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def document(served, make_video, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    make_video(folder / "a.mp4", frames=20)
    client, _ = served(roots=[str(folder)], allowed_hosts=["testserver"])
    return schemathesis.openapi.from_asgi("/openapi.json", client.app)


OPERATIONS = [
    ("POST", "/v1/classify"),
    ("POST", "/v1/classify:stream"),
    *(
        ("GET", path)
        for path in ("/v1/models", "/v1/methods", "/v1/labels", "/v1/samples", "/healthz", "/readyz", "/metrics")
    ),
]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_made_from_the_document_fails_the_server(document, method, path):
    @given(case=document[path][method].as_strategy())
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    def conforms(case):
        case.call_and_validate(checks=CHECKS)

    conforms()


def test_all_operations_are_tried(document):
    assert {(one.ok().method.upper(), one.ok().path) for one in document.get_all_operations()} == set(OPERATIONS)


def test_the_document_names_every_error_and_shows_examples(served):
    client, _ = served()
    document = client.get("/openapi.json").json()
    classify = document["paths"]["/v1/classify"]["post"]
    assert set(classify["responses"]) == {"200", "400", "401", "403", "413", "415", "422", "500", "503", "504"}
    assert set(classify["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert classify["requestBody"]["content"]["application/json"]["example"]["candidate_labels"]
    form = classify["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["video"]
    assert (
        "window"
        in document["paths"]["/v1/classify:stream"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"][
            "properties"
        ]
    )
