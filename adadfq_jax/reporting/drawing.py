"""Figures as PNG files, each with a text for readers who cannot see it."""

import dataclasses
import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adadfq_jax.models.pictures import SOFTWARE

# Width in inches and resolution: as wide as a phone's screen, so that text stays readable there.
_WIDTH, _RESOLUTION = 4.6, 160
BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#c8590a", "#2e7d32", "#666666"
LIGHT_BLUE = "#9db8d9"


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
      name: name of the file, without suffix.
      title: heading of the figure.
      alt: what the figure shows, in words.
      png: content of the PNG file.
    """

    name: str
    title: str
    alt: str
    png: bytes


def blank(height: float) -> Figure:
    """Returns an empty figure; `height` is in inches."""
    figure = Figure(figsize=(_WIDTH, height), dpi=_RESOLUTION, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def one_panel(height: float) -> tuple[Figure, Axes]:
    """Returns a figure and its only axes; `height` is in inches."""
    figure = blank(height)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=8)
    return figure, axes


def drawn(name: str, title: str, alt: str, figure: Figure) -> Drawing:
    """Renders a figure to a PNG file; the other arguments are those of `Drawing`."""
    return Drawing(name, title, alt.strip(), rendered(figure))


def rendered(figure: Figure) -> bytes:
    """Returns the content of a PNG file of a figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": SOFTWARE})
    return file.getvalue()
