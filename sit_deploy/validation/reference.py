"""The PyTorch model that a bundle was made from, for comparing the two where the weights are at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.errors import InputError
from sit_deploy.files import sha256
from sit_deploy.models.hub import local_file

if TYPE_CHECKING:
    import numpy as np
    import onnx


def reference_weights(bundle: Bundle, checkpoint: str | Path | None = None) -> Path | None:
    """Return the checkpoint that a bundle was built from, None where that was random weights. Imports nothing heavy.

    Args:
        bundle: that was built.
        checkpoint: where its weights are now, if not where the bundle was built from; a repository's are fetched.

    Raises:
        InputError: the weights are gone, or are not those that the bundle was built from.
    """
    weights = bundle.manifest.weights
    if weights.is_random:
        if checkpoint is not None:
            raise InputError(f"bundle {bundle.path} was built from random weights; leave --checkpoint out")
        return None
    path = local_file(checkpoint) or Path(weights.source)
    if not path.is_file():
        place = f"hf-hub:{weights.repository}@{weights.revision}" if weights.repository else "FILE"
        raise InputError(
            f"the reference needs the weights {bundle.path} was built from, and {path} is not there; pass --checkpoint {place}"
        )
    if sha256(path) != weights.sha256:
        raise InputError(
            f"{path} is not the checkpoint that {bundle.path} was built from (its hash differs); pass --checkpoint FILE"
        )
    return path


def reference_model(bundle: Bundle, checkpoint: str | Path | None = None) -> Any:
    """Return the plain PyTorch model of a bundle, in eval mode; arguments and errors as `reference_weights`."""
    path = reference_weights(bundle, checkpoint)
    from sit_deploy.models.load import load_model

    model, weights = bundle.manifest.model, bundle.manifest.weights
    return load_model(
        model.name,
        path,
        model.image_size[0],
        model.num_classes or None,
        weights.ema,
        stages=model.stages,
        keeping_ratio=model.keeping_ratio,
        kept=model.kept,
        method=model.method,
        checkpoint_key=weights.key,
        headless=not bundle.manifest.has_logits,
    ).model


def export_again(bundle: Bundle, deploy: Any) -> onnx.ModelProto:
    """Return the float32 graph of a deploy form as the bundle's build exported it."""
    from sit_deploy.graph.export import BATCH, export_onnx

    manifest = bundle.manifest
    batch = BATCH if manifest.batch.is_dynamic else manifest.batch.best
    return export_onnx(
        deploy, manifest.model.image_size, batch=batch, opset=manifest.opset, name=manifest.model.name
    )


@dataclass(frozen=True)
class TeacherSource:
    """Where the unslimmed model is that a bundle's model was distilled from.

    Attributes:
        source: a checkpoint or a repository with one, or a bundle of the teacher's.
        name: of the model, for a checkpoint without a model card.
    """

    source: Path
    name: str | None = None

    def fetched(self) -> TeacherSource:
        """Return it with an absolute path, of a repository that of its weights, which are fetched."""
        return replace(self, source=local_file(self.source).absolute())

    @property
    def is_bundle(self) -> bool:
        """Whether it is a bundle, which has an engine too."""
        return self.source.is_dir()


def teacher_model(bundle: Bundle, teacher: TeacherSource) -> Any:
    """Return the unslimmed model that a bundle's model was distilled from, for the same images, in eval mode.

    Args:
        bundle: of the student.
        teacher: where the model is.

    Raises:
        InputError: not there, not readable, or of another class count.
    """
    from sit_deploy.models.load import load_model
    from sit_deploy.pipeline.request import BuildRequest

    student = bundle.manifest.model
    if teacher.is_bundle:
        model = reference_model(load_bundle(teacher.source))
    else:
        request = BuildRequest(teacher.name, Path(), checkpoint=teacher.source).completed("--teacher-model")
        model = load_model(
            request.model,
            request.checkpoint,
            student.image_size[0],
            stages=request.stages,
            keeping_ratio=request.keeping_ratio,
            binary=student.num_classes == 2,
            model_option="--teacher-model",
        ).model
    require_same_task(bundle, teacher.source, tuple(model.img_size), model.num_classes)
    return model


def require_same_task(bundle: Bundle, teacher: Path, image_size: tuple[int, ...], num_classes: int) -> None:
    """Refuse a teacher of other images or classes than a bundle's: what it can and how fast it is would be of another task.

    Args:
        bundle: of the student.
        teacher: where the teacher is.
        image_size: height and width that it takes.
        num_classes: that it tells apart.

    Raises:
        InputError: says what both take.
    """
    student = bundle.manifest.model
    if (image_size, num_classes) != (student.image_size, student.num_classes):
        raise InputError(
            f"the teacher {teacher} takes {image_size[0]} pixels and has {num_classes} classes, the model of {bundle.path} "
            f"{student.image_size[0]} and {student.num_classes}; give the teacher that it was distilled from"
        )


def reference_logits(model: Any, device: str = "cpu") -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from normalised images float32 (n, 3, H, W) to a model's first output (n, ...) in float32, on a device.

    Outputs have an order (`sit_deploy.outputs`): the first are logits (n, classes), where the model gives any, else vectors (n, dim).
    """
    from sit_deploy.pipeline.logits import all_given, torch_logits

    if device == "cpu":
        return lambda images: torch_logits(model, images)
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = model.to(device)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return all_given(model(torch.from_numpy(images).to(device)))[0].cpu().numpy()

    return run
