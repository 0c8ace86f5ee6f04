"""Conversion: a PyTorch checkpoint becomes this project's own file, which says all about itself."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adadfq_jax.data.images import preparation_in_words
from adadfq_jax.errors import TeacherError
from adadfq_jax.models.network import Teacher
from adadfq_jax.models.size import measure_network
from adadfq_jax.storage.files import absolute, check_replaceable, locate
from adadfq_jax.teachers import native, packages, torch_module, user_network
from adadfq_jax.teachers.load import load_foreign, read_teacher, save_teacher, teacher_file
from adadfq_jax.teachers.stated import Stated

_NOTHING_STATED = Stated()


def convert(
    source: str | Path,
    output: str | Path,
    stated: Stated = _NOTHING_STATED,
    *,
    network: str | None = None,
    overwrite: bool = False,
    prove: Callable[[Teacher, Any], float] | None = None,
) -> Teacher:
    """Writes a teacher as this project's own file; converting twice gives identical bytes.

    Args:
      source: a file that `load_teacher` reads, or `pytorchcv:NAME`, `torchvision:NAME`,
        `timm:NAME`: that package's network with the weights in its cache.
      output: the file to write, `.safetensors`.
      stated: what the source does not say. A package says some of it; what is stated goes before.
      network: the user's function that returns the network, as `build_network` takes it; the source
        is the file of its weights.
      overwrite: whether a file that exists may be replaced.
      prove: raises VerificationError where a teacher gives other logits than a PyTorch module, else
        returns how they differ; asked where there is the module.

    Returns:
      The teacher.

    Raises:
      TeacherError: it cannot be read or written, or something that it does not say is not given.
      ConfigError: the output is there already, or something that is no teacher of ours.
    """
    output = locate(output)
    if output.suffix != ".safetensors":
        raise TeacherError(f"the output must be a .safetensors file, not {str(output)!r}.")
    if not packages.is_package_name(str(source)) and _is_same(locate(source), output):
        raise TeacherError(
            f"the output {str(output)!r} is the input, which would be lost; name another file."
        )
    check_replaceable(output, "a teacher", _is_ours, overwrite)
    if network is not None:
        teacher = _load_user_network(network, source, stated, prove)
    elif packages.is_package_name(str(source)):
        teacher = _load_pretrained(str(source), stated, prove)
    else:
        teacher = read_teacher(source, stated)
        if teacher.source is None:
            digest = hashlib.sha256(locate(source).read_bytes()).hexdigest()
            teacher = dataclasses.replace(teacher, source=digest)
    save_teacher(teacher, output)
    return teacher


def _is_ours(path: Path) -> bool:
    try:
        return path.is_file() and native.is_own(path)
    except TeacherError:  # damaged, or of another kind
        return False


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and absolute(one).resolve() == absolute(other).resolve()


def _load_pretrained(
    name: str, stated: Stated, prove: Callable[[Teacher, Any], float] | None
) -> Teacher:
    pretrained = packages.find_pretrained(name)
    module = pretrained.module.eval()
    torch_module.load_weights(module, name, pretrained.path)
    try:
        known = pretrained.architecture
    except TeacherError:  # a network that its code alone describes
        teacher = _read_code(name, pretrained, stated)
    else:
        teacher = _load_recognised(name, pretrained, known, stated)
    return teacher if prove is None else torch_module.with_proof(teacher, prove(teacher, module))


def _load_user_network(
    where: str, source: str | Path, stated: Stated, prove: Callable[[Teacher, Any], float] | None
) -> Teacher:
    if stated.architecture is not None:
        raise TeacherError(f"{where} is read from its code, which has no architecture to choose.")
    if packages.is_package_name(str(source)):
        raise TeacherError(f"{source} has its own network; --network is of a file of weights.")
    with teacher_file(source) as path:
        module = user_network.build_network(where)
        torch_module.load_weights(module, where, path, stated.entry, stated.prefix)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    teacher = dataclasses.replace(torch_module.read_module(module, stated), source=digest)
    return teacher if prove is None else torch_module.with_proof(teacher, prove(teacher, module))


def _read_code(name: str, pretrained: packages.Pretrained, stated: Stated) -> Teacher:
    for field in ("architecture", "entry", "prefix"):
        if getattr(stated, field) is not None:
            raise TeacherError(f"{name!r} is read from its code, which has no {field} to choose.")
    stated = stated.or_else(
        mean=pretrained.mean,
        std=pretrained.std,
        image_size=pretrained.image_size,
        preparation=pretrained.preparation,
    )
    teacher = torch_module.read_module(pretrained.module, stated, name.partition(":")[2])
    digest = hashlib.sha256(pretrained.path.read_bytes()).hexdigest()
    return dataclasses.replace(teacher, source=digest)


def _load_recognised(
    name: str, pretrained: packages.Pretrained, known: str | None, stated: Stated
) -> Teacher:
    if stated.architecture is not None and known is not None and stated.architecture != known:
        raise TeacherError(f"{name!r} is {known}, not {stated.architecture}.")
    stated = stated.or_else(
        architecture=known,
        mean=pretrained.mean,
        std=pretrained.std,
        image_size=pretrained.image_size,
        preparation=pretrained.preparation,
    )
    return load_foreign(pretrained.path, stated)


def summary(teacher: Teacher, statistics: str) -> str:
    """Describes a teacher on one screen.

    Args:
      teacher: the teacher.
      statistics: what its BatchNorms' statistics tell, see `StatisticsCheck.to_text`.
    """
    size = measure_network(teacher.module, teacher.image_size)
    rows = {
        "network": teacher.architecture,
        "recognised": teacher.convention or "this project's own file",
        "classes": f"{teacher.classes}",
        "images": f"{teacher.image_size}x{teacher.image_size}x{teacher.channels}",
        "image files": f"{preparation_in_words(teacher)} ({teacher.preparation.interpolation})",
        "mean": ", ".join(f"{value:g}" for value in teacher.mean),
        "std": ", ".join(f"{value:g}" for value in teacher.std),
        "parameters": f"{size.parameters:,}",
        "layers": f"{size.layers} (convolutions and dense, shortcuts included)",
        "MACs": f"{size.macs:,} for one image",
        "statistics": statistics,
        "source": f"sha256 {teacher.source}",
        "digest": f"sha256 {teacher.digest}",
    }
    return "\n".join(f"{name:<22}{value}" for name, value in rows.items())
