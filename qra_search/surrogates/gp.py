"""Gaussian processes of the loss: BoTorch's `SingleTaskGP` with a mean affine in a proxy of the loss, over plans."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from qra_search.schemas import Plan
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import SearchSpace
from qra_search.space.steps import select_entries

FIT_ITERATIONS = 60
MAX_LENGTHSCALES = 160
"""Beyond so many inputs one lengthscale serves all: ten times cheaper at 448, for a rank correlation with held-out
losses of 0.91 instead of 0.93 after 100 trials."""
MIN_LENGTHSCALE = 0.025
PREDICTION_BATCH = 250
"""Plans that are predicted at a time: the posterior of so many has a covariance matrix of them. With 422 inputs, a
third of the time of 1,000."""
MIN_STD = 1e-6
MIN_PLANS = 4
"""Distinct plans that a fit needs."""
LOSS_CLIP = 4.0
"""Losses count up to so many times as far above the best as the median is: a broken plan says little of good ones."""

Kernel = Literal["rbf", "matern52"]
Encoder = Callable[[np.ndarray], np.ndarray]
"""From codes (M, 2, G) to the inputs of a `LossGP`."""


@dataclass(frozen=True)
class LossGP:
    """Posterior of the loss given inputs, the last of which is a proxy of it: the mean is affine in the proxy, the rest
    is the process.

    Attributes:
        model: BoTorch's, of standardized losses.
        center, scale: of the standardization; loss = center + scale * standardized.
    """

    model: Any
    center: float
    scale: float

    def predict(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and standard deviation (M,), (M,) of the noise-free loss at inputs (M, D)."""
        import torch

        with use_one_thread(), torch.no_grad():
            parts = [self.model.posterior(part) for part in torch.as_tensor(inputs).split(PREDICTION_BATCH)]
            mean, variance = (
                torch.cat([getattr(p, name)[:, 0] for p in parts]) for name in ("mean", "variance")
            )
        std = np.maximum(variance.sqrt().numpy(), MIN_STD)
        return self.center + self.scale * mean.numpy(), self.scale * std

    def fantasize(self, inputs: np.ndarray) -> LossGP:
        """The posterior once further plans (M, D) have come out as their posterior mean says."""
        import torch

        with use_one_thread(), torch.no_grad():
            X = torch.as_tensor(inputs)
            return replace(self, model=self.model.condition_on_observations(X, self.model.posterior(X).mean))


def fit_loss_gp(
    inputs: np.ndarray, losses: np.ndarray, *, kernel: Kernel = "matern52", seed: int = 0
) -> LossGP:
    """Fit a `SingleTaskGP` with a dimension-scaled prior on its lengthscales (Hvarfner et al. 2024) by MAP.

    Args:
        inputs: float (N, D), each column within [0, 1] but the last, the proxy. The slope of the mean is learnt, so
            that data overrule the proxy; it is 0 where the proxy does not vary.
        kernel: `matern52` has one lengthscale for all inputs, `rbf` one for each if they are not too many.
        seed: of the restarts after a failed fit.
    """
    import torch
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from gpytorch.constraints import GreaterThan
    from gpytorch.kernels import MaternKernel, RBFKernel
    from gpytorch.mlls import ExactMarginalLogLikelihood
    from gpytorch.priors import LogNormalPrior

    columns = inputs.shape[1] - 1
    center = float(losses.mean())
    scale = float(losses.std()) or 1.0
    unit = (losses - center) / scale
    with use_one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = LogNormalPrior(loc=math.sqrt(2) + 0.5 * math.log(columns), scale=math.sqrt(3))
        covariance = (RBFKernel if kernel == "rbf" else MaternKernel)(
            ard_num_dims=columns if kernel == "rbf" and columns <= MAX_LENGTHSCALES else None,
            active_dims=range(columns),
            lengthscale_prior=prior,
            lengthscale_constraint=GreaterThan(MIN_LENGTHSCALE, transform=None, initial_value=prior.mode),
        )
        model = SingleTaskGP(
            torch.as_tensor(inputs),
            torch.as_tensor(unit)[:, None],
            covar_module=covariance,
            mean_module=_make_affine_mean(inputs[:, -1], unit),
            outcome_transform=None,
        ).double()
        mll = ExactMarginalLogLikelihood(model.likelihood, model)
        fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": FIT_ITERATIONS}})
    return LossGP(model, center, scale)


