"""How numbers are written wherever a table, a line or a page shows them; unknown ones are empty."""

from __future__ import annotations

from zar_ray.results.record import Estimate

METRICS = {"top1": "top-1", "top5": "top-5", "mean_class": "mean class", "map": "mAP"}
"""What results are called, by their names in records."""

MAIN = ("top1", "map")
"""The metrics that results are compared by."""


def percent(share: float | None, sign: str = "") -> str:
    """A share in per cent with one decimal; `sign` is "+" where a rise is to show as one."""
    return "" if share is None else fixed(100 * share, 1, sign)


def fixed(value: float | None, decimals: int, sign: str = "") -> str:
    """A number with so many decimals."""
    # Adding zero turns a rounded -0.0 into 0.0, which would otherwise print its sign.
    return "" if value is None else f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"


def interval(estimate: Estimate, sign: str = "") -> str:
    """An estimate in per cent, with its interval in brackets."""
    return f"{percent(estimate.value, sign)} [{percent(estimate.low, sign)}, {percent(estimate.high, sign)}]"


def ends(estimate: Estimate, sign: str = "") -> str:
    """An estimate's interval in words, in per cent."""
    return f"{percent(estimate.low, sign)} to {percent(estimate.high, sign)}"


def with_deviation(value: float, std: float | None, plus_minus: str = "±") -> str:
    """A mean, a share, in per cent, with its standard deviation where there is one."""
    return with_std(100 * value, None if std is None else 100 * std, 1, plus_minus)


def with_std(value: float, std: float | None, decimals: int, plus_minus: str = "±") -> str:
    """A mean with so many decimals, with its standard deviation where there is one."""
    return fixed(value, decimals) if std is None else f"{fixed(value, decimals)} {plus_minus} {fixed(std, decimals)}"


def plus_minus(encoding: str) -> str:
    """The sign before a deviation, in characters that the encoding has."""
    try:
        return "±".encode(encoding).decode(encoding)
    except (UnicodeError, LookupError):
        return "+/-"


def p_value(p: float | None) -> str:
    """A p value with three decimals."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def digits(value: float | None, count: int = 3) -> str:
    """A number with so many significant digits."""
    return "" if value is None else f"{value:.{count}g}"


def gflops(number: float | None) -> str:
    """A number of GFLOPs in three digits or all before the point."""
    return "" if number is None else f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def megabytes(count: float | None) -> str:
    """Bytes as whole megabytes, without the unit."""
    return "" if count is None else f"{count / 1e6:.0f}"


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, of_unit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of_unit:
            return f"{count / of_unit:.3g} {unit}"
    return f"{count:.0f} B"


def counted(number: int, what: str) -> str:
    """Things with their number, in the singular where it is one."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def shortened(text: str, length: int = 34) -> str:
    """A text, or its beginning where it is longer; by default as charts have room for."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def failed_count(metric: str) -> str:
    """How failed videos stand in results of a metric, by its name in records."""
    return "ranked last" if metric == "map" else "counted as wrong"


def exact(value: object) -> str:
    """A value for programs: floats with nine significant digits, nothing for None."""
    return "" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)
