"""Files and names of others, before anything is made of them."""

import pytest

from zar_ray.untrusted import folder_name, parse_json, require_plain, stand_in

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 349\n"


@pytest.mark.parametrize("name", ["run", "vit-b16_zar_seed0", "v1.2", "Läufe 3", "a+b", "(x)", "名前"])
def test_names_of_folders_are_let_through(name):
    assert folder_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "../../x", "/x", "a/b", "a\\b", "a/../../b", "x/", "~/../x", ".hidden", "x.", " x"),
        *("a\0b", "a\nb", "a\rb", "a\x1bb", "a\u202eb", "%2e%2e", "a?b", "a#b", "x" * 300, "ü" * 150),
    ],
)
def test_what_is_no_name_of_one_folder_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match="is not the name of one folder") as caught:
        folder_name(name)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 300


def test_json_that_is_nested_deep_is_no_json():
    assert parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    for text in ("[" * 500_000, "[" * 300 + "]" * 300, '{"a":' * 300 + "1" + "}" * 300, "[", "9" * 5000, b"\xff"):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)


def test_values_are_counted_as_often_as_they_are_named():
    shared = [0] * 10
    for _ in range(30):
        shared = [shared, shared]
    with pytest.raises(ValueError, match="more than 1,000 values"):
        require_plain(shared, 1000)
    circle = []
    circle.append(circle)
    with pytest.raises(ValueError, match="too deep"):
        require_plain(circle, 1000)
    require_plain({"a": list(range(900))}, 1000)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (POINTER, "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\xef\xbb\xbf\n  <HTML lang='en'>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "web page"),
        (b"PK\x03\x04", None),
        (b"\x80\x02}", None),
        (b"", None),
    ],
)
def test_what_lies_there_instead_is_said(head, said):
    found = stand_in(head)
    assert found is None if said is None else said in found
