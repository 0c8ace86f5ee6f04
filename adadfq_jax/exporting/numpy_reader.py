"""Runs a file of the format `integers` with NumPy alone: copy it, it needs nothing of this package.

python numpy_reader.py student.safetensors test.npz     # x: uint8 (N, H, W, 3), y: (N,)
"""

import json
import struct
import sys

import numpy as np


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


def windows(x, size, strides, padding, fill=0.0):
    """Returns (B, H', W', channels, size, size): what a kernel sees at each place."""
    around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = np.pad(x, around, constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[
        :, ::strides, ::strides
    ]


def compute(op, name, inputs, settings, arrays, bits):
    """Returns the output of one operation."""
    x = inputs[0]
    if op == "conv":
        kernel, groups = arrays[name + "/kernel"], settings["groups"]
        seen = windows(x, kernel.shape[0], settings["strides"], settings["padding"])
        seen = np.split(seen, groups, axis=3)
        kernels = np.split(kernel, groups, axis=3)
        y = [np.tensordot(a, k, ((4, 5, 3), (0, 1, 2))) for a, k in zip(seen, kernels, strict=True)]
        return np.concatenate(y, axis=3) + arrays.get(name + "/bias", 0)
    if op == "dense":
        return x @ arrays[name + "/kernel"] + arrays[name + "/bias"]
    if op == "norm":
        scale, bias, mean, variance = (
            arrays[f"{name}/{part}"] for part in ("scale", "bias", "mean", "variance")
        )
        return (x - mean) / np.sqrt(variance + np.float32(settings["epsilon"])) * scale + bias
    if op == "relu":
        x = np.clip(x, 0, settings["largest"])
        (low, high), n = arrays[name + "/range"], np.float32(2**bits - 1)
        width = max(high - low, np.float32(1e-8))
        zero_point = np.round(n / width * low)
        return (np.clip(np.round(n / width * x - zero_point), 0, n) + zero_point) * (width / n)
    if op == "max_pool":
        places = settings["window"], settings["strides"], settings["padding"]
        return windows(x, *places, fill=-np.inf).max((4, 5))
    if op == "average_pool":
        return windows(x, settings["window"], settings["window"], 0).mean((4, 5))
    return {
        "add": lambda: x + inputs[-1],
        "subsample": lambda: x[:, :: settings.get("strides"), :: settings.get("strides")],
        "pad_channels": lambda: np.pad(
            x, ((0, 0),) * 3 + ((settings.get("before"), settings.get("after")),)
        ),
        "mean": lambda: x.mean((1, 2)),
        "reshape": lambda: x.reshape(len(x), *settings.get("shape", ())),
    }[op]()


def compute_all(described, arrays, images):
    """Returns every operation's output by name, for normalised images (B, H, W, 3)."""
    values = {"image": images}
    for op, name, inputs, settings in described["graph"]:
        read = [values[source] for source in inputs]
        values[name] = compute(op, name, read, settings, arrays, described["bits"].get(name))
    return values


def run(described, arrays, pixels):
    """Maps uint8 pixels (B, H, W, 3) to logits (B, classes)."""
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
    try:
        test = np.load(images)
        pixels, labels = test["x"], test["y"]
    except OSError as error:
        return fail(f"{images!r} cannot be read: {error.strerror or error}")
    except Exception:
        return fail(f"{images!r} is no .npz file with the arrays x and y")
    side = described["image_size"]
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), side, side, 3) or not len(labels):
        return fail(
            f"{images!r} must hold x, uint8 (N, {side}, {side}, 3), and y, (N,), not "
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
