"""All checks, a process for each backend: `python -m tests [pytest's arguments]`."""

import os
import subprocess
import sys


def succeeds(*command, **environment):
    print("$", *command, *(f"{key}={value}" for key, value in environment.items()), flush=True)
    return (
        subprocess.run(
            [sys.executable, "-m", *command], env={**os.environ, **environment}, check=False
        ).returncode
        == 0
    )


def main():
    results = [succeeds("ruff", "check"), succeeds("ruff", "format", "--check")]
    for backend in ("tensorflow", "jax", "torch"):
        command = ("pytest", "-n", "2", "--dist", "loadfile", *sys.argv[1:])
        results.append(succeeds(*command, KERAS_BACKEND=backend))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
