"""Pretrained networks of installed packages, with weights from those packages' own caches.

The network itself is only looked at: its weights are read from the cached file like any other, so
that nothing in it is executed, and nothing is ever downloaded.
"""

import dataclasses
import functools
import hashlib
import importlib
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from adadfq_jax.errors import TeacherError, nearest
from adadfq_jax.models.preparation import CROPS, INTERPOLATIONS
from adadfq_jax.teachers.recognition import Recognised, recognise


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A package's network and what the package says of it.

    Attributes:
      module: the torch module, with random weights.
      path: the cached file of its trained weights.
      image_size: side of its images in pixels, or None.
      mean, std: its normalisation; empty where the package does not say.
      preparation: fields of `Preparation`, as far as it says them.
    """

    module: Any
    path: Path
    image_size: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    preparation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def architecture(self) -> str | None:
        """Our name of the network; None where looking at it does not tell.

        Raises:
          TeacherError: it is no known network.
        """
        recognised = recognise(
            {
                key: tuple(value.shape)
                for key, value in self.module.state_dict().items()
                if not key.endswith("num_batches_tracked")
            }
        )
        if len(recognised.architectures) == 1:
            return recognised.architectures[0]
        return _by_stride(self.module, recognised)


# What a state dict lacks, the strides of some convolutions, by network.
_STRIDES = (
    ({"stage2_block1/conv1": 2, "stage2_block1/conv2": 1}, "_stride1x1"),
    ({"stage2_block1/conv1": 1, "stage2_block1/conv2": 2}, "_stride3x3"),
    ({"stem_conv": 2, "stage2_block1/depthwise_conv": 2}, "mobilenet_v2"),
    ({"stem_conv": 1, "stage2_block1/depthwise_conv": 1}, "mobilenet_v2_cifar"),
    ({"stem_conv": 1, "stage2_block1/depthwise_conv": 2}, "mobilenet_v2_cifar_stem"),
)


def _by_stride(module: Any, recognised: Recognised) -> str | None:
    """Tells networks apart by strides, which a package's module has and a state dict lacks."""
    bottlenecks = any("_stride" in name for name in recognised.architectures)
    for strides, ending in _STRIDES:
        if ending.startswith("_stride") != bottlenecks:
            continue
        try:
            layers = {layer: recognised.convention.layer(layer) for layer in strides}
            found = {layer: module.get_submodule(key).stride for layer, key in layers.items()}
        except AttributeError:
            return None
        if all(found[layer] in (stride, (stride, stride)) for layer, stride in strides.items()):
            names = recognised.architectures
            return next((x for x in names if _without_width(x).endswith(ending)), None)
    return None


def _without_width(architecture: str) -> str:
    return re.sub(r"_x[\d.]+$", "", architecture)


def is_package_name(text: str) -> bool:
    """Tells whether a text names a package's network, `pytorchcv:resnet20_cifar10`."""
    return text.partition(":")[0] in _PACKAGES and ":" in text


def find_pretrained(text: str) -> Pretrained:
    """Looks a network up.

    Args:
      text: `pytorchcv:NAME`, `torchvision:NAME` or `timm:NAME`.

    Raises:
      TeacherError: the package is not installed, does not know the name, or has no weights cached.
    """
    package, _, name = text.partition(":")
    try:
        return _PACKAGES[package](name)
    except TeacherError:
        raise
    except ImportError as error:
        if error.name == package:
            raise TeacherError(
                f"{text!r} needs the package {package}: pip install {package}."
            ) from error
        raise TeacherError(
            f"{text!r} needs the package {package}, which is there but cannot be imported: {error}."
        ) from error
    # Any: a package can fail in its own way, and is not ours.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise TeacherError(
            f"{text!r}: {package} fails with {type(error).__name__}: {reason}."
        ) from error


