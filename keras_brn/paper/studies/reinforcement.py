"""Normalization in the critics of reinforcement learning: CrossQ on a pendulum.

    KERAS_BACKEND=jax python -m keras_brn.paper.studies.reinforcement [--results results]
        [--out figures]

CrossQ (Bhatt et al. 2024) is soft actor-critic (Haarnoja et al. 2018) without target networks. Its
critics are normalized, and see this step's actions and the next one's in one minibatch.
"""

import dataclasses

from keras_brn.paper.studies.study import SEARCH_SEED, check_method, search_and_report, study_parser

METHODS = {
    "targets": "no normalization, target networks (SAC)",
    "plain": "no normalization",
    "batchnorm": "batchnorm (CrossQ)",
    "batch_renorm": "Batch Renorm (CrossQ)",
}
LEARNING_RATES = (3e-4, 1e-3, 3e-3)


@dataclasses.dataclass(frozen=True)
class ReinforcementRun:
    """One agent.

    Attributes:
        method: One of `METHODS`.
        learning_rate: Of Adam, for actor and critics.
        seed: Integer that fixes weights, environment and draws.
        steps: Number of steps in the environment, with an update after each.
        random_steps: Number of first steps with random actions and without updates.
        batch_size: Number of transitions of an update.
        units: Width of the two hidden layers of actor and critics.
        momentum: Of the averages of mu and sigma.
        evaluations: Number of evaluations, evenly spaced.
    """

    method: str
    learning_rate: float
    seed: int = 0
    steps: int = 6_000
    random_steps: int = 500
    batch_size: int = 128
    units: int = 128
    momentum: float = 0.99
    evaluations: int = 20

    def __post_init__(self):
        check_method(self.method, METHODS)


def search_runs():
    """The runs that choose the learning rate of each method."""
    return [
        ReinforcementRun(method, rate, seed)
        for seed in (SEARCH_SEED, SEARCH_SEED + 1)
        for method in METHODS
        for rate in LEARNING_RATES
    ]


def main(arguments=None):
    from keras_brn.paper.studies.actor_critic import train_reinforcement  # Tables need no JAX.

    options = study_parser("reinforcement").parse_args(arguments)
    search_and_report(
        "reinforcement", options, search_runs(), ("method",), range(5), train_reinforcement
    )


if __name__ == "__main__":
    main()
