"""The kernels that a program compiled for a GPU launches: how many of each kind, bytes and FLOP."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

from adadfq_jax.benchmarks import hlo
from adadfq_jax.benchmarks.gpu_cards import LAUNCH, Card

KINDS = (
    "convolutions",
    "products",
    "reductions",
    "other fusions",
    "transposes",
    "copies",
    "collectives",
    "others",
)

# Operations that only name or order what is in memory, or end what another one began.
_WITHOUT_KERNEL = re.compile(
    r"parameter|constant|tuple|get-tuple-element|bitcast|after-all|opt-barrier"
    r"|partition-id|replica-id|.*-done"
)
_SLICES = {"slice", "dynamic-slice", "gather"}
_MOVES = {"parameter", "bitcast", "reshape", "transpose", "copy", "tuple"}
_LABELS = re.compile(r"dim_labels=(?P<input>\w+)_(?P<kernel>\w+)->")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of a compiled program.

    Attributes:
      kind: of `KINDS`.
      times: how often a run of the program launches it.
      bytes: size of its operands and results.
      flops: of its convolutions and matrix products.
      half: whether those are of 16-bit numbers.
    """

    kind: str
    times: int
    bytes: int
    flops: int
    half: bool


def kernels(text: str) -> list[Kernel]:
    """Returns the kernels of a program compiled for a GPU.

    Args:
      text: the program, from `jax.stages.Compiled.as_text`.
    """
    entry, computations = hlo.computations(text)
    return list(_launched(entry, computations, 1))


def count(found: Iterable[Kernel]) -> dict[str, int]:
    """Returns how many kernels of each kind are launched; kinds without any are left out."""
    counts = collections.Counter()
    for kernel in found:
        counts[kernel.kind] += kernel.times
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


def seconds(found: Iterable[Kernel], card: Card) -> float:
    """Estimates how long a card takes for kernels, from its public figures.

    No kernel is taken to be faster than a launch, nor than its bytes at the memory's bandwidth, nor
    than its FLOP at the peak of the matrix units. Few kernels come near these peaks, so the
    estimate is rather too short where it is not launches that count.
    """
    return sum(
        kernel.times
        * max(
            LAUNCH,
            kernel.bytes / card.bandwidth,
            kernel.flops / (card.half_flops if kernel.half else card.single_flops),
        )
        for kernel in found
    )


def _launched(
    name: str, computations: dict[str, dict[str, hlo.Instruction]], times: int
) -> Iterator[Kernel]:
    """Yields the kernels of a computation that runs so many times, with those that it calls."""
    scope = computations[name]
    for one in scope.values():
        if one.kind in ("while", "call", "async-start"):
            trips = re.search(r"known_trip_count\D*(\d+)", one.rest)
            called = re.search(r"(?:body|to_apply|calls)=%?([\w.\-]+)", one.rest)[1]
            yield from _launched(called, computations, times * int(trips[1] if trips else 1))
        elif one.kind == "conditional":
            # Which branch is taken is not known before: the one with the most kernels.
            names = re.findall(
                r"%([\w.\-]+)", one.rest.partition("computations={")[2].split("}")[0]
            )
            names += re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", one.rest)
            yield from max((list(_launched(n, computations, times)) for n in names), key=len)
        elif not _WITHOUT_KERNEL.fullmatch(one.kind):
            inside = _inside(one, computations)
            types = [one.types, *_read(one, scope, computations)]
            yield Kernel(
                kind=_kind(one, inside),
                times=times,
                bytes=sum(sum(hlo.sizes(each)) for each in types),
                flops=_flops(one, scope) + sum(_flops(part, inside) for part in inside.values()),
                half="16[" in (types[1:] or types)[-1],
            )


def _read(one: hlo.Instruction, scope, computations) -> list[str]:
    """Returns the types of what a kernel reads: of an operand only the slices that it takes."""
    types = [scope[operand].types for operand in one.operands]
    parts = _fused(one, computations).values()
    for parameter in parts:
        users = [part for part in parts if parameter.name in part.operands]
        if parameter.kind == "parameter" and users and {u.kind for u in users} <= _SLICES:
            types[int(parameter.arguments)] = " ".join(user.types for user in users)
    return types


def _fused(one: hlo.Instruction, computations) -> dict[str, hlo.Instruction]:
    """Returns the computation of a fusion; nothing of another instruction."""
    called = re.search(r"calls=%?([\w.\-]+)", one.rest)
    return {} if one.kind != "fusion" or called is None else computations[called[1]]


def _inside(one: hlo.Instruction, computations) -> dict[str, hlo.Instruction]:
    """Returns the instructions that a fusion consists of, those of fusions in it included."""
    found = dict(_fused(one, computations))
    for part in list(found.values()):
        found |= _inside(part, computations)
    return found


def _kind(one: hlo.Instruction, inside: dict[str, hlo.Instruction]) -> str:
    kinds = {part.kind for part in inside.values()}
    if hlo.is_collective(one.kind):
        return "collectives"
    if "$conv" in one.rest or "convolution" in kinds:
        return "convolutions"
    if "__cublas" in one.rest or "dot" in kinds:
        return "products"
    if "reduce" in kinds:
        return "reductions"
    if one.kind == "transpose" or ("transpose" in kinds and kinds <= _MOVES):
        return "transposes"
    if one.kind in ("copy", "copy-start") or ("copy" in kinds and kinds <= _MOVES):
        return "copies"
    return "other fusions" if inside else "others"


def _flops(one: hlo.Instruction, scope: dict[str, hlo.Instruction]) -> int:
    """Returns the FLOP of an instruction if it is a convolution or a matrix product, else 0."""
    if one.kind == "dot" or "__cublas" in one.rest:
        contracted = re.search(r"lhs_contracting_dim\w*\W+?\[?\{?\"?([\d,\"]+)", one.rest)[1]
        left = hlo.shapes(scope[one.operands[0]].types)[0]
        depth = math.prod(left[int(place)] for place in contracted.replace('"', "").split(","))
        return 2 * math.prod(hlo.shapes(one.types)[0]) * depth
    if one.kind != "convolution" and "$conv" not in one.rest:
        return 0
    result, *operands = (
        hlo.shapes(each)[0] for each in (one.types, *(scope[name].types for name in one.operands))
    )
    # cuDNN's gradients are written with the labels of the convolution that they are a gradient of.
    output, kernel = result, operands[1]
    if "BackwardInput" in one.rest:
        output = operands[0]
    elif "BackwardFilter" in one.rest:
        output, kernel = operands[1], result
    channels = kernel[_LABELS.search(one.rest)["kernel"].index("o")]
    return 2 * math.prod(output) * math.prod(kernel) // channels
