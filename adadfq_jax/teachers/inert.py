"""A pickle reduced to its tensors, numbers, texts and containers; nothing is executed.

A training program saves its arguments, its clock or its scores along with the weights, as objects
of classes of its own. torch reads none of such a file, because making an object runs its class.
`cleaned` follows the pickle's instructions without running any class or function: an object
becomes a `Skipped`, which only knows the object's name, and torch reads what it writes.
"""

import dataclasses
import io
import pickle
import pickletools
import re
from collections.abc import Iterable
from typing import Any, BinaryIO

# What torch itself calls to make a tensor; all else that a file asks for is skipped.
_OF_TENSORS = re.compile(
    r"torch\.(?:"
    r"_utils\._rebuild_\w+|_tensor\._rebuild_from_type_v2|serialization\._get_layout|"
    r"(?:cuda\.)?\w+Storage|storage\.(?:Typed|Untyped)Storage|nn\.parameter\.Parameter|"
    r"Size|device|bool|(?:q?u?int|b?float|complex)\d\w*|per_(?:tensor|channel)_\w+)"
)
_MAPPINGS = ("collections.OrderedDict", "collections.defaultdict")
# What pickle calls to make objects, whatever their class.
MACHINERY = re.compile(r"(?:copy_?reg|builtins|__builtin__|_codecs)\..*")
_KEYS = (str, int, float, type(None))


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Stands where a file holds an object that was not made.

    Attributes:
      name: of the object's class, or of the function that would make the object.
    """

    name: str

    def __reduce__(self):
        return Skipped, (self.name,)


@dataclasses.dataclass(eq=False)
class _Call:
    """A call that makes a tensor, or a part of one: torch's to execute, and not ours."""

    function: Any
    arguments: tuple

    def __reduce__(self):
        return self.function, self.arguments


@dataclasses.dataclass(eq=False)
class _Storage:
    """The memory of a tensor, which lies elsewhere in the file."""

    identity: tuple


class _Writer(pickle.Pickler):
    def persistent_id(self, value: Any) -> tuple | None:
        return value.identity if isinstance(value, _Storage) else None


def cleaned(file: BinaryIO) -> tuple[bytes, Any, tuple[str, ...]]:
    """Reads one pickle, up to where it ends.

    Args:
      file: open where the pickle begins.

    Returns:
      (a pickle of the same that torch reads with `weights_only=True`, once `Skipped` is allowed;
      the content, with something opaque for each tensor; names of all that the pickle asks for and
      is no part of a tensor).

    Raises:
      Exception: the pickle is damaged; of any type.
    """
    interpreter = _Interpreter()
    content = interpreter.run(pickletools.genops(file))
    written = io.BytesIO()
    # The protocol that torch reads safely.
    _Writer(written, protocol=2).dump(content)
    return written.getvalue(), content, tuple(sorted(interpreter.names))


