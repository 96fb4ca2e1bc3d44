"""Draws the five kinds of objects of the embedded data set, and the textured surfaces below them.

Objects are drawn in unit coordinates, x to the right and y down, inside the circle of radius 1, so that any rotation
fits the canvas. Colors are BGR. All randomness comes from the generator passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import cv2
import numpy as np

Color = tuple[float, float, float]
Point = tuple[float, float]

CANVAS_SIZE = 128
"""Side in pixels of the square that an object is drawn on; larger than any object in a picture, so objects shrink."""
_SUBPIXEL_BITS = 4
_ANGLES = np.arange(48) * (np.pi / 24)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


class Pen:
    """Draws on a transparent square canvas in unit coordinates.

    ``pixels`` is uint8 (CANVAS_SIZE, CANVAS_SIZE, 4), BGR and alpha. Anti-aliased drawing over transparent black
    leaves colors multiplied by alpha, which is the form that compositing needs.
    """

    def __init__(self) -> None:
        self.pixels = np.zeros((CANVAS_SIZE, CANVAS_SIZE, 4), np.uint8)

    def polygon(self, points: Sequence[Point] | np.ndarray, color: Color) -> None:
        """Draws a filled polygon."""
        cv2.fillPoly(self.pixels, [self._fixed(points)], (*color, 255), cv2.LINE_AA, _SUBPIXEL_BITS)

    def line(self, points: Sequence[Point], color: Color, width: float) -> None:
        """Draws an open line of the given width in units."""
        self._polyline(points, color, width, is_closed=False)

    def _polyline(self, points: Sequence[Point] | np.ndarray, color: Color, width: float, is_closed: bool) -> None:
        thickness = max(1, round(width * CANVAS_SIZE / 2))
        cv2.polylines(
            self.pixels, [self._fixed(points)], is_closed, (*color, 255), thickness, cv2.LINE_AA, _SUBPIXEL_BITS
        )

    def ellipse(self, center: Point, radii: Point, color: Color) -> None:
        """Draws a filled ellipse with its axes along x and y."""
        self.polygon(ellipse_points(center, radii), color)

    def ring(self, center: Point, radii: Point, color: Color, width: float) -> None:
        """Draws the outline of an ellipse; pixels inside stay unchanged."""
        self._polyline(ellipse_points(center, radii), color, width, is_closed=True)

    def text(self, text: str, height: float, color: Color) -> None:
        """Draws bold text around the center, of the given height in units."""
        scale = height * CANVAS_SIZE / 2 / 21  # Hershey capitals are 21 pixels high at scale 1
        (width_px, height_px), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 4)
        origin = ((CANVAS_SIZE - width_px) // 2, (CANVAS_SIZE + height_px) // 2)
        cv2.putText(self.pixels, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (*color, 255), 4, cv2.LINE_AA)

    def shade(self, brightness: np.ndarray) -> None:
        """Multiplies the colors by a field that broadcasts to (CANVAS_SIZE, CANVAS_SIZE); alpha stays."""
        field = np.broadcast_to(brightness, (CANVAS_SIZE, CANVAS_SIZE)).astype(np.float32)
        colors = cv2.multiply(self.pixels[..., :3], cv2.merge([field] * 3), dtype=cv2.CV_8U)
        # A color above its alpha would make soft edges too bright.
        self.pixels[..., :3] = np.minimum(colors, self.pixels[..., 3:])

    @staticmethod
    def _fixed(points: Sequence[Point] | np.ndarray) -> np.ndarray:
        pixels = (np.asarray(points, np.float64) + 1) * (CANVAS_SIZE / 2) - 0.5
        return np.round(pixels * (1 << _SUBPIXEL_BITS)).astype(np.int32)


def ellipse_points(center: Point, radii: Point) -> np.ndarray:
    """Returns points around an ellipse, (48, 2)."""
    return np.add(center, _CIRCLE * radii)


def random_color(
    generator: np.random.Generator,
    hue: tuple[float, float] = (0, 180),
    saturation: tuple[float, float] = (90, 255),
    value: tuple[float, float] = (90, 245),
) -> Color:
    """Draws a random color from ranges of OpenCV's hue (0 to 180), saturation and value (0 to 255)."""
    hsv = [generator.uniform(*hue) % 180, generator.uniform(*saturation), generator.uniform(*value)]
    blue, green, red = cv2.cvtColor(np.array([[hsv]]).astype(np.uint8), cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return blue, green, red


def mixed(color: Color, other: Color, share: float) -> Color:
    """Mixes the given share of ``other`` into ``color``."""
    blue, green, red = (a + (b - a) * share for a, b in zip(color, other, strict=True))
    return blue, green, red


BLACK: Color = (20, 20, 20)
WHITE: Color = (245, 245, 245)
_CANVAS_X = (np.arange(CANVAS_SIZE, dtype=np.float32) + 0.5) * (2 / CANVAS_SIZE) - 1


def draw_mug(pen: Pen, generator: np.random.Generator) -> None:
    """Draws a mug of pale ceramic with a handle, seen slightly from above."""
    color = random_color(generator, saturation=(5, 75), value=(185, 245))
    pen.ring((0.42, 0.06), (0.34, 0.34), mixed(color, BLACK, 0.25), 0.17)
    bottom = generator.uniform(0.40, 0.52)
    lower_edge = [(-0.1 + bottom * np.cos(a), 0.66 + 0.14 * np.sin(a)) for a in np.linspace(0, np.pi, 16)]
    pen.polygon([(-0.64, -0.55), (0.44, -0.55), *lower_edge], color)
    if generator.random() < 0.6:
        accent = random_color(generator)
        if generator.random() < 0.5:
            pen.line([(-0.54, 0.1), (-0.1, 0.2), (0.34, 0.1)], accent, generator.uniform(0.12, 0.3))
        else:
            pen.ellipse((-0.1, 0.1), (0.24, 0.24), accent)
    # A round wall is brightest toward the light and darker to both sides.
    light = generator.uniform(-0.4, 0.2)
    pen.shade(1.12 - 0.55 * np.square(_CANVAS_X - light)[None, :])
    pen.ellipse((-0.1, -0.56), (0.54, 0.17), mixed(color, WHITE, 0.55))
    pen.ellipse((-0.1, -0.55), (0.45, 0.115), random_color(generator, (5, 20), (60, 200), (30, 90)))


def draw_fish(pen: Pen, generator: np.random.Generator) -> None:
    """Draws a green to blue fish with tail, fins, eye and sometimes stripes."""
    color = random_color(generator, (45, 105), (110, 240), (120, 240))
    fin = mixed(color, random_color(generator), 0.4)
    height = generator.uniform(0.30, 0.44)
    spread = generator.uniform(0.30, 0.42)
    pen.polygon([(0.38, 0), (0.88, -spread), (0.74, 0), (0.88, spread)], fin)
    pen.polygon([(-0.32, -height * 0.8), (0.05, -height - 0.25), (0.36, -height * 0.6)], fin)
    pen.polygon([(0.0, height * 0.85), (0.25, height + 0.18), (0.28, height * 0.7)], fin)
    pen.ellipse((-0.12, 0), (0.70, height), color)
    if generator.random() < 0.6:
        stripe = mixed(color, WHITE if generator.random() < 0.5 else BLACK, 0.6)
        for x in (-0.28, 0.0, 0.28):
            reach = height * 0.88 * float(np.sqrt(1 - ((x + 0.12) / 0.70) ** 2))
            pen.line([(x, -reach), (x + 0.07, 0), (x, reach)], stripe, 0.09)
    pen.shade(1.15 - 0.4 * (_CANVAS_X[:, None] + 0.4))
    pen.polygon([(-0.12, 0.05), (0.16, 0.16), (0.12, -0.06)], fin)
    pen.line([(-0.80, 0.06), (-0.66, 0.10)], mixed(color, BLACK, 0.7), 0.04)
    pen.ellipse((-0.56, -0.08), (0.095, 0.095), WHITE)
    pen.ellipse((-0.57, -0.08), (0.05, 0.05), BLACK)


def draw_star(pen: Pen, generator: np.random.Generator) -> None:
    """Draws a yellow to orange five-pointed star, flat with a rim or cut in facets."""
    color = random_color(generator, (10, 30), (170, 255), (170, 250))
    inner = generator.uniform(0.36, 0.46)
    angles = np.arange(10) * (np.pi / 5) - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 0.92, inner)
    tips = [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)]
    pen.polygon(tips, color)
    if generator.random() < 0.5:
        for i in range(0, 10, 2):
            pen.polygon([(0, 0), tips[i], tips[i + 1]], mixed(color, BLACK, 0.4))
            pen.polygon([(0, 0), tips[i], tips[i - 1]], mixed(color, WHITE, 0.25))
    else:
        core = [(0.72 * x, 0.72 * y) for x, y in tips]
        pen.polygon(core, mixed(color, random_color(generator), 0.5))


