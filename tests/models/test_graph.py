"""A graph is the module that it was read from; and a graph of a file is checked."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import adadfq_jax
from adadfq_jax.errors import ConfigError, TeacherError
from adadfq_jax.exporting import numpy_reader, onnx_operations
from adadfq_jax.models import registry
from adadfq_jax.models.graph import GraphNetwork, checked_network, to_json, value_shapes
from adadfq_jax.models.operations import OPERATIONS
from adadfq_jax.models.size import measure_network
from adadfq_jax.models.tracing import trace, with_roles
from adadfq_jax.teachers.load import load_teacher, save_teacher
from adadfq_jax.training.calibrated import calibrated_on
from tests.conftest import SIZE, assert_exported, make_small_config, make_teacher

random = np.random.default_rng(0)

# One of every family and of every ending of a name.
FEW = ("resnet8_cifar", "resnet18_x0.125")
OTHERS = (
    *("resnet50_stride1x1_x0.0625", "mobilenet_v2_pytorchcv_x0.1"),
    *("resnet8_cifar_projection", "resnet8_cifar_padend", "resnet8_cifar_avgpool"),
    *("resnet8_cifar_avgpool_padend", "resnet11_cifar_stride1x1", "resnet11_cifar_stride3x3"),
    *("resnet18_3x3_x0.125", "resnet18_3x3_pool_x0.125", "resnet34_x0.125"),
    *("resnet34_3x3_x0.125", "resnet34_3x3_pool_x0.125", "resnet50_stride3x3_x0.0625"),
    *("mobilenet_v2_x0.1", "mobilenet_v2_cifar_x0.1", "mobilenet_v2_cifar_stem_x0.1"),
    "mobilenet_v2b_pytorchcv_x0.1",
)


def graph_of(teacher):
    """The same teacher as a network that only its nodes define."""
    nodes = trace(teacher.module, teacher.image_size)
    network = GraphNetwork(nodes, teacher.classes)
    return dataclasses.replace(teacher, architecture="Mine", module=network, keys="modules")


def assert_same(found, expected):
    found, expected = (jax.tree_util.tree_leaves_with_path(tree) for tree in (found, expected))
    assert [path for path, _ in found] == [path for path, _ in expected]
    for (path, one), (_, other) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=str(path))


@pytest.mark.parametrize(
    "name", [*FEW, *(pytest.param(name, marks=pytest.mark.networks) for name in OTHERS)]
)
def test_a_graph_is_its_module_bit_for_bit(name):
    module = registry.build(name, 7)
    nodes = trace(module, 32)
    network = checked_network(json.loads(json.dumps(to_json(nodes))), 7, 32)
    assert network == GraphNetwork(nodes, 7)
    assert hash(network) == hash(GraphNetwork(nodes, 7))
    variables = registry.initial_variables(module, 32, jax.random.key(0))
    shapes = registry.initial_variables(network, 32)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    assert measure_network(network, 32) == measure_network(module, 32)
    assert value_shapes(nodes, (32, 32, 3))[nodes[-1].name] == (7,)
    teacher = make_teacher(architecture=name, size=32, classes=7)
    images = random.normal(size=(2, 32, 32, 3)).astype(np.float32)
    expected = jax.jit(module.apply)(teacher.variables, images)
    np.testing.assert_array_equal(jax.jit(network.apply)(teacher.variables, images), expected)
    if name in FEW:
        again = jax.jit(network.clone(remat=True).apply)(teacher.variables, images)
        np.testing.assert_array_equal(again, expected)


def test_every_kind_of_architecture_is_compared():
    endings = {name.lstrip("resnt0123456789") for name in registry.ARCHITECTURES}
    compared = {name.partition("_x0")[0].lstrip("resnt0123456789") for name in (*FEW, *OTHERS)}
    assert endings == compared


def test_remat_keeps_one_value_of_every_block():
    network = GraphNetwork(trace(registry.build("resnet8_cifar", 10), SIZE), 10)
    teacher = make_teacher()
    images = np.zeros((1, SIZE, SIZE, 3), np.float32)

    def loss(params, remat):
        variables = teacher.variables | {"params": params}
        return network.clone(remat=remat).apply(variables, images).sum()

    programs = [
        str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(teacher.variables["params"], remat))
        for remat in (False, True)
    ]
    assert [program.count("remat") > 3 for program in programs] == [False, True]


def short_config():
    """Without a warm-up, whose steps are those of play but for the student's."""
    config = make_small_config()
    config.warmup_epochs = 1
    return config


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A whole game on a graph, in a workdir, and the teacher."""
    workdir = tmp_path_factory.mktemp("graph") / "run"
    teacher = graph_of(make_teacher())
    return adadfq_jax.quantize(short_config(), teacher, workdir=workdir), teacher, workdir


def test_a_game_on_a_graph_is_the_game_on_its_module(played):
    student, teacher, workdir = played
    other = adadfq_jax.quantize(short_config(), make_teacher())
    assert_same(student.variables, other.variables)
    kept = load_teacher(workdir / "teacher.safetensors")
    assert (kept.module, kept.digest) == (teacher.module, teacher.digest)
    again = adadfq_jax.load_student(workdir)
    assert_same(again.variables, student.variables)


def test_a_game_on_a_graph_resumes(played, tmp_path):
    student, teacher, _ = played
    config = short_config()
    config.epochs = 3
    adadfq_jax.quantize(config, teacher, workdir=tmp_path / "run")
    # From the teacher that the first part has left in the folder.
    config = short_config()
    config.teacher.path = str(tmp_path / "run" / "teacher.safetensors")
    resumed = adadfq_jax.quantize(config, workdir=tmp_path / "run")
    assert_same(resumed.variables, student.variables)


@pytest.mark.devices
def test_a_game_on_a_graph_with_several_devices(played):
    student, teacher, _ = played
    config = short_config()
    config.devices = 4
    several = adadfq_jax.quantize(config, teacher)
    for one, other in zip(
        jax.tree.leaves(several.variables), jax.tree.leaves(student.variables), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".stablehlo", ".pth"])
def test_a_student_of_a_graph_is_exported(played, tmp_path, suffix):
    student, _, _ = played
    images = random.normal(size=(8, SIZE, SIZE, 3)).astype(np.float32)
    assert_exported(student, tmp_path / f"student{suffix}", images)


def test_a_number_that_no_float_holds_is_refused():
    nodes = [["relu", "act", ["image"], {"largest": 10**400}]]
    with pytest.raises(ConfigError, match="largest"):
        checked_network(nodes, 3, SIZE)


def test_every_language_knows_every_kind_of_node():
    assert onnx_operations.WRITERS.keys() == OPERATIONS.keys()
    tables = numpy_reader.LAYERS, numpy_reader.ACTIVATIONS, numpy_reader.OTHERS
    assert set().union(*tables) == OPERATIONS.keys()
    assert sum(map(len, tables)) == len(OPERATIONS)
    activations = {op for op, operation in OPERATIONS.items() if operation.activation}
    assert numpy_reader.ACTIVATIONS.keys() == activations


def test_roles_name_the_first_and_the_last_layers():
    module = registry.build("resnet8_cifar", 10)
    found = with_roles(("@first=w8a7", "stage1_*=w2", "@last=w6", "@last=a5"), module, SIZE)
    assert found == (
        *("stem_conv=w8", "stem_relu=a7", "stage1_*=w2", "classifier=w6"),
        "stage3_block1/relu2=a5",
    )
    with pytest.raises(ConfigError, match=r"names '@middle'.*@first, @last"):
        with_roles(("@middle=w8",), module, SIZE)


def test_roles_reach_the_game():
    config = make_small_config()
    config.quant.overrides = ("@first=w8a8", "@last=w7")
    config.epochs = config.warmup_epochs = config.calibration_epochs = 1
    student = adadfq_jax.quantize(config, make_teacher())
    bits = student.variables["bits"]
    assert (int(bits["stem_conv"]["weight"]), int(bits["stem_relu"]["activation"])) == (8, 8)
    assert (int(bits["classifier"]["weight"]), int(bits["stage1_block1"]["conv1"]["weight"])) == (
        *(7, 4),
    )


CONV = {
    "features": 4,
    "kernel_size": [3, 3],
    "strides": [1, 1],
    "padding": [[1, 1], [1, 1]],
    "dilation": [1, 1],
    "groups": 1,
    "use_bias": False,
}


HUGE = CONV | {"features": 2**20, "padding": [[99, 99], [99, 99]]}


def a_graph(**changes):
    """Nodes as JSON holds them: a convolution, a mean, a dense layer; some of it changed."""
    written = {
        "conv": ["conv", "conv", ["image"], dict(CONV)],
        "mean": ["mean", "mean", ["conv"], {}],
        "dense": ["dense", "fc", ["mean"], {"features": 10, "use_bias": True}],
    }
    return list((written | changes).values())


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("conv", "must be a list of 1 to"),
        ([], "must be a list of 1 to"),
        ([["mean", "mean", ["image"], {}]] * 10_001, "must be a list of 1 to"),
        (a_graph(conv=["conv", "conv"]), "must be .op, name, inputs, attributes."),
        (a_graph(mean=["exec", "mean", ["conv"], {}]), "operation 'exec' is not known"),
        (a_graph(mean=["mean", "mean", ["fc"], {}]), "reads 'fc', which is no node before it"),
        (a_graph(mean=["mean", "mean", ["mean"], {}]), "reads 'mean', which is no node before"),
        (a_graph(mean=["mean", "mean", [], {}]), "reads 0 nodes, not 1"),
        (a_graph(mean=["mean", "mean", [["conv"]], {}]), "which is no node before it"),
        (a_graph(mean=["mean", "conv", ["conv"], {}]), "cannot be a node's name"),
        (a_graph(mean=["mean", "../mean", ["conv"], {}]), "cannot be a node's name"),
        (a_graph(mean=["mean", "m" * 201, ["conv"], {}]), "cannot be a node's name"),
        (a_graph(mean=["mean", "image", ["conv"], {}]), "cannot be a node's name"),
        (a_graph(mean=["mean", "mean", ["conv"], {"axis": 1}]), "the attributes axis, not none"),
        (a_graph(conv=["conv", "conv", ["image"], CONV | {"groups": 0}]), "have groups=0"),
        (a_graph(conv=["conv", "conv", ["image"], CONV | {"groups": True}]), "have groups=True"),
        (a_graph(conv=["conv", "conv", ["image"], CONV | {"features": 2**40}]), "have features="),
        (a_graph(conv=["conv", "conv", ["image"], CONV | {"strides": 1}]), "have strides=1"),
        (a_graph(conv=["conv", "conv", ["image"], CONV | {"padding": [[9e9, 0], [0, 0]]}]), "padd"),
        (a_graph(conv=["conv", "conv", ["image"], CONV | {"groups": 2}]), "cannot be computed"),
        (a_graph(conv=["conv", "conv", ["image"], HUGE]), "is too large"),
        (
            a_graph(mean=["resample", "mean", ["conv"], {"method": "nearest", "size": [2048] * 2}]),
            "ends in the shape",
        ),
        (
            a_graph(mean=["scale", "mean", ["conv"], {"factor": float("nan"), "shift": 0}]),
            "have factor=nan",
        ),
        (a_graph(dense=["dense", "fc", ["mean"], {"features": 9, "use_bias": True}]), "in the sh"),
        (
            a_graph(more=["dense", "conv/in", ["fc"], {"features": 10, "use_bias": True}]),
            "cannot lie in another layer",
        ),
    ],
)
def test_a_graph_of_a_file_is_checked(written, message):
    checked_network(a_graph(), 10, SIZE)
    with pytest.raises(ConfigError, match=message) as caught:
        checked_network(written, 10, SIZE)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"graph": [["mean", "mean", ["image"], {}]]},
            "holds a network that cannot be: a graph of",
        ),
        ({"graph": [["exec", "mean", ["image"], {}]]}, "operation 'exec' is not known"),
        ({"graph": {}}, "'graph' in its metadata must be a list of nodes"),
        ({"architecture": "resnet8_cifar"}, "is a network of this package, which has no graph"),
        ({"architecture": "a/../b"}, "cannot be a network's name"),
        ({"classes": 9}, "a graph of 9 classes ends in the shape"),
        # Code runs because a user names it, never because a file does.
        ({"network": "nets.py:network"}, "has unknown metadata 'network'"),
    ],
)
def test_a_hostile_teacher_file_is_refused(tmp_path, changes, message):
    path = tmp_path / "teacher.safetensors"
    save_teacher(graph_of(make_teacher()), path)
    with safetensors.safe_open(path, "numpy") as file:
        described = json.loads(file.metadata()["adadfq"]) | changes
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del described["checksum"]
    safetensors.numpy.save_file(arrays, path, {"adadfq": json.dumps(described)})
    with pytest.raises(TeacherError, match=message):
        load_teacher(path)


def test_a_calibrated_graph_goes_through_a_teacher_file(tmp_path):
    teacher = graph_of(make_teacher())
    for name in ("first", "second"):
        save_teacher(teacher, tmp_path / f"{name}.safetensors")
    one, other = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("first", "second"))
    assert one == other
    read = load_teacher(tmp_path / "first.safetensors")
    images = random.normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)
    students = [calibrated_on(network, "w4a4", images) for network in (teacher, read)]
    assert_same(students[0].variables, students[1].variables)
