"""Images on the device, and their variation."""

import jax.numpy as jnp


def encoded(variations):
    """Integers below 162, uint8 (batch,): all that `Images.vary` makes of two random integers."""
    return (variations[:, 0] % 81 * 2 + variations[:, 1] % 2).astype("uint8")


def vary(images, indices, codes, flip):
    """`Images.vary` on the device.

    Args:
        images: (all, height, width, channels).
        indices: Integers (batch,): which of them.
        codes: As of `encoded`.
        flip: Whether any image may be mirrored.

    Returns:
        (batch, height, width, channels).
    """
    _, height, width, _ = images.shape
    shift, mirrored = codes.astype("int32") // 2, codes % 2 == 1

    def reflected(positions, size):
        positions = positions % (2 * size)
        return jnp.minimum(positions, 2 * size - 1 - positions)

    rows = reflected(jnp.arange(height) - (shift[:, None] // 9 - 4), height)
    columns = reflected(jnp.arange(width) - (shift[:, None] % 9 - 4), width)
    if flip:
        columns = jnp.where(mirrored[:, None], width - 1 - columns, columns)
    return images[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