def draw_apple(pen: Pen, generator: np.random.Generator) -> None:
    """Draws an apple with a stalk, a leaf and a highlight."""
    color = random_color(generator, (168, 182), (170, 250), (120, 215))
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    # A cardioid's dent at the top, blended with a circle, is an apple's outline.
    reach = 0.74 - 0.20 * np.exp(-8 * np.square(np.sin((angles + np.pi / 2) / 2)))
    wide = generator.uniform(0.95, 1.12)
    pen.polygon(np.stack([wide * reach * np.cos(angles), 0.12 + reach * np.sin(angles)], axis=1), color)
    blush = random_color(generator, (12, 40), (120, 220), (150, 230))
    pen.ellipse((generator.uniform(-0.3, 0.3), 0.25), (0.34, 0.42), mixed(color, blush, generator.uniform(0.1, 0.6)))
    pen.shade(1.1 - 0.35 * (np.square(_CANVAS_X)[None, :] + np.square(_CANVAS_X)[:, None]))
    pen.line([(0.0, -0.36), (0.03, -0.6), (0.12, -0.85)], random_color(generator, (8, 16), (90, 180), (40, 90)), 0.09)
    leaf = random_color(generator, (38, 62), (120, 230), (90, 190))
    pen.polygon([(0.06, -0.58), (0.24, -0.84), (0.6, -0.86), (0.4, -0.6)], leaf)
    pen.ellipse((-0.32, -0.16), (0.12, 0.15), mixed(color, WHITE, 0.75))


