"""The engines that run ONNX files, and what each makes of a file's layers."""

import dataclasses
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adadfq_jax.errors import ConfigError, ExportError, install_command, nearest
from adadfq_jax.exporting.onnx_options import SUMS

# By engine, the extra of this package that installs it.
ENGINES = {"onnxruntime": "export", "openvino": "openvino"}


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """A model that an engine has opened on the CPU.

    Attributes:
      engine, version: of the engine.
      input_shape: of one image, as the model says.
      answer: maps images, float32 (N, channels, H, W), to logits (N, classes).
      integer_layers: returns the layers that the engine computes in integers.
    """

    engine: str
    version: str
    input_shape: tuple[Any, ...]
    answer: Callable[[np.ndarray], np.ndarray]
    integer_layers: Callable[[], set[str]]


def installed() -> list[str]:
    """Returns the engines that are installed here."""
    return [engine for engine in ENGINES if importlib.util.find_spec(engine) is not None]


def require(engine: str) -> None:
    """Makes sure that an engine is installed.

    Raises:
      ConfigError: there is none of that name.
      ExportError: it is not installed.
    """
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine {engine!r}: {nearest(engine, ENGINES)}")
    if engine not in installed():
        raise ExportError(f"to run files in {engine}: {install_command(ENGINES[engine])}.")


def open_session(content: bytes, engine: str, threads: int | None = None) -> Session:
    """Opens a model of ONNX.

    Args:
      content: the model's bytes.
      engine: of `ENGINES`.
      threads: how many it may use; None for as many as it likes.

    Raises:
      ConfigError, ExportError: as `require`; or the engine cannot run the model.
    """
    require(engine)
    opened = {"onnxruntime": _onnxruntime, "openvino": _openvino}[engine]
    try:
        return opened(content, threads)
    except Exception as error:  # engines raise many kinds
        reason = str(error).strip().split("\n")[0]
        raise ExportError(f"{engine} cannot run this model: {reason}.") from error


def _onnxruntime(content: bytes, threads: int | None) -> Session:
    import onnxruntime

    def options() -> Any:
        found = onnxruntime.SessionOptions()
        found.log_severity_level = 3  # errors; it warns of constants that it no longer needs
        found.intra_op_num_threads = threads or 0
        return found

    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(content, options(), providers)
    (image,) = session.get_inputs()

    def answer(images: np.ndarray) -> np.ndarray:
        (logits,) = session.run(None, {image.name: images})
        return logits

    def integer_layers() -> set[str]:
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            optimized = options()
            optimized.optimized_model_filepath = os.path.join(folder, "optimized.onnx")
            onnxruntime.InferenceSession(content, optimized, providers)
            nodes = onnx.load(Path(optimized.optimized_model_filepath)).graph.node
        return {_layer(node.name) for node in nodes if node.op_type == "QLinearConv"}

    shape = tuple(image.shape[1:])
    return Session("onnxruntime", onnxruntime.__version__, shape, answer, integer_layers)


def _openvino(content: bytes, threads: int | None) -> Session:
    # It would send usage statistics, from a process that it forks off this one.
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    core = openvino.Core()
    # On AMX it would compute what is not quantized in bfloat16.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(core.read_model(content, b""), "CPU", settings)
    request = compiled.create_infer_request()

    def answer(images: np.ndarray) -> np.ndarray:
        return request.infer([np.ascontiguousarray(images)])[0].copy()

    def integer_layers() -> set[str]:
        found = set()
        for operation in compiled.get_runtime_model().get_ordered_ops():
            about = operation.get_rt_info()
            kind, precision, names = (
                about[key].astype(str)
                for key in ("layerType", "runtimePrecision", "originalLayersNames")
            )
            if kind == "Convolution" and precision in ("i8", "u8"):
                found |= {_layer(name) for name in names.split(",") if "/Conv" in name}
        return found

    sides = compiled.input(0).partial_shape[1:]
    shape = tuple(side.get_length() if side.is_static else str(side) for side in sides)
    return Session("openvino", openvino.get_version(), shape, answer, integer_layers)


def _layer(operation: str) -> str:
    """Returns the layer that a Conv belongs to, by its name, after which engines put their own."""
    return operation.partition("/Conv")[0].removesuffix(SUMS)
