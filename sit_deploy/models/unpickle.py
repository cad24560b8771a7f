"""Reading a pickle without running anything in it.

No name of a pickle is looked up, so there is nothing in it that could be called.

`pickle` asks `find_class` for every class and function that a pickle names. Here the answer is always a class that notes
what it is given, so that the objects made are those of Python's own literals, and notes. Reading the notes is up to others.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

# What would run a program, or write to a disk. It could not here, but who brings such a file should hear of it.
_HOSTILE_MODULES = frozenset(
    (
        "os", "posix", "nt", "subprocess", "commands", "popen2", "pty", "shutil", "socket", "ctypes", "importlib", "runpy",
        "pickle", "_pickle", "cPickle", "marshal", "webbrowser", "pip",
    )
)  # fmt: skip
_HOSTILE_BUILTINS = frozenset(
    ("eval", "exec", "execfile", "compile", "open", "__import__", "apply", "input", "breakpoint", "file")
)
# values of these are asked of the process, or of buffers, rather than read from the file
_REFUSED_OPCODES = frozenset(("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"))


class HostilePickle(pickle.UnpicklingError):
    """A pickle that would have run something.

    Attributes:
        name: what, with its module.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Record:
    """What a pickle says of an object: `module` and `name` of what makes it, and all that it is given.

    Attributes:
        args, kwargs: of the call.
        state: of `__setstate__`.
        entries: what was set by key.
        items: what was appended or added.
    """

    module = name = ""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Any
    entries: dict[Any, Any]
    items: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        record = object.__new__(cls)
        record.args, record.kwargs, record.state, record.entries, record.items = args, kwargs, None, {}, []
        return record

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any) -> Record:
        return Record(self, *args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, item: Any) -> None:
        self.items.append(item)

    add = append


def full_name(value: Any) -> str:
    """Return module and name of what a record is of, or of what a pickle only names; empty for anything else."""
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.module}.{kind.name}" if issubclass(kind, Record) and kind.name else ""


def unpickle(file: BinaryIO, persistent: Callable[[Any], Any] | None = None) -> Any:
    """Read one pickle from where `file` stands, and leave it behind it.

    Args:
        file: of bounded memory: what it holds, not what it is asked for, is what a read allocates.
        persistent: gives the value of a persistent id.

    Returns:
        The content: `Record` for everything that is no literal.

    Raises:
        HostilePickle: it names what would run a program.
        pickle.UnpicklingError: it is damaged, and of damaged bytes any exception.
    """
    start = file.tell()
    _check_opcodes(file)
    file.seek(start)
    return _Unpickler(file, persistent).load()


def _check_opcodes(file: BinaryIO) -> None:
    """Refuse what would make the reader allocate by a number in the file: it keeps its memo as an array."""
    memos = 0
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in _REFUSED_OPCODES:
            raise pickle.UnpicklingError(f"opcode {opcode.name}")
        if "PUT" in opcode.name or opcode.name == "MEMOIZE":
            memos += 1
            if isinstance(argument, int) and argument > 2 * memos + 1000:
                raise pickle.UnpicklingError(f"memo {argument}")


def _refuse_method(module: str, name: str) -> None:
    """Refuse what a class does, as no object is made of it; a class within a class has a capital, or an underscore."""
    if "." in name and name.rpartition(".")[2][:1].islower():
        raise HostilePickle(f"{module}.{name}")


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(file, encoding="latin-1")
        self.persistent = persistent
        self.known: dict[tuple[str, str], type[Record]] = {}

    def find_class(self, module: str, name: str) -> Any:
        builtin = module in ("builtins", "__builtin__")
        if module.split(".")[0] in _HOSTILE_MODULES or (builtin and name in _HOSTILE_BUILTINS):
            raise HostilePickle(f"{module}.{name}")
        _refuse_method(module, name)
        if builtin and name == "getattr":  # how a class inside a class is written
            return self._attribute()
        return self._stand_in(module, name)

    def _stand_in(self, module: str, name: str) -> type[Record]:
        key = (module, name)
        if key not in self.known:
            self.known[key] = type("Record", (Record,), {"module": module, "name": name})
        return self.known[key]

    def _attribute(self) -> type[Record]:
        """Return what stands for `getattr`: of a name within a class it gives the stand-in of that name."""
        stand_in = self._stand_in

        class Attribute(Record):
            module, name = "builtins", "getattr"

            def __new__(cls, *args: Any) -> Any:
                owner, name = args if len(args) == 2 else (None, None)
                if isinstance(owner, type) and issubclass(owner, Record) and isinstance(name, str):
                    _refuse_method(owner.module, f"{owner.name}.{name}")
                    return stand_in(owner.module, f"{owner.name}.{name}")
                return super().__new__(cls, *args)

        return Attribute

    def persistent_load(self, pid: Any) -> Any:
        if self.persistent is None:
            raise pickle.UnpicklingError("a persistent id")
        return self.persistent(pid)