def draw_sign(pen: Pen, generator: np.random.Generator) -> None:
    """Draws a round traffic sign: a speed limit, no entry, a direction to follow, or no parking."""
    red = random_color(generator, (172, 184), (190, 255), (150, 225))
    blue = random_color(generator, (102, 114), (180, 250), (130, 215))
    kind = int(generator.integers(4))
    pen.ellipse((0, 0), (0.93, 0.93), mixed(WHITE, BLACK, generator.uniform(0, 0.3)))
    if kind == 0:
        pen.ellipse((0, 0), (0.88, 0.88), red)
        pen.ellipse((0, 0), (0.64, 0.64), WHITE)
        pen.text(str(generator.choice(["30", "50", "60", "80"])), 0.55, BLACK)
    elif kind == 1:
        pen.ellipse((0, 0), (0.88, 0.88), red)
        pen.polygon([(-0.62, -0.17), (0.62, -0.17), (0.62, 0.17), (-0.62, 0.17)], WHITE)
    elif kind == 2:
        pen.ellipse((0, 0), (0.88, 0.88), blue)
        side = 1 if generator.random() < 0.5 else -1
        arrow = [(-0.6, -0.13), (0.1, -0.13), (0.1, -0.42), (0.64, 0), (0.1, 0.42), (0.1, 0.13), (-0.6, 0.13)]
        pen.polygon([(side * x, y) for x, y in arrow], WHITE)
    else:
        pen.ellipse((0, 0), (0.88, 0.88), red)
        pen.ellipse((0, 0), (0.66, 0.66), blue)
        pen.line([(-0.5, -0.5), (0.5, 0.5)], red, 0.2)


SHAPES: Mapping[str, Callable[[Pen, np.random.Generator], None]] = MappingProxyType(
    {"mug": draw_mug, "fish": draw_fish, "star": draw_star, "apple": draw_apple, "sign": draw_sign}
)
"""Class name to the function that draws it; the order is the class index."""


