"""bench/recovery.py: when a service is back after a kill."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def bench(load_bench):
    return load_bench("recovery")


@pytest.mark.parametrize(
    ("answers", "seconds", "errors"),
    [
        ([(9, 9.5, "overloaded"), (9, 10.5, "ok"), (10.5, 11, "ok"), (11, 12, "ok")], 1, {}),
        ([(9, 10.5, "replica-lost"), (10.1, 13, "ok"), (13, 14, "ok")], 3, {"replica-lost": 1}),
        ([(10.5, 11, "ok"), (11, 12, "unreachable"), (12, 13, "unreachable"), (13, 15, "ok")], 5, {"unreachable": 2}),
        ([(9, 10.5, "ok"), (10.5, 12, "timeout")], None, {"timeout": 1}),
    ],
)
def test_it_is_back_with_the_first_answer_to_a_later_request_after_the_last_error(bench, answers, seconds, errors):
    assert bench.recovery_of(answers, 10) == (seconds, errors)
