"""PyTorch checkpoints as programs leave them, and files that are none."""

import argparse
import datetime
import enum
import functools
import io
import os
import pathlib
import pickle
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from adadfq_jax.errors import ConfigError, TeacherError
from adadfq_jax.models.network import flatten
from adadfq_jax.teachers.convert import convert
from adadfq_jax.teachers.load import load_teacher
from adadfq_jax.teachers.stated import Stated
from tests import torch_networks as nets

GIVEN = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


@pytest.fixture(scope="module")
def state():
    return nets.disturb(nets.original_cifar(1, "shortcut")).state_dict()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "teacher.pth"


def load(path, content, **given):
    torch.save(content, path)
    return load_teacher(path, **GIVEN | given)


def same(teacher, state):
    kernel = np.asarray(teacher.variables["params"]["stem_conv"]["kernel"])
    return np.array_equal(kernel, state["conv1.weight"].numpy().transpose(2, 3, 1, 0))


# ---- Objects beside the weights -------------------------------------------------------------


class Mode(enum.Enum):
    BEST = 1


BESIDE = {
    "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs")),
    "time": datetime.datetime(2026, 1, 1),
    "mode": Mode.BEST,
    "best": np.float64(91.7),
    "scores": np.arange(3.0),
    "rule": functools.partial(max, 1),
    "seen": {1, 2},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_beside_the_weights_are_skipped(path, state, zipped, protocol):
    form = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save({"state_dict": state, **BESIDE}, path, **form)
    with pytest.warns(UserWarning, match="which were not read and not executed: ") as warned:
        teacher = load_teacher(path, **GIVEN)
    assert len(warned) == 1
    torch.save(state, path)
    assert teacher.digest == load_teacher(path, **GIVEN).digest


