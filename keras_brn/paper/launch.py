"""Starts several workers of a program on this machine, as a cluster would on many.

    python -m keras_brn.paper.launch --workers 4 program.py [arguments]
    python -m keras_brn.paper.launch --workers 4 -m package.module [arguments]

Each gets the environment variable `TF_CONFIG` that names all of them; `%t` in an argument becomes
its number. With `--gpus 1` each has one GPU of its own, where else all would take all. If one
fails, the others are ended, too. The output of all is shown, the lines of worker k after "k: ".
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
    """
    started = []
    for index, tf_config in enumerate(tf_configs(workers)):
        visible = {}
        if gpus is not None:
            own = range(index * gpus, (index + 1) * gpus)
            visible["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
        process = subprocess.Popen(
            [argument.replace("%t", str(index)) for argument in command],
            env={**os.environ, "TF_CONFIG": tf_config, **visible},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        thread = threading.Thread(target=_show, args=(index, process.stdout))
        thread.start()
        started.append((process, thread))
    return started


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
    return wait(start([sys.executable, *program], options.workers, options.gpus))


if __name__ == "__main__":
    sys.exit(main())
