"""Prefix, head and left-over keys of a state dict: which of its names are the network's."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from adadfq_jax.errors import TeacherError, nearest
from adadfq_jax.teachers import naming

Shapes = Mapping[str, tuple[int, ...]]

# Wrappers' prefixes, taken away where no block of a known network shows what the prefix is.
_WRAPPERS = ("module.", "model.", "net.", "_orig_mod.")
# Modules that training adds to a network, and that its logits do not pass through.
_FOR_TRAINING = re.compile(r"(?:aux|proj|criteri|ema_|queue|num_|n_)\w*|\w*loss\w*")
_LISTED = 3


@dataclasses.dataclass(frozen=True)
class Part:
    """The part of a state dict that is the network.

    Attributes:
      names: the file's key, by the name that the network's convention has for it.
      prefix: what stands before the network's names in the file, such as `model.`.
      head: the file's name of the classifier where the convention has another; else empty.
      left_over: the file's other keys.
    """

    names: dict[str, str]
    prefix: str
    head: str = ""
    left_over: tuple[str, ...] = ()


def find_network(shapes: Shapes, prefix: str | None = None) -> Part:
    """Finds the network in a state dict.

    Args:
      shapes: of all tensors, by key.
      prefix: what stands before the network's keys, `model` or `model.`; by default, what stands
        before the keys that name its blocks.

    Raises:
      TeacherError: there are several networks, or it is not clear which layer is the classifier;
        the message is a predicate, to follow the file's name.
    """
    blocks: dict[str, Counter] = {}
    for key in shapes:
        if found := _block(key):
            start, form = found
            blocks.setdefault(key[:start], Counter())[form] += 1
    chosen = _choose(shapes, list(blocks), prefix)
    names = {key.removeprefix(chosen): key for key in shapes if key.startswith(chosen)}
    if chosen not in blocks:
        return Part(names, chosen)
    form = blocks[chosen].most_common(1)[0][0]
    names = {name: key for name, key in names.items() if not _is_for_training(name)}
    usual = naming.HEADS.get(form, ())
    head = ""
    if usual and not any(f"{layer}.weight" in names for layer in usual):
        head = _head(shapes, names, form, usual, chosen)
        layer = next((layer for layer in usual if layer in head.split(".")), usual[0])
        for key in (f"{head}.weight", f"{head}.bias") if head else ():
            names.pop(key.removeprefix(chosen), None)
            names[layer + key.removeprefix(head)] = key
    used = set(names.values())
    left_over = tuple(key for key in shapes if key not in used)
    if prefix is None:
        _require_one_head(shapes, left_over, chosen)
    return Part(names, chosen, head, left_over)


def _block(key: str) -> tuple[int, str] | None:
    """Returns where in a key the name of a known network's block begins, and the form of it."""
    starts = (0, *(dot.end() for dot in re.finditer(r"\.", key)))
    return next(
        (
            (start, form)
            for start in starts
            for form, pattern in naming.FORMS.items()
            if pattern.match(key, start)
        ),
        None,
    )


def _choose(shapes: Shapes, found: list[str], given: str | None) -> str:
    """Returns the prefix of the network: the one given, or the only one found."""
    if given is not None:
        given = given.rstrip(".") + "." if given else ""
        if given in found:
            return given
        if not any(key.startswith(given) for key in shapes):
            known = [x.rstrip(".") for x in found] or {key.partition(".")[0] for key in shapes}
            raise TeacherError(f"has no key with the prefix {given!r}; {nearest(given, known)}")
        found = [prefix for prefix in found if prefix.startswith(given)]
    if len(found) > 1:
        shown = " and ".join(repr(prefix) if prefix else "no prefix" for prefix in found[:_LISTED])
        raise TeacherError(
            f"holds blocks of several networks, under {shown}: say which to read, such as "
            f"--prefix={found[-1]} of convert and evaluate."
        )
    if found:
        return found[0]
    prefix = given or ""
    while shapes:
        wrappers = (prefix + each for each in _WRAPPERS)
        longer = next((x for x in wrappers if all(key.startswith(x) for key in shapes)), None)
        if longer is None:
            break
        prefix = longer
    return prefix


def _is_for_training(key: str) -> bool:
    return _FOR_TRAINING.fullmatch(key.partition(".")[0]) is not None


def _dense(shapes: Shapes, found: Iterable[str], prefix: str) -> list[str]:
    """Returns the dense layers among some keys, of the network behind the prefix or beside it."""
    return [
        key.removesuffix(".weight")
        for key in found
        if key.endswith(".weight")
        and len(shapes[key]) == 2
        and not _is_for_training(key.removeprefix(prefix))
    ]


def _head(
    shapes: Shapes, names: dict[str, str], form: str, usual: tuple[str, ...], prefix: str
) -> str:
    """Returns the classifier where it has not its usual name; empty where nothing is like one."""
    in_blocks = {key for name, key in names.items() if naming.FORMS[form].match(name)}
    found = _dense(shapes, [key for key in shapes if key not in in_blocks], prefix)
    if len(found) > 1:
        raise TeacherError(
            f"has no dense layer {' or '.join(map(repr, usual))}, but {_listed(shapes, found)}: "
            "only a classifier of one dense layer is known."
        )
    return found[0] if found else ""


def _require_one_head(shapes: Shapes, left_over: Iterable[str], prefix: str) -> None:
    """Raises TeacherError where a dense layer is left, which the logits may pass through."""
    if found := _dense(shapes, left_over, prefix):
        raise TeacherError(
            f"has a classifier, and {_listed(shapes, found)} besides, of which it does not say "
            "whether the logits pass through them; where they do not, name the network's part with "
            "--prefix of convert and evaluate (an empty one for keys without a prefix)."
        )


def _listed(shapes: Shapes, found: list[str]) -> str:
    """Names dense layers with what they map to what."""
    shown = []
    for layer in found[:_LISTED]:
        outputs, inputs = shapes[f"{layer}.weight"]
        shown.append(f"{layer!r} ({inputs} to {outputs})")
    return " and ".join(shown) + (" and others" if len(found) > _LISTED else "")
