"""How a program calls what the commands do: with a request, or with its options as keywords, and with progress shown if it likes."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from sit_deploy.errors import InputError, nearest

if TYPE_CHECKING:
    from sit_deploy.display import Display

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")
_R = TypeVar("_R", contravariant=True)
_T = TypeVar("_T", covariant=True)


class Command(Protocol[P, _R, Q, _T]):
    """What a command does, as a function: it takes a request, or the request's fields."""

    __name__: str

    @overload
    def __call__(self, request: _R, /, *args: Q.args, **kwargs: Q.kwargs) -> _T: ...

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> _T: ...


class _Shown:
    """Whether progress is shown, by the one call that has the lock: what it calls in turn says nothing of its own."""

    on = False
    lock = threading.Lock()


class _Before(AbstractContextManager[None]):
    """As a context, sets back what was before."""

    def __init__(self, before: bool) -> None:
        self.before = before

    def __repr__(self) -> str:  # what a notebook prints of a cell that ends with the call
        return f"progress is {'shown' if _Shown.on else 'not shown'}"

    def __exit__(self, *_: object) -> None:
        _Shown.on = self.before


def show_progress(on: bool = True) -> AbstractContextManager[None]:
    """Have `build`, `train` and their kin show what they do, as the command line does: in terminals, notebooks and log files.

        sit_deploy.show_progress()             # from here on
        with sit_deploy.show_progress(False):  # but not here
            sit_deploy.validate("sit_s-fp16")

    Bars in a notebook need ipywidgets; without it, as in a log file, a step is a line when it is done. A call that is given a `progress` or
    `reporter` of its own shows that alone.

    Args:
        on: False for silence, which is how a program starts.
    """
    before, _Shown.on = _Shown.on, bool(on)
    return _Before(before)


def takes_options(
    request: Callable[P, R], **shown: Callable[[Display], Any]
) -> Callable[[Callable[Concatenate[R, Q], T]], Command[P, R, Q, T]]:
    """Let a function of a request take the request's fields too, by place and by name, and show its progress.

    Args:
        request: makes one; its docstring describes its fields.
        shown: what goes into the function's other parameters where progress is shown, by their names.
    """

    def decorate(function: Callable[Concatenate[R, Q], T]) -> Command[P, R, Q, T]:
        own = list(inspect.signature(function).parameters.values())[1:]
        fields = inspect.signature(request)
        names = {one.name for one in own}

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> T:
            if args and isinstance(args[0], request):  # type: ignore[arg-type]
                with watched(shown, kwargs, args[1:]) as watching:
                    return function(*args, **watching)
            if isinstance(kwargs.get("request"), request):  # type: ignore[arg-type]
                return call(kwargs.pop("request"), *args, **kwargs)
            others = {name: kwargs.pop(name) for name in names & kwargs.keys()}
            return call(_made(request, fields, function.__name__, args, kwargs), **others)

        call.__signature__ = fields.replace(  # type: ignore[attr-defined]
            parameters=[
                *fields.parameters.values(),
                *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own),
            ],
            return_annotation=inspect.signature(function).return_annotation,
        )
        call.__doc__ = _described(function.__doc__ or "", request)
        return call

    return decorate


def shows(**shown: Callable[[Display], Any]) -> Callable[[Callable[Q, T]], Callable[Q, T]]:
    """Have a function show its progress where that is asked for; arguments as of `takes_options`."""

    def decorate(function: Callable[Q, T]) -> Callable[Q, T]:
        @functools.wraps(function)
        def call(*args: Q.args, **kwargs: Q.kwargs) -> T:
            with watched(shown, kwargs) as watching:
                return function(*args, **watching)

        return call

    return decorate


@contextlib.contextmanager
def watched(
    shown: dict[str, Callable[[Display], Any]], given: dict[str, Any], places: tuple[Any, ...] = ()
) -> Iterator[dict[str, Any]]:
    """Give keyword arguments of a call, those added that show its progress where that is asked for.

    Args:
        shown: what they are made of.
        given: keywords of the call.
        places: its other arguments by place: whoever gives one watches by himself.
    """
    if not _Shown.on or not _Shown.lock.acquire(blocking=False):
        yield given
        return
    from sit_deploy.display import Display

    try:
        if places or any(given.get(name) is not None for name in shown):
            yield given
            return
        with Display() as display:
            yield {**given, **{name: make(display) for name, make in shown.items()}}
    finally:
        _Shown.lock.release()


def _made(
    request: Callable[..., R], fields: inspect.Signature, name: str, args: Any, kwargs: dict[str, Any]
) -> R:
    """Return the request of options.

    Raises:
        InputError: one that it has not, or lacks.
    """
    kind = request.__name__
    for unknown in kwargs.keys() - fields.parameters.keys():
        hint = getattr(request, "of_unknown", lambda _: "")(unknown)
        told = hint or nearest(unknown, list(fields.parameters)) or f"; help(sit_deploy.{kind}) lists them"
        raise InputError(f"{name}() has no option {unknown!r}{told}")
    try:
        fields.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"{name}(): {error}; pass the options of {kind} as keywords, or one {kind}: help(sit_deploy.{name}) lists them"
        ) from None
    return request(*args, **kwargs)


def _described(text: str, request: Callable[..., Any]) -> str:
    """Return the docstring of a function of a request, that of the request's fields behind it."""
    whole = inspect.cleandoc(text)
    fields = inspect.getdoc(request) or ""
    kind = request.__name__
    return (
        f"{whole}\n\nIts options, the fields below, are given as keywords, or in one `{kind}`.\n\n"
        f"{kind}: {fields}"
    )
