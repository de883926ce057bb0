"""How the contenders of a benchmark are timed."""

import shutil
import subprocess
import time

import numpy as np

from keras_brn.paper.records import provenance, write_json


def describe_gpu():
    """What `nvidia-smi` says of name, driver and present clocks; `None` where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    fields = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def take_turns(functions, seconds, turn=0.02, wait=lambda result: result):
    """Seconds per call of each function, (rounds, functions); calls are grouped to `turn`.

    `wait` is called with the last result of each turn, on a device that computes the calls one
    after the other and later than they return.
    """
    calls = []
    for function in functions:
        function(), wait(function())  # Compiles.
        start = time.perf_counter()
        wait(function())
        calls.append(max(1, round(turn / (time.perf_counter() - start))))
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 9:
        times.append(np.zeros(len(functions)))
        for i in np.roll(range(len(functions)), len(times)):
            start = time.perf_counter()
            for _ in range(calls[i]):
                result = functions[i]()
            wait(result)
            times[-1][i] = (time.perf_counter() - start) / calls[i]
    return np.array(times)


def write_measured(path, results):
    """Writes results to a JSON file, with what they were measured on."""
    write_json(path, {"gpu": describe_gpu(), "provenance": provenance(), "results": results})


def compared_with_first(times, k):
    """Of function `k` in what `take_turns` returns: milliseconds, and the ratio to the first one
    within a round, with its 10th and 90th percentile."""
    low, median, high = np.quantile(times[:, k] / times[:, 0], [0.1, 0.5, 0.9])
    return {
        "milliseconds": round(1e3 * float(np.median(times[:, k])), 3),
        "ratio": round(float(median), 3),
        "ratio_p10_p90": [round(float(low), 3), round(float(high), 3)],
    }


def ratio_with_spread(result):
    """The ratio of `compared_with_first` as a cell of a table; `None` is a dash."""
    if result is None:
        return "–"
    low, high = result["ratio_p10_p90"]
    return f"{result['ratio']:.2f} ({low:.2f} to {high:.2f})"


def with_spread(values, digits):
    """The median of values, and their 10th and 90th percentile, with so many `digits`: ".2f"."""
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return f"{median:{digits}} [{low:{digits}}, {high:{digits}}]"
