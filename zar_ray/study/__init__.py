"""Studies: models, settings and seeds evaluated in one pass; called, it is `zar_ray.api.studies.study`.

`zar_ray.study(...)` and this package have one name, so the package answers the call.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return importlib.import_module("zar_ray.api.studies").study(*args, **options)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """By its name, as other modules are where Ray sends them."""
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _CallablePackage
