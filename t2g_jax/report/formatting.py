"""How numbers are written in reports, on the page and on the terminal alike."""

import datetime
import math

MISSING = "–"
_NARROW = "\u202f"  # narrow no-break space, between a number and its unit
SIZES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def percent(value: float, digits: int = 1) -> str:
    """.9764 -> "97.6 %"; not finite -> a dash."""
    return minus(f"{100 * value:.{digits}f}{_NARROW}%") if math.isfinite(value) else MISSING


def decimal(value: float | None, digits: int = 3) -> str:
    """.12345 -> "0.123", 1234.5 -> "1234", 1.2e-5 -> "1.20e-05"; None, NaN or ±∞ -> a dash."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if value == 0 or 0.001 <= size < 100:
        return minus(f"{value:.{digits}f}")
    text = f"{value:.0f}" if 100 <= size < 1e6 else f"{value:.2e}"
    return text.replace("-", "−", 1) if value < 0 else text


def score(value: float, *, unit: bool) -> str:
    """An accuracy as a percentage if its scale is [0, 1] (`unit`), else a plain number."""
    if unit:
        return percent(value)
    return minus(f"{value:.2f}") if math.isfinite(value) else MISSING


def interval(bounds: tuple[float, float], *, unit: bool) -> str:
    """(.961, .985) -> "96.1–98.5"."""
    if not all(map(math.isfinite, bounds)):
        return MISSING
    low, high = (f"{100 * b:.1f}" if unit else f"{b:.2f}" for b in bounds)
    return minus(f"{low}–{high}")


def gain(before: float, after: float, *, unit: bool) -> str:
    """Difference in percentage points (`unit`) or in the score's own unit, with its sign."""
    change = (after - before) * (100 if unit else 1)
    if not math.isfinite(change):
        return MISSING
    text = f"{change:+.1f}" if unit else f"{change:+.2f}"
    return minus(text)


def count(value: float) -> str:
    """1234567 -> "1.23 M"; below ten thousand, the number itself."""
    if not math.isfinite(value):
        return MISSING
    if abs(value) < 10_000:
        return minus(f"{value:g}")
    for size, suffix in SIZES:
        if abs(value) >= 0.9995 * size:
            return minus(f"{value / size:.3g}{_NARROW}{suffix}")
    raise AssertionError("unreachable: a value of at least 10,000 is at least a thousand")


def duration(seconds: float) -> str:
    """42.31 -> "42.3 s", 750 -> "12 min 30 s", 11520 -> "3 h 12 min"."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f}{_NARROW}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{_NARROW}min {whole % 60:02d}{_NARROW}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}{_NARROW}h {minutes % 60:02d}{_NARROW}min"


def moment(iso: str) -> str:
    """ISO 8601 -> "11 February 2026, 09:30 UTC"; anything else as it is."""
    try:
        when = datetime.datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{when.day} {when:%B %Y, %H:%M %Z}".rstrip()


def unit_scale(values) -> bool:
    """True if every finite value lies in [0, 1], so that the scale is an accuracy's."""
    return all(0 <= value <= 1 for value in values if math.isfinite(value))


def minus(text: str) -> str:
    """With the minus sign, U+2212, which is as wide as a plus and no hyphen."""
    return text.replace("-", "−")
