"""BoTorch's noisy expected hypervolume improvement with exact bytes as second objective: what tests compare with."""

from __future__ import annotations

from typing import Any

import numpy as np

from qra_search.surrogates.gp import LossGP, kernel_module, proxy_mean, seeded_torch

SAMPLES = 128


def log_nehvi(
    gp: LossGP,
    known_sizes: np.ndarray,
    inputs: np.ndarray,
    proxy: np.ndarray,
    sizes: np.ndarray,
    reference: tuple[float, float],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Log of the expected hypervolume improvement (Daulton et al. 2021; Ament et al. 2023), by Monte Carlo.

    The bytes ride along as a column of the inputs that a deterministic model reads. They need a `ModelList`: a
    `ModelListGP` takes no deterministic model. The sampler is a list for the same reason.

    Args:
        gp: the loss given N plans; all of them are the baseline, fantasized ones too.
        known_sizes: (N,), their bytes.
        inputs, proxy, sizes: (M, D), (M,), (M,) of the candidates.
        reference: (loss, bytes) that the hypervolume is measured to.

    Returns:
        float (M,), in nats times bytes.
    """
    import torch
    from botorch.acquisition.multi_objective import logei
    from botorch.models import GenericDeterministicModel, ModelList
    from botorch.sampling import ListSampler, SobolQMCNormalSampler
    from botorch.sampling.index_sampler import IndexSampler

    # At its first use BoTorch 0.18 compiles a C++ kernel, for a minute, under a lock that a killed process leaves
    # behind and every later one waits for without end. Told that it has tried, it takes its Python path.
    logei._load_attempted = True
    worst, most = float(reference[0]), float(reference[1])
    known, rows = (
        torch.as_tensor(np.column_stack([a, p, s / most]))
        for a, p, s in ((gp.inputs, gp.proxy, known_sizes), (inputs, proxy, sizes))
    )
    shape = torch.Size([samples])
    with seeded_torch(seed), torch.no_grad():
        quality = quality_model(gp, known)
        bytes_left = GenericDeterministicModel(lambda X: -X[..., -1:], num_outputs=1)
        acquisition = logei.qLogNoisyExpectedHypervolumeImprovement(
            ModelList(quality, bytes_left),
            ref_point=[-(worst - gp.center) / gp.scale, -1.0],
            X_baseline=known,
            sampler=ListSampler(SobolQMCNormalSampler(shape, seed=seed), IndexSampler(shape, seed=seed)),
            prune_baseline=False,
            cache_root=False,
        )
        value = torch.cat([acquisition(row[None, None]) for row in rows])
    return value.numpy() + np.log(gp.scale * most)


def quality_model(gp: LossGP, known: Any) -> Any:
    """The BoTorch model of the standardized negative loss, with the hyperparameters of `gp`.

    Args:
        known: double (N, D + 2), inputs, proxy and share of bytes of the plans that `gp` knows.
    """
    import torch
    from botorch.models import SingleTaskGP

    columns = gp.inputs.shape[1]
    unit = gp.residual + gp.constant + gp.slope * gp.proxy
    covariance = kernel_module(columns, gp.kernel, ard=True)
    model = SingleTaskGP(
        known,
        torch.as_tensor(-unit)[:, None],
        train_Yvar=torch.full((len(unit), 1), gp.noise, dtype=torch.double),
        covar_module=covariance,
        mean_module=proxy_mean(columns, -gp.slope, -gp.constant, learn=False),
        outcome_transform=None,
    ).double()
    covariance.lengthscale = torch.as_tensor(gp.lengthscale)
    return model.eval()
