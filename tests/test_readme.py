"""The first example of the README, as it stands there."""

import re
from pathlib import Path


def test_example():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names = {}
    exec(example, names)
    assert len([line for line in example.splitlines() if line]) <= 10
    assert int(names["model"].layers[2].step) == 16
    assert 1 < names["model"].layers[2].r_max < 3
