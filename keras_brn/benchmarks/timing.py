"""How the contenders of a benchmark are timed."""

import time

import numpy as np


def take_turns(functions, seconds, turn=0.02):
    """Seconds per call of each function, (rounds, functions); calls are grouped to `turn`."""
    calls = []
    for function in functions:
        function(), function()  # Compiles.
        start = time.perf_counter()
        function()
        calls.append(max(1, round(turn / (time.perf_counter() - start))))
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 9:
        times.append(np.zeros(len(functions)))
        for i in np.roll(range(len(functions)), len(times)):
            start = time.perf_counter()
            for _ in range(calls[i]):
                functions[i]()
            times[-1][i] = (time.perf_counter() - start) / calls[i]
    return np.array(times)


def with_spread(values, digits):
    """The median of values, and their 10th and 90th percentile, with so many `digits`: ".2f"."""
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return f"{median:{digits}} [{low:{digits}}, {high:{digits}}]"
