"""Procedural images: computed from a formula, without data, for the student to learn from.

Dead leaves: opaque ellipses, boxes and wedges of sizes with a power law cover each other and a
background; each has a colour that is mostly luminance, a share of a 1/f^alpha texture, and stripes.
Such images have the statistics of natural ones that early layers of a classifier respond to.
Source of the idea: Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021. All
constants below were fixed before any student had learned from the images.

An image is a function of its batch's key and its index alone, so that any number of devices draws
the same ones.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_LEAVES, _LEAF_NUMBERS = 48, 14
# Half the side of a leaf, in sides of the image. Every scale covers an equal part of an image; its
# smallest leaves are of a size of its own.
_SMALLEST, _LARGEST = (0.04, 0.4), 0.6
_CHANNELS = 3


@functools.partial(jax.jit, static_argnames=("size", "mean", "std"))
def draw(
    key: jax.Array,
    indices: jax.Array,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    """Draws images, normalised as a teacher wants them.

    Args:
      key: of the batch.
      indices: which of the batch's images, (N,).
      size: side s in pixels.
      mean, std: the teacher's normalisation of pixels in [0, 1], by channel.

    Returns:
      (N, s, s, 3).
    """
    images = jax.vmap(lambda index: image(jax.random.fold_in(key, index), size))(indices)
    return (images - jnp.array(mean)) / jnp.array(std)


def image(key: jax.Array, size: int) -> jax.Array:
    """Draws one image: pixels in [0, 1], (size, size, 3)."""
    cells = [2**octave for octave in range(1, size.bit_length())]
    counts = [6, _LEAVES * _LEAF_NUMBERS, *((1 + _CHANNELS) * (cell + 1) ** 2 for cell in cells)]
    # All at once, since every call of a random generator takes long to compile.
    numbers = jax.random.uniform(key, (sum(counts),))
    own, leaves, *octaves = jnp.split(numbers, np.cumsum(counts)[:-1])
    sharpness, contrast, brightness, alpha, chroma, scale = own

    nodes = [
        values.reshape(cell + 1, cell + 1, 1 + _CHANNELS)
        for values, cell in zip(octaves, cells, strict=True)
    ]
    texture = _texture(nodes, size, 0.5 + 1.5 * alpha)
    smallest = _SMALLEST[0] * (_SMALLEST[1] / _SMALLEST[0]) ** scale
    x = _leaves(leaves.reshape(_LEAF_NUMBERS, _LEAVES), texture, smallest, 0.6 * chroma)
    x = _blur(x, sharpness)
    # As photographs: some are pale, some dark.
    x = 0.5 + (0.3 + 0.9 * contrast) * (x - 0.5) + 0.5 * (brightness - 0.5)
    return jnp.clip(x, 0, 1)


def _leaves(
    uniform: jax.Array, texture: jax.Array, smallest: jax.Array, chroma: jax.Array
) -> jax.Array:
    """Covers an image with leaves, each a window to the texture in its own colour.

    Args:
      uniform: (14, leaves) numbers in [0, 1) that say all of each leaf.
      texture: (size, size, 3), of about unit variance.
      smallest: half the side of the smallest leaves, in sides of the image.
      chroma: how much colours differ from gray.

    Returns:
      (size, size, 3).
    """
    size = texture.shape[0]
    angle, x, y, scale, aspect, kind, luminance, *colour, striped, pitch, rough, heading = uniform
    grid = (jnp.arange(size) + 0.5) / size

    # Where a pixel lies in each leaf's frame, in half sides: (leaves, size, size).
    def each(values: jax.Array) -> jax.Array:
        return values[:, None, None]

    cos, sin = each(jnp.cos(jnp.pi * angle)), each(jnp.sin(jnp.pi * angle))
    right, down = grid[None, None, :] - each(x), grid[None, :, None] - each(y)
    # The density of sizes falls with their cube.
    radius = (smallest**-2 + scale * (_LARGEST**-2 - smallest**-2)) ** -0.5
    aspect = jnp.exp2(2 * aspect - 1)
    along = (cos * right + sin * down) / each(radius * aspect)
    across = (cos * down - sin * right) / each(radius / aspect)
    ellipse = along**2 + across**2
    box = jnp.maximum(jnp.abs(along), jnp.abs(across))
    wedge = jnp.maximum(jnp.abs(along) + 0.5 * across + 0.5, jnp.abs(across))
    kind = each(jnp.floor(3 * kind))
    inside = jnp.where(kind == 0, ellipse, jnp.where(kind == 1, box, wedge)) < 1
    inside = inside.at[-1].set(True)  # the background
    leaf = jnp.argmax(inside, axis=0)

    # What each leaf looks like, and then each pixel: (size, size, 7).
    frequency = jnp.pi * size * 0.5 ** (1 + 3 * pitch)
    looks = [
        *(luminance + chroma * (channel - 0.5) for channel in colour),
        0.35 * rough**2,
        0.5 * jnp.maximum(striped - 0.7, 0),  # three leaves of ten have stripes
        frequency * jnp.cos(2 * jnp.pi * heading),
        frequency * jnp.sin(2 * jnp.pi * heading),
    ]
    *colour, rough, striped, across, down = jnp.moveaxis(jnp.stack(looks, axis=-1)[leaf], -1, 0)
    wave = striped * jnp.sin(across * grid[None, :] + down * grid[:, None])
    return jnp.stack(colour, axis=-1) + rough[..., None] * texture + wave[..., None]


def _texture(octaves: Sequence[jax.Array], size: int, alpha: jax.Array) -> jax.Array:
    """Makes noise whose amplitude falls as 1/f^alpha.

    Args:
      octaves: numbers in [0, 1) at the nodes of ever finer grids, (nodes, nodes, 1 + 3): one of all
        channels and one of each.
      size: side of the result in pixels.
      alpha: the exponent.

    Returns:
      (size, size, 3), of about unit variance.
    """
    gray, colour = 0.9, 0.4  # natural images vary in luminance above all
    total, power = jnp.zeros((size, size, _CHANNELS)), 0.0
    for octave, nodes in enumerate(octaves):
        amplitude = 2.0 ** (-octave * (alpha - 1))
        nodes = math.sqrt(12) * (nodes - 0.5)
        nodes = gray * nodes[..., :1] + colour * nodes[..., 1:]
        total += amplitude * _enlarge(_enlarge(nodes, size, axis=0), size, axis=1)
        power += amplitude**2 * 0.5
    return total * jax.lax.rsqrt(power)


def _enlarge(nodes: jax.Array, size: int, axis: int) -> jax.Array:
    """Interpolates linearly between equidistant nodes on one axis."""
    # Not a product with a matrix, whose rounding depends on how many images are drawn at once.
    place = (np.arange(size) + 0.5) / size * (nodes.shape[axis] - 1)
    before = place.astype(int)
    shape = [size if dimension == axis else 1 for dimension in range(nodes.ndim)]
    weight = (place - before).astype(np.float32).reshape(shape)
    left = jnp.take(nodes, before, axis)
    return left + weight * (jnp.take(nodes, before + 1, axis) - left)


def _blur(x: jax.Array, sharpness: jax.Array) -> jax.Array:
    """Mixes an image (size, size, 3) with its smoothed self."""
    smooth = x
    for axis in (0, 1):
        before, after = jnp.roll(smooth, 1, axis), jnp.roll(smooth, -1, axis)
        smooth = 0.5 * smooth + 0.25 * (before + after)
    return smooth + sharpness * (x - smooth)
