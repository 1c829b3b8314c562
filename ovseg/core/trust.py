"""Which code a configuration or a checkpoint may name: that of ovseg and its libraries.

Other code, such as a network of your own, is imported only in a command with `--trust_config`, or
where the environment has `OVSEG_TRUST_CONFIG=1`. Nothing inside a file can switch that on.
docs/trust.md says what is trusted.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ovseg.core.errors import InputError

FLAG = "--trust_config"
SWITCH = "OVSEG_TRUST_CONFIG"  # an environment variable, so that child processes have it too

# What a configuration may always name. Of torch only what holds classes: others of its functions
# read files or run code.
PACKAGES = (
    "ovseg",
    "pytorch_lightning",
    "lightning_fabric",  # defines part of pytorch_lightning's classes
    "torchmetrics",
    "segmentation_models_pytorch",
    "torch.nn",
    "torch.optim",
    "torch.profiler",
)
# What calls any function that it is given.
CALLERS = (
    "pytorch_lightning.callbacks.LambdaCallback",
    "pytorch_lightning.callbacks.lambda_function",
)


def is_trusted() -> bool:
    """Whether files may name code of other packages."""
    return os.environ.get(SWITCH) == "1"


def is_allowed(path: str) -> bool:
    """Whether a configuration may name `package.module.Class`."""
    if is_trusted():
        return True
    if any(_is_inside(path, caller) for caller in CALLERS):
        return False
    return any(_is_inside(path, package) for package in PACKAGES)


def _is_inside(path: str, package: str) -> bool:
    return path == package or path.startswith(f"{package}.")


@contextmanager
def trusting(trusted: bool) -> Iterator[None]:
    """Trust what files name for the time of a block, in its child processes too.

    Code is then looked for in the current folder as well, after all other places.

    Args:
        trusted: False leaves all as it is.
    """
    before = os.environ.get(SWITCH)
    if trusted:
        os.environ[SWITCH] = "1"
    if is_trusted() and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        yield
    finally:
        os.environ.pop(SWITCH, None)
        if before is not None:
            os.environ[SWITCH] = before


def forget_current_folder() -> None:
    """Import nothing from the current folder, which `python -m` searches first.

    It may hold strangers' files, whose names could be those of modules.
    """
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]


def import_own(key: str, path: str) -> object:
    """The object that a file names as `package.module.name`.

    Args:
        key: of the configuration, for the message.
        path: with at least one dot.

    Raises:
        InputError: it is not trusted, or can't be imported.
    """
    if not is_trusted():
        raise InputError(
            f"{key} {path} is code that is not ovseg's. It runs only if you trust it: add {FLAG}, "
            f"or set {SWITCH}=1 (see docs/trust.md)."
        )
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{key} {path} can't be imported ({error}). It is looked for in the current folder "
            f"{os.getcwd()} and where Python finds packages."
        ) from error
