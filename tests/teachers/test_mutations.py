"""Ten thousand damaged checkpoints: each ends in a TeacherError or in the right answer.

Two of the four formats carry checksums: torch's zip files, and this project's own. In the other two
(torch's format before 1.6, and a foreign safetensors file) a weight with a flipped bit is a weight
like any other; such answers are counted as undetectable, and allowed only where no byte outside
of the weights differs.
"""

import io
import time
from collections import Counter

import numpy as np
import pytest
import safetensors.torch
import torch

from adadfq_jax import load_teacher, save_teacher
from adadfq_jax.errors import TeacherError
from adadfq_jax.models.network import flatten
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
