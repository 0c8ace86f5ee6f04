"""3x3 and depthwise convolutions, and those of an enlarged image, with gradients fast on CPU too.

XLA's CPU backend has fast kernels for convolutions with 32 or more output channels, several
times slower ones for fewer, and none for the kernel gradient of a transposed convolution or for
one channel at a time. Each function here computes the same sums in a form that has a fast one. All
arrays are (B, H, W, channels), all kernels (height, width, in, out).
"""

import functools

import jax
import jax.numpy as jnp

_LAYOUT = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves x, zero-padded by 1, with a 3x3 kernel: (B, H, W, in) to (B, H, W, out)."""
    return jax.lax.platform_dependent(x, kernel, cpu=_by_pixels, default=_plain)


def _forward(x, kernel):
    return convolution(x, kernel), (x, kernel)


def _backward(saved, cotangent):
    x, kernel = saved
    if kernel.shape[2] <= kernel.shape[3]:
        to_kernel = jax.lax.platform_dependent(
            *(x, kernel, cotangent),
            cpu=functools.partial(_kernel_gradient, _by_pixels),
            default=functools.partial(_kernel_gradient, _plain),
        )
    else:
        # With x and cotangent exchanged the same sum has more output channels, for which XLA is
        # faster: 0.4 times the time for the generator's 64 -> 3.
        to_kernel = _reverse(_kernel_gradient(_plain, cotangent, _reverse(kernel), x))
    return convolution(cotangent, _reverse(kernel)), to_kernel


convolution.defvjp(_forward, _backward)


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=_LAYOUT)


def _by_pixels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same, where channels are few several neighbouring pixels at a time.

    They become output channels of one wider kernel, which holds a shifted copy for each of them.
    Two pixels of 16 channels cost 4/3 of the multiplications and 0.68 times the time; four of an
    image's 3 channels 0.25 times (0.47 times for the gradient to the image). The kernel gradient
    of 16 channels takes 0.8 times the time.
    """
    *_, width, inputs = x.shape
    outputs = kernel.shape[3]
    pixels = 1 if max(inputs, outputs) >= 32 else 2 if min(inputs, outputs) >= 16 else 4
    if pixels == 1 or width % pixels:
        return _plain(x, kernel)
    shifted = [
        jnp.pad(kernel, ((0, 0), (pixel, pixels - 1 - pixel), (0, 0), (0, 0)))
        for pixel in range(pixels)
    ]
    y = jax.lax.conv_general_dilated(
        x,
        jnp.concatenate(shifted, axis=3),
        (1, pixels),
        [(1, 1)] * 2,
        dimension_numbers=_LAYOUT,
    )
    return y.reshape(*x.shape[:3], outputs)


def _reverse(kernel: jax.Array) -> jax.Array:
    """Returns the kernel of the transposed convolution."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _kernel_gradient(convolve, x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> jax.Array:
    (gradient,) = jax.linear_transpose(lambda kernel: convolve(x, kernel), kernel)(cotangent)
    return gradient


@jax.custom_vjp
def upsampled_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves the twofold nearest-neighbour enlargement of x, in sub-pixel form.

    Args:
      x: (B, H, W, in).
      kernel: (3, 3, in, out).

    Returns:
      (B, 2H, 2W, out): what a 3x3 convolution, zero-padded by 1, of the enlarged x returns.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_by_phases, default=_all_phases)


def _upsampled_forward(x, kernel):
    return upsampled_convolution(x, kernel), (x, kernel)


def _upsampled_backward(saved, cotangent):
    return jax.lax.platform_dependent(
        *(*saved, cotangent), cpu=_pull_by_phases, default=_pull_all_phases
    )


upsampled_convolution.defvjp(_upsampled_forward, _upsampled_backward)


def _by_phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same by four convolutions, one for each phase of the enlarged pixels.

    XLA's CPU backend has a fast kernel gradient for them. It has none for one convolution with all
    phases as output channels, nor for a transposed convolution.
    """
    batch, height, width, _ = x.shape
    rows = [
        jnp.stack([_phase(x, kernel, row, column) for column in range(2)], axis=3)
        for row in range(2)
    ]  # B, H, W, 2, out
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


