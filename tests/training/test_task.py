"""What a training step computes, on models small enough to write the numbers out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sit_deploy.models.sit import SiT
from sit_deploy.models.slim import SlimViT, slim
from tests.helpers.models import TINY, plain_vit, randomise, tiny_model, tiny_vit
from tests.helpers.numpy_sit import Weights, sit
from training.task import ClassificationTask, FRDTask

CPU = torch.device("cpu")


def student(**options: Any) -> SiT:
    return tiny_model(seed=0, reverse_tsm=True, **options)


def teacher(blocks: int = 6) -> SiT:
    return tiny_model(seed=1, stage_blocks=(blocks,))


def slimmed_vit(**options: Any) -> SlimViT:
    return randomise(slim(plain_vit(seed=0, **options), TINY["stage_blocks"], reverse_tsm=True))


def batch(count: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images, and soft targets of 7 classes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 64, 64, generator=generator)
    return images, torch.rand(count, 7, generator=generator).softmax(1)


def weights(model: nn.Module) -> Weights:
    return {name: value.double().numpy() for name, value in model.state_dict().items()}


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def with_running_statistics(task: FRDTask) -> FRDTask:
    """Let the student's BatchNorms use what they have learnt, which is what the NumPy model does."""
    for module in task.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return task


# -------------------------------------------------------------------------------------------------------------- FRD


def test_the_loss_and_its_parts_against_numpy() -> None:
    """Both models and the three losses of section 3.3 written out: 1.5 of tokens, 0.7 of logits at temperature 2."""
    task = FRDTask(student(), teacher(), CPU, token_weight=1.5, logits_weight=0.7, temperature=2.0)
    images, targets = batch()
    ours = sit(weights(task.model), images.double().numpy(), 4, TINY["stage_blocks"])
    theirs = sit(weights(teacher()), images.double().numpy(), 4, (6,))
    target = targets.double().numpy()
    classification = -(target * log_softmax(ours.logits)).sum(1).mean()
    tokens = np.mean([((a - b) ** 2).mean() for a, b in zip(ours.tokens, theirs.tokens, strict=True)])
    p, q = log_softmax(theirs.logits / 2), log_softmax(ours.logits / 2)
    logits = 4 * (np.exp(p) * (p - q)).sum(1).mean()

    result = with_running_statistics(task)(images, targets)
    assert set(result) == {"loss", "output", "classification", "tokens", "logits"}
    for name, expected in (("classification", classification), ("tokens", tokens), ("logits", logits)):
        assert result[name].item() == pytest.approx(expected, rel=1e-4)
        assert not result[name].requires_grad
    assert result["loss"].item() == pytest.approx(classification + 1.5 * tokens + 0.7 * logits, rel=1e-4)
    np.testing.assert_allclose(result["output"].detach().numpy(), ours.logits, atol=1e-4)


def test_only_the_student_learns() -> None:
    task = FRDTask(student(), teacher(), CPU)
    task(*batch())["loss"].backward()
    names = {name for name, p in task.model.named_parameters() if p.grad is not None}
    assert names == {n for n, _ in task.model.named_parameters() if not n.startswith("aux_head.")}
    assert all(p.grad.any() for n, p in task.model.named_parameters() if n in names)
    assert all(not p.requires_grad and p.grad is None for p in task.teacher.parameters())


def test_the_teacher_stays_in_eval_mode_and_its_statistics_as_they_are() -> None:
    task = FRDTask(student(drop_path_rate=0.5), teacher(), CPU)
    before = copy.deepcopy(task.teacher.state_dict())
    own = task.model.patch_embed.bn1.running_mean.clone()
    for mode in (True, False, True):
        assert task.train(mode) is task
        assert task.model.training == mode and task.model.patch_embed.bn1.training == mode
        assert not any(module.training for module in task.teacher.modules())
    optimiser = torch.optim.SGD(task.model.parameters(), 0.1)
    for step in range(2):
        task(*batch(seed=step))["loss"].backward()
        optimiser.step()
    after = task.teacher.state_dict()
    assert before and all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(task.model.patch_embed.bn1.running_mean, own)


