"""Networks: shapes, names, parameters and what their layers share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adadfq_jax.errors import ConfigError
from adadfq_jax.models import registry
from adadfq_jax.models.size import measure_network
from adadfq_jax.quantization.bits import assign_bits
from tests.conftest import make_teacher

# Parameters, convolutions and dense layers, and multiply-accumulates as published or as counted in
# PyTorch (sum of numel(); thop and fvcore give these MACs).
SIZES = {
    "resnet20_cifar": (32, 10, 269_722, 20, 40_551_040),
    "resnet56_cifar": (32, 10, 853_018, 56, 125_485_696),
    "resnet20_cifar_projection": (32, 10, 272_474, 22, 40_813_184),
    "resnet18_3x3": (32, 10, 11_173_962, 21, 555_422_720),
    "resnet18": (224, 1000, 11_689_512, 21, 1_814_073_344),
    "resnet34": (224, 1000, 21_797_672, 37, 3_663_761_408),
    "resnet50_stride3x3": (224, 1000, 25_557_032, 54, 4_089_184_256),
    "resnet50_stride1x1": (224, 1000, 25_557_032, 54, 3_857_973_248),
    "resnet101_stride3x3": (224, 1000, 44_549_160, 105, 7_801_405_440),
    "resnet152_stride3x3": (224, 1000, 60_192_808, 156, 11_513_626_624),
    "mobilenet_v2": (224, 1000, 3_504_872, 53, 300_774_272),
    "mobilenet_v2_pytorchcv": (224, 1000, 3_504_960, 54, 313_619_328),
    "mobilenet_v2_pytorchcv_x0.5": (224, 1000, 1_964_736, 54, 92_271_040),
}

# One of each class, small enough for float32 on a shared core.
KINDS = (
    "resnet8_cifar_projection",
    "resnet18_3x3_x0.125",
    "resnet18_x0.125",
    "resnet50_stride1x1_x0.0625",
    "mobilenet_v2_x0.1",
    "mobilenet_v2_pytorchcv_x0.1",
)


def test_a_share_of_the_channels():
    assert registry.build("resnet18_x0.125", 20).widths == (8, 16, 32, 64)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name):
    image_size, classes, *expected = SIZES[name]
    size = measure_network(registry.build(name, classes), image_size)
    assert [size.parameters, size.layers, size.macs] == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", "did you mean resnet50_stride1x1 or resnet50_stride3x3"),
        ("resnet21_cifar", "resnet20_cifar"),
        ("mobilenetv2", "mobilenet_v2"),
        ("resnet20_cifar_x1", "'resnet20_cifar'"),
        ("resnet20_cifar_x0.50", "'resnet20_cifar_x0.5'"),
        ("resnet20_cifar_x0.3", "no whole numbers"),
        ("mobilenet_v2_pytorchcv_x0.02", "too narrow"),
        ("mobilenet_v2_x99", "between 0.01 and 16"),
        ("", "unknown network"),
    ],
)
def test_a_wrong_name_is_explained(name, message):
    with pytest.raises(ConfigError, match=message):
        registry.build(name, 10)


def test_every_name_is_its_one_spelling():
    for name in registry.ARCHITECTURES:
        assert registry.build(name, 7).classes == 7
        assert registry.build(f"{name}_x0.5", 7) != registry.build(name, 7)


@pytest.mark.parametrize("name", KINDS)
def test_only_relus_quantize_and_all_do(name):
    shapes = registry.initial_variables(registry.build(name, 10), 32)
    layers = {
        "/".join(part.key for part in path[:-1]): path[-1].key
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes["bits"])
    }
    activations = {layer for layer, kind in layers.items() if kind == "activation"}
    assert all("relu" in layer for layer in activations)
    assert not any("project" in layer for layer in activations)
    weights = measure_network(registry.build(name, 10), 32).layers
    assert len(layers) - len(activations) == weights


@pytest.mark.networks
@pytest.mark.parametrize("name", KINDS)
def test_a_calibrated_8_bit_student_is_close_to_its_teacher(name):
    teacher = make_teacher(architecture=name, size=32)
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    shapes = registry.initial_variables(teacher.module, 32)
    student = teacher.variables | {
        "bits": assign_bits(shapes["bits"], 8, 8, ()),
        "ranges": jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["ranges"]),
    }
    expected = teacher(images)
    logits, written = jax.jit(lambda v: teacher.module.apply(v, images, mutable=["ranges"]))(
        student
    )
    assert not np.array_equal(logits, expected)
    # Untrained networks amplify rounding; a layer out of place leaves no correlation at all.
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.95
    assert all(float(leaf.min()) == 0 for leaf in jax.tree.leaves(written["ranges"])[1::3])
