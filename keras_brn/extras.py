"""What to type where a package is missing that an extra of keras-brn brings."""

import contextlib

BACKENDS = ("tensorflow", "jax", "torch")


@contextlib.contextmanager
def extra(name):
    """Around imports of what `pip install "keras-brn[name]"` brings: says so where they fail.

    Args:
        name: An extra of keras-brn, as in `pyproject.toml`.

    Raises:
        ImportError: If an import inside fails, with the line to type.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f'This needs an extra of keras-brn: pip install "keras-brn[{name}]". Received: {error}',
            name=error.name,
        ) from error


try:
    import keras  # noqa: F401  It imports its backend.
except ModuleNotFoundError as error:
    backend = (error.name or "").partition(".")[0]
    if backend not in BACKENDS:
        raise
    raise ImportError(
        f'The backend of Keras is missing: pip install "keras-brn[{backend}]". Or choose another '
        f"one: set the environment variable KERAS_BACKEND to one of {', '.join(BACKENDS)}. "
        f"Received: {error}",
        name=error.name,
    ) from error
