"""Draws a Fruits-360-like data set offline: the embedded default of the demo and the tests.

First stop of the flow where no real pictures are at hand: sources.py lists its frames as records and draws them on
demand. Fruit come in families of three varieties. Varieties of a family share outline and mean colour and differ in the
pattern of their skin, which turns with the fruit: a model that only sees colour or fixed pixels cannot tell them apart.
Everything is a function of (class name, rotation prefix, frame, seed): any process draws the same bytes.
"""

import math
import random
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fruitcnn.synthetic_skin import HEIGHT_PX, WIDTH_PX, Field, digest, texture

VERSION = 1  # part of a synthetic source's fingerprint: raise it whenever a picture changes
DEFAULT_NUM_CLASSES = 12
DEFAULT_NUM_FRAMES = 100
PREFIXES = ("", "r_", "r2_")  # three rotation axes, named as in Fruits-360
NOMINAL_JPEG_BYTES = 3_000  # what a 100 px frame takes on average
NUM_VARIETIES = 3
JPEG_QUALITY = 90
_RADIUS = 0.86  # of the largest extent of every body, in half pictures
_OUTSIDE = -9.0

Matrix = npt.NDArray[Any]  # float32; numpy types the product of two as float64


class Family(NamedTuple):
    """What the varieties of one fruit share: mean skin colour (RGB, 0-255) and body, a union of ellipsoids.

    Each ellipsoid is (centre x, y, z, radius x, y, z); y points down. Bodies are drawn at the same largest extent.
    """

    colour: tuple[int, int, int]
    body: tuple[tuple[float, ...], ...]
    stem: float = 0.2


_ROUND = ((0, 0, 0, 0.72, 0.70, 0.72),)
_FLAT = ((0, 0, 0, 0.80, 0.62, 0.80),)
_OVAL = ((0, 0, 0, 0.60, 0.78, 0.60),)
_LONG = ((0, 0, 0, 0.42, 0.86, 0.42),)
_PEAR = ((0, 0.22, 0, 0.60, 0.56, 0.60), (0, -0.28, 0, 0.40, 0.52, 0.40), (0, -0.02, 0, 0.50, 0.52, 0.50))
_LEMON = ((0, 0, 0, 0.58, 0.66, 0.58), (0, -0.56, 0, 0.22, 0.28, 0.22), (0, 0.58, 0, 0.22, 0.26, 0.22))
_HEART = ((-0.16, -0.06, 0, 0.54, 0.56, 0.5), (0.16, -0.06, 0, 0.54, 0.56, 0.5), (0, 0.2, 0, 0.44, 0.56, 0.44))
_BENT = tuple(
    (
        0.8 * math.cos(a) - 0.6,
        0.8 * math.sin(a),
        0.0,
        *(3 * [0.21 - 0.12 * a**4]),
    )
    for a in (-0.9, -0.72, -0.54, -0.36, -0.18, 0.0, 0.18, 0.36, 0.54, 0.72, 0.9)
)
_FLUTED = tuple((0.3 * math.cos(a), 0, 0.3 * math.sin(a), 0.44, 0.66, 0.44) for a in (0.3, 1.56, 2.81, 4.07, 5.33))

FAMILIES: dict[str, Family] = {
    "Apple Red": Family((176, 48, 44), _ROUND),
    "Pear": Family((172, 176, 74), _PEAR),
    "Orange": Family((224, 132, 36), _ROUND, stem=0.0),
    "Plum": Family((92, 48, 92), _OVAL),
    "Lemon": Family((222, 196, 56), _LEMON, stem=0.0),
    "Peach": Family((222, 140, 96), _ROUND, stem=0.0),
    "Tomato": Family((198, 60, 38), _FLAT),
    "Apple Golden": Family((204, 184, 84), _ROUND),
    "Kiwi": Family((128, 100, 62), _OVAL, stem=0.0),
    "Banana": Family((220, 190, 72), _BENT, stem=0.0),
    "Pepper Green": Family((74, 122, 50), _FLUTED, stem=0.3),
    "Cherry": Family((136, 28, 44), _HEART, stem=0.5),
    "Mango": Family((206, 130, 60), _PEAR, stem=0.1),
    "Lime": Family((116, 160, 56), _LEMON, stem=0.0),
    "Eggplant": Family((70, 44, 78), _LONG, stem=0.3),
    "Apple Green": Family((140, 176, 70), _ROUND),
    "Cucumber": Family((80, 128, 62), _LONG, stem=0.0),
    "Apricot": Family((226, 152, 72), _ROUND, stem=0.0),
    "Potato": Family((176, 140, 96), _OVAL, stem=0.0),
    "Pepper Red": Family((184, 44, 40), _FLUTED, stem=0.3),
    "Fig": Family((104, 66, 76), _PEAR, stem=0.1),
    "Melon": Family((196, 180, 110), _OVAL, stem=0.1),
    "Strawberry": Family((200, 52, 56), _HEART, stem=0.2),
    "Avocado": Family((72, 84, 48), _PEAR, stem=0.0),
}


