"""Procedural images: computed from a formula, without data, for the student to learn from.

They are "dead leaves" images: opaque ellipses, boxes and wedges, whose sizes follow a power law,
cover each other and a background. Each leaf has a colour that varies mostly in luminance, some of
a 1/f^alpha texture and, for some leaves, stripes. Early layers of a classifier respond to
statistics that such images share with photographs. Source of the idea: Baradad et al., "Learning to
See by Looking at Noise", NeurIPS 2021. The constants below were fixed before any student was
trained on the images.

An image depends on the batch's key and the image's index only, so that any number of devices draws
the same images.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Leaves in an image, and random numbers that describe one leaf, besides one for each channel.
_LEAVES, _LEAF_NUMBERS = 48, 11
# Half the side of a leaf, as a share of the image's side. The smallest leaves of an image have a
# size drawn for that image, between two bounds; sizes are drawn so that every scale covers an equal
# part of the image.
_SMALLEST, _LARGEST = (0.04, 0.4), 0.6


@functools.partial(jax.jit, static_argnames=("size", "mean", "std"))
def draw(
    key: jax.Array,
    indices: jax.Array,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    """Draws images in a teacher's normalised input space.

    Args:
      key: random key of the batch.
      indices: positions of the images in the whole batch, (N,).
      size: side s in pixels.
      mean, std: the teacher's normalisation of pixels in [0, 1], by channel.

    Returns:
      Images, (N, s, s, channels).
    """
    channels = len(mean)
    images = jax.vmap(lambda index: image(jax.random.fold_in(key, index), size, channels))(indices)
    return (images - jnp.array(mean)) / jnp.array(std)


def image(key: jax.Array, size: int, channels: int) -> jax.Array:
    """Draws one image: pixels in [0, 1], (size, size, channels)."""
    cells = [2**octave for octave in range(1, size.bit_length())]
    of_leaf = _LEAF_NUMBERS + channels
    counts = [6, _LEAVES * of_leaf, *((1 + channels) * (cell + 1) ** 2 for cell in cells)]
    # One call for all numbers, since each call of a random generator takes long to compile.
    numbers = jax.random.uniform(key, (sum(counts),))
    own, leaves, *octaves = jnp.split(numbers, np.cumsum(counts)[:-1])
    sharpness, contrast, brightness, alpha, chroma, scale = own

    nodes = [
        values.reshape(cell + 1, cell + 1, 1 + channels)
        for values, cell in zip(octaves, cells, strict=True)
    ]
    texture = _texture(nodes, size, 0.5 + 1.5 * alpha)
    smallest = _SMALLEST[0] * (_SMALLEST[1] / _SMALLEST[0]) ** scale
    x = _leaves(leaves.reshape(of_leaf, _LEAVES), texture, smallest, 0.6 * chroma)
    x = _blur(x, sharpness)
    # Contrast and brightness differ between images, as they do between photographs.
    x = 0.5 + (0.3 + 0.9 * contrast) * (x - 0.5) + 0.5 * (brightness - 0.5)
    return jnp.clip(x, 0, 1)


def _leaves(
    uniform: jax.Array, texture: jax.Array, smallest: jax.Array, chroma: jax.Array
) -> jax.Array:
    """Covers an image with leaves, each of one colour with the texture and stripes added.

    Args:
      uniform: (11 + channels, leaves) numbers in [0, 1): place, size, shape, colour and pattern
        of each leaf.
      texture: (size, size, channels), of about unit variance.
      smallest: half the side of the smallest leaves, as a share of the image's side.
      chroma: how much colours differ from gray.

    Returns:
      (size, size, channels).
    """
    size = texture.shape[0]
    angle, x, y, scale, aspect, kind, luminance, *colour, striped, pitch, rough, heading = uniform
    grid = (jnp.arange(size) + 0.5) / size

    # Position of each pixel relative to each leaf, in half sides of the leaf: (leaves, size, size).
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

    # The look of each leaf, taken for each pixel from the leaf on top: (size, size, channels + 4).
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
      octaves: numbers in [0, 1) at the nodes of ever finer grids, (nodes, nodes, 1 + channels):
        one shared by the channels and one for each channel.
      size: side of the result in pixels.
      alpha: the exponent.

    Returns:
      (size, size, channels), of about unit variance.
    """
    gray, colour = 0.9, 0.4  # natural images vary in luminance above all
    total, power = jnp.zeros((size, size, octaves[0].shape[-1] - 1)), 0.0
    for octave, nodes in enumerate(octaves):
        amplitude = 2.0 ** (-octave * (alpha - 1))
        nodes = math.sqrt(12) * (nodes - 0.5)
        nodes = gray * nodes[..., :1] + colour * nodes[..., 1:]
        total += amplitude * _enlarge(_enlarge(nodes, size, axis=0), size, axis=1)
        power += amplitude**2 * 0.5
    return total * jax.lax.rsqrt(power)


def _enlarge(nodes: jax.Array, size: int, axis: int) -> jax.Array:
    """Interpolates linearly between equidistant nodes on one axis."""
    # Not as a matrix product: its rounding depends on how many images are drawn at once.
    place = (np.arange(size) + 0.5) / size * (nodes.shape[axis] - 1)
    before = place.astype(int)
    shape = [size if dimension == axis else 1 for dimension in range(nodes.ndim)]
    weight = (place - before).astype(np.float32).reshape(shape)
    left = jnp.take(nodes, before, axis)
    return left + weight * (jnp.take(nodes, before + 1, axis) - left)


def _blur(x: jax.Array, sharpness: jax.Array) -> jax.Array:
    """Mixes an image (size, size, channels) with a smoothed copy; sharpness 1 is the image."""
    smooth = x
    for axis in (0, 1):
        before, after = jnp.roll(smooth, 1, axis), jnp.roll(smooth, -1, axis)
        smooth = 0.5 * smooth + 0.25 * (before + after)
    return smooth + sharpness * (x - smooth)
