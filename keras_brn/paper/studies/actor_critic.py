"""Soft actor-critic (Haarnoja et al. 2018) and CrossQ (Bhatt et al. 2024) on a pendulum (JAX)."""

import keras
import numpy as np

from keras_brn.extras import extra
from keras_brn.layer import BatchRenormalization
from keras_brn.ramp import LinearRamp

with extra("notebooks"):
    import gymnasium
with extra("jax"):
    import jax
    import jax.numpy as jnp

DISCOUNT, AVERAGING, LARGEST_ACTION, TARGET_ENTROPY = 0.99, 0.005, 2.0, -1.0
EPISODE = 200  # Steps of `Pendulum-v1`, which never ends before.
EVALUATION_EPISODES = 10


def critic_network(run):
    """Two critics: from (batch, 4), an observation and an action, to (batch, 2)."""
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Concatenate()([_critic(run)(inputs) for _ in range(2)]))


def _critic(run):
    """As in CrossQ, the input is normalized, and each hidden layer after its activation."""
    network = keras.Sequential(_normalization(run))
    for _ in range(2):
        network.add(keras.layers.Dense(run.units, "relu"))
        for layer in _normalization(run):
            network.add(layer)
    network.add(keras.layers.Dense(1))
    return network


def _normalization(run):
    if run.method in ("targets", "plain"):
        return []
    if run.method == "batchnorm":
        return [BatchRenormalization(r_max=1, d_max=0, momentum=run.momentum)]
    ramp = LinearRamp.for_run(run.steps - run.random_steps)
    return [BatchRenormalization(momentum=run.momentum, schedule=ramp)]


def actor_network(units):
    """From observations (batch, 3) to mean and logarithm of the deviation, (batch, 2)."""
    layers = [keras.layers.Dense(units, "relu"), keras.layers.Dense(units, "relu")]
    return keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(2)])


class Agent:
    """Actor, critics and what trains them. Its `state` is a dict of lists of arrays."""

    def __init__(self, run):
        keras.utils.set_random_seed(run.seed)
        self.run, self.actor, self.critic = run, actor_network(run.units), critic_network(run)
        self.log_temperature = keras.Variable(0.0)
        actor = [*self.actor.trainable_variables, self.log_temperature]
        self.actor_optimizer = keras.optimizers.Adam(run.learning_rate)
        self.critic_optimizer = keras.optimizers.Adam(run.learning_rate)
        self.actor_optimizer.build(actor)
        self.critic_optimizer.build(self.critic.trainable_variables)
        variables = {
            "actor": actor,
            "actor_optimizer": self.actor_optimizer.variables,
            "critic": self.critic.trainable_variables,
            "statistics": self.critic.non_trainable_variables,
            "critic_optimizer": self.critic_optimizer.variables,
            "target": self.critic.trainable_variables if run.method == "targets" else [],
        }
        self.state = jax.tree.map(lambda v: jnp.array(v.value), variables)
        self.update = jax.jit(self._update, donate_argnums=0)
        self.act = jax.jit(self._act)

    def _act(self, state, observations, key):
        """Random actions in (-1, 1); the most likely ones where `key` is `None`."""
        return self._actions(state["actor"], observations, key)[0]

    def _actions(self, actor, observations, key):
        """Actions (batch, 1) and the logarithm of their density (batch, 1)."""
        outputs, _ = self.actor.stateless_call(actor[:-1], [], observations)
        mean, log_deviation = jnp.split(outputs, 2, axis=1)
        if key is None:
            return jnp.tanh(mean), None
        log_deviation = jnp.clip(log_deviation, -5.0, 2.0)
        noise = jax.random.normal(key, mean.shape)
        actions = jnp.tanh(mean + jnp.exp(log_deviation) * noise)
        density = -0.5 * noise**2 - log_deviation - 0.5 * jnp.log(2 * jnp.pi)
        return actions, density - jnp.log(1 - actions**2 + 1e-6)

    def _values(self, trainable, statistics, observations, actions, training):
        inputs = jnp.concatenate([observations, actions], axis=1)
        return self.critic.stateless_call(trainable, statistics, inputs, training=training)

    def _update(self, state, batch, key):
        """The state after one step of gradient descent, on transitions (batch, ...)."""
        observations, actions, rewards, next_observations = batch
        keys = jax.random.split(key)
        next_actions, next_density = self._actions(state["actor"], next_observations, keys[0])
        temperature = jnp.exp(state["actor"][-1])

        def critic_loss(critic):
            # One minibatch of both, so that one set of statistics normalizes both (CrossQ).
            both, statistics = self._values(
                critic,
                state["statistics"],
                jnp.concatenate([observations, next_observations]),
                jnp.concatenate([actions, next_actions]),
                training=True,
            )
            values, next_values = jnp.split(both, 2)
            if state["target"]:
                next_values, _ = self._values(
                    state["target"], [], next_observations, next_actions, training=False
                )
            least = jnp.min(next_values, axis=1, keepdims=True)
            target = rewards + DISCOUNT * (least - temperature * next_density)
            errors = values - jax.lax.stop_gradient(target)
            return jnp.mean(jnp.sum(errors**2, axis=1)), statistics

        gradients, statistics = jax.grad(critic_loss, has_aux=True)(state["critic"])
        critic, critic_optimizer = self.critic_optimizer.stateless_apply(
            state["critic_optimizer"], gradients, state["critic"]
        )

        def actor_loss(actor):
            chosen, density = self._actions(actor, observations, keys[1])
            values, _ = self._values(critic, statistics, observations, chosen, training=False)
            loss = temperature * density - jnp.min(values, axis=1, keepdims=True)
            missing = jax.lax.stop_gradient(density + TARGET_ENTROPY)  # Of entropy, if above 0.
            return jnp.mean(loss) - actor[-1] * jnp.mean(missing)

        actor, actor_optimizer = self.actor_optimizer.stateless_apply(
            state["actor_optimizer"], jax.grad(actor_loss)(state["actor"]), state["actor"]
        )
        return {
            "actor": actor,
            "actor_optimizer": actor_optimizer,
            "critic": critic,
            "statistics": statistics,
            "critic_optimizer": critic_optimizer,
            "target": [
                old + AVERAGING * (new - old)
                for old, new in zip(state["target"], critic, strict=False)
            ],
        }

    def values(self, observations, actions, training):
        """What the critics compute in training, or in inference: (batch, 2). Nothing changes."""
        trainable, statistics = self.state["critic"], self.state["statistics"]
        return self._values(trainable, statistics, observations, actions, training)[0]


