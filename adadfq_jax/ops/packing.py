"""Many small arrays as one, since a GPU launches a kernel for each array."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

# Larger arrays (in numbers) are left alone: to copy them costs more than a launch.
_SMALL = 2**16


@flax.struct.dataclass
class Packed:
    """A tree of arrays whose small ones are one vector; `pack` makes it.

    Attributes:
      small: the small arrays' numbers.
      others: the other arrays.
      tree: the tree's structure.
      shapes: of each array of the tree if it is in `small`, else None.
    """

    small: jax.Array
    others: tuple[jax.Array, ...]
    tree: Any = flax.struct.field(pytree_node=False)
    shapes: tuple[tuple[int, ...] | None, ...] = flax.struct.field(pytree_node=False)

    def unpack(self) -> Any:
        """Returns the tree."""
        others, leaves, start = iter(self.others), [], 0
        for shape in self.shapes:
            if shape is None:
                leaves.append(next(others))
                continue
            end = start + int(np.prod(shape))
            leaves.append(_from_vector(jax.lax.slice(self.small, (start,), (end,)), shape))
            start = end
        return jax.tree.unflatten(self.tree, leaves)


def pack(tree: Any) -> Packed:
    """Joins the small floating-point arrays of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    usual = jnp.result_type(float)
    shapes = tuple(
        leaf.shape if leaf.size < _SMALL and leaf.dtype == usual else None for leaf in leaves
    )
    pairs = list(zip(leaves, shapes, strict=True))
    small = [_to_vector(leaf) for leaf, shape in pairs if shape is not None]
    others = tuple(leaf for leaf, shape in pairs if shape is None)
    return Packed(jnp.concatenate(small or [jnp.zeros(0)]), others, structure, shapes)


def norm(tree: Any) -> jax.Array:
    """Returns the Euclidean norm of all numbers of a tree, a scalar."""
    return jax.lax.platform_dependent(tree, cpu=_norm_of_arrays, default=_norm_of_packed)


def _norm_of_arrays(tree):
    # By inner products: XLA's CPU backend is slow at summing many squares to one number, and takes
    # up to a second for the generator's dense layer at 224 pixels.
    return jnp.sqrt(optax.tree.vdot(tree, tree))


def _norm_of_packed(tree):
    packed = pack(tree)
    return jnp.sqrt(sum(jnp.sum(jnp.square(each)) for each in (packed.small, *packed.others)))


def _to_vector(x: jax.Array) -> jax.Array:
    # A convolution's kernel begins with the output channels, which is how cuDNN wants it, so that
    # packing does not turn it round.
    return (jnp.moveaxis(x, -1, 0) if x.ndim == 4 else x).ravel()


def _from_vector(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if len(shape) != 4:
        return vector.reshape(shape)
    return jnp.moveaxis(vector.reshape(shape[-1], *shape[:-1]), 0, -1)
