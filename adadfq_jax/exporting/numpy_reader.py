"""Runs a file of the format `integers` with NumPy alone: copy it, it needs nothing of this package.

python numpy_reader.py student.safetensors test.npz     # x: uint8 (N, H, W, channels), y: (N,)
"""

import json
import math
import struct
import sys

import numpy as np

FORMAT = 2


def parse(content):
    """Returns (metadata, arrays by name) of a file: a length, a JSON header, and raw bytes."""
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8:start]), content[start:]
    kinds = {"F32": np.float32, "U8": np.uint8}
    described = json.loads(header.pop("__metadata__")["adadfq_integers"])
    arrays = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        arrays[name] = np.frombuffer(body[first:last], kinds[entry["dtype"]]).reshape(
            entry["shape"]
        )
    for name, shape in described["shapes"].items():  # codes of k bits to kernels
        bits = np.unpackbits(arrays[name + "/codes"], bitorder="little")
        bits = bits[: np.prod(shape) * described["bits"][name]].reshape(-1, described["bits"][name])
        codes = np.packbits(bits, axis=1, bitorder="little").reshape(shape).astype(np.float32)
        arrays[name + "/kernel"] = (codes + arrays[name + "/zero_point"]) * arrays[name + "/step"]
    return described, arrays


def windows(x, settings, fill=0.0):
    """Returns (B, H', W', channels, height, width): what a kernel or a pool sees at each place."""
    x = np.pad(x, ((0, 0), *settings["padding"], (0, 0)), constant_values=fill)
    (high, wide), (down, across) = settings.get("dilation", (1, 1)), settings["strides"]
    height, width = settings.get("kernel_size") or settings["window"]
    size = high * (height - 1) + 1, wide * (width - 1) + 1
    seen = np.lib.stride_tricks.sliding_window_view(x, size, (1, 2))
    return seen[:, ::down, ::across, :, ::high, ::wide]


def conv(settings, arrays, x):
    """A convolution, group by group."""
    seen = np.split(windows(x, settings), settings["groups"], axis=3)
    kernels = np.split(arrays["kernel"], settings["groups"], axis=3)
    y = [np.tensordot(a, k, ((4, 5, 3), (0, 1, 2))) for a, k in zip(seen, kernels, strict=True)]
    return np.concatenate(y, axis=3) + arrays.get("bias", 0)


def norm(settings, arrays, x):
    """A BatchNorm by its stored statistics."""
    scale, bias, mean, variance = (arrays[part] for part in ("scale", "bias", "mean", "variance"))
    return (x - mean) / np.sqrt(variance + np.float32(settings["epsilon"])) * scale + bias


def hardsigmoid(x):
    """ReLU6(x + 3) / 6."""
    return np.clip(x + 3, 0, 6) / np.float32(6)


def sigmoid(x):
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


def gelu(settings, x):
    """x times the normal distribution function, exact or by tanh."""
    if settings["approximate"]:
        curve = np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3))
    else:
        curve = np.vectorize(math.erf, otypes="f")(x * np.float32(math.sqrt(0.5)))
    return x * np.float32(0.5) * (1 + curve)


def average_pool(settings, x):
    """The mean of each window, padding counted or not."""
    total = windows(x, settings).sum((4, 5))
    if settings["include_padding"]:
        return total / np.float32(np.prod(settings["window"]))
    return total / windows(np.ones_like(x), settings).sum((4, 5))


