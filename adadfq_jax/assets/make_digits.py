"""Makes the built-in example: a ResNet-20 teacher of handwritten digits, and images to measure on.

  pip install scikit-learn
  python adadfq_jax/assets/make_digits.py

Scikit-learn bundles 1,797 real digits of 8x8 pixels (from the UCI "Optical Recognition of
Handwritten Digits" set). They are enlarged to 16x16 and split, stratified, with a fixed seed:

  train        1,257  the teacher's training set, with shifts of up to 2 pixels and noise
  validation     180  what the example (bit-widths, schedule) was designed on
  test           360  only ever reported

Writes `digits_resnet20.safetensors`, `digits_validation.npz` and `digits_test.npz` beside itself.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from adadfq_jax import evaluate, save_teacher
from adadfq_jax.assets import DIGITS_TEACHER, DIGITS_TEST, DIGITS_VALIDATION
from adadfq_jax.data.dataset import from_arrays
from adadfq_jax.models import registry
from adadfq_jax.models.network import Teacher

_SIZE, _CLASSES = 16, 10
_SHIFT, _NOISE = 2, 0.3
_BATCH, _STEPS, _LEARNING_RATE, _WEIGHT_DECAY, _MOMENTUM = 64, 1000, 0.1, 5e-4, 0.9


def load_digits():
    """Returns {"train" | "validation" | "test": (uint8 images (N, 16, 16, 3), labels (N,))}."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    enlarged = [
        np.asarray(
            Image.fromarray((image * 255 / 16).astype(np.uint8)).resize(
                (_SIZE, _SIZE), Image.Resampling.BILINEAR
            )
        )
        for image in digits.images
    ]
    images = np.repeat(np.stack(enlarged)[..., None], 3, axis=-1)
    labels = digits.target.astype(np.uint8)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    train, validation = train_test_split(rest, test_size=180, stratify=labels[rest], random_state=0)
    parts = {"train": train, "validation": validation, "test": test}
    return {name: (images[index], labels[index]) for name, index in parts.items()}


def train(images: np.ndarray, labels: np.ndarray) -> Teacher:
    """Trains the teacher on uint8 images."""
    mean = float((images / 255).mean())
    std = float((images / 255).std())
    pixels = jnp.asarray((images / 255 - mean) / std, jnp.float32)
    labels = jnp.asarray(labels)
    architecture = "resnet20_cifar"
    frozen = registry.build(architecture, _CLASSES)
    module = frozen.clone(
        norm=functools.partial(nn.BatchNorm, use_running_average=False, momentum=0.9, epsilon=1e-5)
    )
    variables = registry.initial_variables(frozen, _SIZE, jax.random.key(0))
    optimizer = optax.chain(
        optax.add_decayed_weights(_WEIGHT_DECAY),
        optax.sgd(optax.cosine_decay_schedule(_LEARNING_RATE, _STEPS), _MOMENTUM, nesterov=True),
    )

    def augment(key, batch):
        shift_key, noise_key = jax.random.split(key)
        shifts = jax.random.randint(shift_key, (len(batch), 2), 0, 2 * _SHIFT + 1)
        border = ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0))
        padded = jnp.pad(batch, border, constant_values=-mean / std)
        shifted = jax.vmap(
            lambda image, shift: jax.lax.dynamic_slice(
                image, (shift[0], shift[1], 0), (_SIZE, _SIZE, 3)
            )
        )(padded, shifts)
        return shifted + _NOISE * jax.random.normal(noise_key, shifted.shape)

    @jax.jit
    def step(params, batch_stats, opt_state, key):
        index_key, augment_key = jax.random.split(key)
        index = jax.random.randint(index_key, (_BATCH,), 0, len(pixels))

        def loss(params):
            logits, updated = module.apply(
                {"params": params, "batch_stats": batch_stats},
                augment(augment_key, pixels[index]),
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[index])
            return losses.mean(), updated["batch_stats"]

        (_, batch_stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state

    params, batch_stats = variables["params"], variables["batch_stats"]
    opt_state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(1), _STEPS):
        params, batch_stats, opt_state = step(params, batch_stats, opt_state, key)
    return Teacher(
        architecture=architecture,
        module=frozen,
        variables={"params": params, "batch_stats": batch_stats},
        image_size=_SIZE,
        mean=(mean,) * 3,
        std=(std,) * 3,
    )


def main() -> None:
    """Trains, measures and writes."""
    parts = load_digits()
    teacher = train(*parts["train"])
    save_teacher(teacher, DIGITS_TEACHER)
    for name, path in (("validation", DIGITS_VALIDATION), ("test", DIGITS_TEST)):
        images, labels = parts[name]
        np.savez_compressed(path, x=images, y=labels)
        accuracy = evaluate(teacher, from_arrays(images, labels))
        print(f"{name}: top-1 {accuracy['top1']:.2%} on {len(labels)} images")


if __name__ == "__main__":
    main()
