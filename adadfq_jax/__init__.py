"""Data-free quantization on JAX: a teacher goes in, a low-bit student comes out, without data."""

import importlib
from typing import Any

__version__ = "0.1.0"

# Public names by the module that holds them; imported when first used, so that `import adadfq_jax`
# and the command line's help cost nothing.
_HOMES = {
    "default_config": "config",
    "Dataset": "data",
    "load_dataset": "data",
    "evaluate": "evaluation",
    "export": "exporting",
    "load_exported": "exporting",
    "write_report": "reporting",
    "Student": "student",
    "load_student": "student",
    "Teacher": "teachers",
    "load_teacher": "teachers",
    "save_teacher": "teachers",
    "run_sweep": "sweep",
    "quantize": "training",
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
