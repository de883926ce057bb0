"""Long sums in float32 lose digits; sums of a few hundred values, added up in turn, don't."""

import functools

MOST_VALUES = 1024
# Of a channel, for kernels whose sums in the backward pass cannot be cut.
MOST_VALUES_BACKWARD = 2**20


@functools.lru_cache(maxsize=4096)
def columns_of(count):
    """Into how many equal parts `count` values are cut, so that none has more than `MOST_VALUES`
    and the sum of the parts is short, too: a divisor of `count`; `None` if there is none.

    Adding up `n` values in turn has an error of at most `n * 2**-24` of the sum of their absolute
    values, to first order. With the parts it is `(MOST_VALUES + columns) * 2**-24`.
    """
    least = max(1, -(-count // MOST_VALUES))
    most = min(count, max(MOST_VALUES, 2 * least))
    return next((n for n in range(least, most + 1) if count % n == 0), None)
