"""A Gaussian process of the loss over plans: fitted by BoTorch, read out by plain linear algebra."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from qra_search.space.space import SearchSpace
from qra_search.space.steps import entries

Kernel = Literal["rbf", "matern52"]
FIT_ITERATIONS = 60
JITTER = 1e-8
MIN_LENGTHSCALE = 0.025
REFERENCE_BITS = 2
UNQUANTIZED = 16


@dataclass(frozen=True)
class LossGP:
    """Posterior of the loss given evaluated plans; the mean is affine in a proxy, the rest is the GP.

    Attributes:
        inputs: float (N, D), the evaluated plans.
        proxy: float (N,), their proxy loss.
        residual: float (N,), standardized losses less the mean.
        lengthscale: float (D,).
        noise: noise variance of a standardized loss.
        slope, constant: of the mean, in standardized losses.
        center, scale: of the standardization; loss = center + scale * standardized.
    """

    inputs: np.ndarray
    proxy: np.ndarray
    residual: np.ndarray
    lengthscale: np.ndarray
    kernel: Kernel
    noise: float
    slope: float
    constant: float
    center: float
    scale: float

    @cached_property
    def _chol(self) -> np.ndarray:
        own = self._covariance(self.inputs, self.inputs)
        own[np.diag_indices_from(own)] += self.noise + JITTER
        return cholesky(own, lower=True)

    @cached_property
    def _weights(self) -> np.ndarray:
        return cho_solve((self._chol, True), self.residual)

    def predict(self, inputs: np.ndarray, proxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and standard deviation (M,), (M,) of the noise-free loss of plans (M, D) with proxy (M,)."""
        cross = self._covariance(inputs, self.inputs)
        half = solve_triangular(self._chol, cross.T, lower=True, check_finite=False)
        mean = self.constant + self.slope * proxy + cross @ self._weights
        var = np.maximum(1.0 - (half**2).sum(0), 1e-12)
        return self.center + self.scale * mean, self.scale * np.sqrt(var)

    def fantasize(self, inputs: np.ndarray, proxy: np.ndarray) -> LossGP:
        """The model once further plans (M, D), with proxy (M,), have come out as their posterior mean says."""
        if not len(inputs):
            return self
        mean, _ = self.predict(inputs, proxy)
        residual = (mean - self.center) / self.scale - self.constant - self.slope * proxy
        return replace(
            self,
            inputs=np.concatenate([self.inputs, inputs]),
            proxy=np.append(self.proxy, proxy),
            residual=np.append(self.residual, residual),
        )

    def _covariance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a / self.lengthscale, b / self.lengthscale
        square = np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2.0 * (a @ b.T), 0.0)
        if self.kernel == "rbf":
            return np.exp(-0.5 * square)
        distance = np.sqrt(5.0 * square)
        return (1.0 + distance + distance**2 / 3.0) * np.exp(-distance)


def fit_loss_gp(
    inputs: np.ndarray,
    proxy: np.ndarray,
    losses: np.ndarray,
    *,
    kernel: Kernel = "rbf",
    ard: bool = True,
    use_proxy: bool = True,
    seed: int = 0,
) -> LossGP:
    """Fit a `SingleTaskGP` with a dimension-scaled prior on its lengthscales (Hvarfner et al. 2024) by MAP.

    Args:
        inputs: float (N, D), each column within [0, 1].
        proxy: float (N,); the mean is constant + slope * proxy, and slope is learnt, so that data overrule it.
        losses: float (N,).
        ard: one lengthscale for each column; otherwise one for all.
        use_proxy: False: the mean is a constant.
        seed: of the restarts after a failed fit; the result is a function of the arguments alone.
    """
    import torch
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from gpytorch.mlls import ExactMarginalLogLikelihood

    columns = inputs.shape[1]
    center, scale = float(losses.mean()), float(losses.std()) or 1.0
    unit = (losses - center) / scale
    with seeded_torch(seed):
        X, Y = torch.as_tensor(np.column_stack([inputs, proxy])), torch.as_tensor(unit)[:, None]
        covariance = kernel_module(columns, kernel, ard)
        mean = proxy_mean(columns, *(_line(proxy, unit) if use_proxy else (0.0, 0.0)), learn=use_proxy)
        model = SingleTaskGP(X, Y, covar_module=covariance, mean_module=mean, outcome_transform=None).double()
        mll = ExactMarginalLogLikelihood(model.likelihood, model)
        fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": FIT_ITERATIONS}})
        lengthscale = np.broadcast_to(covariance.lengthscale.detach().numpy().ravel(), (columns,)).copy()
        slope, constant = float(mean.slope.detach()), float(mean.constant.detach())
        learnt = float(model.likelihood.noise.detach())
    return LossGP(
        inputs, proxy, unit - constant - slope * proxy, lengthscale, kernel, learnt, slope, constant,
        center, scale,
    )  # fmt: skip


