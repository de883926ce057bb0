"""Starts several workers of a program on this machine, as a cluster would on many.

    python -m keras_brn.paper.launch --workers 4 program.py [arguments]
    python -m keras_brn.paper.launch --workers 4 -m package.module [arguments]

Each gets the environment variable `TF_CONFIG` that names all of them; `%t` in an argument becomes
its number. With `--gpus 1` each has one GPU of its own, where else all would take all: if
CUDA_VISIBLE_DEVICES is set, of those that it names. If one worker fails, the others are ended, too.
The output of all is shown, the lines of worker k after "k: ".
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time


def free_addresses(count):
    """Addresses of this machine on which nothing listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("localhost", 0))
        return [f"localhost:{free.getsockname()[1]}" for free in sockets]


def tf_configs(workers):
    """The `TF_CONFIG` of each of several workers on this machine."""
    cluster = {"worker": free_addresses(workers)}
    tasks = [{"type": "worker", "index": index} for index in range(workers)]
    return [json.dumps({"cluster": cluster, "task": task}) for task in tasks]


def start(command, workers, gpus=None):
    """A pair for each worker: its `subprocess.Popen`, and a thread that shows its output.

    Args:
        command: List of strings, in which `%t` becomes the worker's number.
        workers: Number of workers.
        gpus: Number of GPUs of each; `None`: all.

    Raises:
        ValueError: If there are not so many GPUs in the environment variable CUDA_VISIBLE_DEVICES.
    """
    started = []
    visible = visible_gpus(workers, gpus)
    for index, tf_config in enumerate(tf_configs(workers)):
        process = subprocess.Popen(
            [argument.replace("%t", str(index)) for argument in command],
            env={**os.environ, "TF_CONFIG": tf_config, **visible[index]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        thread = threading.Thread(target=_show, args=(index, process.stdout))
        thread.start()
        started.append((process, thread))
    return started


def visible_gpus(workers, gpus):
    """Of each worker a dict of the environment variable that shows it so many GPUs of its own.

    They are taken in turn from those that this process sees: CUDA_VISIBLE_DEVICES names them by
    number or by identifier; where it is not set, they are numbered from 0.
    """
    if gpus is None:
        return [{}] * workers
    if gpus < 0:
        raise ValueError(f"`gpus` must be at least 0. Received: gpus={gpus}")
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is None:
        names = [str(number) for number in range(workers * gpus)]
    else:
        names = [name.strip() for name in seen.split(",") if name.strip()]
        if "-1" in names:  # CUDA sees what stands before it.
            names = names[: names.index("-1")]
    if len(names) < workers * gpus:
        raise ValueError(
            "`workers * gpus` must be at most the number of GPUs that CUDA_VISIBLE_DEVICES names. "
            f"Received: workers={workers}, gpus={gpus}, CUDA_VISIBLE_DEVICES={seen!r}"
        )
    own = [names[worker * gpus : (worker + 1) * gpus] for worker in range(workers)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(of_worker)} for of_worker in own]


def _show(index, lines):
    for line in lines:
        print(f"{index}: {line}", end="", flush=True)


def wait(started):
    """Waits for all that `start` returned, or until one fails; returns its exit status, or 0."""
    try:
        while True:
            statuses = [process.poll() for process, _ in started]
            failed = [status for status in statuses if status not in (None, 0)]
            if failed or None not in statuses:
                return failed[0] if failed else 0
            time.sleep(0.1)
    finally:
        for process, thread in started:
            process.kill()  # TensorFlow does not end on a gentler signal while it waits.
            thread.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--gpus", type=int, help="number of GPUs of each worker; none: all")
    parser.add_argument("-m", action="store_true", help="the program is a module")
    parser.add_argument("program", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.workers < 1 or not options.program:
        parser.error("give a number of workers, at least 1, and a program")
    program = ["-m", *options.program] if options.m else options.program
    try:
        started = start([sys.executable, *program], options.workers, options.gpus)
    except ValueError as error:
        parser.error(error)
    return wait(started)


if __name__ == "__main__":
    sys.exit(main())
