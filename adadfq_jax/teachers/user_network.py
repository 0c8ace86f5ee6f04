"""A network that a user's own function returns, with the weights of a file.

The function is the user's program, run at their word. The file of weights is not: it is read like
any other, and nothing in it is executed.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from adadfq_jax.errors import TeacherError, install_command, nearest


def build_network(where: str) -> Any:
    """Calls a user's function that returns a network.

    Args:
      where: `FILE.py:FUNCTION`, or `package.module:function`; the function takes no arguments.

    Returns:
      The `torch.nn.Module`, in evaluation mode.

    Raises:
      TeacherError: there is no such function, it fails, or returns something else.
    """
    try:
        import torch
    except ImportError as error:
        raise TeacherError(f"--network needs PyTorch: {install_command('torch')}.") from error
    program, colon, name = where.rpartition(":")
    if not colon or not program or not name:
        raise TeacherError(
            f"--network is FILE.py:FUNCTION or package.module:function, not {where!r}."
        )
    make = _function(where, _run(where, lambda: _imported(program)), name)
    if isinstance(make, torch.nn.Module):
        raise TeacherError(
            f"{where} is a network, and a function without arguments that returns it is needed."
        )
    module = _run(where, make)
    if not isinstance(module, torch.nn.Module):
        raise TeacherError(
            f"{where} must return the network, a torch.nn.Module, but returned "
            f"{type(module).__name__}."
        )
    return module.eval()


def _run(where: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except TeacherError:
        raise
    # Any: it is the user's program, which may fail, or end, in any way.
    except (Exception, SystemExit) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        said = ": ".join(filter(None, (type(error).__name__, reason)))
        raise TeacherError(f"{where} fails with {said}.") from error


def _imported(program: str) -> ModuleType:
    """Imports a file, or a module by name; what lies beside the file, or here, can be imported."""
    path = Path(program)
    if path.suffix != ".py":
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(program)
    if not path.is_file():
        others = [str(other) for other in path.parent.glob("*.py")]
        raise TeacherError(f"there is no file {program!r} of a network; {nearest(program, others)}")
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(f"network_of_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and torch.export look for it
    spec.loader.exec_module(module)
    return module


def _function(where: str, module: ModuleType, name: str) -> Callable[[], Any]:
    found = getattr(module, name, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise TeacherError(f"{where}: there is no function {name!r}; {nearest(name, known)}")
    return found
