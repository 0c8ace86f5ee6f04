"""PyTorch's operations as nodes of a graph: one function of `READERS` for each.

A function takes the reader, the operation with its arguments by name, and returns the name of the
node that makes its value. PyTorch's (B, channels, H, W) are our (B, H, W, channels).
"""

from collections.abc import Callable
from typing import Any

from adadfq_jax.teachers.aten_pixels import PIXEL_READERS, pair
from adadfq_jax.teachers.program import Call, GraphReader, View, name_of_operation

_EXPANDS = ("expand", "expand_as")


def _conv(reader: GraphReader, call: Call) -> str:
    layer = reader.layer(call, weight="weight", bias="bias")
    features, _, *kernel_size = call.shape_of("weight")
    strides, dilation = pair(call["stride"]), pair(call["dilation"])
    padding = call["padding"]
    if padding == "valid":
        padding = 0
    if padding == "same":
        whole = [step * (side - 1) for step, side in zip(dilation, kernel_size, strict=True)]
        sides = tuple((amount // 2, amount - amount // 2) for amount in whole)
    else:
        sides = tuple((amount, amount) for amount in pair(padding))
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


def _add(reader: GraphReader, call: Call, first: float = 1, second: float = 1) -> str:
    """Reads first * self + second * alpha * other."""
    second *= call.get("alpha", 1)
    if isinstance(call["other"], int | float):
        shift = second * call["other"]
        return _scaled(reader, call, call.value("self"), factor=first, shift=shift)
    if isinstance(call["self"], float):
        shift = first * call["self"]
        return _scaled(reader, call, call.value("other"), factor=second, shift=shift)
    return _two(reader, call, "add", first, second)


def _multiply(reader: GraphReader, call: Call) -> str:
    for number, value in (("other", "self"), ("self", "other")):
        if isinstance(call[number], int | float):
            return _scaled(reader, call, call.value(value), factor=call[number])
    return _two(reader, call, "multiply")


def _subtract_from(reader: GraphReader, call: Call) -> str:
    """Reads other - alpha * self."""
    if not isinstance(call["other"], int | float):
        call.refuse("of what is no number")
    settings = {"factor": -call["alpha"], "shift": call["other"]}
    return _scaled(reader, call, call.value("self"), **settings)


def _divide(reader: GraphReader, call: Call) -> str:
    if not isinstance(call["other"], int | float) or not call["other"]:
        call.refuse("by what is no number, or by 0")
    if call.get("rounding_mode"):
        call.refuse("with rounding")
    return _scaled(reader, call, call.value("self"), factor=1 / call["other"])


def _scaled(
    reader: GraphReader, call: Call, value: str, factor: float = 1.0, shift: float = 0.0
) -> str:
    settings = {"factor": float(factor), "shift": float(shift)}
    return reader.add("scale", reader.name_of(call, "scale"), [value], **settings)


def _two(reader: GraphReader, call: Call, op: str, first: float = 1, second: float = 1) -> str:
    values = [call.value("self"), call.value("other")]
    if len(call.shape_of("self")) != len(call.shape_of("other")):
        call.refuse("of an image and features")
    values = [
        value if factor == 1 else _scaled(reader, call, value, factor=factor)
        for value, factor in zip(values, (first, second), strict=True)
    ]
    return reader.add(op, reader.name_of(call, op), values)


def _expand(reader: GraphReader, call: Call) -> str:
    before, after, value = call.shape_of("self"), call.shape, call.value("self")
    if before == after:
        return value
    if len(before) != 4 or len(after) != 4 or before[1:] != (after[1], 1, 1):
        call.refuse("of other than one pixel")
    # A sum and a product do it themselves.
    others = [other for user in call.node.users for other in user.args if other is not call.node]
    arithmetic = all(
        name_of_operation(user) in ("add", "mul") and len(user.args) == 2
        for user in call.node.users
    )
    if arithmetic and all(name_of_operation(other) not in _EXPANDS for other in others):
        return value
    name = reader.name_of(call, "resample")
    return reader.add("resample", name, [value], method="nearest", size=after[2:])


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
    before, after, value = call.shape_before, call.shape, call.before
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
    value, dims = call.before, call.get("dims")
    dims = dims or sorted((call["dim0"] % len(call.shape), call["dim1"] % len(call.shape)))
    swapped = list(dims) in ([1, 2], [0, 2, 1, 3, 4])
    if isinstance(value, View) and len(value.grouped) == 5 and swapped and not value.transposed:
        return View(value.name, value.shape, value.grouped, transposed=True)
    call.refuse("of other axes than a channel shuffle's")


def _channel_shuffle(reader: GraphReader, call: Call) -> str:
    name = reader.name_of(call, "shuffle")
    return reader.add("shuffle_channels", name, [call.value("self")], groups=call["groups"])


def _pass(reader: GraphReader, call: Call) -> str | View | list[str] | float | None:
    return reader.values.get(call.node.args[0])


def _dropout(reader: GraphReader, call: Call) -> str | View | list[str]:
    if call["train"]:
        call.refuse("at random, also in evaluation (give it training=self.training),")
    return call.before


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
    "sub": lambda reader, call: _add(reader, call, second=-1),
    "rsub": _subtract_from,
    "neg": lambda reader, call: _scaled(reader, call, call.value("self"), factor=-1),
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
    **PIXEL_READERS,
    **dict.fromkeys(_EXPANDS, _expand),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), _dropout),
    **dict.fromkeys(
        ("alias", "clone", "contiguous", "detach", "identity", "lift_fresh_copy", "to"), _pass
    ),
    "_assert_tensor_metadata": lambda reader, call: None,
}