class Hostile:
    """Asks for a function, or for a module's attribute, when it is unpickled."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_executed(path, state, tmp_path, zipped, monkeypatch):
    """Neither a function nor the import of a module that a file names, at any place in it."""
    canary = tmp_path / "canary"
    (tmp_path / "module_of_a_file.py").write_text(f"open({str(canary)!r}, 'w')\n\ndef f(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    by_import = b"cmodule_of_a_file\nf\n(tR."
    hostile = Hostile(os.mkdir, (str(canary),))
    for place in (
        {"state_dict": state, "more": hostile},
        {"state_dict": state, hostile: 1},
        {"state_dict": dict(state, extra=hostile)},
        [hostile],
        {"state_dict": state, "more": Hostile(eval, (f"open({str(canary)!r}, 'w')",))},
        {"state_dict": state, "more": Hostile(argparse.Namespace, (), {"__class__": hostile})},
    ):
        torch.save(place, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(TeacherError, match="refused, and nothing in it was executed"):
            load_teacher(path, **GIVEN)
        assert not canary.exists()
    for content in (by_import, pickle.dumps(hostile)):
        path.write_bytes(content)
        with pytest.raises(TeacherError):
            load_teacher(path, **GIVEN)
        assert not canary.exists()


# ---- Prefixes, entries, heads ---------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["model.", "resnet.", "backbone.", "module.encoder."])
def test_one_foreign_key_beside_a_prefix(path, state, prefix):
    wrapped = {prefix + key: value for key, value in state.items()}
    with pytest.warns(UserWarning, match="keys outside of the network: criterion.weight"):
        teacher = load(path, wrapped | {"criterion.weight": torch.ones(10)})
    assert same(teacher, state)
    assert f"after {prefix!r}" in teacher.convention


def test_what_is_beside_the_network_is_named_and_not_read(tmp_path, path, state):
    """Modules for training, numbers and integers, also where all lies behind one prefix."""
    wrapped = {f"module.{key}": value for key, value in state.items()}
    beside = {"module.proj.weight": torch.zeros(8, 64), "ema_decay": 0.99}
    with pytest.warns(UserWarning, match=r"module\.proj\.weight, ema_decay"):
        assert same(load(path, wrapped | beside), state)
    numbers = dict(state) | {"queue_ptr": torch.zeros(1, dtype=torch.int64)}
    safetensors.torch.save_file(numbers, tmp_path / "x.safetensors")
    with pytest.warns(UserWarning, match="queue_ptr"):
        assert same(load_teacher(tmp_path / "x.safetensors", **GIVEN), state)


def test_two_networks_in_one_file(path, state):
    other = {key: value + 1 for key, value in state.items()}
    both = {f"{name}.{key}": x[key] for name, x in (("a", state), ("b", other)) for key in x}
    with pytest.raises(TeacherError, match=r"several networks, under 'a\.' and 'b\.'.*--prefix"):
        load(path, both)
    with pytest.warns(UserWarning, match="keys outside of the network"):
        assert same(load(path, both, prefix="b"), other)
    with pytest.raises(TeacherError, match=r"no key with the prefix 'c\.'"):
        load(path, both, prefix="c")


def test_the_entry_that_holds_the_weights_is_named(path, state):
    with pytest.raises(TeacherError, match="give --entry=weights to convert or evaluate"):
        load(path, {"weights": state, "epoch": 1})
    with pytest.raises(TeacherError, match="give --entry=weights to convert or evaluate"):
        load(path, {"weights": state, "loss": torch.tensor(0.3)})
    assert same(load(path, {"weights": state, "epoch": 1}, entry="weights"), state)
    nested = {"teacher": {"module": state}, "epoch": 1}
    with pytest.raises(TeacherError, match=r"give --entry=teacher\.module"):
        load(path, nested)
    assert same(load(path, nested, entry="teacher.module"), state)
    # What is printed of a file can be given.
    averaged = {"model_ema": {"module": state}}
    said = load(path, averaged).convention
    assert "'model_ema.module'" in said
    assert same(load(path, averaged, entry="model_ema.module"), state)


@pytest.mark.parametrize("name", ["linear.1", "head", "fc.1"])
def test_a_classifier_by_another_name(path, state, name):
    renamed = {key.replace("linear.", f"{name}."): value for key, value in state.items()}
    teacher = load(path, renamed)
    assert flatten(teacher.variables)["params/classifier/bias"].shape == (10,)
    assert f"classifier {name!r}" in teacher.convention


def test_what_cannot_be_a_classifier_is_named(path, state):
    two = {key: value for key, value in state.items() if "linear" not in key}
    two |= {"fc.0.weight": torch.zeros(32, 64), "fc.2.weight": torch.zeros(10, 32)}
    with pytest.raises(TeacherError, match=r"'fc\.0' \(64 to 32\) and 'fc\.2' \(32 to 10\)"):
        load(path, two)
    with pytest.raises(TeacherError, match=r"left over: 'cosine.weight'"):
        load(path, state | {"cosine.weight": torch.zeros(10, 64)})
    wrapped = {f"model.{key}": value for key, value in state.items()}
    with pytest.raises(TeacherError, match=r"'cosine' \(64 to 10\) besides"):
        load(path, wrapped | {"cosine.weight": torch.zeros(10, 64)})


def test_state_dicts_of_other_kinds_are_one_sentence(path, state):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of such tensors
        packed = torch.quantize_per_tensor(state["conv1.weight"], 0.1, 0, torch.qint8)
    for content, message in (
        (state | {"conv1.weight": packed}, "quantized by PyTorch already"),
        (state | {"conv1.scale": torch.tensor(0.1)}, "left over|quantized by PyTorch"),
        (state | {"fc._packed_params.dtype": torch.qint8}, "quantized by PyTorch already"),
        ({0: state["conv1.weight"]}, "texts such as 'conv1.weight', and not 0"),
        ({"param_groups": [], "state": {0: {"exp_avg": torch.ones(3)}}}, "--entry|optimizer"),
        ([torch.ones(3)], "holds a list and no state dict"),
        (torch.ones(3), "holds one tensor and no state dict"),
        (nets.original_cifar(1), "a whole tests.torch_networks.ResNet"),
        ({"model": nets.original_cifar(1)}, "a whole tests.torch_networks.ResNet"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(content, path)
        with pytest.raises(TeacherError, match=message) as error:
            load_teacher(path, **GIVEN)
        assert "\n" not in str(error.value)


# ---- Files that are no checkpoint -----------------------------------------------------------


def archive(kind):
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w") as file:
            file.writestr("weights/teacher.pth", b"x")
    elif kind == "tar":
        with tarfile.open(fileobj=content, mode="w") as file:
            file.addfile(tarfile.TarInfo("teacher.pth"))
    else:
        np.savez(content, x=np.zeros(3))
    return content.getvalue()


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors", ".PTH"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b'{"error": "not found"}', "JSON"),
        (b'{"weight_map": {}}', "index of weights that are divided"),
        (b"\x1f\x8b\x08rest", "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x93NUMPY\x01", "an array of NumPy"),
        (b"\x08\x08\x12\x07pytorch", "an ONNX model"),
        (b"", "it is empty"),
        (bytes(600), "full of zeros"),
        (b"404: Not Found", "is text ('404: Not Found')"),
        (archive("zip"), "a zip archive: unpack it, and give 'weights/teacher.pth'"),
        (archive("tar"), "a tar archive"),
        (archive("npz"), "arrays of NumPy"),
    ],
)
def test_what_a_file_is_instead(tmp_path, sentence, suffix, content, message):
    path = tmp_path / f"teacher{suffix}"
    path.write_bytes(content)
    argv = ["convert", f"--input={path}", f"--output={tmp_path / 'out.safetensors'}"]
    said = sentence([*argv, "--mean=imagenet"])
    assert message in said
    assert "execute" not in said


def test_a_name_in_an_archive_that_is_no_text(tmp_path, state):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("é/data.pkl", b"")
    path = tmp_path / "teacher.pth"
    path.write_bytes(content.getvalue().replace("é".encode(), b"\xb6\xb6"))
    with pytest.raises(TeacherError, match="is not a readable PyTorch file"):
        load_teacher(path, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("suffix", [".pth.tar", ".ckpt", ".bin", ".PT"])
def test_suffixes_of_pytorch_files(tmp_path, state, suffix):
    assert same(load(tmp_path / f"teacher{suffix}", state), state)


def test_the_content_decides_and_not_the_suffix(tmp_path, state):
    safetensors.torch.save_file(dict(state), tmp_path / "teacher.bin")
    assert same(load_teacher(tmp_path / "teacher.bin", **GIVEN), state)
    assert same(load(tmp_path / "teacher.safetensors", state), state)


def test_an_empty_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "teacher.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(TeacherError, match="its state dict is empty"):
        load_teacher(path, **GIVEN)


def test_what_is_no_teacher_to_convert(tmp_path, path, state):
    load(path, state)
    before = path.read_bytes()
    same_file = tmp_path / "same.safetensors"
    safetensors.torch.save_file(dict(state), same_file)
    with pytest.raises(TeacherError, match="is the input, which would be lost"):
        convert(same_file, same_file, Stated(**GIVEN), overwrite=True)
    with pytest.raises(TeacherError, match="is a folder; name the teacher's file"):
        load_teacher(tmp_path, **GIVEN)
    with pytest.raises(TeacherError, match="at most 2048, not 100000"):
        load_teacher(path, image_size=100_000, **GIVEN)
    exported = {"state_dict": state, "activations": {}, "weight_bits": {}, "checksum": "x"}
    with pytest.raises(TeacherError, match="an exported student, and no teacher"):
        load(path, exported)
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "nowhere")
    path.write_bytes(before)
    with pytest.raises(ConfigError, match="exists; --overwrite replaces it"):
        convert(path, tmp_path / "link.safetensors", Stated(**GIVEN))


def test_numpy_arrays_are_no_tensors(path, state):
    torch.save({name: tensor.numpy() for name, tensor in state.items()}, path)
    with pytest.raises(TeacherError, match=r"NumPy arrays.*torch\.from_numpy"):
        load_teacher(path, **GIVEN)


def test_numpy_arrays_in_an_entry(path, state):
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    with pytest.raises(TeacherError, match=r"NumPy arrays.*torch\.from_numpy"):
        load(path, {"state_dict": arrays, "epoch": 1})


def test_two_networks_under_entries(path, state):
    best = {
        name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }
    content = {"net": state, "best_net": best}
    with pytest.warns(UserWarning, match="'net' was taken, --entry=best_net takes another"):
        assert same(load(path, content), state)
    assert same(load(path, content, entry="best_net"), best)
