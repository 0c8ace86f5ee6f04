"""The built-in example's files; `make_digits.py` made them."""

from pathlib import Path

_FOLDER = Path(__file__).parent

DIGITS_TEACHER = _FOLDER / "digits_resnet20.safetensors"
DIGITS_VALIDATION = _FOLDER / "digits_validation.npz"
DIGITS_TEST = _FOLDER / "digits_test.npz"
