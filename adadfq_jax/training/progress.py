"""A run's progress on stderr: a bar on a terminal, a line every 15 seconds elsewhere."""

import collections
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence

import rich.console
import rich.progress
import rich.text

_SECONDS_BETWEEN_LINES = 15.0
_SECONDS_OF_RATE = 10.0  # the last seconds, over which the speed of the steps is measured
_SHOWN = (
    ("l_g", "L_G {:.2f}"),
    ("l_bns", "BNS {:.2f}"),
    ("l_q", "L_Q {:.2f}"),
    ("h_prime", "H' {:.2f}"),
    ("agreement", "agree {:.0%}"),
    ("top1", "top-1 {:.2%}"),
    ("drift", "DRIFTING: agreement fell by {:.1%}"),
)


class Progress:
    """Shows how far a run is, on stderr. A context manager: the bar is visible inside it."""

    def __init__(self, total: int, shown: bool = True, phases: Sequence[tuple[str, int]] = ()):
        """Prepares the display.

        Args:
          total: steps of the run.
          shown: whether anything is shown; False makes every method silent.
          phases: name and last step of each phase, in order; none for one phase of all steps.
        """
        self._console = rich.console.Console(stderr=True, quiet=not shown, highlight=False)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.fields[phase]}"),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.MofNCompleteColumn(),
            _Pace(self),
            rich.progress.TextColumn("{task.fields[numbers]}"),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
            transient=True,
        )
        self._task = self._bar.add_task("", total=total, phase="start", numbers="")
        self._numbers: dict[str, float | None] = {}
        self._total, self._phases = total, tuple(phases) or (("", total),)
        self._last_line = -float("inf")
        self._times: collections.deque[tuple[float, int]] = collections.deque()
        self._phase, self._step = "", 0
        self._busy: tuple[float, float | None] | None = None

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, soft_wrap=True, markup=False)

    @contextlib.contextmanager
    def busy(self, what: str, about: float | None = None, *, told: bool = False) -> Iterator[None]:
        """Shows that something other than steps takes time, and for how long it has taken it.

        Args:
          what: it, such as "compiling".
          about: the seconds that it will take; None where that is not known.
          told: whether it is told where there is no bar, in a line of its own.
        """
        before = self._bar.tasks[0].fields["phase"]
        if told and self._bar.disable:
            self.say(what + (f" (about {about:.0f} s)" if about else ""))
        self._busy = time.monotonic(), about
        self._bar.update(self._task, phase=what)
        try:
            yield
        finally:
            self._busy = None
            self._times.clear()  # which was no time of steps
            self._bar.update(self._task, phase=before)

    def advance(self, step: int, phase: str) -> None:
        """Shows a new step.

        Args:
          step: steps taken so far.
          phase: name of the phase.
        """
        now = time.monotonic()
        if phase != self._phase:
            self._times.clear()
        self._times.append((now, step))
        while len(self._times) > 2 and now - self._times[0][0] > _SECONDS_OF_RATE:
            self._times.popleft()
        self._step, self._phase = step, phase
        self._bar.update(self._task, completed=step, phase=phase)

    def update(self, step: int, phase: str, numbers: Mapping[str, float | None]) -> None:
        """Shows a new step and new metrics.

        Args:
          step: steps taken so far.
          phase: name of the phase.
          numbers: metrics by name; those that are not given keep their last value, and those that
            are None are shown no more.
        """
        self._numbers.update(numbers)
        text = "  ".join(
            form.format(self._numbers[name])
            for name, form in _SHOWN
            if self._numbers.get(name) is not None
        )
        self._bar.update(self._task, completed=step, phase=phase, numbers=text)
        if self._bar.disable and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            words = (f"{phase} {step}/{self._total}", self.pace(), text)
            self.say("  ".join(filter(None, words)))

    def pace(self) -> str:
        """Returns the speed and the time that is left, as of now."""
        if self._busy is not None:
            began, about = self._busy
            taken = time.monotonic() - began
            if not about:
                return f"{taken:.0f} s"
            return f"{taken:.0f} s of about {about:.0f} s" if taken < about else f"{taken:.0f} s"
        if len(self._times) < 2:
            return ""
        (then, first), (last, step) = self._times[0], self._times[-1]
        if last == then or step == first:
            return ""
        return self._left(step, (step - first) / (last - then), time.monotonic() - last)

    def _left(self, step: int, rate: float, since: float) -> str:
        """Returns a speed in words, and how long the phase and the run last at it.

        Args:
          step: steps taken so far.
          rate: steps per second.
          since: seconds since the last of these steps.
        """
        end = next((end for _, end in self._phases if step < end), self._total)
        phase, run = (max(0, (end - step) / rate - since) for end in (end, self._total))
        left = f"{_clock(phase)} left"
        if end != self._total:
            left += f" in this phase, {_clock(run)} in all"
        return f"{rate:.1f} steps/s, {left}"


class _Pace(rich.progress.ProgressColumn):
    """What `Progress.pace` says; asked again whenever the bar is drawn, so that it moves."""

    def __init__(self, progress: Progress):
        super().__init__()
        self._progress = progress

    def render(self, task: rich.progress.Task) -> rich.text.Text:
        """Returns the column's text."""
        del task
        return rich.text.Text(self._progress.pace())


def _clock(seconds: float) -> str:
    """Returns a time such as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
