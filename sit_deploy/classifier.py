"""An open engine that takes any number of images, its outputs by name, and the classes that logits mean: with NumPy, and Pillow for images."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

# relative: a folder of `package python` takes this file along, without the package around it
from .errors import GateError, InputError
from .outputs import LOGITS, OUTPUTS, Output, listing

if TYPE_CHECKING:
    import numpy as np

    from engines import Runner

    from .preprocessing import Preprocessing


class Prepared(Protocol):
    """A bundle, as far as a classifier needs one."""

    @property
    def classes(self) -> list[str]:
        """Class names in label order; none without logits."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the engine gives, in order."""

    def preprocessing(self) -> Preprocessing:
        """Return how images are prepared for the engine."""


class Classifier:
    """An open engine that takes any number of images: it cuts and pads them to the batches the engine takes.

    Attributes:
        runner: the open engine, closed with the classifier.
        batch: smallest and largest batch that it takes.
    """

    def __init__(self, runner: Runner, batch: tuple[int, int], bundle: Prepared | None = None) -> None:
        self.runner = runner
        self.batch = batch
        self.bundle = bundle

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return logits float32 (n, classes) of preprocessed images, n at least 1.

        The images are float32 (n, 3, H, W), or uint8 (n, H, W, 3) for an engine that normalises by itself.

        Raises:
            engines.EngineInputError: wrong dtype or image shape.
            InputError: no image, or an engine that gives no logits.
        """
        found = self.outputs(images)
        if self.bundle is None and len(found) == 1:  # an engine of any graph, whatever it calls them
            return next(iter(found.values()))
        if LOGITS not in found:
            raise InputError(f"this engine gives {listing(tuple(found))} and no logits; call outputs()")
        return found[LOGITS]

    def outputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output by name, float32 (n, ...), of preprocessed images; arguments and errors as `logits`."""
        import numpy as np

        if not isinstance(images, np.ndarray) or images.ndim == 0:
            raise InputError(
                f"logits() takes preprocessed images as an array, got {type(images).__name__}; call the classifier itself with "
                "pictures"
            )
        if len(images) == 0:
            raise InputError("no images to classify; pass at least one")
        largest = self.batch[1]
        parts = [images[start : start + largest] for start in range(0, len(images), largest)]
        ran = self._run_all(parts)
        names = sorted(ran[0], key=[*OUTPUTS, *ran[0]].index)  # a runtime may list them in another order
        found = {name: np.concatenate([part[name] for part in ran]) for name in names}
        if self.bundle is not None:
            self._check_shapes({name: values.shape[1:] for name, values in found.items()})
        return found

    def _check_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Refuse an engine that gives something else than its manifest says."""
        assert self.bundle is not None
        wanted = {output.name: output.shape for output in self.bundle.outputs}
        if shapes == wanted:
            return
        if set(shapes) == set(wanted) == {LOGITS}:
            raise InputError(
                f"the engine gives logits of shape (n, {', '.join(map(str, shapes[LOGITS]))}), and the manifest says "
                f"{wanted[LOGITS][0]} classes; build the bundle again"
            )
        raise InputError(
            f"the engine gives {_shapes(shapes)}, and the manifest says {_shapes(wanted)}; build the bundle again"
        )

    def _run_all(self, parts: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Run batches, as many at a time as the engine takes."""
        if self.runner.at_once == 1 or len(parts) == 1:
            return [self._run(part) for part in parts]
        with ThreadPoolExecutor(min(self.runner.at_once, len(parts))) as pool:
            return list(pool.map(self._run, parts))

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run one batch, filled up to the smallest that the engine takes."""
        import numpy as np

        short = max(0, self.batch[0] - len(images))
        if short:
            images = np.concatenate([images, np.repeat(images[-1:], short, axis=0)])
        found = self.runner.infer({self.runner.inputs[0].name: images})
        return {name: values[: len(images) - short] for name, values in found.items()}

    def __call__(self, images: Any) -> np.ndarray:
        """Return the first output of images, preprocessed as the bundle says: logits float32 (n, classes), where it gives them.

        Args:
            images: one image or several: paths, bytes of image files, Pillow images, or uint8 arrays (height, width, 3);
                several may also be one array of four dimensions.

        Raises:
            InputError: no image, one that cannot be read, or something else than images.
        """
        return next(iter(self.all_outputs(images).values()))

    def all_outputs(self, images: Any) -> dict[str, np.ndarray]:
        """Return every output by name, float32 (n, ...), of images, preprocessed as the bundle says; arguments as of a call."""
        import numpy as np

        from .data.batches import batches

        if self.bundle is None:
            raise InputError("this classifier has no bundle to say how images are prepared; call logits()")
        sources = _sources(images)
        prepared = batches(sources, self.bundle.preprocessing(), self.batch[1] * self.runner.at_once)
        found = [self.outputs(batch) for batch, _ in prepared]
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def close(self) -> None:
        self.runner.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} (n, {', '.join(map(str, shape))})" for name, shape in shapes.items())


def _sources(images: Any) -> list[Any]:
    """Return the images of one or several, in a list; what each is, is checked where it is opened."""
    import numpy as np

    single = str | bytes | bytearray | memoryview | os.PathLike
    if isinstance(images, single) or hasattr(images, "convert"):
        return [images]
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    try:
        sources = list(images)
    except TypeError:
        raise InputError(
            f"images must be one or several paths, bytes, Pillow images or arrays, got {type(images).__name__}"
        ) from None
    if any(isinstance(source, tuple) for source in sources):
        raise InputError("images come without labels here; pass the first of each pair")
    return sources


def top_classes(logits: np.ndarray, classes: list[str], count: int = 5) -> list[list[dict[str, Any]]]:
    """Return for each row of logits (n, classes) its `count` most probable classes: index, name and probability.

    Raises:
        GateError: logits that are NaN or infinite.
    """
    import numpy as np

    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits).all(axis=1)).sum())
        raise GateError(
            f"the engine gives NaN or infinite logits for {bad} of {len(logits)} images; check it with sit-deploy validate"
        )
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return [
        [{"index": int(i), "name": classes[i], "probability": float(row[i])} for i in order]
        for row, order in zip(probabilities, best, strict=True)
    ]
