"""The reader of a program of `torch.export`: its calls one by one, as nodes of a graph."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from flax.core import FrozenDict

from adadfq_jax.errors import TeacherError
from adadfq_jax.models.graph import INPUT, Node

# For people: what `aten.READERS` are. The documentation says it in the same words.
UNDERSTOOD = (
    "convolutions, BatchNorm, linear layers of features, sums and products of values and numbers, "
    "concatenation, slices and shuffles of channels, ReLU, ReLU6, hardtanh, leaky ReLU, SiLU, "
    "hardswish, GELU, sigmoid, hardsigmoid, pools, adaptive pools, means, sums and maxima over all "
    "pixels, padding by a constant, nearest and bilinear upsampling"
)
# Operations whose result shares memory with their first argument.
_VIEWS = {
    *("alias", "chunk", "detach", "expand", "flatten", "getitem", "narrow", "permute", "reshape"),
    *("select", "slice", "split", "split_with_sizes", "squeeze", "transpose", "unflatten"),
    *("unsqueeze", "view"),
}
# Calls that hold a part of the program, by how a user wrote them.
_WRAPPERS = {
    "wrap_with_autocast": "under torch.autocast",
    "wrap_with_set_grad_enabled": "under torch.enable_grad",
}


@dataclasses.dataclass(frozen=True)
class View:
    """An image whose axes are divided: its channels into groups, or its pixels into one list.

    Attributes:
      name: of the image's node.
      shape: of the image, PyTorch's.
      grouped: (B, groups, channels / groups, H, W), or (B, channels, pixels).
      transposed: whether the groups and what is in them have changed places.
    """

    name: str
    shape: tuple[int, ...]
    grouped: tuple[int, ...]
    transposed: bool = False


class Call:
    """One call of PyTorch, with its arguments by name.

    Attributes:
      node: the call in `torch.fx`.
      operation: PyTorch's name of what is called, without the mark of a change in place.
      arguments: by PyTorch's names, with their defaults.
    """

    def __init__(self, reader: "GraphReader", node: Any):
        schema = node.target._schema
        self.reader, self.node = reader, node
        # torch.export lets those who read what is changed in place read the result of the change.
        self.operation = name_of_operation(node)
        given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
        defaults = {
            argument.name: argument.default_value
            for argument in schema.arguments
            if argument.has_default_value()
        }
        self.arguments: dict[str, Any] = defaults | given | dict(node.kwargs)
        for name, argument in self.arguments.items():
            # Where the network holds a tensor of one number, it is that number.
            if hasattr(argument, "op") and isinstance(reader.values.get(argument), float):
                self.arguments[name] = reader.values[argument]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Returns an argument, or the default where there is none of this name."""
        return self.arguments.get(name, default)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result, PyTorch's."""
        return tuple(self.node.meta["val"].shape)

    @property
    def kind(self) -> str:
        """Of the numbers of the result, such as float32."""
        return str(self.node.meta["val"].dtype).rpartition(".")[2]

    @property
    def shape_before(self) -> tuple[int, ...]:
        """Of the first argument, PyTorch's."""
        return tuple(self.node.args[0].meta["val"].shape)

    @property
    def before(self) -> str | View | list[str]:
        """What made the first argument, which may have divided axes."""
        argument = self.node.args[0]
        value = self.reader.values.get(argument)
        if value is None:
            self.refuse_tensor(argument)
        return value

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an argument, PyTorch's."""
        return tuple(self.arguments[name].meta["val"].shape)

    def value(self, name: str) -> str:
        """Returns the name of the node that makes an argument."""
        return self.reader.value_of(self.arguments[name], self)

    def image(self, name: str) -> str:
        """As `value`, of an argument (B, channels, H, W)."""
        if len(self.shape_of(name)) != 4:
            self.refuse("of what are no images")
        return self.value(name)

    def require_channels(self, dim: int) -> None:
        """Refuses the call where it is along another axis than the channels."""
        first = self.arguments.get("self", self.arguments.get("tensors"))
        first = first[0] if isinstance(first, list | tuple) else first
        if dim % first.meta["val"].ndim != 1:
            self.refuse("along another axis than the channels")

    def refuse_tensor(self, argument: Any) -> NoReturn:
        """Raises TeacherError of an argument that is made of no image."""
        key = self.reader.parameters.get(argument.name)
        which = f"the tensor {key!r}, which" if key else "a tensor that"
        self.refuse(f"with {which} is no layer's and has no statistics,")

    def refuse_change_of_a_part(self) -> None:
        """Refuses a change in place of a part of a tensor that is read again as a whole.

        A program of `torch.export` does not say that such a change is seen in the whole.
        """
        part = self.node.args[0]
        while part.op == "call_function" and name_of_operation(part) in _VIEWS:
            whole = part.args[0]
            if any(
                user is not self.node and user not in self.reader.read_calls for user in whole.users
            ):
                self.refuse("in place on a part of a tensor that is read again,")
            part = whole

    def refuse(self, how: str = "") -> NoReturn:
        """Raises TeacherError that names the call, its place, and what else is understood."""
        what = f"{self.operation} {how}".strip()
        known = self.operation in self.reader.operations
        rest = "" if known else f"; understood are {UNDERSTOOD}"
        raise TeacherError(
            f"{self.reader.label} computes {what}{place(self.node)}, which is not understood{rest}."
        )


