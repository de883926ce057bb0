"""Algorithm 1 of the paper and its backward pass in float64 NumPy; imports nothing of ours."""

import numpy as np


class Reference:
    """Batch Renorm of inputs of any rank, with the state that Algorithm 1 carries along."""

    def __init__(self, channels, r_max, d_max, alpha, epsilon=1e-3, axis=-1, microbatch_size=None):
        self.gamma, self.beta = np.ones(channels), np.zeros(channels)
        self.mu, self.sigma = np.zeros(channels), np.ones(channels)
        self.r_max, self.d_max, self.alpha, self.epsilon = r_max, d_max, alpha, epsilon
        self.axis, self.microbatch_size = axis, microbatch_size

    def step(self, x, dy, mask=None):
        """One training step: y, dx, dgamma, dbeta; moves mu and sigma."""
        x, dy = (np.moveaxis(np.asarray(a, "float64"), self.axis, -1) for a in (x, dy))
        mask = np.ones(x.shape[:-1], bool) if mask is None else mask
        size = self.microbatch_size or len(x)
        starts = range(0, len(x), size)
        groups = [self._group(*(a[i : i + size] for a in (x, dy, mask))) for i in starts]
        y, dx, dgamma, dbeta, mu_B, sigma_B = zip(*groups, strict=True)
        self.mu = self.mu + self.alpha * (np.mean(mu_B, axis=0) - self.mu)
        self.sigma = self.sigma + self.alpha * (np.mean(sigma_B, axis=0) - self.sigma)
        y, dx = (np.moveaxis(np.concatenate(a), -1, self.axis) for a in (y, dx))
        return y, dx, sum(dgamma), sum(dbeta)

    def _group(self, x, dy, mask):
        shape = x.shape
        x, dy, mask = x.reshape(-1, shape[-1]), dy.reshape(-1, shape[-1]), mask.reshape(-1, 1)
        m = mask.sum()
        # Forward.
        mu_B = (x * mask).sum(0) / m
        sigma_B = np.sqrt(self.epsilon + ((x - mu_B) ** 2 * mask).sum(0) / m)
        r = np.clip(sigma_B / self.sigma, 1 / self.r_max, self.r_max)
        d = np.clip((mu_B - self.mu) / self.sigma, -self.d_max, self.d_max)
        x_hat = (x - mu_B) / sigma_B * r + d
        y = self.gamma * x_hat + self.beta
        # Backward, the paper's equations; values not counted reach neither mu_B nor sigma_B.
        dx_hat = dy * self.gamma
        dsigma_B = (dx_hat * (x - mu_B) * (-r / sigma_B**2)).sum(0)
        dmu_B = (dx_hat * (-r / sigma_B)).sum(0)
        through_moments = dsigma_B * (x - mu_B) / (m * sigma_B) + dmu_B / m
        dx = dx_hat * r / sigma_B + mask * through_moments
        dgamma, dbeta = (dy * x_hat).sum(0), dy.sum(0)
        return y.reshape(shape), dx.reshape(shape), dgamma, dbeta, mu_B, sigma_B

    def inference(self, x):
        x = np.moveaxis(np.asarray(x, "float64"), self.axis, -1)
        y = self.gamma * (x - self.mu) / self.sigma + self.beta
        return np.moveaxis(y, -1, self.axis)