def class_names(num_classes: int) -> list[str]:
    """The first num_classes names ("Apple Red 1", ...), sorted; a longer list holds every shorter one."""
    families = list(FAMILIES)
    names = []
    for index in range(num_classes):
        lap, place = divmod(index, NUM_VARIETIES * len(families))
        family, variety = divmod(place, NUM_VARIETIES)
        names.append(f"{families[family]} {NUM_VARIETIES * lap + variety + 1}")
    return sorted(names)


def frame_name(group_prefix: str, frame: int) -> str:
    """File name of a frame as Fruits-360 names it: r_17_100.jpg."""
    return f"{group_prefix}{frame}_100.jpg"


def frame_split(frame: int) -> Literal["train", "test"]:
    """Every fourth frame of a rotation is a Test picture: Test lies between Training frames, as in Fruits-360."""
    return "test" if frame % 4 == 2 else "train"


def frames_of(num_frames: int) -> list[tuple[str, int, int]]:
    """(prefix, frame, frames in that rotation) of the num_frames pictures of one class, spread over its rotations."""
    counts = [len(range(start, num_frames, len(PREFIXES))) for start in range(len(PREFIXES))]
    return [(prefix, frame, count) for prefix, count in zip(PREFIXES, counts, strict=True) for frame in range(count)]


def frame_jpeg(class_name: str, group_prefix: str, frame: int, num_frames: int, seed: int) -> bytes:
    """draw_frame as the bytes of a 100x100 px JPEG."""
    pixels = draw_frame(class_name, group_prefix, frame, num_frames, seed)
    encoded, data = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert encoded
    return data.tobytes()


def draw_frame(
    class_name: str, group_prefix: str, frame: int, num_frames: int, seed: int, size_px: int = 100
) -> npt.NDArray[np.uint8]:
    """One frame of a fruit that turns once around in num_frames frames.

    Returns (size_px, size_px, 3) uint8 RGB on white. Position, size, tilt and brightness jitter from frame to frame.
    """
    family_name, variety = _variety(class_name)
    family = FAMILIES[family_name]
    jitter = random.Random(f"{seed}/{class_name}/{group_prefix}/{frame}")
    turn = _turn(class_name, group_prefix, 2 * math.pi * frame / num_frames, seed, jitter)
    scale = jitter.uniform(0.88, 1.04)
    shift = (jitter.uniform(-0.06, 0.06), jitter.uniform(-0.06, 0.06))
    x, y = (axis / np.float32(scale) - np.float32(by) for axis, by in zip(_grid(size_px), shift, strict=True))
    depth = _depth(_fitted(family_name), turn, x, y)
    inside = (depth > _OUTSIDE).astype(np.float32)
    skin = _skin(texture(family_name, variety, family.colour, seed), turn, x, y, depth)
    light = _light(depth, size_px * scale / 2, jitter)
    fruit = cv2.multiply(skin, cv2.merge((light, light, light)), dtype=cv2.CV_8U)
    cover = cv2.GaussianBlur(inside, (3, 3), 0)
    picture = cv2.blendLinear(fruit, _background(cover), cover, 1 - cover)
    _draw_stem(picture, family_name, turn, scale, shift)
    return picture


@lru_cache(maxsize=1024)
def _variety(class_name: str) -> tuple[str, int]:
    """Family and number: "Pear 2" -> ("Pear", 2). Any other name is given one of the families and a number."""
    name, _, number = class_name.rpartition(" ")
    if number.isdigit() and name in FAMILIES:
        return name, int(number)
    drawn = digest("variety", class_name)
    return list(FAMILIES)[drawn % len(FAMILIES)], drawn >> 8


@lru_cache(maxsize=4)
def _grid(size_px: int) -> tuple[Field, Field]:
    line = (np.arange(size_px, dtype=np.float32) + 0.5) * np.float32(2 / size_px) - 1
    x, y = np.meshgrid(line, line)
    return x, y


@lru_cache(maxsize=64)
def _fitted(family_name: str) -> npt.NDArray[np.float32]:
    """The body's ellipsoids, (N, 6), scaled to the common extent."""
    body = np.array(FAMILIES[family_name].body)
    extent = max(math.hypot(cx, cy, cz) + max(radii) for cx, cy, cz, *radii in body)
    return (body * (_RADIUS / extent)).astype(np.float32)


@lru_cache(maxsize=4096)
def _pose(class_name: str, prefix: str, seed: int) -> tuple[Matrix, Matrix]:
    """How a fruit was put on the turntable: its own orientation, and the lean of the table's axis."""
    pose = random.Random(f"pose/{seed}/{class_name}/{prefix}")
    lean = _about("z", pose.uniform(-0.3, 0.3)) @ _about("x", pose.uniform(-0.5, 0.5))
    return lean, _about("y", pose.uniform(0, 2 * math.pi))


