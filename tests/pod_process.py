"""One of several processes that play a small game in float64; what `test_processes.py` starts.

Arguments: workdir, evaluation images (beside them own.npz, which the student sees), HOST:PORT,
processes, index, devices of each process, index of the process that gets a SIGTERM, the dispatch
after which it does, seed.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from adadfq_jax.cli import process
from adadfq_jax.cli.main import _exit_code
from adadfq_jax.devices import processes
from adadfq_jax.errors import AdaDFQError
from adadfq_jax.training import quantize
from tests.conftest import make_small_config, make_teacher


def small_game(images):
    """Returns the configuration and the teacher of the game that is played; call it in float64."""
    teacher = make_teacher()
    teacher.variables.update(jax.tree.map(np.float64, teacher.variables))
    config = make_small_config()
    # Without a warm-up, whose steps are those of play but for the student's.
    config.steps_per_epoch, config.epochs, config.warmup_epochs = 4, 3, 1
    config.data.source, config.data.path = "npz", str(images)
    config.samples.images = str(images.with_name("own.npz"))
    config.samples.procedural, config.samples.images_share = 1, 1.0
    return config, teacher


def main(workdir, images, coordinator, count, index, devices, stopped, after, seed):
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", True)
    if count > 1:
        print(processes.start(coordinator, count, index, seconds=60), file=sys.stderr)
    config, teacher = small_game(Path(images))
    config.devices, config.seed = 0, seed
    dispatches = -2  # the first two calls are before them

    def should_stop():
        nonlocal dispatches
        dispatches += 1
        if index == stopped and dispatches == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return received[-1]

    with process.listening() as received, processes.leaving_at_once():
        quantize.quantize(
            config, teacher, workdir, should_stop=should_stop, show_progress=processes.leads()
        )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:4], *map(int, sys.argv[4:]))
    except AdaDFQError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(_exit_code(error))
