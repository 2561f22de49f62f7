"""Pictures of coloured shapes, and what can be said about them: the material of the vision base.

Every picture is 48 x 48 pixels with one to three shapes on a grainy ground. Colours, places and sizes
vary; no picture of an example project is used, and shapes stand for nothing.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Turn = dict[str, str]

SIZE = 48  # pixels of a side
FINE = 4  # drawn so many times larger, then averaged: soft edges
COLOURS = {
    "red": (205, 40, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 200),
    "yellow": (230, 205, 40),
    "orange": (240, 135, 25),
    "purple": (140, 60, 170),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "star", "bar")
GROUNDS = (
    (235, 235, 235),
    (200, 205, 210),
    (225, 215, 195),
    (190, 215, 230),
    (205, 225, 200),
    (150, 155, 160),
)
NUMBERS = ("none", "one", "two", "three")


@dataclass(frozen=True)
class Thing:
    """A shape at a place; `x`, `y` and `radius` in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        """Which ninth of the picture its centre lies in."""
        row = ("top", "middle", "bottom")[min(2, int(self.y * 3 / SIZE))]
        column = ("left", "centre", "right")[min(2, int(self.x * 3 / SIZE))]
        return f"{row} {column}"


def scene(rng: random.Random) -> list[Thing]:
    """One to three things that do not touch and differ by name."""
    count = rng.choice((1, 1, 1, 2, 2, 3))
    largest = (19.0, 10.5, 9.0)[count - 1]
    things: list[Thing] = []
    while len(things) < count:
        radius = rng.uniform(6.0, largest)
        x, y = (rng.uniform(radius, SIZE - radius) for _ in range(2))
        thing = Thing(rng.choice(SHAPES), rng.choice(list(COLOURS)), x, y, radius)
        apart = all(math.hypot(x - t.x, y - t.y) > radius + t.radius + 1 for t in things)
        if apart and all(thing.name != t.name for t in things):
            things.append(thing)
    return things


def draw(things: list[Thing], rng: random.Random) -> Image.Image:
    """The picture of some things: a ground of some colour, colours a little off, grain over it."""
    image = Image.new("RGB", (SIZE * FINE, SIZE * FINE), rng.choice(GROUNDS))
    pen = ImageDraw.Draw(image)
    for thing in things:
        red, green, blue = (max(0, min(255, value + rng.randint(-18, 18))) for value in COLOURS[thing.colour])
        _draw_one(pen, thing, (red, green, blue))
    small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64)
    grain = np.random.default_rng(rng.randrange(2**31)).normal(0, rng.choice((2, 5, 10)), small.shape)
    return Image.fromarray(np.clip(small + grain, 0, 255).astype(np.uint8))


def _draw_one(pen: ImageDraw.ImageDraw, thing: Thing, colour: tuple[int, int, int]) -> None:
    x, y, radius = thing.x * FINE, thing.y * FINE, thing.radius * FINE
    box = (x - radius, y - radius, x + radius, y + radius)
    if thing.shape == "circle":
        pen.ellipse(box, fill=colour)
    elif thing.shape == "ring":
        pen.ellipse(box, outline=colour, width=int(max(2 * FINE, radius * 0.38)))
    else:
        pen.polygon([(x + dx * radius, y + dy * radius) for dx, dy in _outline(thing.shape)], fill=colour)


