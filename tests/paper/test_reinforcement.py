"""CrossQ: what one update does, and that agents train."""

import keras
import numpy as np
import pytest

pytestmark = [
    pytest.mark.each_backend,
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX"),
]
if keras.backend.backend() == "jax":
    import jax

    from keras_brn.paper.studies import actor_critic, reinforcement

SMALL = {"steps": 40, "random_steps": 20, "batch_size": 8, "units": 8, "evaluations": 4}


def transitions(rng, batch=8):
    return [rng.normal(size=(batch, size)).astype("float32") for size in (3, 1, 1, 3)]


def named(agent, state):
    """The statistics of both critics by name, in lists."""
    values = {}
    for variable, value in zip(
        agent.critic.non_trainable_variables, state["statistics"], strict=True
    ):
        values.setdefault(variable.name, []).append(np.asarray(value))
    return values


def test_statistics_are_those_of_both_halves_of_the_joint_minibatch(rng):
    run = reinforcement.ReinforcementRun("batch_renorm", 1e-3, **SMALL)
    agent, batch = actor_critic.Agent(run), transitions(rng)
    state = agent.update(agent.state, batch, jax.random.key(0))
    means = named(agent, state)["moving_mean"]
    expected = 0.01 * np.concatenate([batch[0], batch[3]]).mean(0)
    for first in (0, 3):  # The normalization of the input of each critic.
        np.testing.assert_allclose(means[first][:3], expected, rtol=1e-4, atol=1e-7)
    assert named(agent, state)["calls"] == [1.0] * 6


def test_target_networks_follow_slowly(rng):
    agent = actor_critic.Agent(reinforcement.ReinforcementRun("targets", 1e-2, **SMALL))
    before = [np.array(value) for value in agent.state["target"]]
    state = agent.update(agent.state, transitions(rng), jax.random.key(0))
    for old, target, new in zip(before, state["target"], state["critic"], strict=True):
        np.testing.assert_allclose(target, old + 0.005 * (new - old), rtol=1e-5, atol=1e-7)


def test_critics_follow_the_target_of_the_joint_pass(rng):
    """The bias of the first critic rises where the target is above its values, on average."""
    agent = actor_critic.Agent(reinforcement.ReinforcementRun("batchnorm", 1e-3, **SMALL))
    batch, key = transitions(rng), jax.random.key(0)
    drawn = agent._actions(agent.state["actor"], batch[3], jax.random.split(key)[0])
    actions, density = map(np.asarray, drawn)
    joint = [np.concatenate(pair) for pair in ((batch[0], batch[3]), (batch[1], actions))]
    values, following = np.split(np.asarray(agent.values(*joint, training=True)), 2)
    least = following.min(axis=1, keepdims=True)
    bias = next(k for k, v in enumerate(agent.critic.trainable_variables) if v.shape == (1,))
    for excess in (-0.01, 0.01):
        batch[2] = values[:, :1] - 0.99 * (least - density) + np.float32(excess)
        state = jax.tree.map(jax.numpy.copy, agent.state)  # An update takes its memory.
        moved = agent.update(state, batch, key)["critic"][bias]
        np.testing.assert_allclose(moved, np.sign(excess) * 1e-3, rtol=1e-3)  # Adam's first step.


def test_the_actor_learns_from_critics_in_inference(rng):
    agent = actor_critic.Agent(reinforcement.ReinforcementRun("batchnorm", 1e-3, **SMALL))
    batch, key = transitions(rng), jax.random.key(0)
    before = [np.array(value) for value in agent.state["actor"]]
    agent.state = agent.update(agent.state, batch, key)

    def loss(actor):
        actions, density = agent._actions(actor, batch[0], jax.random.split(key)[1])
        least = agent.values(batch[0], actions, training=False).min(axis=1, keepdims=True)
        surplus = jax.lax.stop_gradient(1 - density.mean())  # Of entropy: -1 is wanted.
        return (density - least).mean() + actor[-1] * surplus  # The temperature is 1.

    for old, new, slope in zip(before, agent.state["actor"], jax.grad(loss)(before), strict=True):
        adam = old - 1e-3 * slope / (abs(slope) + 1e-7)  # Its first step.
        np.testing.assert_allclose(new, adam, atol=2e-5)


def test_density_of_actions(rng):
    """It integrates to 1 over (-1, 1)."""
    agent = actor_critic.Agent(reinforcement.ReinforcementRun("plain", 1e-3, **SMALL))
    observations = np.repeat(rng.normal(size=(1, 3)).astype("float32"), 20_000, axis=0)
    actions, density = agent._actions(agent.state["actor"], observations, jax.random.key(0))
    inside = np.abs(actions) < 0.9  # The mean of 1 / density over samples is the length.
    np.testing.assert_allclose(np.mean(inside / np.exp(density)), 1.8, atol=0.05)


@pytest.mark.parametrize("method", ["targets", "plain", "batchnorm", "batch_renorm"])
def test_runs(method):
    run = reinforcement.ReinforcementRun(method, 1e-3, **SMALL)
    result = actor_critic.train_reinforcement(run)
    assert result["step"] == [10, 20, 30, 40] and all(-2000 < r < 0 for r in result["return"])
    assert result["mean"] == result["choices"] and result["last"] == result["return"][-1]
    assert (result["distance"] > 1e-3) == (method in ("batchnorm", "batch_renorm"))


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="`method` must be one of .* Received: method='none'"):
        reinforcement.ReinforcementRun("none", 1e-3)