def proxy_mean(column: int, slope: float, constant: float, *, learn: bool = True) -> Any:
    """A GPyTorch mean that is affine in one input column."""
    import torch
    from gpytorch.means import Mean

    class ProxyMean(Mean):
        def __init__(self) -> None:
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(slope, dtype=torch.double), requires_grad=learn)
            self.constant = torch.nn.Parameter(torch.tensor(constant, dtype=torch.double))

        def forward(self, x: Any) -> Any:
            return self.constant + self.slope * x[..., column]

    return ProxyMean()


@contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """One thread and a generator of its own inside; both are as before afterwards."""
    import torch

    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def warped_choices(space: SearchSpace) -> np.ndarray:
    """float (2, G, K): each choice of each variable on the scale on which the loss is smooth, within [0, 1].

    Bits by their round-to-nearest error, 4^-(bits - 2), ranks by log2(1 + rank).
    """
    bits = np.asarray(space.widths, dtype=float)
    error = np.where(bits >= UNQUANTIZED, 0.0, 4.0 ** (REFERENCE_BITS - bits))
    return _both(space, error, np.log2(1.0 + np.asarray(space.ranks, dtype=float)))


def ordinal_choices(space: SearchSpace) -> np.ndarray:
    """float (2, G, K): each choice of each variable by its place among them, within [0, 1]."""
    return _both(space, np.arange(len(space.bits), dtype=float), np.arange(len(space.ranks), dtype=float))


def choice_values(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """float (M, 2 G): the values (2, G, K) of the choices in codes (M, 2, G), as inputs of a model."""
    return entries(values, codes).reshape(len(codes), len(values) * values.shape[1])


def kernel_module(columns: int, kernel: Kernel, ard: bool) -> Any:
    """RBF or Matern-5/2 on the first columns; the lengthscales' prior grows with the root of their number."""
    from gpytorch.constraints import GreaterThan
    from gpytorch.kernels import MaternKernel, RBFKernel
    from gpytorch.priors import LogNormalPrior

    prior = LogNormalPrior(loc=math.sqrt(2) + 0.5 * math.log(columns), scale=math.sqrt(3))
    return (RBFKernel if kernel == "rbf" else MaternKernel)(
        ard_num_dims=columns if ard else None,
        active_dims=range(columns),
        lengthscale_prior=prior,
        lengthscale_constraint=GreaterThan(MIN_LENGTHSCALE, transform=None, initial_value=prior.mode),
    )


def _both(space: SearchSpace, bits: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    width = max(len(bits), len(ranks))
    return np.stack([np.tile(_scaled(values, width), (len(space), 1)) for values in (bits, ranks)])


def _scaled(values: np.ndarray, width: int) -> np.ndarray:
    span = values.max() - values.min()
    unit = (values - values.min()) / span if span > 0 else np.zeros_like(values)
    return np.pad(unit, (0, width - len(unit)))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and constant of the least-squares line; slope 0 where x does not vary."""
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
    return slope, float(y.mean() - slope * x.mean())
