"""Registers the models with timm as soon as timm is there, without importing it: it takes seconds, and brings torch along."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_REGISTRY = "sit_deploy.models.registry"


def register_with_timm() -> None:
    """Register the named models with timm: now if it is imported, otherwise once it is. A second call changes nothing."""
    if _REGISTRY in sys.modules:
        return
    if hasattr(sys.modules.get("timm"), "create_model"):
        importlib.import_module(_REGISTRY)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds timm where it is, and has it loaded by `_Loader`; steps aside then."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("timm")
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads timm as its own loader does, then the registry."""

    def __init__(self, own: importlib.abc.Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._own  # who asks for timm's files asks its own
        module.__loader__ = self._own
        self._own.exec_module(module)
        importlib.import_module(_REGISTRY)