def name_of_operation(node: Any) -> str:
    """Returns PyTorch's name of what a node of a program calls."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name.rpartition("::")[2] if schema else getattr(node.target, "__name__", "")
    return name.removesuffix("_")


def place(node: Any) -> str:
    """Returns where a call stands in the user's source, in brackets; nothing where unknown."""
    return place_in(node.meta.get("stack_trace") or "")


def place_in(trace: str) -> str:
    """As `place`, of a stack trace: its innermost line outside of PyTorch."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)', trace)
    frames = [frame for frame in frames if not re.search(r"[/\\]torch[/\\]", frame[0])]
    if not frames:
        return ""
    file, line, code = frames[-1]
    return f" ({file}, line {line}: {code.strip()})"


class GraphReader:
    """Collects the nodes of a program.

    Attributes:
      label: the user's module, for messages.
      operations: what reads each of PyTorch's operations.
      parameters: PyTorch's keys by the program's placeholders.
      values: what each call made: the name of a node, a list of them, a `View`, or a number.
      read_calls: those that were read.
      nodes: what was read.
    """

    def __init__(
        self, label: str, operations: Mapping[str, Callable], parameters: Mapping[str, str]
    ):
        self.label, self.operations, self.parameters = label, operations, parameters
        self.values: dict[Any, Any] = {}
        self.read_calls: set[Any] = set()
        self.nodes: list[Node] = []
        self._names = {INPUT} | {key.rpartition(".")[0] for key in parameters.values()}
        self._layers: set[str] = set()

    def read(self, node: Any) -> None:
        """Reads one call."""
        self.read_calls.add(node)
        if name_of_operation(node) == "getitem":
            self._read_part(node)
            return
        call = Call(self, node)
        if call.operation not in self.operations:
            call.refuse()
        if node.target._schema.is_mutable:
            call.refuse_change_of_a_part()
        made = self.operations[call.operation](self, call)
        if isinstance(made, str | View) and (kind := call.kind) != "float32":
            call.refuse(f"in {kind}")
        self.values[node] = made

    def _read_part(self, node: Any) -> None:
        """Reads one of several results of a call."""
        made, index = node.args
        parts = self.values[made]
        if index < len(parts):
            self.values[node] = parts[index]
        elif node.users:
            raise TeacherError(
                f"{self.label} uses a second result of {name_of_operation(made)}{place(node)}, "
                "which is not understood."
            )

    def require_plain(self, nodes: Any) -> None:
        """Refuses a program of which a part runs under a context, such as autocast."""
        for node in nodes:
            plain = hasattr(node.target, "_schema") or name_of_operation(node) == "getitem"
            if node.op == "call_function" and not plain:
                kind = str(node.target)
                how = _WRAPPERS.get(kind, f"in {kind}")
                raise TeacherError(
                    f"{self.label} computes a part {how}{place(node)}, which is not understood: "
                    "give the network without it."
                )

    def add(self, op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        """Appends a node; returns its name."""
        self.nodes.append(Node(op, name, tuple(inputs), FrozenDict(attributes)))
        return name

    def value_of(self, argument: Any, call: Call) -> str:
        """Returns the name of the node that makes an argument of a call."""
        if not hasattr(argument, "op"):
            call.refuse(f"of {argument!r:.40}")
        value = self.values.get(argument)
        if value is None:
            call.refuse_tensor(argument)
        if not isinstance(value, str):
            call.refuse("of divided axes")
        return value

    def layer(self, call: Call, **expected: str) -> str:
        """Returns a layer's name: what its parameters' keys have in common.

        Args:
          call: of the layer.
          **expected: by argument, what its key ends in.
        """
        found = set()
        for argument, ending in expected.items():
            if call[argument] is None:
                continue
            key = self.parameters.get(getattr(call[argument], "name", None))
            name, _, last = (key or "").rpartition(".")
            if last != ending or not name:
                call.refuse(
                    f"with a {argument} that is computed (remove its parametrization first), or is "
                    f"not called MODULE.{ending} in it,"
                )
            found.add(name)
        if len(found) != 1 or found & self._layers:
            call.refuse(f"with the parameters of {' and '.join(sorted(found))}, used twice,")
        self._layers |= found
        return found.pop()

    def name_of(self, call: Call, op: str) -> str:
        """Makes a name of what is no layer, from the module that computes it."""
        stack = list((call.node.meta.get("nn_module_stack") or {}).values())
        path, kind = stack[-1] if stack else ("", "")
        name = path.split("@")[0]
        if not name or not str(kind).startswith("torch.nn.modules"):
            name = f"{name}.{op}".lstrip(".")
        unique, count = name, 1
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique

    def average(self, call: Call, image: str, keep: bool) -> str:
        """Adds the mean over all pixels, with both axes kept or not."""
        channels = call.shape_before[1]
        mean = self.add("mean", self.name_of(call, "mean"), [image])
        if not keep:
            return mean
        return self.add("reshape", self.name_of(call, "pixel"), [mean], shape=(1, 1, channels))

    def features(self, call: Call, image: str, shape: tuple[int, ...]) -> str:
        """Adds what makes features of an image of this shape, PyTorch's."""
        made = next((node for node in self.nodes if node.name == image), None)
        if made is not None and made.op == "reshape":  # of features
            return made.inputs[0]
        if shape[2:] == (1, 1):
            name = self.name_of(call, "reshape")
            return self.add("reshape", name, [image], shape=(shape[1],))
        return self.add("flatten", self.name_of(call, "flatten"), [image])