def train_agent(run):
    """Trains the agent of a run.

    Returns:
        The agent; the last minibatch, a list of arrays (batch, ...) of observations, actions,
        rewards and next observations; and the steps and returns of the evaluations, two lists. A
        return is the mean over `EVALUATION_EPISODES` episodes of `EPISODE` steps.
    """
    agent, rng, key = Agent(run), np.random.default_rng(run.seed), jax.random.key(run.seed)
    environment = gymnasium.make("Pendulum-v1")
    observation, _ = environment.reset(seed=run.seed)
    buffer = [np.zeros((run.steps, size), "float32") for size in (3, 1, 1, 3)]
    steps, returns, batch = [], [], None
    for step in range(run.steps):
        if step < run.random_steps:
            action = rng.uniform(-1, 1, 1).astype("float32")
        else:
            drawn = agent.act(agent.state, observation[None], jax.random.fold_in(key, 2 * step))
            action = np.asarray(drawn)[0]
        following, reward, _, ended, _ = environment.step(LARGEST_ACTION * action)
        for values, value in zip(buffer, (observation, action, reward, following), strict=True):
            values[step] = value
        observation = environment.reset()[0] if ended else following
        if step >= run.random_steps:
            drawn = rng.integers(step + 1, size=run.batch_size)
            batch = [values[drawn] for values in buffer]
            agent.state = agent.update(agent.state, batch, jax.random.fold_in(key, 2 * step + 1))
        if (step + 1) % (run.steps // run.evaluations) == 0:
            steps.append(step + 1)
            returns.append(evaluate(agent))
    return agent, batch, steps, returns


def train_reinforcement(run):
    """The result of a run.

    Returns:
        Dict of `step` and `return` of each evaluation; `choices` and `mean`, the mean over all
        evaluations, which is high where learning is fast and stable; `last`, that over the last
        quarter; `distance`, of the critics' values for the last minibatch: the mean absolute
        difference of training and inference, by the standard deviation in inference.
    """
    agent, (observations, actions, *_), steps, returns = train_agent(run)
    trained, inferred = (agent.values(observations, actions, mode) for mode in (True, False))
    mean = float(np.mean(returns))
    return {
        "step": steps,
        "return": returns,
        "choices": mean,
        "mean": mean,
        "last": float(np.mean(returns[-(run.evaluations // 4) or None :])),
        "distance": float(jnp.mean(jnp.abs(trained - inferred)) / jnp.std(inferred)),
    }


def evaluate(agent):
    """The mean return of `EVALUATION_EPISODES` episodes with the most likely actions."""
    environments = gymnasium.make_vec("Pendulum-v1", num_envs=EVALUATION_EPISODES)
    observations, _ = environments.reset(seed=0)
    total = 0.0
    for _ in range(EPISODE):
        actions = np.asarray(agent.act(agent.state, observations, None))
        observations, rewards, *_ = environments.step(LARGEST_ACTION * actions)
        total += rewards.mean()
    environments.close()
    return round(float(total), 2)