def _octaves(generator: np.random.Generator, size: int, coarsest: int, count: int) -> np.ndarray:
    """Draws smooth noise (size, size) around 0, standard deviation near 1, with ``count`` doublings of ``coarsest``."""
    total = np.zeros((size, size), np.float32)
    for octave in range(count):
        cells = min(size, coarsest << octave)
        noise = generator.standard_normal((cells, cells), np.float32)
        total += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC) * 0.6**octave
    return total


def _wood(generator: np.random.Generator, size: int) -> np.ndarray:
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size
    bend = cv2.resize(generator.standard_normal((3, 2)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    grain = np.sin((columns * generator.uniform(4, 9) + bend * 0.35) * 2 * np.pi)
    planks = -2.0 * ((rows * int(generator.integers(2, 5))) % 1.0 < 0.03).astype(np.float32)
    return grain + planks + 0.35 * _octaves(generator, size, 24, 2)


def _cloth(generator: np.random.Generator, size: int) -> np.ndarray:
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    pitch = generator.uniform(14, 44)
    checks = (columns % pitch < pitch / 2).astype(np.float32) + (rows % pitch < pitch / 2).astype(np.float32)
    return checks + 0.4 * _octaves(generator, size, 64, 2)


def _pebbles(generator: np.random.Generator, size: int) -> np.ndarray:
    seeds = np.full((size, size), 255, np.uint8)
    count = int(generator.integers(60, 220))
    seeds[generator.integers(0, size, count), generator.integers(0, size, count)] = 0
    distance, owner = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    shade = generator.uniform(-1, 1, count + 1).astype(np.float32)
    return shade[np.minimum(owner, count)] - distance / distance.max() * 2 + 0.3 * _octaves(generator, size, 48, 2)


def _plaster(generator: np.random.Generator, size: int) -> np.ndarray:
    return _octaves(generator, size, int(generator.integers(2, 9)), 5)


def draw_surface(generator: np.random.Generator, size: int) -> np.ndarray:
    """Draws a background in two colors: wood, checked cloth, pebbles or plaster. Returns uint8 BGR (size, size, 3)."""
    textures = (_wood, _cloth, _pebbles, _plaster)
    field = textures[int(generator.integers(len(textures)))](generator, size)
    low, high = np.percentile(field, (1, 99)).tolist()
    field = np.clip((field - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    first = random_color(generator, saturation=(10, 150), value=(40, 200))
    second = mixed(first, random_color(generator, saturation=(10, 150)), generator.uniform(0.5, 0.9))
    layers = [start + (end - start) * field for start, end in zip(first, second, strict=True)]
    return cv2.merge(layers).astype(np.uint8)


def draw_clutter(generator: np.random.Generator, surface: np.ndarray) -> None:
    """Draws shapes that belong to no class onto ``surface`` in place: scraps, twigs, rings, coins, letters."""
    size = surface.shape[0]
    for _ in range(int(generator.integers(3, 10))):
        color = random_color(generator, saturation=(20, 230), value=(40, 240))
        center = generator.uniform(0, size, 2)
        radius = generator.uniform(0.02, 0.13) * size
        position = (int(center[0]), int(center[1]))
        width = int(generator.integers(1, 5))
        kind = int(generator.integers(5))
        if kind == 0:
            corners = center + generator.uniform(-1, 1, (int(generator.integers(3, 6)), 2)) * radius
            cv2.fillPoly(surface, [corners.astype(np.int32)], color, cv2.LINE_AA)
        elif kind == 1:
            steps = np.cumsum(generator.uniform(-1, 1, (5, 2)) * radius * 1.5, axis=0)
            cv2.polylines(surface, [(center + steps).astype(np.int32)], False, color, width, cv2.LINE_AA)
        elif kind == 2:
            cv2.circle(surface, position, int(radius), color, width, cv2.LINE_AA)
        elif kind == 3:
            axes = (int(radius), int(radius * generator.uniform(0.4, 1)))
            cv2.ellipse(surface, position, axes, generator.uniform(0, 180), 0, 360, color, -1, cv2.LINE_AA)
        else:
            letter = chr(ord("A") + int(generator.integers(26)))
            cv2.putText(surface, letter, position, cv2.FONT_HERSHEY_SIMPLEX, radius / 12, color, width, cv2.LINE_AA)
