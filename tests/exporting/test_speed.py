"""The speed of exported files, as a table that is only printed: its numbers are the machine's."""

import dataclasses
import statistics

import numpy as np
import pytest

from adadfq_jax.benchmarks import serving
from adadfq_jax.devices import machine
from adadfq_jax.exporting import engines, onnx_qdq
from adadfq_jax.exporting.onnx_options import OnnxOptions
from adadfq_jax.exporting.quantized import take_apart
from adadfq_jax.models.sums import with_quantized_sums
from adadfq_jax.quantization.bits import with_symmetric_weights
from adadfq_jax.training.calibrated import calibrated_on
from tests.conftest import make_teacher, settled

BITS = ("w8a8", "w4a8", "w4a4")


def students(teacher, images):
    """Students of the protocol, and of the fields that make more layers integers."""
    known = {bits: calibrated_on(teacher, bits, images) for bits in BITS}
    bits = with_symmetric_weights(known["w8a8"].variables["bits"])
    variables = known["w8a8"].variables | {"bits": bits}
    known["w8a8, symmetric_weights"] = dataclasses.replace(known["w8a8"], variables=variables)
    module = with_quantized_sums(teacher.module, teacher.image_size)
    other = dataclasses.replace(teacher, module=module, architecture="other")
    known |= {f"{bits}, sums": calibrated_on(other, bits, images) for bits in ("w4a8", "w4a4")}
    return known


@pytest.mark.engines
@pytest.mark.parametrize(
    ("architecture", "size", "calls"),
    [
        ("resnet20_cifar", 32, {64: 4}),
        ("resnet18", 224, {1: 10, 32: 1}),
        ("mobilenet_v2", 224, {1: 20, 32: 2}),
    ],
)
def test_speed_of_files(architecture, size, calls, capsys):
    """In turns, beside the float teacher with its BatchNorms folded, in each engine."""
    teacher = settled(make_teacher(architecture=architecture, size=size))
    images = np.random.default_rng(0).normal(size=(8, size, size, 3)).astype(np.float32)
    options = OnnxOptions(form="exact", fold_norms=True)
    models = {"float": onnx_qdq.build(take_apart(teacher), {}, options)}
    models |= {
        name: onnx_qdq.build(take_apart(student), {})
        for name, student in students(teacher, images).items()
    }
    contents = {name: model.SerializeToString() for name, model in models.items()}
    sessions = {
        (name, engine): engines.open_session(content, engine, machine.cores())
        for engine in engines.installed()
        for name, content in contents.items()
    }
    answers = {key: session.answer for key, session in sessions.items()}
    about = serving.processor()
    lines = [
        f"\n{architecture}, {size} px, {about['processor']} ({', '.join(about['flags'])}), "
        f"{machine.cores()} threads, load {about['load']:.1f}, five rounds",
        "| batch | engine | model | images/s | of float | of onnxruntime's float | in integers |",
        "|---|---|---|---|---|---|---|",
    ]
    for count, repeated in calls.items():
        (found,) = serving.images_per_second(
            answers, (3, size, size), [count], calls=repeated
        ).values()
        for (name, engine), speeds in found.items():
            own, usual = found["float", engine], found["float", "onnxruntime"]
            integer = len(sessions[name, engine].integer_layers())
            lines.append(
                f"| {count} | {engine} | {name} | {statistics.median(speeds):.1f} "
                f"| {serving.ratio(speeds, own):.2f} | {serving.ratio(speeds, usual):.2f} "
                f"| {integer} of {len(onnx_qdq.layers(contents[name]))} |"
            )
    with capsys.disabled():
        print("\n".join(lines))