def _turn(class_name: str, prefix: str, angle: float, seed: int, jitter: random.Random) -> Matrix:
    """Object -> view, (3, 3): the fruit's pose, the turn about the rotation's own axis, then a small in-plane tilt."""
    lean, own = _pose(class_name, prefix, seed)
    axis = {"": "y", "r_": "x", "r2_": "z"}.get(prefix, "y")
    return _about("z", jitter.gauss(0, 0.12)) @ lean @ _about(axis, angle + jitter.gauss(0, 0.05)) @ own


def _about(axis: str, angle: float) -> Matrix:
    c, s = math.cos(angle), math.sin(angle)
    rows = {"x": ((1, 0, 0), (0, c, -s), (0, s, c)), "y": ((c, 0, s), (0, 1, 0), (-s, 0, c))}
    return np.array(rows.get(axis, ((c, -s, 0), (s, c, 0), (0, 0, 1))), np.float32)


def _depth(body: npt.NDArray[np.float32], turn: Matrix, x: Field, y: Field) -> Field:
    """Height of the visible surface over the picture plane, (H, W); _OUTSIDE beside the fruit."""
    depth = np.full(x.shape, _OUTSIDE, np.float32)
    for ellipsoid in body:
        centre = turn @ ellipsoid[:3]
        q = (turn / ellipsoid[3:] ** 2) @ turn.T  # p' q p = 1 on the surface
        u, v = x - centre[0], y - centre[1]
        b = q[0, 2] * u + q[1, 2] * v
        root = b * b - q[2, 2] * (u * (q[0, 0] * u + (2 * q[0, 1]) * v) + q[1, 1] * v * v - 1)
        hit = root > 0
        np.sqrt(root, out=root, where=hit)
        np.maximum(depth, (root - b) / q[2, 2] + centre[2], out=depth, where=hit)
    return depth


def _skin(skin: Field, turn: Matrix, x: Field, y: Field, depth: Field) -> Field:
    """Skin colour under every pixel, (H, W, 3): the surface point turned back into the fruit's own coordinates."""
    ox, oy, oz = (turn[0, i] * x + turn[1, i] * y + turn[2, i] * depth for i in range(3))
    across, longitude = cv2.cartToPolar(ox, oz)
    _, latitude = cv2.cartToPolar(oy, across)  # 0 .. pi: the angle from the lower end
    map_x = longitude * np.float32(WIDTH_PX / (2 * math.pi))
    map_y = latitude * np.float32((HEIGHT_PX - 1) / math.pi)
    return cv2.remap(skin, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _light(depth: Field, px_per_unit: float, jitter: random.Random) -> Field:
    """Brightness factor, (H, W): light from the upper left on normals taken from the depth map, and a highlight."""
    height = cv2.GaussianBlur(np.maximum(depth, np.float32(-0.5)), (5, 5), 0)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=px_per_unit / 8)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=px_per_unit / 8)
    left, up, bright = jitter.uniform(0.1, 0.4), jitter.uniform(0.3, 0.6), jitter.uniform(0.85, 1.1)
    steep = cv2.sqrt(slope_x * slope_x + slope_y * slope_y + np.float32(1))
    facing = np.maximum((slope_x * np.float32(left) + slope_y * np.float32(up) + np.float32(0.85)) / steep, 0)
    square = facing * facing
    glint = square * square
    return (facing * np.float32(0.55) + glint * glint * np.float32(0.12) + np.float32(0.5)) * np.float32(bright)


def _background(cover: Field) -> npt.NDArray[np.uint8]:
    """White with a soft shadow below the fruit, (H, W, 3)."""
    side_px = cover.shape[0] // 8 * 2 + 1
    shift = (side_px // 4, side_px // 4)
    once = cv2.blur(cover, (side_px, side_px), anchor=shift)
    soft = cv2.blur(once, (side_px, side_px))
    white = (np.float32(255) - np.float32(36) * soft).astype(np.uint8)
    return cv2.merge((white, white, white))


def _draw_stem(
    picture: npt.NDArray[np.uint8], family_name: str, turn: Matrix, scale: float, shift: tuple[float, float]
) -> None:
    """The stem at the upper end of the body, where that end faces the camera or stands out at the rim."""
    length = FAMILIES[family_name].stem
    if not length:
        return
    body = _fitted(family_name)
    top = float((body[:, 1] - body[:, 4]).min())
    ends = [turn @ np.array(point, np.float32) for point in ((0, 0.96 * top, 0), (0.04, 0.96 * top - length, 0))]
    if ends[1][2] < -0.25:
        return
    half_px = picture.shape[0] / 2
    root, tip = ([round(half_px * (1 + scale * (end[i] + shift[i]))) for i in (0, 1)] for end in ends)
    cv2.line(picture, root, tip, (84, 66, 40), max(1, round(0.07 * half_px)), cv2.LINE_AA)