class Cnn(nn.Module):
    """An extra teacher that remembers its images: class of the brightest of 7 columns, after a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        assert not self.training
        return self.norm(images)[:, 0, 0, :7] * self.scale


def test_the_dist_token_learns_the_class_of_the_cnn() -> None:
    """Whose images are normalised in its own way: from (x - 0.4) / 0.2 to (x - 0.5) / 0.25."""
    mean, std, their_mean, their_std = (
        torch.tensor(v).view(1, 3, 1, 1)
        for v in ((0.4, 0.3, 0.2), (0.2, 0.25, 0.3), (0.5, 0.5, 0.6), (0.25, 0.5, 0.1))
    )
    normalisation = std / their_std, (mean - their_mean) / their_std
    cnn = Cnn()
    task = FRDTask(student(dist_token=True), teacher(), CPU, cnn_teacher=cnn, cnn_normalisation=normalisation)
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    images, targets = (pixels - mean) / std, batch()[1]
    result = with_running_statistics(task)(images, targets)
    torch.testing.assert_close(cnn.seen, (pixels - their_mean) / their_std, rtol=0, atol=1e-5)

    ours = sit(weights(task.model), images.double().numpy(), 4, TINY["stage_blocks"])
    wanted = ((pixels - their_mean) / their_std)[:, 0, 0, :7].argmax(1).numpy()
    hard = -log_softmax(ours.dist_logits)[np.arange(3), wanted].mean()
    assert result["hard"].item() == pytest.approx(hard, rel=1e-4)
    parts = {name: result[name].item() for name in ("classification", "tokens", "logits", "hard")}
    expected = parts["classification"] + 2 * parts["tokens"] + 2 * parts["logits"] + parts["hard"]
    assert result["loss"].item() == pytest.approx(expected, rel=1e-5)

    result["loss"].backward()
    assert task.model.head_dist.weight.grad.any() and task.model.dist_token.grad.any()
    assert cnn.scale.grad is None and cnn.norm.num_batches_tracked == 0


@pytest.mark.parametrize("dist_token", [False, True])
@pytest.mark.parametrize("hard_label_weight", [0.0, 1.5])
def test_without_tokens_neither_reverse_tsms_nor_their_loss(
    dist_token: bool, hard_label_weight: float
) -> None:
    """Logits alone, or the teacher's class on the class head, beside a CNN's on the dist token."""
    weights_of = {"token_weight": 0.0, "logits_weight": 0.7, "hard_label_weight": hard_label_weight}
    ours = tiny_model(seed=0, dist_token=dist_token)
    assert not hasattr(ours, "rtsm")
    extra: dict[str, Any] = {}
    if dist_token:
        extra = {"cnn_teacher": Cnn(), "cnn_normalisation": (torch.ones(()), torch.zeros(()))}
    task = with_running_statistics(FRDTask(ours, teacher(), CPU, **weights_of, **extra))
    images, targets = batch()
    result = task(images, targets)
    expected = {"loss", "output", "classification", "logits"}
    expected |= {"hard"} if dist_token else set()
    assert set(result) == expected | ({"hard_label"} if hard_label_weight else set())

    student_logits = sit(weights(ours), images.double().numpy(), 4, TINY["stage_blocks"]).logits
    seen = sit(weights(teacher()), images.double().numpy(), 4, (6,)).logits.argmax(1)
    parts = {name: value.item() for name, value in result.items() if name not in ("loss", "output")}
    total = parts["classification"] + 0.7 * parts["logits"] + parts.get("hard", 0.0)
    if hard_label_weight:
        hard_label = -log_softmax(student_logits)[np.arange(3), seen].mean()
        assert parts["hard_label"] == pytest.approx(hard_label, rel=1e-4)
        total += 1.5 * hard_label
    assert result["loss"].item() == pytest.approx(total, rel=1e-4)
    result["loss"].backward()
    names = {name for name, p in ours.named_parameters() if p.grad is not None}
    assert names == {name for name, _ in ours.named_parameters() if not name.startswith("aux_head.")}


@pytest.mark.parametrize("make", [student, slimmed_vit])
def test_checkpointed_blocks_are_computed_twice_and_learn_the_same(make: Any) -> None:
    """To the bit, with dropped paths too."""
    runs = []
    for checkpointing in (False, True):
        ours = make(drop_path_rate=0.5)
        task = FRDTask(ours, tiny_vit(stage_blocks=(6,)) if make is not student else teacher(), CPU)
        ours.set_grad_checkpointing(checkpointing)
        calls = []
        ours.blocks[2].mlp.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(7)
        loss = task.train()(*batch())["loss"]
        loss.backward()
        runs.append((len(calls), loss, [p.grad for p in ours.parameters() if p.grad is not None]))
        task.eval()(*batch())
        assert len(calls) == runs[-1][0] + 1
    (plain, loss, gradients), (twice, its_loss, its_gradients) = runs
    assert (plain, twice) == (1, 2) and torch.equal(loss, its_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, its_gradients, strict=True))


def test_a_vision_transformer_of_timm_can_be_distilled() -> None:
    task = FRDTask(tiny_vit(reverse_tsm=True), tiny_vit(stage_blocks=(6,), seed=1), CPU)
    result = task(*batch())
    result["loss"].backward()
    assert result["output"].shape == (3, 7) and result["loss"].isfinite()
    assert all(p.grad is not None for p in task.model.parameters())


# --------------------------------------------------------------------------------------------------- classification


def test_cross_entropy_alone() -> None:
    task = ClassificationTask(student(), CPU)
    images, targets = batch()
    with_running_statistics(task.train())
    result = task(images, targets)
    ours = sit(weights(task.model), images.double().numpy(), 4, TINY["stage_blocks"])
    expected = -(targets.double().numpy() * log_softmax(ours.logits)).sum(1).mean()
    assert set(result) == {"loss", "output"}
    assert result["loss"].item() == pytest.approx(expected, rel=1e-4)


# ----------------------------------------------------------------------------------------- averaging, DDP, compilation


def tasks() -> list[Any]:
    return [
        pytest.param(lambda: FRDTask(student(), teacher(), CPU), id="distillation"),
        pytest.param(lambda: FRDTask(checkpointed(student()), teacher(), CPU), id="checkpointed"),
        pytest.param(lambda: ClassificationTask(student(), CPU), id="classification"),
    ]


def checkpointed(model: SiT) -> SiT:
    model.set_grad_checkpointing()
    return model


@pytest.mark.parametrize("make", tasks())
def test_the_average_is_what_is_evaluated(make: Any) -> None:
    task = make()
    assert not task.has_ema()
    assert task.get_eval_model() is task.model
    assert task.get_eval_model(ema=True) is None
    task.setup_ema(0.75)
    first = copy.deepcopy(task.model.state_dict())
    randomise(task.model, seed=3)
    second = task.model.state_dict()
    task.update_ema(10)
    averaged = task.get_eval_model(ema=True)
    assert type(averaged) is SiT and averaged is not task.model
    state = averaged.state_dict()
    assert list(state) == list(second)  # no prefix
    for name in ("head.weight", "blocks.3.mlp.fc1.bias", "tsm.1.scale", "patch_embed.bn2.running_var"):
        torch.testing.assert_close(state[name], 0.75 * first[name] + 0.25 * second[name])
    assert averaged(batch()[0]).shape == (3, 7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: FRDTask(student(stage_blocks=(2, 1)), teacher(3), CPU), id="distillation"),
        pytest.param(lambda: ClassificationTask(student(stage_blocks=(1, 1)), CPU), id="classification"),
    ],
)
def test_compiled_tasks_compute_the_same_under_the_same_names(make: Any) -> None:
    torch.compiler.reset()
    plain, compiled = make(), make()
    names = list(compiled.model.state_dict())
    compiled.setup_ema(0.5)
    compiled.compile(backend="eager")
    for task in (plain, compiled):
        result = task.train()(*batch())
        result["loss"].backward()
    assert compiled(*batch())["loss"].item() == pytest.approx(plain(*batch())["loss"].item(), rel=1e-5)
    for ours, theirs in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    assert list(compiled.model.state_dict()) == names
    assert compiled.get_eval_model() is compiled.model and type(compiled.model) is SiT
    before = compiled.get_eval_model(ema=True).head.weight.clone()
    with torch.no_grad():
        compiled.model.head.weight += 1
    compiled.update_ema(5)
    torch.testing.assert_close(compiled.get_eval_model(ema=True).head.weight, before + 0.5)
    if isinstance(compiled, FRDTask):
        assert not any(module.training for module in compiled.train().teacher.modules())


@pytest.fixture
def one_process_world(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process_world")
@pytest.mark.parametrize("make", tasks())
def test_processes_share_what_is_trained_and_nothing_else(make: Any) -> None:
    plain, task = make(), make()
    task.setup_ema(0.5)
    names = list(task.model.state_dict())
    assert task.prepare_distributed() is task
    wrapped = [name for name, m in task.named_modules() if isinstance(m, DistributedDataParallel)]
    assert wrapped == ["trainable_module"]
    assert list(task.model.state_dict()) == names and task.get_eval_model() is task.model
    if isinstance(task, FRDTask):
        assert {p for p in task.teacher.parameters()}.isdisjoint(task.trainable_module.parameters())
    for one in (plain, task):
        one.train()
        with one.no_sync():
            (one(*batch(seed=1))["loss"] / 2).backward()
        (one(*batch(seed=2))["loss"] / 2).backward()
    for ours, theirs in zip(plain.model.parameters(), task.model.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-4, atol=1e-6)
    task.update_ema(5)
    state = task.get_eval_model(ema=True).state_dict()
    torch.testing.assert_close(state["patch_embed.bn1.running_mean"], (
        make().model.patch_embed.bn1.running_mean + task.model.patch_embed.bn1.running_mean
    ) / 2)  # fmt: skip
