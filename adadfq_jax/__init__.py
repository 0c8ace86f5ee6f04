"""Data-free quantization on JAX: a teacher goes in, a low-bit student comes out, without data."""

import importlib
from typing import Any

__version__ = "0.1.0"

# Public names by the module that holds them; imported when first used, so that `import adadfq_jax`
# and the command line's help cost nothing.
_HOMES = {
    "allocate": "allocation.allocate",
    "default_config": "config.fields",
    "Dataset": "data.dataset",
    "load_dataset": "data.load",
    "describe_teacher": "evaluation.original",
    "evaluate": "evaluation.accuracy",
    "export": "exporting.export",
    "load_exported": "exporting.load",
    "write_report": "reporting.write",
    "Student": "models.network",
    "load_student": "training.student",
    "Teacher": "models.network",
    "from_torch": "evaluation.original",
    "load_teacher": "teachers.load",
    "save_teacher": "teachers.load",
    "run_sweep": "sweeps.sweep",
    "quantize": "training.quantize",
    "AdaDFQError": "errors",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "DivergedError": "errors",
    "ExportError": "errors",
    "StoppedError": "errors",
    "StorageError": "errors",
    "TeacherError": "errors",
    "VerificationError": "errors",
    "WorkdirInUseError": "errors",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
