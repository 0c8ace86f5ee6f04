"""A figure as a PNG file, with the words for those who do not see it."""

import dataclasses
import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adadfq_jax.training.pictures import SOFTWARE

# Drawn as wide as a phone shows it, so that its letters stay readable there.
_WIDTH, _RESOLUTION = 4.6, 160
BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#c8590a", "#2e7d32", "#666666"
LIGHT_BLUE = "#9db8d9"


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
      name: of its file, without suffix.
      title: heading.
      alt: what it shows, in words.
      png: the file.
    """

    name: str
    title: str
    alt: str
    png: bytes


def blank(height: float) -> Figure:
    """Returns an empty figure of a height in inches."""
    figure = Figure(figsize=(_WIDTH, height), dpi=_RESOLUTION, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def one_panel(height: float) -> tuple[Figure, Axes]:
    """Returns a figure of a height in inches, and its only axes."""
    figure = blank(height)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=8)
    return figure, axes


def drawn(name: str, title: str, alt: str, figure: Figure) -> Drawing:
    """Returns a figure as a file; see `Drawing`."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": SOFTWARE})
    return Drawing(name, title, alt.strip(), file.getvalue())
