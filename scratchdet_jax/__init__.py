"""ScratchDet in JAX: single-shot object detectors trained from random initialisation.

detector = scratchdet_jax.load("runs/voc300")
found = detector("photo.jpg")  # boxes (xyxy in pixels), scores, labels, names
"""

import importlib
from typing import TYPE_CHECKING, Any

from scratchdet_jax.version import VERSION

if TYPE_CHECKING:
    from scratchdet_jax.errors import UserError as UserError
    from scratchdet_jax.predictor import Detections as Detections
    from scratchdet_jax.predictor import Predictor as Predictor
    from scratchdet_jax.predictor import load as load

__version__ = VERSION
__all__ = ["Detections", "Predictor", "UserError", "load"]


def __getattr__(name: str) -> Any:
    """Imports the interface at its first use, so that `import scratchdet_jax` stays fast."""
    if name in __all__:
        module = "errors" if name == "UserError" else "predictor"
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
