"""Draws a Fruits-360-like data set offline: the embedded default of the demo and the tests.

First stop of the flow where no real pictures are at hand: sources.py lists its frames as records and draws them on
demand. Fruit come in families of three varieties. Varieties of a family share outline and mean colour and differ in the
pattern of their skin, which turns with the fruit: a model that only sees colour or fixed pixels cannot tell them apart.
Everything is a function of (class name, rotation prefix, frame, seed): any process draws the same bytes.
"""

import hashlib
import math
import random
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

VERSION = 1  # part of a synthetic source's fingerprint: raise it whenever a picture changes
DEFAULT_NUM_CLASSES = 12
DEFAULT_NUM_FRAMES = 60
PREFIXES = ("", "r_", "r2_")  # three rotation axes, named as in Fruits-360
NOMINAL_JPEG_BYTES = 3_000  # what a 100 px frame takes on average
NUM_VARIETIES = 3
JPEG_QUALITY = 90
TEXTURE_HEIGHT_PX, TEXTURE_WIDTH_PX = 96, 192

FloatImage = npt.NDArray[np.float32]


class Family(NamedTuple):
    """What the varieties of one fruit share: mean skin colour (RGB, 0-255) and body, a union of ellipsoids.

    Each ellipsoid is (centre x, y, z, radius x, y, z) in units of half a picture; y points down.
    """

    colour: tuple[int, int, int]
    body: tuple[tuple[float, float, float, float, float, float], ...]
    stem: float = 0.2


_ROUND = ((0, 0, 0, 0.72, 0.70, 0.72),)
_FLAT = ((0, 0, 0, 0.80, 0.62, 0.80),)
_OVAL = ((0, 0, 0, 0.60, 0.78, 0.60),)
_LONG = ((0, 0, 0, 0.42, 0.86, 0.42),)
_PEAR = ((0, 0.22, 0, 0.60, 0.56, 0.60), (0, -0.28, 0, 0.40, 0.52, 0.40), (0, -0.02, 0, 0.50, 0.52, 0.50))
_LEMON = ((0, 0, 0, 0.58, 0.66, 0.58), (0, -0.56, 0, 0.22, 0.28, 0.22), (0, 0.58, 0, 0.22, 0.26, 0.22))
_HEART = ((-0.16, -0.06, 0, 0.54, 0.56, 0.5), (0.16, -0.06, 0, 0.54, 0.56, 0.5), (0, 0.2, 0, 0.44, 0.56, 0.44))
_BENT = tuple(
    (0.62 * math.cos(a) - 0.36, 0.86 * math.sin(a), 0.0, 0.26, 0.34, 0.26) for a in (-1.0, -0.5, 0.0, 0.5, 1.0)
)
_FLUTED = tuple((0.3 * math.cos(a), 0, 0.3 * math.sin(a), 0.44, 0.66, 0.44) for a in (0.3, 1.56, 2.81, 4.07, 5.33))