def simplify(nodes: list[Node], last: str) -> tuple[Node, ...]:
    """Names activation functions that are written out, and leaves out what nothing reads.

    x sigmoid(x) is SiLU, ReLU6(x + 3) / 6 a hard sigmoid, and x times that a hard swish: so each is
    quantized as one function, and a gate not at all.

    Args:
      nodes: in order of computation.
      last: which of them makes the logits.
    """
    found = {node.name: node for node in nodes}
    readers = [name for node in nodes for name in node.inputs]

    def alone(name: str, op: str, **settings: Any) -> Node | None:
        node = found.get(name)
        fits = node is not None and node.op == op and readers.count(name) == 1
        if fits and all(node.attributes[key] == value for key, value in settings.items()):
            return node
        return None

    for node in nodes:
        sixth = node.op == "scale" and abs(node.attributes["factor"] - 1 / 6) < 1e-6
        if sixth and not node.attributes["shift"]:
            if source := _shifted_relu6(node.inputs[0], alone):
                found[node.name] = Node("hardsigmoid", node.name, (source,), FrozenDict())
            elif product := alone(node.inputs[0], "multiply"):
                for x, gate in (product.inputs, product.inputs[::-1]):
                    if _shifted_relu6(gate, alone) == x:
                        found[node.name] = Node("hardswish", node.name, (x,), FrozenDict())
        if node.op == "multiply":
            for x, gate in (node.inputs, node.inputs[::-1]):
                for op, function in (("sigmoid", "silu"), ("hardsigmoid", "hardswish")):
                    if (made := alone(gate, op)) and made.inputs == (x,):
                        found[node.name] = Node(function, node.name, (x,), FrozenDict())
    wanted = {last}
    for node in reversed(list(found.values())):
        if node.name in wanted:
            wanted |= set(node.inputs)
    return tuple(node for node in found.values() if node.name in wanted)


def _shifted_relu6(name: str, alone: Callable[..., Node | None]) -> str | None:
    """Returns x where a node is ReLU6(x + 3)."""
    relu = alone(name, "relu", largest=6.0)
    shifted = relu and alone(relu.inputs[0], "scale", factor=1.0, shift=3.0)
    return shifted.inputs[0] if shifted else None
