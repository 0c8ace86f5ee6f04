"""A run's progress on stderr: a bar on a terminal, a line every 15 seconds elsewhere."""

import time
from collections.abc import Mapping

import rich.console
import rich.progress

_SECONDS_BETWEEN_LINES = 15.0
_SHOWN = (
    ("l_g", "L_G {:.2f}"),
    ("l_bns", "BNS {:.2f}"),
    ("l_q", "L_Q {:.1f}"),
    ("h_prime", "H' {:.2f}"),
    ("agreement", "agree {:.0%}"),
    ("top1", "top-1 {:.2%}"),
)


class Progress:
    """Shows how far a run is, on stderr. A context manager: the bar is visible inside it."""

    def __init__(self, total: int, shown: bool = True):
        """Prepares the display.

        Args:
          total: steps of the run.
          shown: whether anything is shown; False makes every method silent.
        """
        self._console = rich.console.Console(stderr=True, quiet=not shown, highlight=False)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.fields[phase]}"),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[rate]:.1f}/s"),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[numbers]}"),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=total, phase="start", rate=0.0, numbers="")
        self._numbers: dict[str, float] = {}
        self._total = total
        self._last_line = -float("inf")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, soft_wrap=True, markup=False)

    def update(self, step: int, phase: str, rate: float, numbers: Mapping[str, float]) -> None:
        """Shows a new step and new metrics.

        Args:
          step: steps taken so far.
          phase: name of the phase.
          rate: steps per second.
          numbers: metrics by name; metrics that are not given keep their last value.
        """
        self._numbers.update(numbers)
        text = "  ".join(
            form.format(self._numbers[name]) for name, form in _SHOWN if name in self._numbers
        )
        self._bar.update(self._task, completed=step, phase=phase, rate=rate, numbers=text)
        if self._bar.disable and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = f"{rate:.1f} steps/s  {(self._total - step) / rate:.0f} s left  " if rate else ""
            self.say(f"{phase} {step}/{self._total}  {left}{text}")
