"""TRL's `trl.core`, for scripts that import from it: every name of the package's."""

from . import __getattr__ as __getattr__
