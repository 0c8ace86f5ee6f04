"""Files on a disk: written whole, or not at all."""

import contextlib

import pytest

from adadfq_jax.errors import ConfigError
from adadfq_jax.storage.files import check_replaceable, write_whole, written_whole


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path):
    (tmp_path / "store").mkdir()
    file = tmp_path / "store" / "teacher.safetensors"
    file.write_bytes(b"before")
    link = tmp_path / "teacher.safetensors"
    link.symlink_to(file)
    write_whole(link, b"after")
    assert link.is_symlink()
    assert file.read_bytes() == b"after"
    assert names(tmp_path / "store") == ["teacher.safetensors"]


@pytest.mark.parametrize("before", [None, b"before"])
def test_what_fails_leaves_what_was_there(tmp_path, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    with contextlib.suppress(ZeroDivisionError), written_whole(path) as partial:
        partial.write_bytes(b"after")
        raise ZeroDivisionError
    assert names(tmp_path) == ([] if before is None else ["file"])
    assert before is None or path.read_bytes() == before


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "images"
    for name in ("a", "b"):
        with written_whole(path) as partial:
            partial.mkdir()
            (partial / name).write_bytes(b"")
    assert names(path) == ["b"]
    assert names(tmp_path) == ["images"]


def test_the_suffix_is_there_before_the_name(tmp_path):
    with written_whole(tmp_path / "student.onnx") as partial:
        assert partial.suffix == ".onnx"
        partial.write_bytes(b"")
    assert names(tmp_path) == ["student.onnx"]


def test_what_may_be_replaced(tmp_path):
    path = tmp_path / "report"

    def check(overwrite):
        check_replaceable(path, "a report", lambda place: place.read_text() == "ours", overwrite)

    check(overwrite=False)
    path.write_text("ours")
    with pytest.raises(ConfigError, match=r"report' exists; --overwrite replaces it\."):
        check(overwrite=False)
    check(overwrite=True)
    path.write_text("mine")
    for overwrite in (False, True):  # it would not be replaced, so nobody is told to ask for it
        with pytest.raises(ConfigError, match="would be replaced, but is not a report that adadf"):
            check(overwrite)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists; --overwrite replaces it"):
        check(overwrite=False)
    check(overwrite=True)
