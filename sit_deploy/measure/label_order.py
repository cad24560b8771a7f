"""Would the model be right with its classes in another order? Then it is the labels that are wrong, and not the model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sit_deploy.data.class_names import natural_key

Guesses = Counter[tuple[int, int]]  # images by (label, class that the model takes them for)

_SURE = 7.0  # bits: chance brings it about once in 128
_GAIN = 0.2  # of the images, that another order must have right besides
_MODAL = 0.8  # of the classes, that an order which nothing explains must give the class that they are most taken for


@dataclass(frozen=True)
class Order:
    """Another order of the classes.

    Attributes:
        name: what explains it, None for one that was merely found.
        to: by label, the class that its images would then have.
        right: how many images the model then has right.
    """

    name: str | None
    to: tuple[int, ...]
    right: int = 0


def usual_orders(names: Sequence[str]) -> list[Order]:
    """Return the orders that labels are found in by mistake, without the one they are in.

    Args:
        names: of the classes in label order.
    """
    count = len(names)
    orders = []
    for name, key in (
        ("sorted as text, as torchvision does it", str),
        ("sorted by number, as timm does it", natural_key),
    ):
        place = {
            names[label]: at
            for at, label in enumerate(sorted(range(count), key=lambda i, k=key: k(names[i])))
        }
        if len(place) == count:
            orders.append(Order(name, tuple(place[label] for label in names)))
    orders.append(Order("reversed", tuple(reversed(range(count)))))
    for step, name in (
        (1, "one further, as after a class of background"),
        (-1, "one back, as where counting began at 1"),
    ):
        orders.append(Order(name, tuple((label + step) % count for label in range(count))))
    kept: dict[tuple[int, ...], Order] = {}
    for order in orders:
        kept.setdefault(order.to, order)
    kept.pop(tuple(range(count)), None)
    return list(kept.values())


def better_order(guesses: Guesses, names: Sequence[str]) -> Order | None:
    """Return an order of the classes that the model is clearly righter with than with the one they are in, None for none.

    It must gain a fifth of the images, by more than chance: of an order that nothing explains, among all that there are.
    One or two images a class then suffice, and a model that guesses is not taken for one whose classes are mixed up.

    Args:
        guesses: images by (label, class the model took them for).
        names: of all classes in label order.
    """
    usual = [_counted(order, guesses) for order in usual_orders(names)]
    best = max((o for o in usual if _holds(o, guesses)), key=lambda order: order.right, default=None)
    assigned = _assigned(guesses, len(names))
    named = next((order for order in usual if order.to == assigned.to), None)
    if named is not None:
        return best
    # a usual order explains it unless another is much better
    images = sum(guesses.values())
    if best is not None and assigned.right - best.right < _GAIN * images:
        return best
    moved = sum(a != b for a, b in enumerate(assigned.to))
    among = _bits_of_orders(len(names), moved)
    if assigned.right - _right(guesses) < _GAIN * images or not _is_modal(assigned, guesses):
        return best
    return assigned if _holds(assigned, guesses, among) else best


def confirmed(guesses: Guesses, names: Sequence[str]) -> bool:
    """Whether the model itself bears the order out that the classes are in, against every usual one."""
    if len(names) < 2 or not guesses:
        return False
    return (
        all(_surer(order, guesses, -1) >= _SURE for order in usual_orders(names))
        and _related(tuple(range(len(names))), guesses, range(len(names))) >= _SURE
    )


def _right(guesses: Guesses) -> int:
    return sum(count for (label, guess), count in guesses.items() if label == guess)


def _counted(order: Order, guesses: Guesses) -> Order:
    right = sum(count for (label, guess), count in guesses.items() if order.to[label] == guess)
    return Order(order.name, order.to, right)


def _bits_of_orders(count: int, moved: int) -> float:
    """Return how many orders of so many classes move so many of them, as a binary logarithm (derangements: a share of 1/e)."""
    return max(0.0, (math.lgamma(count + 1) - math.lgamma(count - moved + 1) - 1) / math.log(2))


def _is_modal(order: Order, guesses: Guesses) -> bool:
    """Whether nearly every class becomes the one that it is most taken for: labels of a model that guesses share a few."""
    most: dict[int, int] = {}
    for (label, _), count in guesses.items():
        most[label] = max(most.get(label, 0), count)
    modal = sum(guesses[label, order.to[label]] == count for label, count in most.items())
    return modal >= _MODAL * len(most)


def _assigned(guesses: Guesses, count: int) -> Order:
    """Return the one-to-one order with the most images right; a class without images stays where it is if it can."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    seen = np.zeros((count, count))
    for (label, guess), number in guesses.items():
        seen[label, guess] = number
    seen[range(count), range(count)] += 1e-3  # among equals, the order that there is
    return _counted(Order(None, tuple(linear_sum_assignment(seen, maximize=True)[1].tolist())), guesses)


def _holds(order: Order, guesses: Guesses, among: float = 0.0) -> bool:
    """Whether an order is better by more than chance, being the best of 2**`among` that were looked at."""
    moved = {label for label, to in enumerate(order.to) if label != to}
    images = sum(count for (label, _), count in guesses.items() if label in moved)
    if order.right - _right(guesses) < _GAIN * images:
        return False
    return _surer(order, guesses) >= _SURE and _related(order.to, guesses, moved) >= _SURE + among


def _surer(order: Order, guesses: Guesses, sign: int = 1) -> float:
    """Return the evidence, in bits, that an order beats the one there is or, with sign -1, that it is beaten.

    It is the sign test over the images that only one of the two has right.
    """
    theirs = ours = 0
    for (label, guess), count in guesses.items():
        if order.to[label] != label:
            theirs += count * (guess == order.to[label])
            ours += count * (guess == label)
    return _tail_bits(theirs if sign > 0 else ours, theirs + ours, 0.5)


def _related(to: Sequence[int], guesses: Guesses, labels: Collection[int]) -> float:
    """Return the evidence, in bits, against the model taking the images of these labels without regard to their class."""
    rows: Counter[int] = Counter()
    columns: Counter[int] = Counter()
    hits = 0
    for (label, guess), count in guesses.items():
        if label in labels:
            rows[label] += count
            columns[guess] += count
            hits += count * (to[label] == guess)
    images = rows.total()
    if not images:
        return 0.0
    chance = sum(count * columns[to[label]] for label, count in rows.items()) / images**2
    return _tail_bits(hits, images, min(chance, 1.0))


def _tail_bits(hits: int, of: int, chance: float) -> float:
    """Return minus the binary logarithm of the chance of so many hits or more."""
    if not hits or chance >= 1:
        return 0.0
    from scipy.stats import binom

    return max(0.0, -float(binom.logsf(hits - 1, of, max(chance, 1e-12))) / math.log(2))
