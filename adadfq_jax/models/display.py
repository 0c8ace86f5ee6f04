"""How networks show themselves in a notebook: in one line, and as a table with pictures."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np


def kilobytes(size: int) -> str:
    """Returns a number of bytes in words, such as "1,084 kB"."""
    return f"{round(size / 1000):,} kB"


def not_data_free(count: int) -> str:
    """Returns in words that a student learns from so many images of a user."""
    return f"not data-free: {count:,} image{'s' * (count != 1)}"


def bits_in_words(arrays: Mapping[str, np.ndarray], asked: Mapping[str, int] | None = None) -> str:
    """Returns bit-widths, such as "w4a2", and how many layers have others.

    Args:
      arrays: a network's variables, as `network.flatten` returns them.
      asked: the widths of `weight` and `activation` that a run was asked for; None: those of most
        layers.
    """
    counted = {
        kind: Counter(
            int(array)
            for name, array in arrays.items()
            if name.startswith("bits/") and name.endswith(f"/{kind}")
        )
        for kind in ("weight", "activation")
    }
    if not any(counted.values()):
        return "full precision"
    usual = asked or {
        kind: max(widths, key=widths.get) for kind, widths in counted.items() if widths
    }
    others = sum(
        sum(counted[kind].values()) - counted[kind][width] for kind, width in usual.items()
    )
    text = "".join(f"{kind[0]}{width}" for kind, width in usual.items())
    return text + (f" ({others} at other widths)" if others else "")


def as_html(
    heading: str, rows: Sequence[tuple[str, str]], pictures: Sequence[tuple[str, bytes]] = ()
) -> str:
    """Returns a table as HTML, with pictures below it.

    Args:
      heading: plain text.
      rows: (name, value), plain text.
      pictures: (what it shows, PNG).
    """
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in rows
    )
    images = "".join(
        f"<figure style='margin:.5em 0'><img alt='{escape(text)}' style='max-width:100%' "
        f"src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
        f"<figcaption>{escape(text)}</figcaption></figure>"
        for text, png in pictures
    )
    return f"<div><strong>{escape(heading)}</strong><table>{cells}</table>{images}</div>"