def _outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape about its centre, in radii."""
    if shape == "star":
        reach = [1.0 if corner % 2 == 0 else 0.42 for corner in range(10)]
        turns = [corner * math.pi / 5 for corner in range(10)]
        return [(r * math.sin(t), -r * math.cos(t)) for r, t in zip(reach, turns, strict=True)]
    if shape == "cross":
        a, b = 0.95, 0.33
        arm = [(-b, -a), (b, -a), (b, -b)]  # the upper arm and the corner to the right one
        return [p for turned in range(4) for p in (_quarter(x, y, turned) for x, y in arm)]
    return {
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "triangle": [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)],
        "diamond": [(0.0, -1.0), (0.75, 0.0), (0.0, 1.0), (-0.75, 0.0)],
        "bar": [(-1.0, -0.33), (1.0, -0.33), (1.0, 0.33), (-1.0, 0.33)],
    }[shape]


def _quarter(x: float, y: float, times: int) -> tuple[float, float]:
    """A point turned by so many right angles."""
    for _ in range(times):
        x, y = -y, x
    return x, y


def patch_labels(things: list[Thing], patch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What each patch shows: 1 + index of shape and of colour, 0 for ground; both `[patches]`, row by row.

    A patch shows the thing whose bounding box covers the most of it, if that is a quarter or more.
    """
    side = SIZE // patch
    shapes, colours = np.zeros((side, side), np.int64), np.zeros((side, side), np.int64)
    covered = np.full((side, side), 0.25 * patch * patch)
    edges = np.arange(side) * patch
    for thing in things:
        width = np.clip(_overlap(thing.x, thing.radius, edges, patch), 0, None)
        height = np.clip(_overlap(thing.y, thing.radius, edges, patch), 0, None)
        area = height[:, None] * width[None, :]
        more = area > covered
        covered[more] = area[more]
        shapes[more] = 1 + SHAPES.index(thing.shape)
        colours[more] = 1 + list(COLOURS).index(thing.colour)
    return shapes.ravel(), colours.ravel()


def _overlap(middle: float, radius: float, edges: NDArray[np.int64], patch: int) -> NDArray[np.float64]:
    return np.minimum(middle + radius, edges + patch) - np.maximum(middle - radius, edges)


def questions(things: list[Thing], rng: random.Random) -> list[tuple[str, str]]:
    """What may be asked about a picture, with the answers; each has exactly one."""
    named = _listed([t.name for t in sorted(things, key=lambda t: (t.y, t.x))])
    asked = [
        (rng.choice(("Describe the picture.", "What is in the picture?", "What does it show?")), named),
        (rng.choice(("How many shapes are there?", "Count the shapes.")), NUMBERS[len(things)]),
    ]
    for thing in things:
        alike = [t for t in things if t.shape == thing.shape]
        same = [t for t in things if t.colour == thing.colour]
        if len(alike) == 1:
            asked.append((f"What colour is the {thing.shape}?", thing.colour))
        if len(same) == 1:
            asked.append((f"Which shape is {thing.colour}?", thing.shape))
        asked.append((f"Where is the {thing.name}?", thing.place))
        if all(t is thing or t.place != thing.place for t in things):
            asked.append((f"What is at the {thing.place}?", thing.name))
    if len(things) == 1:
        asked += [("What colour is it?", things[0].colour), ("Which shape is it?", things[0].shape)]
        asked += [_legend(things[0], rng)] * 2
    return asked


def _legend(thing: Thing, rng: random.Random) -> tuple[str, str]:
    """A table in the question gives names of shapes other meanings, new each time."""
    others = [Thing(rng.choice(SHAPES), rng.choice(list(COLOURS)), 0, 0, 1) for _ in range(rng.randint(1, 2))]
    names = sorted({thing.name, *(other.name for other in others)}, key=lambda _: rng.random())
    codes = [f"{rng.choice('ABCDEFGHKLMNPRSTUVWXYZ')}{rng.randrange(10, 100)}" for _ in names]
    lines = "\n".join(f"{name}: {code}" for name, code in zip(names, codes, strict=True))
    return f"Which code is it?\n{lines}", codes[names.index(thing.name)]


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def conversation(things: list[Thing], rng: random.Random, turns: int) -> list[Turn]:
    """Some questions about a picture one after the other; the picture belongs to the first of them."""
    asked = questions(things, rng)
    rng.shuffle(asked)
    out: list[Turn] = []
    for question, answer in asked[:turns]:
        out += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return out