def _pull_by_phases(x, kernel, cotangent):
    return jax.vjp(_by_phases, x, kernel)[1](cotangent)


def _all_phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same by one convolution, whose output channels are those of all four phases.

    A GPU launches a kernel for each convolution, and one for each gradient of it.
    """
    return _interleave(_valid(_framed(x), _merged(kernel).astype(x.dtype)))


def _pull_all_phases(x, kernel, cotangent):
    (to_x,) = jax.linear_transpose(lambda x: _all_phases(x, kernel), x)(cotangent)
    # By phases: for one kernel of all phases XLA would take the cotangent as the image and the
    # image as a kernel, which cuDNN has no fast form for.
    (to_kernel,) = jax.linear_transpose(lambda kernel: _by_phases(x, kernel), kernel)(cotangent)
    return to_x, to_kernel


def _framed(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _valid(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=_LAYOUT)


def _merged(kernel: jax.Array) -> jax.Array:
    """Returns the kernels of all phases, (2, 2, in, 4 out)."""
    columns = jnp.stack([_merge_taps(kernel, phase, axis=1) for phase in range(2)], axis=3)
    phases = jnp.stack([_merge_taps(columns, phase, axis=0) for phase in range(2)], axis=3)
    return phases.reshape(2, 2, kernel.shape[2], -1)


def _interleave(y: jax.Array) -> jax.Array:
    """Takes each phase's pixels: (B, H + 1, W + 1, 4 out) to (B, 2H, 2W, out)."""
    batch, height, width = y.shape[0], y.shape[1] - 1, y.shape[2] - 1
    y = y.reshape(*y.shape[:3], 2, 2, -1)
    # Pixel (m, n) of y has met the pixels m - 1 and m, n - 1 and n of x.
    rows = [
        jnp.stack(
            [y[:, row : row + height, column : column + width, row, column] for column in range(2)],
            axis=3,
        )
        for row in range(2)
    ]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