FAMILIES: dict[str, Family] = {
    "Apple Red": Family((176, 48, 44), _ROUND),
    "Pear": Family((172, 176, 74), _PEAR),
    "Orange": Family((224, 132, 36), _ROUND, stem=0.0),
    "Plum": Family((92, 48, 92), _OVAL),
    "Lemon": Family((222, 196, 56), _LEMON, stem=0.0),
    "Peach": Family((222, 140, 96), _HEART, stem=0.0),
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


def frame_split(frame: int) -> str:
    """Every fourth frame of a rotation is a Test picture: Test lies between Training frames, as in Fruits-360."""
    return "test" if frame % 4 == 2 else "train"


def frames_of(num_frames: int) -> list[tuple[str, int, int]]:
    """(prefix, frame, frames in that rotation) of the num_frames pictures of one class, spread over its rotations."""
    counts = [len(range(start, num_frames, len(PREFIXES))) for start in range(len(PREFIXES))]
    return [
        (prefix, frame, count)
        for prefix, count in zip(PREFIXES, counts, strict=True)
        for frame in range(count)
    ]


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
    jitter = random.Random(f"{seed}/{class_name}/{group_prefix}/{frame}")
    turn = _rotation(class_name, group_prefix, 2 * math.pi * frame / num_frames, seed, jitter)
    scale = jitter.uniform(0.84, 1.0)
    x, y = _grid(size_px)
    x = (x - np.float32(jitter.uniform(-0.08, 0.08))) / np.float32(scale)
    y = (y - np.float32(jitter.uniform(-0.08, 0.08))) / np.float32(scale)
    family = _family(class_name)
    depth = _depth(family, turn, x, y)
    inside = depth > -2
    skin = _sample(_texture(class_name, seed), turn, x, y, depth)
    light = _shading(depth, inside, size_px * scale / 2, jitter)
    cover = cv2.GaussianBlur(inside.astype(np.float32), (3, 3), 0)[:, :, None]
    picture = _background(inside, size_px) * (1 - cover) + np.clip(skin * light[:, :, None], 0, 255) * cover
    canvas = np.ascontiguousarray(np.clip(picture, 0, 255).astype(np.uint8))
    _draw_stem(canvas, family, turn, scale, jitter)
    return canvas


def _digest(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big")


@lru_cache(maxsize=1024)
def _family(class_name: str) -> Family:
    name, _, variety = class_name.rpartition(" ")
    if variety.isdigit() and name in FAMILIES:
        return FAMILIES[name]
    families = list(FAMILIES.values())
    return families[_digest("family", class_name) % len(families)]


@lru_cache(maxsize=4)
def _grid(size_px: int) -> tuple[FloatImage, FloatImage]:
    line = (np.arange(size_px, dtype=np.float32) + 0.5) * (2 / size_px) - 1
    x, y = np.meshgrid(line, line)
    return x, y


def _rotation(class_name: str, prefix: str, angle: float, seed: int, jitter: random.Random) -> npt.NDArray[np.float32]:
    """Object -> view, (3, 3): the turn about the rotation's own axis, then its pose, then a small in-plane tilt."""
    pose = random.Random(f"pose/{seed}/{class_name}/{prefix}")
    axis = {"": "y", "r_": "x", "r2_": "z"}.get(prefix, "y")
    lean = _about("z", pose.uniform(-0.3, 0.3)) @ _about("x", pose.uniform(-0.5, 0.5))
    tilt = _about("z", jitter.gauss(0, 0.12))
    spin = _about(axis, angle + jitter.gauss(0, 0.05))
    return (tilt @ lean @ spin @ _about("y", pose.uniform(0, 6.28))).astype(np.float32)


def _about(axis: str, angle: float) -> npt.NDArray[np.float64]:
    c, s = math.cos(angle), math.sin(angle)
    if axis == "x":
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    if axis == "y":
        return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _depth(family: Family, turn: npt.NDArray[np.float32], x: FloatImage, y: FloatImage) -> FloatImage:
    """Height of the visible surface over the picture plane, (H, W); -9 outside the fruit."""
    depth = np.full(x.shape, -9, np.float32)
    for cx, cy, cz, rx, ry, rz in family.body:
        centre = turn @ np.array([cx, cy, cz], np.float32)
        q = (turn * np.array([rx**-2, ry**-2, rz**-2], np.float32)) @ turn.T
        u, v = x - centre[0], y - centre[1]
        b = q[0, 2] * u + q[1, 2] * v
        c = q[0, 0] * u * u + q[1, 1] * v * v + (2 * q[0, 1]) * u * v - 1
        root = b * b - q[2, 2] * c
        height = (np.sqrt(np.maximum(root, 0)) - b) / q[2, 2] + centre[2]
        np.maximum(depth, height, out=depth, where=root > 0)
    return depth


def _sample(
    texture: FloatImage, turn: npt.NDArray[np.float32], x: FloatImage, y: FloatImage, depth: FloatImage
) -> FloatImage:
    """Skin colour under every pixel, (H, W, 3): the surface point turned back into the fruit's own coordinates."""
    ox, oy, oz = (turn[0, i] * x + turn[1, i] * y + turn[2, i] * depth for i in range(3))
    across, longitude = cv2.cartToPolar(ox, oz)
    _, latitude = cv2.cartToPolar(oy, across)  # 0 .. pi: the angle from the lower end
    map_x = longitude * np.float32(TEXTURE_WIDTH_PX / (2 * math.pi))
    map_y = latitude * np.float32((TEXTURE_HEIGHT_PX - 1) / math.pi)
    return cv2.remap(texture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _shading(depth: FloatImage, inside: npt.NDArray[np.bool_], px_per_unit: float, jitter: random.Random) -> FloatImage:
    """Brightness factor, (H, W): light from the upper left on normals taken from the depth map, and a highlight."""
    height = cv2.GaussianBlur(np.where(inside, depth, np.float32(-0.6)), (5, 5), 0)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=px_per_unit / 8)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=px_per_unit / 8)
    left, up = jitter.uniform(0.1, 0.4), jitter.uniform(0.3, 0.6)
    facing = (slope_x * left + slope_y * up + 0.85) / np.sqrt(slope_x * slope_x + slope_y * slope_y + 1)
    facing = np.maximum(facing, 0)
    bright = jitter.uniform(0.82, 1.12)
    return bright * (0.45 + 0.62 * facing + 0.35 * facing**16)


def _background(inside: npt.NDArray[np.bool_], size_px: int) -> FloatImage:
    """White with a soft shadow below the fruit, (H, W, 1)."""
    small = cv2.resize(inside.astype(np.float32), (25, 25), interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(np.roll(small, (2, 1), axis=(0, 1)), (9, 9), 0)
    return (255 - 42 * cv2.resize(soft, (size_px, size_px)))[:, :, None]


def _draw_stem(
    canvas: npt.NDArray[np.uint8], family: Family, turn: npt.NDArray[np.float32], scale: float, jitter: random.Random
) -> None:
    """The stem at the upper end of the body, drawn where that end faces the camera or stands out at the rim."""
    if not family.stem:
        return
    top = min(cy - ry for _, cy, _, _, ry, _ in family.body)
    root, tip = turn @ np.array([0, top * 0.94, 0]), turn @ np.array([0.05, top * 0.94 - family.stem, 0])
    if tip[2] < -0.25:
        return
    half_px = canvas.shape[0] / 2

    def pixel(point: npt.NDArray[np.float64]) -> tuple[int, int]:
        return round(half_px * (1 + scale * point[0])), round(half_px * (1 + scale * point[1]))

    brown = jitter.randint(60, 90)
    thickness_px = max(1, round(canvas.shape[0] * 0.035))
    cv2.line(canvas, pixel(root), pixel(tip), (brown, brown - 14, brown // 2), thickness_px, cv2.LINE_AA)


# ---- skin ----


@lru_cache(maxsize=512)
def _texture(class_name: str, seed: int) -> FloatImage:
    """The skin of a variety, (latitude, longitude, RGB) float32, with exactly the mean colour of its family."""
    number = class_name.rpartition(" ")[2]
    variety = int(number) - 1 if number.isdigit() else _digest("variety", class_name) % 97
    family = class_name.rpartition(" ")[0] if number.isdigit() else class_name
    kind = (variety + _digest("kinds", family)) % len(_PATTERNS)
    rng = np.random.Generator(np.random.PCG64(_digest("skin", seed, class_name)))
    pattern = _PATTERNS[kind](rng).astype(np.float32)
    grain = cv2.GaussianBlur(rng.random(pattern.shape, np.float32) - 0.5, (5, 5), 0)
    blush = _noise(rng, 2)
    area = np.sin(np.linspace(0, math.pi, TEXTURE_HEIGHT_PX, dtype=np.float32))[:, None] + 1e-3
    mix = 1.0 * _centred(pattern, area) + 0.25 * _centred(blush, area) + 0.5 * grain
    colour = np.array(_family(class_name).colour, np.float32)
    accent = np.array([52, 46, 30], np.float32) * (0.7 + 0.3 * colour / 255)
    skin = np.clip(colour + mix[:, :, None] * accent, 0, 255)
    skin += colour - (skin * area[:, :, None]).sum((0, 1)) / (area.sum() * TEXTURE_WIDTH_PX)
    return np.ascontiguousarray(skin, np.float32)


def _centred(field: FloatImage, area: FloatImage) -> FloatImage:
    """The field with mean 0 and deviation 1 over the sphere."""
    weight = area / (area.sum() * field.shape[1])
    field = field - (field * weight).sum()
    return field / np.sqrt((field * field * weight).sum() + 1e-6)


def _angles() -> tuple[FloatImage, FloatImage]:
    latitude = np.linspace(0, math.pi, TEXTURE_HEIGHT_PX, dtype=np.float32)[:, None]
    longitude = np.linspace(0, 2 * math.pi, TEXTURE_WIDTH_PX, endpoint=False, dtype=np.float32)[None, :]
    return np.broadcast_arrays(latitude, longitude)  # type: ignore[return-value]


def _noise(rng: np.random.Generator, cells: int) -> FloatImage:
    """Smooth noise of about `cells` blotches from pole to pole, seamless around the fruit."""
    coarse = rng.standard_normal((cells + 2, 2 * cells)).astype(np.float32)
    coarse = np.concatenate([coarse[:, -2:], coarse, coarse[:, :2]], axis=1)
    cell_px = TEXTURE_HEIGHT_PX // cells
    wide = cv2.resize(coarse, (coarse.shape[1] * cell_px, TEXTURE_HEIGHT_PX), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(wide[:, 2 * cell_px : -2 * cell_px], (TEXTURE_WIDTH_PX, TEXTURE_HEIGHT_PX))


def _stripes(rng: np.random.Generator) -> FloatImage:
    latitude, longitude = _angles()
    return np.sin(rng.integers(7, 10) * longitude + 0.5 * np.sin(3 * latitude) + rng.uniform(0, 6))


def _bands(rng: np.random.Generator) -> FloatImage:
    latitude, longitude = _angles()
    return np.sin(rng.uniform(8, 11) * latitude + 0.5 * np.sin(2 * longitude) + rng.uniform(0, 6))


def _blotches(rng: np.random.Generator) -> FloatImage:
    return np.tanh(2 * _noise(rng, 5))


def _spots(rng: np.random.Generator) -> FloatImage:
    latitude, longitude = _angles()
    field = np.zeros(latitude.shape, np.float32)
    points = rng.standard_normal((26, 3))
    for px, py, pz in points / np.linalg.norm(points, axis=1, keepdims=True):
        near = np.sin(latitude) * (px * np.cos(longitude) + py * np.sin(longitude)) + pz * np.cos(latitude)
        np.maximum(field, (near > math.cos(0.2)).astype(np.float32), out=field)
    return cv2.GaussianBlur(field, (3, 3), 0)


def _net(rng: np.random.Generator) -> FloatImage:
    latitude, longitude = _angles()
    shift = rng.uniform(0, 6)
    warp = 0.4 * np.sin(2 * longitude + shift)
    lines = np.minimum(np.abs(np.sin(4 * longitude + 4 * latitude + warp)), np.abs(np.sin(4 * longitude - 4 * latitude)))
    return -np.minimum(lines, 0.5)


def _speckle(rng: np.random.Generator) -> FloatImage:
    return np.tanh(1.5 * _noise(rng, 16))


_PATTERNS = (_stripes, _spots, _blotches, _bands, _net, _speckle)
