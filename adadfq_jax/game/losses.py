"""Every term of the game, one pure function each, whose docstring begins with the paper's symbol.

Source where no other is given: Qian et al., "Adaptive Data-Free Quantization", CVPR 2023. B is the
(global) batch, C the number of classes; z_P and z_Q are the (B, C) logits of teacher P and student
Q, y the (B,) labels that the images were generated for.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

# At z_P = z_Q every H(p_ds) is log C and H' would be 0/0.
_SMALLEST_SPREAD = 1e-6


def entropy(logits: jax.Array) -> jax.Array:
    """H(p): the entropy in nats of softmax(logits), over the last axis.

    Args:
      logits: (B, C).

    Returns:
      (B,) values in [0, log C].
    """
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def normalized_entropy(teacher_logits: jax.Array, student_logits: jax.Array) -> jax.Array:
    """H': entropy of the disagreement distribution p_ds = softmax(z_P - z_Q), scaled to the batch.

    H' = (H(p_ds) - h) / (log C - h), with h the smallest H(p_ds) in the batch: 1 where teacher and
    student agree, 0 at the strongest disagreement. The gradient flows through h.

    Args:
      teacher_logits: z_P, (B, C).
      student_logits: z_Q, (B, C).

    Returns:
      (B,) values in [0, 1].
    """
    disagreement = entropy(teacher_logits - student_logits)
    smallest = disagreement.min()
    spread = jnp.log(teacher_logits.shape[-1]) - smallest
    return (disagreement - smallest) / jnp.maximum(spread, _SMALLEST_SPREAD)


def disagreement_loss(
    teacher_logits: jax.Array, student_logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """L_ds: cross entropy of p_ds = softmax(z_P - z_Q) with y, mean over the batch; a scalar."""
    return cross_entropy(teacher_logits - student_logits, labels)


def agreement_loss(
    teacher_logits: jax.Array, student_logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """L_as: cross entropy of p_as = softmax(z_P + z_Q) with y, mean over the batch; a scalar."""
    return cross_entropy(teacher_logits + student_logits, labels)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """CE(z, y): cross entropy of softmax(z) with y, mean over the batch; a scalar."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def margin_loss(normalized: jax.Array, lower: float, upper: float) -> jax.Array:
    """L_margin: how far H' lies outside the two boundaries, mean over the batch.

    Args:
      normalized: H', (B,).
      lower: lambda_l, below which a sample is too hard (underfitting).
      upper: lambda_u, above which it is too easy (overfitting).

    Returns:
      A scalar.
    """
    below = jnp.maximum(lower - normalized, 0).mean()
    above = jnp.maximum(normalized - upper, 0).mean()
    return below + above


def batch_norm_statistics_loss(
    batch: Sequence[tuple[jax.Array, jax.Array]], stored: Sequence[tuple[jax.Array, jax.Array]]
) -> jax.Array:
    """L_BNS: distance of the images' BatchNorm statistics in P from those of P's training data.

    Args:
      batch: per BatchNorm layer, the (mean, biased variance) of its input, each (channels,).
      stored: the same layers' running (mean, variance).

    Returns:
      A scalar: mean over the layers of the mean squared differences over the channels.
    """
    terms = [
        jnp.mean((mean - stored_mean) ** 2) + jnp.mean((variance - stored_variance) ** 2)
        for (mean, variance), (stored_mean, stored_variance) in zip(batch, stored, strict=True)
    ]
    return sum(terms) / len(terms)


def disagreement_entropy_loss(
    teacher_logits: jax.Array, student_logits: jax.Array, temperature: float
) -> jax.Array:
    """L_Q of AdaDFQ: -T^2 times the mean entropy of softmax((z_P - z_Q) / T).

    Smallest where teacher and student differ by a constant. At high temperature its gradient is
    nearly that of half the variance of z_P - z_Q over the classes.

    Args:
      teacher_logits: z_P, (B, C), a constant here.
      student_logits: z_Q, (B, C).
      temperature: T.

    Returns:
      A scalar.
    """
    difference = (teacher_logits - student_logits) / temperature
    return -(temperature**2) * entropy(difference).mean()


def distillation_loss(
    teacher_logits: jax.Array, student_logits: jax.Array, temperature: float
) -> jax.Array:
    """T^2 KL(softmax(z_P / T) || softmax(z_Q / T)), mean over the batch; a scalar.

    Source: Xu et al., "Generative Low-bitwidth Data Free Quantization" (GDFQ), ECCV 2020.

    Args:
      teacher_logits: z_P, (B, C).
      student_logits: z_Q, (B, C).
      temperature: T.
    """
    log_p = jax.nn.log_softmax(teacher_logits / temperature)
    log_q = jax.nn.log_softmax(student_logits / temperature)
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1).mean()