def _from_pytorchcv(name: str) -> Pretrained:
    provider = importlib.import_module("pytorchcv.model_provider")
    store = importlib.import_module("pytorchcv.models.common.model_store")
    known = provider._models
    if name not in known:
        raise TeacherError(f"pytorchcv has no network {name!r}: {_hint(name, known)}")
    error, sha1, _ = store.get_model_name_suffix_data(name)
    path = Path("~/.torch/models").expanduser() / f"{name}-{error}-{sha1[:8]}.pth"
    _require_cached(
        path,
        f"pytorchcv:{name}",
        f"from pytorchcv.model_provider import get_model; get_model({name!r}, pretrained=True)",
    )
    if hashlib.sha1(path.read_bytes()).hexdigest() != sha1:
        raise TeacherError(f"{str(path)!r} is damaged: its SHA-1 is not the one pytorchcv knows.")
    module = provider.get_model(name, pretrained=False)
    return Pretrained(module, path, _square(getattr(module, "in_size", None)))


def _from_torchvision(name: str) -> Pretrained:
    models = importlib.import_module("torchvision.models")
    hub = importlib.import_module("torch.hub")
    known = models.list_models()
    if name not in known:
        raise TeacherError(f"torchvision has no network {name!r}: {_hint(name, known)}")
    weights = models.get_model_weights(name).DEFAULT
    path = Path(hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    _require_cached(
        path,
        f"torchvision:{name}",
        f"from torchvision.models import get_model; get_model({name!r}, weights='DEFAULT')",
    )
    images = weights.transforms()
    return Pretrained(
        models.get_model(name, weights=None),
        path,
        _square(images.crop_size),
        tuple(images.mean),
        tuple(images.std),
        {
            "resize": _square(getattr(images, "resize_size", None)),
            "interpolation": _known(
                getattr(getattr(images, "interpolation", None), "value", None), INTERPOLATIONS
            ),
        },
    )


def _from_timm(name: str) -> Pretrained:
    timm = importlib.import_module("timm")
    hub = importlib.import_module("huggingface_hub")
    if not timm.is_model(name.partition(".")[0]):
        known = timm.list_models()
        raise TeacherError(f"timm has no network {name!r}: {_hint(name, known)}")
    module = timm.create_model(name, pretrained=False)
    described = module.pretrained_cfg
    found = None
    for filename in ("model.safetensors", "pytorch_model.bin"):
        cached = hub.try_to_load_from_cache(described.get("hf_hub_id") or "", filename)
        if found is None and isinstance(cached, str):
            found = cached
    _require_cached(
        Path(found or f"(the Hugging Face cache)/{described.get('hf_hub_id')}"),
        f"timm:{name}",
        f"import timm; timm.create_model({name!r}, pretrained=True)",
    )
    size = _square(described["input_size"][1:])
    return Pretrained(
        module,
        Path(found),
        size,
        tuple(described["mean"]),
        tuple(described["std"]),
        _timm_preparation(described, size),
    )


def _timm_preparation(described: Mapping[str, Any], size: int | None) -> dict[str, Any]:
    """Returns how timm's own evaluation makes images, as its `pretrained_cfg` says it."""
    share, crop = described.get("crop_pct"), described.get("crop_mode")
    return {
        "resize": math.floor(size / share) if size and share else None,
        "interpolation": _known(described.get("interpolation"), INTERPOLATIONS),
        "crop": _known(crop, CROPS),
    }


def _known(said: Any, known: Collection[str]) -> str | None:
    """Returns what a package says where it is known here, such as an interpolation."""
    return said if said in known else None


_PACKAGES: dict[str, Callable[[str], Pretrained]] = {
    "pytorchcv": _from_pytorchcv,
    "torchvision": _from_torchvision,
    "timm": _from_timm,
}


def _require_cached(path: Path, name: str, command: str) -> None:
    if not path.is_file():
        raise TeacherError(
            f"the weights of {name!r} are not in the package's cache, {str(path)!r}; fetch them "
            f'once where there is a network: python -c "{command}".'
        )


def _square(size: Any) -> int | None:
    """Returns the side of a size such as 224, [224] or (224, 224)."""
    sides = set(size) if isinstance(size, list | tuple) else {size}
    return sides.pop() if len(sides) == 1 else None


def _hint(name: str, known: Any) -> str:
    hint = nearest(name, known)
    return hint if hint.startswith("did") else f"it knows {len(known)} others."
