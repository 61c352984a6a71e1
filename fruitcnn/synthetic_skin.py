"""The skins of drawn fruit, for synthetic.py: textures over (latitude, longitude) whose mean is the family's colour.

Every texture of a family has exactly the same mean colour and deviation over the sphere, so neither tells its varieties
apart; only the pattern does.
"""

import hashlib
import math
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

HEIGHT_PX, WIDTH_PX = 96, 192  # latitude 0..pi from the lower end, longitude 0..2 pi
PATTERN_CONTRAST, BLUSH_CONTRAST, GRAIN_CONTRAST = 1.0, 0.2, 0.5

Field = npt.NDArray[np.float32]


def digest(*parts: object) -> int:
    """A 64-bit number from the parts, the same in every process (unlike hash())."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big")


@lru_cache(maxsize=512)
def texture(family: str, variety: int, colour: tuple[int, int, int], seed: int) -> Field:
    """(HEIGHT_PX, WIDTH_PX, 3) float32 RGB, 0-255. Variety 1, 2, ... of a family take turns through the patterns."""
    kind = (variety + digest("kinds", family)) % len(_PATTERNS)
    rng = np.random.Generator(np.random.PCG64(digest("skin", seed, family, variety)))
    pattern = _PATTERNS[kind](rng)
    grain = cv2.GaussianBlur(rng.random(pattern.shape, np.float32) - np.float32(0.5), (5, 5), 0)
    mix = PATTERN_CONTRAST * _standard(pattern) + BLUSH_CONTRAST * _standard(_noise(rng, 2)) + GRAIN_CONTRAST * grain
    mean = np.array(colour, np.float32)
    accent = np.array([50, 44, 28], np.float32) * (0.7 + 0.3 * mean / 255)
    skin = np.clip(mean + mix[:, :, None] * accent, 0, 255)
    skin += mean - (skin * _area()[:, :, None]).sum((0, 1))
    return np.ascontiguousarray(skin, np.float32)


@lru_cache(maxsize=1)
def _area() -> Field:
    """Share of the sphere that a texture pixel covers; sums to 1."""
    rows = np.sin((np.arange(HEIGHT_PX) + 0.5) * (math.pi / HEIGHT_PX))
    return np.repeat(rows[:, None], WIDTH_PX, 1).astype(np.float32) / np.float32(rows.sum() * WIDTH_PX)


def _standard(field: Field) -> Field:
    """The field with mean 0 and deviation 1 over the sphere."""
    field = field - (field * _area()).sum()
    return (field / np.sqrt((field * field * _area()).sum() + 1e-6)).astype(np.float32)


@lru_cache(maxsize=1)
def _angles() -> tuple[Field, Field]:
    latitude = np.linspace(0, math.pi, HEIGHT_PX, dtype=np.float32)[:, None]
    longitude = np.linspace(0, 2 * math.pi, WIDTH_PX, endpoint=False, dtype=np.float32)[None, :]
    shape = np.zeros((HEIGHT_PX, WIDTH_PX), np.float32)
    return shape + latitude, shape + longitude


def _noise(rng: np.random.Generator, cells: int) -> Field:
    """Smooth noise with about `cells` blotches from pole to pole, seamless around the fruit and calm at the poles."""
    coarse = rng.standard_normal((cells, 2 * cells)).astype(np.float32)
    coarse[[0, -1]] = coarse[[0, -1]].mean(1, keepdims=True)
    coarse = np.concatenate([coarse[:, -2:], coarse, coarse[:, :2]], axis=1)
    cell_px = WIDTH_PX // (2 * cells)
    wide = cv2.resize(coarse, (coarse.shape[1] * cell_px, HEIGHT_PX), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(wide[:, 2 * cell_px : -2 * cell_px], (WIDTH_PX, HEIGHT_PX))


def _stripes(rng: np.random.Generator) -> Field:
    """From pole to pole."""
    latitude, longitude = _angles()
    return np.sin(rng.integers(8, 11) * longitude + 0.6 * np.sin(3 * latitude) + rng.uniform(0, 6))


def _bands(rng: np.random.Generator) -> Field:
    """Around the fruit."""
    latitude, longitude = _angles()
    return np.sin(rng.uniform(10, 13) * latitude + 0.6 * np.sin(2 * longitude) + rng.uniform(0, 6))


def _blotches(rng: np.random.Generator) -> Field:
    return np.tanh(2 * _noise(rng, 5))


def _spots(rng: np.random.Generator) -> Field:
    """Light discs all over: on a Fibonacci lattice, so that every side shows some."""
    latitude, longitude = _angles()
    field = np.zeros_like(latitude)
    num_spots = 34
    for index in range(num_spots):
        height = 1 - 2 * (index + 0.5) / num_spots
        along = index * 2.39996 + rng.uniform(-0.3, 0.3)
        radius = rng.uniform(0.13, 0.2)
        near = math.sqrt(1 - height**2) * np.sin(latitude) * np.cos(longitude - along) + height * np.cos(latitude)
        field[near > math.cos(radius)] = 1
    return cv2.GaussianBlur(field, (3, 3), 0)


def _net(rng: np.random.Generator) -> Field:
    """Light lines that cross."""
    latitude, longitude = _angles()
    one = np.abs(np.sin(4 * longitude + 4 * latitude + rng.uniform(0, 6)))
    other = np.abs(np.sin(4 * longitude - 4 * latitude + rng.uniform(0, 6)))
    return -np.minimum(np.minimum(one, other), 0.5)


def _speckle(rng: np.random.Generator) -> Field:
    return np.tanh(2 * _noise(rng, 16))


_PATTERNS = (_stripes, _spots, _blotches, _bands, _net, _speckle)
