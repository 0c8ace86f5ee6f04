"""Ten thousand damaged checkpoints: each ends in a TeacherError or in the right answer.

Two of the four formats carry checksums: torch's zip files, and this project's own. In the other two
(torch's format before 1.6, and a foreign safetensors file) a weight with a flipped bit is a weight
like any other; such answers are counted as undetectable, and allowed only where no byte outside
of the weights differs.

And thousands of graphs in this project's own files, changed by somebody who leaves the checksum
out: each is refused, or is another network that can be computed.
"""

import copy
import io
import json
import time
from collections import Counter

import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from adadfq_jax import load_teacher, save_teacher
from adadfq_jax.errors import TeacherError
from adadfq_jax.models import registry
from adadfq_jax.models.graph import checked_network
from adadfq_jax.models.network import Teacher, flatten
from adadfq_jax.models.operations import OPERATIONS
from tests import ROOT
from tests import torch_networks as nets

REAL = ROOT / ".." / "shared" / "teachers" / "resnet20_cifar10.th"
# What the original's file does not say.
GIVEN = {
    "architecture": "resnet20_cifar" if REAL.exists() else "resnet8_cifar",
    "mean": (0.5,) * 3,
    "std": (0.25,) * 3,
}
CHECKED = ("zip", "own")
COUNT = 10_000
SECONDS = 5


def original_state():
    if REAL.exists():
        return torch.load(REAL, weights_only=True, map_location="cpu")["state_dict"]
    return nets.disturb(nets.original_cifar(1)).state_dict()


def write(form, state):
    """Returns a state dict's bytes and suffix in one of the formats that PyTorch users have."""
    if form == "safetensors":
        return safetensors.torch.save({k: v.contiguous() for k, v in state.items()}), ".safetensors"
    buffer = io.BytesIO()
    torch.save({"state_dict": state}, buffer, _use_new_zipfile_serialization=form == "zip")
    return buffer.getvalue(), ".pth"


def flip(random, content):
    """Changes a byte; half of the time where the format keeps its structure, not the weights."""
    ends = 20_000
    position = int(random.integers(len(content)))
    if random.random() < 0.5:
        position = int(random.choice([random.integers(ends), -1 - random.integers(ends)]))
    changed = bytearray(content)
    changed[position] ^= int(random.integers(1, 256))
    return bytes(changed)


def cut(random, content):
    start = int(random.integers(len(content)))
    if random.random() < 0.5:
        return content[:start]
    return content[:start] + content[start + int(random.integers(1, 1000)) :]


def rename(random, state):
    key = str(random.choice(list(state)))
    letters = list(key)
    letters[random.integers(len(letters))] = chr(random.integers(ord("a"), ord("z") + 1))
    new = random.choice(["".join(letters), str(random.choice(list(state))), key + ".x", "x." + key])
    return {(str(new) if k == key else k): v for k, v in state.items()}


def reshape(random, state):
    key = str(random.choice([k for k, v in state.items() if v.dim()]))
    value = state[key]
    axis = int(random.integers(value.dim()))
    changed = random.choice(
        [
            lambda: torch.cat([value, value], axis),
            lambda: value.narrow(axis, 0, value.shape[axis] - 1).clone(),
            lambda: value.reshape(-1),
            lambda: value.unsqueeze(axis),
        ]
    )()
    return state | {key: changed}


def retype(random, state):
    kinds = [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int8, torch.bool]
    kind = kinds[random.integers(len(kinds))]
    keys = list(state) if random.random() < 0.3 else [str(random.choice(list(state)))]
    return state | {key: state[key].to(kind) for key in keys}


def drop(random, state):
    key = str(random.choice(list(state)))
    return {k: v for k, v in state.items() if k != key}


BYTES = {"byte flipped": flip, "cut": cut}
STATES = {
    "key renamed": rename,
    "shape changed": reshape,
    "dtype changed": retype,
    "key dropped": drop,
}


def weight_bytes(content, state):
    """Returns for each byte of a file whether it is part of a tensor."""
    inside = np.zeros(len(content), bool)
    for value in state.values():
        data = value.numpy().tobytes()
        start = content.find(data)
        assert start >= 0
        inside[start : start + len(data)] = True
    return inside


