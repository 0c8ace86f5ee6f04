"""Trees whose small arrays are one vector."""

import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.ops import packing


def make_tree():
    random = np.random.default_rng(0)
    return {
        "kernel": jnp.array(random.normal(size=(3, 3, 4, 5)), jnp.float32),
        "scalar": jnp.float32(3),
        "count": jnp.int32(7),
        "matrix": jnp.array(random.normal(size=(2, 3)), jnp.float32),
        "large": jnp.ones((300, 300)),
        "half": jnp.ones(4, jnp.bfloat16),
    }


def test_unpacking_undoes_packing():
    tree = make_tree()
    packed = packing.pack(tree)
    assert packed.small.shape == (3 * 3 * 4 * 5 + 1 + 2 * 3,)
    assert len(packed.others) == 3
    jax.tree.map(np.testing.assert_array_equal, packed.unpack(), tree)
    nothing = packing.pack({"count": jnp.int32(7)})
    assert nothing.unpack() == {"count": 7}


def test_output_channels_come_first():
    """In the order that cuDNN wants a kernel in, so that packing does not turn it round."""
    kernel = make_tree()["kernel"]
    np.testing.assert_array_equal(packing.pack([kernel]).small, np.moveaxis(kernel, -1, 0).ravel())


def test_both_forms_of_the_norm():
    tree = make_tree()
    del tree["count"], tree["half"]
    flat = np.concatenate([np.ravel(leaf) for leaf in tree.values()])
    for form in (packing.norm, packing._norm_of_packed):
        np.testing.assert_allclose(form(tree), np.linalg.norm(flat), rtol=1e-6)
