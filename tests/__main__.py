"""All checks, a process for each backend: `python -m tests [pytest's arguments]`."""

import os
import subprocess
import sys
import tempfile
import time

NO_TESTS = 5  # What pytest returns where none is selected, such as those marked `once`.


def succeeds(*command, allowed=(0,), **environment):
    print("$", *command, *(f"{key}={value}" for key, value in environment.items()), flush=True)
    start = time.monotonic()
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-m", *command], env=environment, check=False)
    print(f"{time.monotonic() - start:.0f} s", flush=True)
    return done.returncode in allowed


def main():
    results = [succeeds("ruff", "check"), succeeds("ruff", "format", "--check")]
    selection = sys.argv[1:]
    command = ("pytest", "-n", "2", "--dist", "worksteal", *selection)
    allowed = (0, NO_TESTS) if selection else (0,)
    with tempfile.TemporaryDirectory() as cache:
        # What one process has compiled, the others need not.
        environment = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.02",
            # Random numbers of a new shape are compiled in .4 s, in place of 2.
            "JAX_THREEFRY_PARTITIONABLE": "0",
            # Two processes of pytest: more threads would wait for each other.
            "OMP_NUM_THREADS": "1",
            "TF_NUM_INTRAOP_THREADS": "1",
            "TF_NUM_INTEROP_THREADS": "1",
        }
        for backend in ("tensorflow", "jax", "torch"):
            done = succeeds(*command, allowed=allowed, KERAS_BACKEND=backend, **environment)
            results.append(done)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