def resampling(method, before, after):
    """Returns the weights (after, before) of pixels in one direction."""
    rows, matrix = np.arange(after), np.zeros((after, before), np.float32)
    if method == "nearest":
        matrix[rows, rows * before // after] = 1
    elif method == "average":
        for row in rows:
            part = slice(row * before // after, -(-(row + 1) * before // after))
            matrix[row, part] = 1 / (part.stop - part.start)
    else:
        places = (rows + 0.5) * before / after - 0.5
        if method == "bilinear_corners":
            places = rows * (before - 1) / max(after - 1, 1)
        places = np.clip(places, 0, before - 1)
        first = places.astype(int)
        np.add.at(matrix, (rows, first), 1 - (places - first))
        np.add.at(matrix, (rows, np.minimum(first + 1, before - 1)), places - first)
    return matrix


def resample(settings, x):
    """Another number of pixels, by rows and then by columns."""
    (down, across), method = settings["size"], settings["method"]
    x = np.einsum("oh,bhwc->bowc", resampling(method, x.shape[1], down), x)
    return np.einsum("pw,bowc->bopc", resampling(method, x.shape[2], across), x)


def shuffle(settings, x):
    """Channels read across their groups."""
    parts = x.reshape(*x.shape[:-1], settings["groups"], -1)
    return parts.swapaxes(-1, -2).reshape(x.shape)


def quantize(x, ends, bits):
    """Rounds an activation to the levels of its range."""
    (low, high), n = ends, np.float32(2**bits - 1)
    width = max(high - low, np.float32(1e-8))
    zero_point = np.round(n / width * low)
    return (np.clip(np.round(n / width * x - zero_point), 0, n) + zero_point) * (width / n)


# By kind of node: what has variables takes (settings, its arrays, x), ...
LAYERS = {
    "conv": conv,
    "dense": lambda s, arrays, x: x @ arrays["kernel"] + arrays.get("bias", 0),
    "norm": norm,
}
# ... activation functions, which are quantized, take (settings, x), ...
ACTIVATIONS = {
    "relu": lambda s, x: np.clip(x, 0, s["largest"]),
    "leaky_relu": lambda s, x: np.where(x >= 0, x, np.float32(s["slope"]) * x),
    "silu": lambda s, x: x * sigmoid(x),
    "hardswish": lambda s, x: x * hardsigmoid(x),
    "gelu": gelu,
    "hardtanh": lambda s, x: np.clip(x, s["min"], s["max"]),
    "quantizer": lambda s, x: x,
}
# ... and all others (settings, x, ...).
OTHERS = {
    "sigmoid": lambda s, x: sigmoid(x),
    "hardsigmoid": lambda s, x: hardsigmoid(x),
    "add": lambda s, x, y: x + y,
    "multiply": lambda s, x, y: x * y,
    "scale": lambda s, x: x * np.float32(s["factor"]) + np.float32(s["shift"]),
    "concatenate": lambda s, *parts: np.concatenate(parts, axis=-1),
    "slice_channels": lambda s, x: x[..., s["start"] : s["stop"]],
    "shuffle_channels": shuffle,
    "pad_channels": lambda s, x: np.pad(x, ((0, 0),) * 3 + ((s["before"], s["after"]),)),
    "subsample": lambda s, x: x[:, :: s["strides"][0], :: s["strides"][1]],
    "pad": lambda s, x: np.pad(
        x, ((0, 0), *s["padding"], (0, 0)), constant_values=np.float32(s["value"])
    ),
    "max_pool": lambda s, x: windows(x, s, fill=-np.inf).max((4, 5)),
    "average_pool": average_pool,
    "mean": lambda s, x: x.mean((1, 2)),
    "resample": resample,
    "flatten": lambda s, x: np.moveaxis(x, -1, 1).reshape(len(x), -1),
    "reshape": lambda s, x: x.reshape(len(x), *s["shape"]),
}


def compute(op, settings, inputs, arrays, bits):
    """Returns the output of one node; arrays are its own."""
    if op in LAYERS:
        return LAYERS[op](settings, arrays, *inputs)
    if op in ACTIVATIONS:
        return quantize(ACTIVATIONS[op](settings, *inputs), arrays["range"], bits)
    return OTHERS[op](settings, *inputs)


def compute_all(described, arrays, images):
    """Returns every node's output by name, for normalised images (B, H, W, channels)."""
    own = {}
    for key, array in arrays.items():
        layer, _, part = key.rpartition("/")
        own.setdefault(layer, {})[part] = array
    values = {"image": images}
    for op, name, inputs, settings in described["graph"]:
        read = [values[source] for source in inputs]
        bits = described["bits"].get(name)
        values[name] = compute(op, settings, read, own.get(name, {}), bits)
    return values


def run(described, arrays, pixels):
    """Maps uint8 pixels (B, H, W, channels) to logits (B, classes)."""
    mean, std = np.float32(described["mean"]), np.float32(described["std"])
    images = (pixels.astype(np.float32) / 255 - mean) / std
    return compute_all(described, arrays, images)[described["graph"][-1][1]]


USAGE = "usage: python numpy_reader.py student.safetensors test.npz"


def main(words):
    """Prints the top-1 of a file on images; returns the exit code."""
    if {"-h", "--help"} & set(words) or len(words) != 2:
        asked = bool({"-h", "--help"} & set(words))
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    model, images = words
    try:
        with open(model, "rb") as file:
            described, arrays = parse(file.read())
    except OSError as error:
        return fail(f"{model!r} cannot be read: {error.strerror}")
    except Exception:  # of another kind, or damaged, a file fails in many ways
        return fail(f"{model!r} is no file of `adadfq export --format=integers`, or it is damaged")
    if described["format"] != FORMAT:
        return fail(f"{model!r} has format {described['format']}; this program reads {FORMAT}")
    try:
        test = np.load(images)
        pixels, labels = test["x"], test["y"]
    except OSError as error:
        return fail(f"{images!r} cannot be read: {error.strerror or error}")
    except Exception:
        return fail(f"{images!r} is no .npz file with the arrays x and y")
    side, channels = described["image_size"], len(described["mean"])
    if pixels.ndim == 3:  # of one channel
        pixels = pixels[..., None]
    shape = len(labels), side, side, channels
    if pixels.dtype != np.uint8 or pixels.shape != shape or not len(labels):
        return fail(
            f"{images!r} must hold x, uint8 (N, {side}, {side}, {channels}), and y, (N,), not "
            f"{pixels.dtype} {pixels.shape} and {labels.shape}"
        )
    batches = np.array_split(np.arange(len(labels)), max(1, len(labels) // 256))
    answers = [run(described, arrays, pixels[batch]).argmax(1) for batch in batches]
    print(f"top-1 {np.mean(np.concatenate(answers) == labels):.2%}")
    return 0


def fail(sentence):
    """Says what is wrong; returns the exit code."""
    print(f"numpy_reader: {sentence}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
