"""PyTorch's operations on the pixels of images, as `aten.py` has all others: `PIXEL_READERS`."""

import math
from collections.abc import Callable
from typing import Any

from adadfq_jax.teachers.program import Call, GraphReader, View


def pair(value: Any) -> tuple[int, int]:
    """Returns (down, across) of what PyTorch takes as one number or two."""
    sides = tuple(value) if isinstance(value, list | tuple) else (value,)
    return sides * 2 if len(sides) == 1 else sides


def _whole_image(call: Call) -> str:
    """Returns the name of the image over all of whose pixels a call goes."""
    value, dims = call.before, call.get("dim") or []
    if isinstance(value, View) and len(value.grouped) == 3 and dims in ([2], [-1]):
        if call["keepdim"]:
            call.refuse("that keeps an axis of a list of pixels")
        return value.name
    if {dim % 4 for dim in dims} != {2, 3} or len(call.shape_of("self")) != 4:
        call.refuse("of other axes than both of an image")
    return value


def _mean(reader: GraphReader, call: Call) -> str:
    return reader.average(call, _whole_image(call), keep=call["keepdim"])


def _sum(reader: GraphReader, call: Call) -> str:
    mean, pixels = _mean(reader, call), math.prod(call.shape_of("self")[2:])
    settings = {"factor": float(pixels), "shift": 0.0}
    return reader.add("scale", reader.name_of(call, "sum"), [mean], **settings)


def _maximum(reader: GraphReader, call: Call) -> str:
    value, sides = _whole_image(call), call.shape_of("self")[2:]
    if len(sides) != 2:
        call.refuse("of a list of pixels")
    settings = {"window": sides, "strides": sides, "padding": ((0, 0), (0, 0))}
    pooled = reader.add("max_pool", reader.name_of(call, "max_pool"), [value], **settings)
    if call["keepdim"]:
        return pooled
    shape = (call.shape[1],)
    return reader.add("reshape", reader.name_of(call, "reshape"), [pooled], shape=shape)


def _max_pool(reader: GraphReader, call: Call) -> str:
    if pair(call["dilation"]) != (1, 1):
        call.refuse("with dilation")
    window, strides, padding, _ = _places(call)
    settings = {"window": window, "strides": strides, "padding": padding}
    return reader.add(
        "max_pool", reader.name_of(call, "max_pool"), [call.image("self")], **settings
    )


def _average_pool(reader: GraphReader, call: Call) -> str:
    window, strides, padding, beyond = _places(call)
    padded, included = any(map(any, padding)), call["count_include_pad"]
    if call["divisor_override"] is not None:
        call.refuse("with a divisor of its own")
    if window == call.shape_of("self")[2:] and not padded:
        return reader.average(call, call.image("self"), keep=True)
    if beyond and included and any(pair(call["padding"])):
        call.refuse("with padding that counts and a last window beyond it")
    return reader.add(
        "average_pool",
        reader.name_of(call, "average_pool"),
        [call.image("self")],
        window=window,
        strides=strides,
        padding=padding,
        include_padding=not padded or (included and not beyond),
    )


def _places(call: Call) -> tuple[tuple, tuple, tuple, bool]:
    """Returns window, strides and padding of a pool, and whether a window ends beyond both."""
    window, padding = pair(call["kernel_size"]), pair(call["padding"])
    strides = pair(call["stride"] or window)
    sides, beyond = [], False
    for axis, (before, after) in enumerate(
        zip(call.shape_of("self")[2:], call.shape[2:], strict=True)
    ):
        needed = (after - 1) * strides[axis] + window[axis] - before - padding[axis]
        sides.append((padding[axis], max(padding[axis], needed)))
        beyond |= needed > padding[axis]
    return window, strides, tuple(sides), beyond


def _adaptive_average(reader: GraphReader, call: Call) -> str:
    before, after, value = call.shape_of("self")[2:], call.shape[2:], call.image("self")
    if after == (1, 1):
        return reader.average(call, value, keep=True)
    if before == after:
        return value
    if all(side % wanted == 0 for side, wanted in zip(before, after, strict=True)):
        window = tuple(side // wanted for side, wanted in zip(before, after, strict=True))
        return reader.add(
            "average_pool",
            reader.name_of(call, "average_pool"),
            [value],
            window=window,
            strides=window,
            padding=((0, 0), (0, 0)),
            include_padding=True,
        )
    return _resampled(reader, call, value, "average")


def _adaptive_max(reader: GraphReader, call: Call) -> list[str]:
    before, (_, _, *after) = call.shape_of("self")[2:], call.node.meta["val"][0].shape
    if any(side % wanted for side, wanted in zip(before, after, strict=True)):
        call.refuse("of windows that are not all of one size")
    window = tuple(side // wanted for side, wanted in zip(before, after, strict=True))
    name = reader.name_of(call, "max_pool")
    settings = {"window": window, "strides": window, "padding": ((0, 0), (0, 0))}
    return [reader.add("max_pool", name, [call.image("self")], **settings)]


def _pad(reader: GraphReader, call: Call) -> str:
    if call.get("mode", "constant") != "constant" or len(call.shape) != 4:
        call.refuse("other than by a constant around an image")
    amounts, value = [*call["pad"], 0, 0, 0, 0, 0, 0][:8], float(call.get("value") or 0)
    left, right, top, bottom, before, after, *batch = amounts
    if min(amounts) < 0 or any(batch) or (value and (before or after)):
        call.refuse("that takes away, or is neither of pixels nor of channels of 0")
    name = call.image("self")
    if before or after:
        made = reader.name_of(call, "pad_channels")
        name = reader.add("pad_channels", made, [name], before=before, after=after)
    padding = ((top, bottom), (left, right))
    if not any(map(any, padding)):
        return name
    return reader.add("pad", reader.name_of(call, "pad"), [name], padding=padding, value=value)


def _upsample(method: str):
    def read(reader: GraphReader, call: Call) -> str:
        corners = method == "bilinear" and call["align_corners"]
        if not corners and (factors := call.get("scale_factors")) is not None:
            sides = zip(call.shape_of("input")[2:], factors, call.shape[2:], strict=True)
            if any(before * factor != after for before, factor, after in sides):
                call.refuse("by a factor that makes no whole number of pixels")
        image = call.image("input" if "input" in call.arguments else "self")
        return _resampled(reader, call, image, f"{method}_corners" if corners else method)

    return read


def _resampled(reader: GraphReader, call: Call, value: str, method: str) -> str:
    name = reader.name_of(call, "resample")
    return reader.add("resample", name, [value], method=method, size=call.shape[2:])


PIXEL_READERS: dict[str, Callable[[GraphReader, Call], Any]] = {
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _adaptive_average,
    "adaptive_max_pool2d": _adaptive_max,
    "mean": _mean,
    "sum": _sum,
    "amax": _maximum,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "upsample_nearest2d": _upsample("nearest"),
    "upsample_bilinear2d": _upsample("bilinear"),
}