def _make_affine_mean(proxy: np.ndarray, losses: np.ndarray) -> Any:
    """A GPyTorch mean that is affine in the last input; it starts at the least-squares line."""
    import torch
    from gpytorch.means import Mean

    varies = bool(np.ptp(proxy) > 0)
    start = np.polyfit(proxy, losses, 1) if varies else np.array([0.0, losses.mean()])

    class AffineMean(Mean):
        def __init__(self) -> None:
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(start[0]), requires_grad=varies)
            self.constant = torch.nn.Parameter(torch.tensor(start[1]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.constant + self.slope * x[..., -1]

    return AffineMean()


@dataclass(frozen=True)
class PlanGP:
    """A `LossGP` over plans.

    Attributes:
        codes: int (N, 2, G), the plans that the model knows, fantasized ones last.
        ceiling: loss above which observations were cut off.
    """

    gp: LossGP
    encode: Encoder
    codes: np.ndarray
    ceiling: float

    def predict(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.gp.predict(self.encode(codes))

    def fantasize(self, codes: np.ndarray) -> PlanGP:
        gp = self.gp.fantasize(self.encode(codes))
        return replace(self, gp=gp, codes=np.concatenate([self.codes, codes]))


def fit_plan_gp(
    space: SearchSpace,
    losses: Mapping[Plan, float],
    pending: Iterable[Plan],
    encode: Encoder,
    **options: Any,
) -> PlanGP | None:
    """The model of these plans' losses, pending plans fantasized; None if they are too few, or all alike."""
    values = np.array(list(losses.values()))
    if len(losses) < MIN_PLANS or np.ptp(values) == 0:
        return None
    codes = space.encode_many(losses)
    best = values.min()
    middle = np.median(values)
    ceiling = float(best + LOSS_CLIP * (middle - best) if middle > best else values.max())
    gp = fit_loss_gp(encode(codes), np.minimum(values, ceiling), **options)
    model = PlanGP(gp, encode, codes, ceiling)
    waiting = [plan for plan in pending if plan not in losses]
    return model.fantasize(space.encode_many(waiting)) if waiting else model


@contextmanager
def use_one_thread() -> Iterator[None]:
    """Torch computes with one thread inside: rounding, and so proposals, would depend on their number."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def scale_by_error(space: SearchSpace) -> np.ndarray:
    """float (2, G, K): each choice of each variable on the scale on which the loss is smooth, within [0, 1].

    Bits by their round-to-nearest error, 4^-(bits - 2), ranks by log2(1 + rank).
    """
    bits = np.asarray(space.widths, dtype=float)
    error = np.where(bits >= UNQUANTIZED_BITS, 0.0, 4.0 ** (2 - bits))
    return _stack_scales(space, error, np.log2(1.0 + np.asarray(space.ranks, dtype=float)))


def scale_by_order(space: SearchSpace) -> np.ndarray:
    """float (2, G, K): each choice of each variable by its place among them, within [0, 1]."""
    return _stack_scales(space, np.arange(float(len(space.bits))), np.arange(float(len(space.ranks))))


def encode_inputs(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """float (M, 2 G): the values (2, G, K) of the choices in codes (M, 2, G), as inputs of a model."""
    return select_entries(values, codes).reshape(len(codes), len(values) * values.shape[1])


def _stack_scales(space: SearchSpace, *sides: np.ndarray) -> np.ndarray:
    unit = [(values - values.min()) / (np.ptp(values) or 1.0) for values in sides]
    width = max(len(unit[1]), space.bits_allowed.shape[1])
    scales = [np.tile(np.pad(values, (0, width - len(values))), (len(space), 1)) for values in unit]
    stacked = np.stack([space.pad(scale, width) for scale in scales])
    for row, parameter in enumerate(space.extra.values(), start=len(space)):
        stacked[0, row, : len(parameter.values)] = np.linspace(0.0, 1.0, len(parameter.values))
    return stacked