class _Interpreter:
    """Pickle's machine, whose only values are containers, numbers, texts and the classes above."""

    def __init__(self):
        self.names: set[str] = set()
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # stacks before each open mark
        self._memo: dict[int, Any] = {}

    def run(self, instructions: Iterable[tuple[Any, Any, Any]]) -> Any:
        for opcode, argument, _ in instructions:
            match opcode.name:
                case "PROTO" | "FRAME" | "STOP" | "READONLY_BUFFER":
                    pass
                case "MARK":
                    self._outer.append(self._stack)
                    self._stack = []
                case "POP":
                    self._stack.pop()
                case "POP_MARK":
                    self._marked()
                case "DUP":
                    self._push(self._stack[-1])
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    self._push({"NEWTRUE": True, "NEWFALSE": False}.get(opcode.name))
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    self._memo[argument] = self._stack[-1]
                case "MEMOIZE":
                    self._memo[len(self._memo)] = self._stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    self._push(self._memo[argument])
                case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                    kind = {"TUPLE": tuple, "LIST": list, "DICT": dict, "SET": list}
                    self._push(kind[opcode.name.removeprefix("EMPTY_")]())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    self._push(self._last(int(opcode.name[-1])))
                case "TUPLE":
                    self._push(tuple(self._marked()))
                case "LIST" | "FROZENSET":
                    self._push(self._marked())
                case "DICT":
                    items = self._marked()
                    self._push({})
                    self._set(items)
                case "APPEND":
                    self._extend([self._stack.pop()])
                case "APPENDS" | "ADDITEMS":
                    self._extend(self._marked())
                case "SETITEM":
                    self._set(self._last(2))
                case "SETITEMS":
                    self._set(self._marked())
                case "GLOBAL":
                    self._push(self._named(argument.replace(" ", ".")))
                case "STACK_GLOBAL":
                    self._push(self._named(".".join(map(str, self._last(2)))))
                case "INST":
                    self._marked()
                    self._push(self._named(argument.replace(" ", ".")))
                case "OBJ":
                    self._push(self._marked()[0])
                case "REDUCE" | "NEWOBJ":
                    function, arguments = self._last(2)
                    self._push(_called(function, arguments))
                case "NEWOBJ_EX":
                    self._push(self._last(3)[0])
                case "BUILD":
                    self._stack.pop()
                case "BINPERSID":
                    self._push(_stored(self._stack.pop()))
                case _ if argument is not None and not opcode.stack_before:
                    self._push(argument)  # a number or a text
                case _:
                    raise pickle.UnpicklingError(f"the instruction {opcode.name} is not known")
        return self._stack.pop()

    def _push(self, value: Any) -> None:
        # A method of its own, since taking a mark's values exchanges the stack.
        self._stack.append(value)

    def _last(self, count: int) -> tuple:
        if len(self._stack) < count:
            raise pickle.UnpicklingError("an instruction lacks its arguments")
        last = tuple(self._stack[-count:])
        del self._stack[-count:]
        return last

    def _marked(self) -> list[Any]:
        marked, self._stack = self._stack, self._outer.pop()
        return marked

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is list:  # and not one of the objects that are skipped
            self._stack[-1].extend(items)

    def _set(self, items: Iterable[Any]) -> None:
        if type(self._stack[-1]) is dict:
            for key, value in zip(items[::2], items[1::2], strict=True):
                if isinstance(key, _KEYS):  # a tuple of tuples can take forever to be hashed
                    self._stack[-1][key] = value

    def _named(self, name: str) -> Any:
        if _OF_TENSORS.fullmatch(name):
            import torch

            value = torch
            for part in name.split(".")[1:]:
                value = getattr(value, part, None)
            if value is not None:
                return value
        if name not in _MAPPINGS:
            self.names.add(name)
        return Skipped(name)


def _called(function: Any, arguments: Any) -> Any:
    if not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("a call's arguments are no tuple")
    if isinstance(function, Skipped):
        if function.name in _MAPPINGS:
            return _mapping(arguments)
        # `copyreg._reconstructor` makes an object of the class that is the first of its arguments.
        of = [value for value in arguments if isinstance(value, Skipped)]
        return of[0] if of and MACHINERY.fullmatch(function.name) else function
    return _Call(function, arguments)


def _mapping(arguments: tuple) -> dict[Any, Any]:
    """Makes what `OrderedDict()`, `OrderedDict(pairs)` and `defaultdict(factory)` do."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], list) else ()
    return {key: value for key, value in pairs if isinstance(key, _KEYS)}


def _stored(identity: Any) -> Any:
    if isinstance(identity, tuple) and identity and identity[0] == "storage":
        return _Storage(identity)
    # torch before 1.6 writes a network's class so, with the text of its program.
    if isinstance(identity, tuple) and len(identity) > 1 and isinstance(identity[1], Skipped):
        return identity[1]
    raise pickle.UnpicklingError("a reference to something other than a tensor's memory")