@pytest.mark.mutations
def test_mutations(tmp_path, capsys):
    state = dict(original_state())
    contents = {form: write(form, state) for form in ("legacy", "zip", "safetensors")}
    path = tmp_path / "good.pth"
    path.write_bytes(contents["zip"][0])
    teacher = load_teacher(path, **GIVEN)
    save_teacher(teacher, tmp_path / "own.safetensors")
    contents["own"] = (tmp_path / "own.safetensors").read_bytes(), ".safetensors"
    right = flatten(teacher.variables)

    def rounded(changed):
        """The answer where weights were only rounded to another type: theirs, in float32."""
        path = tmp_path / "rounded.pth"
        torch.save({key: value.float() for key, value in changed.items()}, path)
        return flatten(load_teacher(path, **GIVEN).variables)

    weights = {form: weight_bytes(contents[form][0], state) for form in ("legacy", "safetensors")}

    def changes_a_weight(content, form):
        """Whether a file of the right length differs in its tensors' bytes and in no others."""
        good = np.frombuffer(contents[form][0], np.uint8)
        changed = np.frombuffer(content, np.uint8)
        return changed.size == good.size and not (changed != good)[~weights[form]].any()

    random = np.random.default_rng(0)
    counts, slowest = Counter(), 0.0
    for index in range(COUNT):
        form = ("legacy", "zip", "safetensors", "own")[index % 4]
        content, suffix = contents[form]
        mutation = str(random.choice(list(BYTES if form == "own" else BYTES | STATES)))
        changed = None
        if mutation in BYTES:
            content = BYTES[mutation](random, content)
        else:
            changed = STATES[mutation](random, state)
            content, _ = write(form, changed)
        path = tmp_path / f"mutation{suffix}"
        path.write_bytes(content)
        start = time.monotonic()
        try:
            loaded = flatten(load_teacher(path, **GIVEN if form != "own" else {}).variables)
        except TeacherError:
            outcome = "refused"
        else:
            expected = rounded(changed) if mutation == "dtype changed" else right
            same = all(np.array_equal(loaded[key], expected[key]) for key in expected)
            outcome = "right" if same and loaded.keys() == expected.keys() else "wrong"
        slowest = max(slowest, time.monotonic() - start)
        if outcome == "wrong" and form not in CHECKED and changes_a_weight(content, form):
            outcome = "undetectable"
        counts[form, mutation, outcome] += 1
    with capsys.disabled():
        print()
        for (form, mutation, outcome), count in sorted(counts.items()):
            print(f"{form:<12}{mutation:<15}{outcome:<13}{count:>6}")
        totals = Counter()
        for (_, _, outcome), count in counts.items():
            totals[outcome] += count
        print(f"{dict(totals)}, slowest {slowest:.2f} s")
    assert not totals["wrong"]
    assert slowest < SECONDS


VALUES = (
    *(-1, 0, 1, 2, 3, 2**20, 2**31, 2**63, 10**400, True, None, 0.5, -1e308, float("nan")),
    *(float("inf"), "", "image", "conv1", "../x", "a" * 10**5, "\0", [], [1], [2, 2], [2**20] * 2),
    *([[0, 0], [0, 0]], [[1024, 1024]] * 2, [2048, 2048], [[]] * 2, {}, {"a": [{}]}, [[[[[1]]]]]),
)


def some_value(random):
    return copy.deepcopy(VALUES[random.integers(len(VALUES))])


def change_operation(random, graph):
    node = graph[random.integers(len(graph))]
    node[0] = str(random.choice([*OPERATIONS, "exec", ""]))
    if random.random() < 0.5 and node[0] in OPERATIONS:
        node[3] = {name: some_value(random) for name in OPERATIONS[node[0]].attributes}


def change_attribute(random, graph):
    node = graph[random.choice([i for i, node in enumerate(graph) if node[3]])]
    node[3][str(random.choice([*node[3], "more"]))] = some_value(random)


def change_inputs(random, graph):
    node = graph[random.integers(len(graph))]
    names = ["image", "nowhere", *(other[1] for other in graph)]
    node[2] = [str(random.choice(names)) for _ in range(random.integers(4))]


def change_name(random, graph):
    one, other = (graph[index] for index in random.integers(len(graph), size=2))
    one[1] = random.choice(["", "a/../b", f"{other[1]}/in", other[1], "x" * 300, "new"]).item()


def change_part(random, graph):
    graph[random.integers(len(graph))][random.integers(4)] = some_value(random)


