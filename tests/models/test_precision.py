"""Float32 is computed exactly where it must be, and PyTorch's switches are afterwards as they were."""

from __future__ import annotations

from contextlib import suppress
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.backends import _FP32Precision

from zar_ray.models.precision import exact_float32, full_precision

ALL = [("generic", "all"), ("cuda", "all"), ("mkldnn", "all")]
OPERATIONS = list(product(("cuda", "mkldnn"), ("matmul", "conv", "rnn")))
OLD = {
    "cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
    "matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
    "matmul_precision": torch.get_float32_matmul_precision,
}


def value(place: tuple[str, str]) -> str:
    return _FP32Precision(*place).fp32_precision


def state() -> dict[object, object]:
    """Everything that can be read of how float32 is computed, refusals included."""
    seen: dict[object, object] = {place: value(place) for place in (*ALL, *OPERATIONS)}
    for name, read in OLD.items():
        try:
            seen[name] = read()
        except RuntimeError:
            seen[name] = "contradicts"
    return seen


@pytest.fixture(autouse=True)
def as_pytorch_starts():
    yield
    torch._C._set_cudnn_allow_tf32(True)
    torch.set_float32_matmul_precision("highest")
    for place in (*ALL, ("cuda", "matmul"), *product(("mkldnn",), ("matmul", "conv", "rnn"))):
        _FP32Precision(*place).fp32_precision = "none"


def precisions(place: tuple[str, str]):
    return st.sampled_from(("none", "ieee", "tf32") + (() if place[0] == "cuda" else ("bf16",)))


def switch(place: tuple[str, str]):
    return precisions(place).map(lambda to: lambda: setattr(_FP32Precision(*place), "fp32_precision", to))


STEPS = st.lists(
    st.one_of(
        *(switch(place) for place in (*ALL, *OPERATIONS)),
        st.sampled_from(("highest", "high", "medium")).map(lambda to: lambda: torch.set_float32_matmul_precision(to)),
        st.booleans().map(lambda to: lambda: torch._C._set_cudnn_allow_tf32(to)),
    ),
    max_size=8,
)


@given(steps=STEPS, later=STEPS, raises=st.booleans())
@settings(max_examples=200, deadline=None)
def test_from_any_mixture_all_is_exact_inside_and_put_back(steps, later, raises):
    for step in steps:
        step()
    before = state()
    with suppress(ZeroDivisionError), exact_float32():
        assert {value(place) for place in OPERATIONS} == {"ieee"}
        # None of the older ways to ask raises, as each does where the two ways to set disagree.
        assert [read() for read in OLD.values()] == [False, False, "highest"]
        with exact_float32():
            assert {value(place) for place in OPERATIONS} == {"ieee"}
        assert [read() for read in OLD.values()] == [False, False, "highest"]
        for step in later:  # whatever is done inside
            step()
        if raises:
            raise ZeroDivisionError
    assert state() == before


@pytest.mark.parametrize("place", OPERATIONS)
def test_what_inherits_goes_on_to_inherit(place):
    _FP32Precision(*place).fp32_precision = "none"
    parent = _FP32Precision(place[0], "all")
    parent.fp32_precision = "tf32"
    with exact_float32():
        assert value(place) == "ieee"
    assert value(place) == "tf32"
    parent.fp32_precision = "ieee"
    assert value(place) == "ieee"


@pytest.mark.parametrize("said", ["high", "medium"])
def test_what_a_user_said_of_products_holds_outside_alone(said):
    torch.set_float32_matmul_precision(said)
    one = torch.randn(64, 64)
    with full_precision(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
        torch.testing.assert_close(one @ one, (one.double() @ one.double()).float(), rtol=1e-5, atol=1e-4)
    assert torch.get_float32_matmul_precision() == said
    assert torch.backends.cuda.matmul.allow_tf32


def test_cudnns_other_settings_can_be_changed_inside():
    # It reads the older switch first, and so raised where recurrent layers alone had TF32.
    with exact_float32(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark
