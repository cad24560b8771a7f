"""An open engine that takes any number of images, its outputs by name, and the classes that logits mean: with NumPy, and Pillow for images."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol, overload

# relative: a folder of `package python` takes this file along, without the package around it
from .errors import InputError
from .outputs import LOGITS, OUTPUTS, Output, listing
from .predictions import ClassProbability, Prediction, predictions, top_classes

if TYPE_CHECKING:
    import os
    from typing import BinaryIO

    import numpy as np
    from PIL import Image

    from engines import Runner

    from .data.given import Given
    from .preprocessing import Preprocessing

__all__ = ["ClassProbability", "Classifier", "Prediction", "Prepared", "top_classes"]


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

    @overload  # text and bytes could be several too, and are one
    def predict(  # type: ignore[overload-overlap]
        self, images: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO, top: int = 5
    ) -> Prediction: ...

    @overload  # one or several by its dimensions, which no type checker sees
    def predict(self, images: np.ndarray, top: int = 5) -> Any: ...

    @overload
    def predict(self, images: Iterable[Given], top: int = 5) -> list[Prediction]: ...

    @overload  # last: where Pillow is unknown to a type checker, this takes anything
    def predict(self, images: Image.Image, top: int = 5) -> Prediction: ...

    def predict(self, images: Any, top: int = 5) -> Any:
        """Return the most probable classes: of one image a `Prediction`, of several a list of them in their order.

            classify.predict("cat.jpg").name
            for found in classify.predict(["cat.jpg", "dog.jpg"]):
                print(found.name, found.probability, found.index)

        The figures are those of `sit-deploy predict`.

        Args:
            images: as of a call. An array of four dimensions is several, even if of one.
            top: classes of each image, the most probable first; all where there are fewer.

        Raises:
            InputError: as of a call; an engine that gives no logits, or `top` below 1.
            GateError: logits that are NaN or infinite.
        """
        from .data.given import is_one

        if not isinstance(top, Integral) or isinstance(top, bool) or top < 1:
            raise InputError(f"top must be a whole number of classes, at least 1, got {top!r}")
        if self.bundle is None:
            raise InputError("this classifier has no bundle to name classes; call logits()")
        if not (classes := self.bundle.classes):
            given = listing([output.name for output in self.bundle.outputs])
            raise InputError(f"this engine gives {given} and no logits; call all_outputs()")
        found = predictions(self.all_outputs(images)[LOGITS], classes, int(top))
        return found[0] if is_one(images) else found

    def __call__(self, images: Given | Iterable[Given]) -> np.ndarray:
        """Return the first output of images, preprocessed as the bundle says: logits float32 (n, classes), where it gives them.

        Args:
            images: one image or several: paths, bytes of image files, open files, Pillow images, or uint8 arrays: (height, width, 3)
                of R, G, B, (height, width, 4), whose transparency is dropped, or grey (height, width). Several may also be one
                array of four dimensions.

        Raises:
            InputError: no image, one that cannot be read, or something else than images.
        """
        return next(iter(self.all_outputs(images).values()))

    def all_outputs(self, images: Given | Iterable[Given]) -> dict[str, np.ndarray]:
        """Return every output by name, float32 (n, ...), of images, preprocessed as the bundle says; arguments as of a call."""
        import numpy as np

        from .data.batches import batches
        from .data.given import sources_of

        if self.bundle is None:
            raise InputError("this classifier has no bundle to say how images are prepared; call logits()")
        sources = sources_of(images)
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
