"""Numbers, user text and tables in the form a person reads in Markdown; which ones to show is decided elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

_BYTES = ("B", "kB", "MB", "GB", "TB")
_COUNTS = ("", "k", "M", "B", "T")
_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\|`*[]<>~"})


def plain(text: str) -> str:
    """User text that stays one line and one table cell, and whose Markdown signs mean nothing."""
    return " ".join(text.split()).translate(_SPECIAL)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns of numbers to the right."""
    columns = [[row[index] for row in rows] for index in range(len(header))]
    ruler = ["---:" if column and all(map(_is_number, column)) else ":---" for column in columns]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ruler, *rows])


def significant(value: float) -> str:
    """Three significant digits without an exponent where that is readable: 148, 12.3, 0.953, 0.00120."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    text = f"{value:#.3g}"
    return f"{float(text):.0f}" if "e" in text else text.rstrip(".")


def count(value: int) -> str:
    """22.7 M, 1.20 B, 512 k; below a thousand as it is."""
    return _scaled(value, _COUNTS)


def size(value: int) -> str:
    """90.9 MB; decimal prefixes, as file managers and hubs use them."""
    return _scaled(value, _BYTES)


def milliseconds(value: float) -> str:
    """148 ms."""
    return f"{significant(value)} ms"


def seconds(value: float) -> str:
    """0.420 s, 12.3 s, 2 min 05 s."""
    if value < 60:
        return f"{significant(value)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def mebibytes(value: float) -> str:
    """512 MiB."""
    return f"{value:,.0f} MiB"


def ratio(value: float) -> str:
    """1.75x."""
    return f"{value:.2f}x"


def interval(low: float, high: float) -> str:
    """1.71x to 1.79x."""
    return f"{ratio(low)} to {ratio(high)}"


def percent(share: float) -> str:
    """89.1 %, from a fraction."""
    return f"{100 * share:.1f} %"


def points(difference: float, *, sign: bool = True) -> str:
    """-0.6 points, from a difference of fractions; one decimal, two when one would round a small difference away."""
    value = 100 * difference + 0.0  # never -0.0
    digits = 2 if 0 < abs(value) < 0.1 else 1
    return f"{value:{'+' if sign and value else ''}.{digits}f} points"


def points_interval(low: float, high: float) -> str:
    """-1.5 to +0.3 points."""
    return f"{points(low).removesuffix(' points')} to {points(high)}"


def p_value(value: float) -> str:
    """p = 0.21, p < 0.001."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def change(before: float, after: float) -> str:
    """-46.7 % from before to after; a dash when there was nothing before."""
    return f"{100 * (after / before - 1):+.1f} %" if before else "-"


def shape(batch: int, sequence: int, phase: str = "forward") -> str:
    """8 x 128: examples by tokens; of models that write also which token."""
    return f"{batch} x {sequence}" if phase == "forward" else f"{batch} x {sequence}, {phase}"


def metric_name(name: str) -> str:
    """accuracy, macro F1."""
    return plain(name.replace("_", " ").replace("f1", "F1"))


def _scaled(value: int, units: Sequence[str]) -> str:
    scaled, unit = float(value), 0
    # 999.5 would print as 1000 with three digits, so it moves up already.
    while scaled >= 999.5 and unit < len(units) - 1:
        scaled, unit = scaled / 1000, unit + 1
    digits = significant(scaled) if unit else str(value)
    return f"{digits} {units[unit]}".rstrip()


def _is_number(cell: str) -> bool:
    return cell[:1] in set("0123456789+-")