def _phase(x: jax.Array, kernel: jax.Array, row: int, column: int) -> jax.Array:
    """Makes the pixels (2m + row, 2n + column) of the enlarged convolution, (B, H, W, out)."""
    return jax.lax.conv_general_dilated(
        x,
        _merge_taps(_merge_taps(kernel, row, axis=0), column, axis=1).astype(x.dtype),
        (1, 1),
        [(1 - row, row), (1 - column, column)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _merge_taps(kernel: jax.Array, phase: int, axis: int) -> jax.Array:
    """Adds the taps that meet the same input pixel: phase 0 sees m-1, m, m, phase 1 m, m, m+1."""
    first, second, third = jnp.split(kernel, 3, axis)
    taps = (first + second, third) if phase else (first, second + third)
    return jnp.concatenate(taps, axis)


# The most taps of a kernel that are written out; what has more is left to XLA.
_MOST_TAPS = 49

_Pair = tuple[int, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise_convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: _Pair,
    padding: tuple[_Pair, _Pair],
    dilation: _Pair,
) -> jax.Array:
    """Convolves each channel of x with kernels of its own.

    On CPU it is a sum over the kernel's taps of shifted images times one number a channel, many
    times faster there than XLA's grouped convolution (`adadfq_jax/benchmarks/README.md`).

    Args:
      x: (B, H, W, in).
      kernel: (height, width, 1, out), out a multiple of in: output o sees input o // (out / in).
      strides: (down, across).
      padding: zeros, ((top, bottom), (left, right)).
      dilation: distance of the kernel's taps, (down, across).

    Returns:
      (B, H', W', out).
    """
    geometry = (strides, padding, dilation)
    return jax.lax.platform_dependent(
        *(x, kernel),
        cpu=functools.partial(_by_taps, geometry),
        default=functools.partial(_grouped, geometry),
    )


def _depthwise_forward(x, kernel, *geometry):
    return depthwise_convolution(x, kernel, *geometry), (x, kernel)


def _depthwise_backward(strides, padding, dilation, saved, cotangent):
    geometry = (strides, padding, dilation)
    return jax.lax.platform_dependent(
        *(*saved, cotangent),
        cpu=functools.partial(_pull_by_taps, geometry),
        default=functools.partial(_pull_grouped, geometry),
    )


depthwise_convolution.defvjp(_depthwise_forward, _depthwise_backward)


def _grouped(geometry, x, kernel):
    strides, padding, dilation = geometry
    return jax.lax.conv_general_dilated(
        *(x, kernel, strides, padding),
        rhs_dilation=dilation,
        dimension_numbers=_LAYOUT,
        feature_group_count=x.shape[-1],
    )


def _pull_grouped(geometry, x, kernel, cotangent):
    _, pull = jax.vjp(functools.partial(_grouped, geometry), x, kernel)
    return pull(cotangent)


def _by_taps(geometry, x, kernel):
    if kernel.shape[0] * kernel.shape[1] > _MOST_TAPS:
        return _grouped(geometry, x, kernel)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    padded = _padded(geometry, x.astype(wide), kernel)
    weights = kernel.astype(wide)[:, :, 0]
    rows, columns = _size(geometry, x, kernel)
    total = sum(
        _seen(padded, (row, column), geometry, (rows, columns)) * weights[row, column]
        for row in range(kernel.shape[0])
        for column in range(kernel.shape[1])
    )
    return total.astype(x.dtype)


def _pull_by_taps(geometry, x, kernel, cotangent):
    if kernel.shape[0] * kernel.shape[1] > _MOST_TAPS:
        return _pull_grouped(geometry, x, kernel, cotangent)
    (to_x,) = jax.linear_transpose(lambda x: _by_taps(geometry, x, kernel), x)(cotangent)
    return to_x, _kernel_gradient_by_rows(geometry, x, kernel, cotangent)


def _kernel_gradient_by_rows(geometry, x, kernel, cotangent):
    """Returns the kernel's gradient, one output row at a time.

    The sums of all taps over one row are taken together and stay in the processor's cache; XLA
    reads both arrays anew for every tap where whole images are reduced at once.
    """
    (down, _), _, (apart, _) = geometry
    wide = jnp.promote_types(x.dtype, jnp.float32)
    padded = _padded(geometry, x.astype(wide), kernel)
    cotangent = cotangent.astype(wide)
    height, width, _, outputs = kernel.shape
    rows, columns = _size(geometry, x, kernel)

    def add_row(row, sums):
        ends = jax.lax.dynamic_slice_in_dim(cotangent, row, 1, axis=1)
        starts = [
            jax.lax.dynamic_slice_in_dim(padded, row * down + tap * apart, 1, axis=1)
            for tap in range(height)
        ]
        return [
            sums[tap * width + column]
            + _seen(starts[tap], (0, column), geometry, (1, columns)) * ends
            for tap in range(height)
            for column in range(width)
        ]

    zeros = [jnp.zeros((x.shape[0], 1, columns, outputs), wide)] * (height * width)
    sums = jax.lax.fori_loop(0, rows, add_row, zeros)
    return (
        jnp.stack([part.sum((0, 1, 2)) for part in sums]).reshape(kernel.shape).astype(kernel.dtype)
    )


def _padded(geometry, x, kernel):
    """Returns x with its zeros, each channel as often as it has outputs."""
    _, padding, _ = geometry
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    copies = kernel.shape[3] // x.shape[-1]
    return x if copies == 1 else jnp.repeat(x, copies, axis=-1)


def _size(geometry, x, kernel) -> _Pair:
    """Returns (H', W') of the convolved image."""
    strides, padding, dilation = geometry
    return tuple(
        (side + sum(zeros) - (taps - 1) * apart - 1) // stride + 1
        for side, zeros, taps, apart, stride in zip(
            *(x.shape[1:3], padding, kernel.shape[:2], dilation, strides), strict=True
        )
    )


def _seen(padded, tap: _Pair, geometry, size: _Pair):
    """Returns the pixels that one tap of the kernel meets, (B, *size, channels)."""
    (down, across), _, (apart_down, apart_across) = geometry
    top, left = tap[0] * apart_down, tap[1] * apart_across
    batch, *_, channels = padded.shape
    bottom, right = top + (size[0] - 1) * down + 1, left + (size[1] - 1) * across + 1
    return jax.lax.slice(
        padded, (0, top, left, 0), (batch, bottom, right, channels), (1, down, across, 1)
    )
