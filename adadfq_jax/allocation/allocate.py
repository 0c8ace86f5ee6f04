"""`allocate`: measures what the bits of each layer are worth, and chooses them under a budget."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from adadfq_jax.allocation.budget import KINDS, packed, read_budget
from adadfq_jax.allocation.choice import choose
from adadfq_jax.allocation.chosen import Allocation
from adadfq_jax.allocation.cost import Costs, Item, costs_of
from adadfq_jax.allocation.sensitivity import (
    batches_of,
    measure_sensitivity,
    spread,
    squared_error,
)
from adadfq_jax.errors import ConfigError, require_extra
from adadfq_jax.evaluation.accuracy import logits_of
from adadfq_jax.models import registry
from adadfq_jax.models.network import Teacher, flatten
from adadfq_jax.models.size import packed_bytes
from adadfq_jax.models.sums import with_quantized_sums
from adadfq_jax.models.tracing import with_roles
from adadfq_jax.quantization.bits import assign_bits, check_bits
from adadfq_jax.training import calibrated
from adadfq_jax.training.progress import Progress

CHOICES = (2, 3, 4, 5, 6, 8)
_FREE = 0  # bits of what is not fixed
_POINTS = 13  # of the curve
_SECONDS_BETWEEN_LINES = 15.0


def allocate(
    teacher: Teacher,
    budget: float | str = 4.0,
    *,
    budget_of: str | None = None,
    measure: str = "size",
    choices: Sequence[int] = CHOICES,
    fixed: Sequence[str] = (),
    groups: Sequence[str] = (),
    sums: bool = False,
    images: int = 64,
    quick: bool = False,
    epochs: int = 4,
    checks: int = 20,
    show_progress: bool = False,
) -> Allocation:
    """Chooses bit-widths by layer under a budget, without data.

    Each kernel and each activation is quantized alone at each bit-width, and how far the logits
    move is measured on generated and procedural images. An integer program then minimises the sum
    of these distances.

    Args:
      teacher: the network in full precision.
      budget: average bits of weights over their elements, and of activations over the values of one
        image; or `170kB` of packed numbers; or, with `bitops`, as many bit operations as a uniform
        student of so many bits has, or `650M` of them.
      budget_of: what gets bits: `weights`, `activations` or `both`, of which each is then within
        average bits. None: weights for a budget in bytes, else both.
      measure: what the budget bounds, `size` or `bitops`.
      choices: bit-widths to choose from, 1 to 8.
      fixed: what has its bits already, as `quant.overrides` takes it; the budget includes it.
      groups: which layers share bits: `sums` (the quantized inputs of each addition), `depthwise`
        (a depthwise convolution's kernel and that of the convolution before it).
      sums: whether it is for a student of `quant.sums`.
      images: how many of each kind.
      quick: whether only procedural images are taken, so that no generator is trained.
      epochs: epochs of 200 steps that train the generator.
      checks: random allocations within the budget of which sum and whole are compared; 0 for none.
      show_progress: whether to say on stderr what is done.

    Raises:
      ConfigError: an argument cannot be used, nothing is within the budget, or scipy is missing.
    """
    require_extra("allocate", "choosing bit-widths")
    choices = _checked(choices)
    for name, value, least in (("images", images, 1), ("epochs", epochs, 1), ("checks", checks, 0)):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, not {value}.")
    side = teacher.image_size
    network = teacher
    if sums:
        network = dataclasses.replace(teacher, module=with_quantized_sums(teacher.module, side))
    costs = costs_of(network.module, side)
    fixed = with_roles(fixed, network.module, side)
    held = _held(network, fixed)
    budget = read_budget(
        budget, measure, budget_of, costs, _constant_bytes(network, costs), choices
    )
    items = costs.of(KINDS[budget.of])
    columns = tuple(sorted({*choices, *(held[item.layer, item.kind] for item in items)} - {_FREE}))
    allowed = np.array(
        [
            [bits == held[item.layer, item.kind] for bits in columns]
            if held[item.layer, item.kind] != _FREE
            else [bits in choices for bits in columns]
            for item in items
        ]
    )
    shared = _places(costs.shared(groups), items)
    limits = budget.limits(costs, items, columns)
    # Before anything is measured: nothing within the budget is nothing, whatever the distances are.
    if choose(np.where(allowed, 0.0, np.inf), columns, limits, shared) is None:
        raise ConfigError(
            f"no choice of {', '.join(map(str, choices))} bits is within the budget: what is fixed "
            "or shared needs more; give a larger budget, or fix less."
        )

    progress = Progress(len(items), show_progress)
    seen, held_out = _images(teacher, images, quick, epochs, round(budget.level), progress)
    batches = batches_of(seen)
    distances = measure_sensitivity(
        network, items, columns, allowed, batches, _teller(progress, len(items))
    )
    best = choose(distances, columns, limits, shared)
    bits = np.array(columns)
    found = Allocation(
        teacher=network,
        sums=sums,
        budget=budget,
        costs=costs,
        items=items,
        choices=choices,
        fixed=fixed,
        groups=tuple(groups),
        columns=columns,
        distances=distances,
        bits=bits[best],
        images=len(seen),
        kinds="procedural" if quick else "generated and procedural",
        held_out=held_out,
    )
    curve = []
    for level in np.linspace(choices[0], choices[-1], _POINTS):
        at = choose(distances, columns, budget.at(level).limits(costs, items, columns), shared)
        if at is not None:
            curve.append((float(found.level_of(bits[at])), found.predicted(bits[at])))
    expected = logits_of(network, seen, len(batches[0])) if checks else None
    random, compared = np.random.default_rng(0), []
    for number in range(checks):
        progress.say(f"the sum of distances against that of the whole: {number + 1} of {checks}")
        drawn = np.where(allowed, random.random(allowed.shape), np.inf)
        at = choose(drawn, columns, limits, shared)
        whole = _whole_distance(found, bits[at], batches, expected)
        compared.append((found.predicted(bits[at]), whole))
    return dataclasses.replace(found, curve=tuple(curve), compared=tuple(compared))


def _whole_distance(
    found: Allocation, bits: Sequence[int], batches: Sequence[np.ndarray], expected: np.ndarray
) -> float:
    """Returns the distance of a student in which everything is quantized, calibrated on images.

    Args:
      found: of whose items the student has bits.
      bits: (items,).
      batches: images, normalised, (B, H, W, channels) each, for ranges and for the distance.
      expected: the teacher's logits of them, (N, classes).
    """
    named = {
        (*item.layer.split("/"), item.kind): jnp.int32(width)
        for item, width in zip(found.items, bits, strict=True)
    }
    tree = flax.traverse_util.unflatten_dict(named)
    student = calibrated.calibrated_with(found.teacher, tree, batches, "least_error")
    logits = logits_of(student, np.concatenate(batches), len(batches[0]))
    return float(squared_error(logits, expected) / spread(expected))


def _checked(choices: Sequence[int]) -> tuple[int, ...]:
    for bits in choices:
        check_bits("bits to choose from", bits)
    if len(set(choices)) < 2:
        raise ConfigError(
            f"choices must be two bit-widths or more, not {', '.join(map(str, choices)) or 'none'}."
        )
    return tuple(sorted(set(choices)))


def _held(network: Teacher, fixed: Sequence[str]) -> dict[tuple[str, str], int]:
    """Returns by (layer, kind) the bits of what is fixed, and 0 for all else."""
    shapes = registry.initial_variables(network.module, network.image_size)["bits"]
    assigned = flax.traverse_util.flatten_dict(assign_bits(shapes, _FREE, _FREE, fixed))
    return {("/".join(path), kind): int(bits) for (*path, kind), bits in assigned.items()}


def _constant_bytes(network: Teacher, costs: Costs) -> int:
    """Returns the bytes of a student's packed numbers that do not depend on its bits."""
    ones = {f"bits/{item.layer}/{item.kind}": 1 for item in costs.items}
    codes = sum(packed(item, 1) for item in costs.items)
    return packed_bytes(flatten(network.variables), ones) - codes


def _places(groups: Sequence[Sequence[tuple[str, str]]], items: Sequence[Item]) -> list[list[int]]:
    """Returns the indices of grouped items, of those that get bits."""
    places = {(item.layer, item.kind): place for place, item in enumerate(items)}
    found = [[places[name] for name in group if name in places] for group in groups]
    return [group for group in found if len(group) > 1]


def _images(
    teacher: Teacher, count: int, quick: bool, epochs: int, bits: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images to measure with and as many others, normalised, (N, H, W, channels) each."""
    drawn = calibrated.procedural_images(teacher, 2 * count)
    seen, held_out = [drawn[:count]], [drawn[count:]]
    if not quick:
        progress.say(f"a generator, trained for {epochs} epochs")
        trained = calibrated.calibrated_on_generated(
            teacher, f"w{bits}a{bits}", epochs, ranges="least_error"
        )
        # Of batches as a step has them, since the generator normalises by the batch.
        drawn, _ = trained.draw(2 * count, calibrated.BATCH)
        seen.append(drawn[:count])
        held_out.append(drawn[count:])
    return np.concatenate(seen), np.concatenate(held_out)


def _teller(progress: Progress, total: int) -> Callable[[int], None]:
    """Returns a function that says now and then how much of the measuring is done."""
    began = last = time.monotonic()

    def tell(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            left, last = (now - began) / done * (total - done), now
            progress.say(f"{done} of {total} kernels and activations, about {left:.0f} s left")

    return tell