def change_order(random, graph):
    one, other = random.integers(len(graph), size=2)
    graph[one], graph[other] = graph[other], graph[one]


def change_length(random, graph):
    index = int(random.integers(len(graph)))
    graph[index : index + 1] = [graph[index]] * int(random.choice([0, 2, 3]))


def change_whole(random, graph):
    graph[:] = [some_value(random)] * int(random.integers(1, 4))


GRAPHS = (
    *(change_operation, change_attribute, change_attribute, change_inputs, change_name),
    *(change_part, change_order, change_length, change_whole),
)


def mutate_graphs(folder, count):
    """Counts what becomes of graphs that are changed at random, and the slowest answer."""
    settings = {"strides": (2, 2), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    conv = settings | {"features": 4, "kernel_size": (3, 3), "groups": 1, "use_bias": True}
    pool = {"window": (2, 2), "strides": (2, 2), "padding": ((0, 0), (0, 0))}
    written = [
        ["conv", "conv1", ["image"], conv],
        ["norm", "norm1", ["conv1"], {"epsilon": 1e-5, "affine": True}],
        ["silu", "act1", ["norm1"], {}],
        ["conv", "conv2", ["act1"], conv | {"groups": 4, "strides": (1, 1)}],
        ["add", "sum", ["act1", "conv2"], {}],
        ["relu", "act2", ["sum"], {"largest": 6}],
        ["max_pool", "pool", ["act2"], pool],
        ["concatenate", "both", ["pool", "pool"], {}],
        ["mean", "mean", ["both"], {}],
        ["scale", "half", ["mean"], {"factor": 0.5, "shift": 0}],
        ["dense", "head", ["half"], {"features": 3, "use_bias": True}],
    ]
    network = checked_network(written, 3, 12)
    variables = registry.initial_variables(network, 12, jax.random.key(0))
    teacher = Teacher(
        architecture="Net",
        module=network,
        variables={name: variables[name] for name in ("params", "batch_stats")},
        image_size=12,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    path = folder / "teacher.safetensors"
    save_teacher(teacher, path)
    with safetensors.safe_open(path, "numpy") as file:
        good = json.loads(file.metadata()["adadfq"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del good["checksum"]
    random, counts, slowest = np.random.default_rng(0), Counter(), 0.0
    for _ in range(count):
        described = copy.deepcopy(good)
        for _ in range(random.integers(1, 3)):
            GRAPHS[random.integers(len(GRAPHS))](random, described["graph"])
            if not all(isinstance(node, list) and len(node) == 4 for node in described["graph"]):
                break
            if not all(
                list(map(type, node)) == [str, str, list, dict] for node in described["graph"]
            ):
                break
        for field, value in (
            ("classes", 1 + random.integers(9)),
            ("image_size", 2 ** random.integers(13)),
        ):
            if random.random() < 0.05:
                described[field] = int(value)
        path.write_bytes(safetensors.numpy.save(arrays, {"adadfq": json.dumps(described)}))
        start = time.monotonic()
        try:
            loaded = load_teacher(path)
        except TeacherError as error:
            outcome, said = "refused", str(error)
        else:
            outcome = "another" if loaded.module != teacher.module else "the same"
            size = loaded.image_size
            logits = jax.eval_shape(
                loaded.module.apply, loaded.variables, np.zeros((1, size, size, 3), np.float32)
            )
            assert logits.shape == (1, loaded.classes)
            said = ""
        assert len(said) < 1000
        assert "\n" not in said
        slowest = max(slowest, time.monotonic() - start)
        counts[outcome] += 1
    return counts, slowest


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.mutations)])
def test_mutations_of_graphs(tmp_path, capsys, count):
    counts, slowest = mutate_graphs(tmp_path, count)
    if count > 1000:
        with capsys.disabled():
            print(f"\ngraphs: {dict(counts)}, slowest {slowest:.2f} s")
    assert counts["refused"] > counts["another"] + counts["the same"]
    assert slowest < SECONDS


DEEP = ["[" * 10**5, '{"a":' * 10**5, '{"mean":' + "[" * 900 + "]" * 900 + "}"]


@pytest.mark.parametrize("nested", DEEP, ids=["lists", "objects", "whole"])
def test_metadata_without_an_end_are_refused(tmp_path, nested):
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(1, np.float32)}, {"adadfq": nested}))
    with pytest.raises(TeacherError, match="its metadata are not JSON"):
        load_teacher(path)
