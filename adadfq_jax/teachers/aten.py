"""PyTorch's operations as nodes of a graph: one function of `READERS` for each.

A function takes the reader, the operation with its arguments by name, and returns the name of the
node that makes its value. PyTorch's (B, channels, H, W) are our (B, H, W, channels).
"""

from collections.abc import Callable
from typing import Any

from adadfq_jax.teachers.program import Call, GraphReader, View


def _conv(reader: GraphReader, call: Call) -> str:
    layer = reader.layer(call, weight="weight", bias="bias")
    features, _, *kernel_size = call.shape_of("weight")
    strides, dilation = _pair(call["stride"]), _pair(call["dilation"])
    padding = call["padding"]
    if padding == "valid":
        padding = 0
    if padding == "same":
        whole = [step * (side - 1) for step, side in zip(dilation, kernel_size, strict=True)]
        sides = tuple((amount // 2, amount - amount // 2) for amount in whole)
    else:
        sides = tuple((amount, amount) for amount in _pair(padding))
    return reader.add(
        "conv",
        layer,
        [call.image("input")],
        features=features,
        kernel_size=tuple(kernel_size),
        strides=strides,
        padding=sides,
        dilation=dilation,
        groups=call["groups"],
        use_bias=call["bias"] is not None,
    )


def _linear(reader: GraphReader, call: Call) -> str:
    layer = reader.layer(call, weight="weight", bias="bias")
    if len(call.shape_of("input")) != 2:
        call.refuse("of what are no features of whole images")
    features, _ = call.shape_of("weight")
    use_bias = call["bias"] is not None
    return reader.add("dense", layer, [call.value("input")], features=features, use_bias=use_bias)


def _batch_norm(reader: GraphReader, call: Call) -> str:
    if call["training"]:
        call.refuse("by the statistics of the batch: its module keeps none, or is in training mode")
    layer = reader.layer(
        call, weight="weight", bias="bias", running_mean="running_mean", running_var="running_var"
    )
    affine = call["weight"] is not None
    return reader.add("norm", layer, [call.value("input")], epsilon=call["eps"], affine=affine)


def _activation(op: str, argument: str = "self", **settings: Callable[[Call], Any]):
    def read(reader: GraphReader, call: Call) -> str:
        found = {name: setting(call) for name, setting in settings.items()}
        return reader.add(op, reader.name_of(call, op), [call.value(argument)], **found)

    return read


def _hardtanh(reader: GraphReader, call: Call) -> str:
    low, high = (call.get(name, call.get(f"{name}_val")) for name in ("min", "max"))
    value, name = call.value("self"), reader.name_of(call, "relu" if low == 0 else "hardtanh")
    if low == 0:
        return reader.add("relu", name, [value], largest=None if high is None else float(high))
    if low is None or high is None:
        call.refuse("with one bound that is not 0")
    return reader.add("hardtanh", name, [value], min=float(low), max=float(high))


def _add(reader: GraphReader, call: Call, sign: int = 1) -> str:
    other, alpha = call["other"], sign * call.get("alpha", 1)
    if isinstance(other, int | float):
        return _scaled(reader, call, call.value("self"), shift=alpha * other)
    if alpha != 1:
        call.refuse("with a factor other than 1")
    return _two(reader, call, "add")


def _multiply(reader: GraphReader, call: Call) -> str:
    if isinstance(call["other"], int | float):
        return _scaled(reader, call, call.value("self"), factor=call["other"])
    return _two(reader, call, "multiply")


def _divide(reader: GraphReader, call: Call) -> str:
    if not isinstance(call["other"], int | float):
        call.refuse("by what is no number")
    return _scaled(reader, call, call.value("self"), factor=1 / call["other"])


def _scaled(
    reader: GraphReader, call: Call, value: str, factor: float = 1.0, shift: float = 0.0
) -> str:
    settings = {"factor": float(factor), "shift": float(shift)}
    return reader.add("scale", reader.name_of(call, "scale"), [value], **settings)


def _two(reader: GraphReader, call: Call, op: str) -> str:
    values = [call.value("self"), call.value("other")]
    if len(call.shape_of("self")) != len(call.shape_of("other")):
        call.refuse("of an image and features")
    return reader.add(op, reader.name_of(call, op), values)


def _concatenate(reader: GraphReader, call: Call) -> str:
    call.require_channels(call["dim"])
    values = [call.reader.value_of(part, call) for part in call["tensors"]]
    if len(values) == 1:
        return values[0]
    return reader.add("concatenate", reader.name_of(call, "concatenate"), values)


def _parts(reader: GraphReader, call: Call, sizes: list[int]) -> list[str]:
    call.require_channels(call["dim"])
    value, start, parts = call.value("self"), 0, []
    for size in sizes:
        parts.append(_channels(reader, call, value, start, start + size))
        start += size
    return parts


def _channels(reader: GraphReader, call: Call, value: str, start: int, stop: int) -> str:
    name = reader.name_of(call, "slice")
    return reader.add("slice_channels", name, [value], start=start, stop=stop)


def _split(reader: GraphReader, call: Call) -> list[str]:
    count, size = call.shape_of("self")[1], call.get("split_size")
    if isinstance(size, int):
        return _parts(reader, call, [min(size, count - at) for at in range(0, count, size)])
    return _parts(reader, call, call["split_sizes"])


def _chunk(reader: GraphReader, call: Call) -> list[str]:
    count = call.shape_of("self")[1]
    size = -(-count // call["chunks"])
    return _parts(reader, call, [min(size, count - at) for at in range(0, count, size)])


def _slice(reader: GraphReader, call: Call) -> str:
    before, after = call.shape_of("self"), call.shape
    value, dim = call.value("self"), call["dim"] % len(before)
    if before == after:
        return value
    start = call["start"] or 0
    start += before[dim] if start < 0 else 0
    if dim == 1 and call["step"] == 1:
        return _channels(reader, call, value, start, start + after[1])
    if dim in (2, 3) and len(before) == 4 and not start and (call["end"] or 2**60) >= before[dim]:
        strides = (call["step"], 1) if dim == 2 else (1, call["step"])
        return reader.add("subsample", reader.name_of(call, "subsample"), [value], strides=strides)
    call.refuse("of pixels from the middle, or of images")


def _reshape(reader: GraphReader, call: Call) -> str | View:
    before, after = reader.shape_before(call), call.shape
    value = reader.values[call.node.args[0]]
    if isinstance(value, View):
        if after == value.shape and value.transposed:
            groups = value.grouped[1]
            name = reader.name_of(call, "shuffle")
            return reader.add("shuffle_channels", name, [value.name], groups=groups)
        call.refuse("of values in another order")
    if before == after:
        return value
    if before[:2] == after[:2] and set(before[2:] + after[2:]) <= {1}:  # of one pixel, or of none
        if len(after) < 4:
            return reader.features(call, value, before) if len(before) == 4 else value
        if len(before) < 4 and len(after) == 4:
            name = reader.name_of(call, "reshape")
            return reader.add("reshape", name, [value], shape=(1, 1, after[1]))
    elif after[0] == before[0]:
        if len(after) == 2 and len(before) == 4:
            return reader.features(call, value, before)
        if len(before) == 4 and len(after) == 5 and after[3:] == before[2:]:
            return View(value, before, grouped=after)
        if len(before) == 4 and after == (*before[:2], before[2] * before[3]):
            return View(value, before, grouped=after)
    call.refuse("of values in another order")


def _transpose(reader: GraphReader, call: Call) -> View:
    value, dims = reader.values[call.node.args[0]], call.get("dims")
    dims = dims or sorted((call["dim0"] % len(call.shape), call["dim1"] % len(call.shape)))
    swapped = list(dims) in ([1, 2], [0, 2, 1, 3, 4])
    if isinstance(value, View) and len(value.grouped) == 5 and swapped and not value.transposed:
        return View(value.name, value.shape, value.grouped, transposed=True)
    call.refuse("of other axes than a channel shuffle's")


def _channel_shuffle(reader: GraphReader, call: Call) -> str:
    name = reader.name_of(call, "shuffle")
    return reader.add("shuffle_channels", name, [call.value("self")], groups=call["groups"])


def _pass(reader: GraphReader, call: Call) -> str | View | list[str]:
    return reader.values[call.node.args[0]]


def _mean(reader: GraphReader, call: Call) -> str:
    value, dims = reader.values[call.node.args[0]], call.get("dim") or []
    if isinstance(value, View) and len(value.grouped) == 3 and dims in ([2], [-1]):
        value = value.name
        if call["keepdim"]:
            call.refuse("that keeps an axis of a list of pixels")
    elif {dim % 4 for dim in dims} != {2, 3} or len(call.shape_of("self")) != 4:
        call.refuse("of other axes than both of an image")
    return reader.average(call, value, keep=call["keepdim"])


def _max_pool(reader: GraphReader, call: Call) -> str:
    if _pair(call["dilation"]) != (1, 1):
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
    if beyond and included and any(_pair(call["padding"])):
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
    window, padding = _pair(call["kernel_size"]), _pair(call["padding"])
    strides = _pair(call["stride"] or window)
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


def _pair(value: Any) -> tuple[int, int]:
    sides = tuple(value) if isinstance(value, list | tuple) else (value,)
    return sides * 2 if len(sides) == 1 else sides


# By PyTorch's names, without the mark of those that change their input in place.
READERS: dict[str, Callable[[GraphReader, Call], Any]] = {
    "conv2d": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "relu": _activation("relu", largest=lambda call: None),
    "relu6": _activation("relu", largest=lambda call: 6.0),
    "hardtanh": _hardtanh,
    "clamp": _hardtanh,
    "clamp_min": _hardtanh,
    "leaky_relu": _activation("leaky_relu", slope=lambda call: float(call["negative_slope"])),
    "silu": _activation("silu"),
    "hardswish": _activation("hardswish"),
    "gelu": _activation("gelu", approximate=lambda call: call["approximate"] == "tanh"),
    "sigmoid": _activation("sigmoid"),
    "hardsigmoid": _activation("hardsigmoid"),
    "add": _add,
    "sub": lambda reader, call: _add(reader, call, sign=-1),
    "mul": _multiply,
    "div": _divide,
    "cat": _concatenate,
    "concat": _concatenate,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _chunk,
    "slice": _slice,
    "view": _reshape,
    "reshape": _reshape,
    "_unsafe_view": _reshape,
    "flatten": _reshape,
    "unflatten": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _reshape,
    "transpose": _transpose,
    "permute": _transpose,
    "channel_shuffle": _channel_shuffle,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _adaptive_average,
    "adaptive_max_pool2d": _adaptive_max,
    "mean": _mean,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "upsample_nearest2d": _upsample("nearest"),
    "upsample_bilinear2d": _upsample("bilinear"),
    **dict.fromkeys(
        (
            *("alias", "clone", "contiguous", "detach", "dropout", "feature_dropout"),
            *("identity", "lift_fresh_copy", "to", "alpha_dropout"),
        ),
        _pass,
    ),
}
