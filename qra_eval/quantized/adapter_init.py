"""Where adapters start: at zero, or fitted to what a level loses of a weight, in the metric of its inputs.

- `default`: A Kaiming-uniform, B zero (Hu et al. 2021).
- `calibrated`: B A is the best fit of its rank to what quantization lost, W - Q, by the squared error of the layer's
  output on calibration rows. With H + damping = C Cᵀ it is the truncated singular value decomposition of (W - Q) C,
  times C⁻¹ on the right (as in LQER, Zhang et al. 2024, with the whole matrix in place of its diagonal). Its leading
  directions serve every smaller rank, so one decomposition for each linear and level, kept beside the bank, serves all
  plans.
- `caldera`: in turn (Saha et al. 2024). The base is quantized again, twice, without what the fit holds, W - B A, and
  the fit made anew to what that base loses. The rank that is taken out is one for all plans, the least of the space,
  so that the base follows from its level alone.

Only `default` depends on the seed. At 16 bits nothing is lost, so all start as it does there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qra_eval.quantized.adapters import first_factors
from qra_eval.quantized.calibration import LayerMoments
from qra_eval.quantized.tensorfile import DamagedFile, open_tensors, write_tensors
from qra_eval.quantized.threads import sharing, side_by_side, workers
from qra_eval.quantized.weight_cache import QuantizedWeightCache, linear_of
from qra_search.space.levels import LevelName
from qra_search.space.memory import UNQUANTIZED_BITS

FITTED = ("calibrated", "caldera")
"""Initialisations whose factors are fitted: once to the bank's bases, and in turn with bases of their own."""
TURNS = 2
"""How often a base is quantized again without its fit."""
STARTS_VERSION = 1
"""Of how starts are fitted and laid out: files of another version are not read."""
DAMPING = 0.1
"""Share of the Hessian's mean diagonal that is added to it, as the calibrated quantizer does."""
OVERSAMPLED, ITERATIONS = 8, 4
"""Of the randomised decomposition: directions beyond twice the rank, and passes that turn them to the largest."""


class AdapterInit:
    """Factors of every linear at every level, one file for each level of a decoder layer, beside those of the bank.

    Args:
        bank: of the levels.
        rank: the largest; files hold so many directions.
        calibration: identifies the rows that the Hessians are of.
        layers: of the bank, whose linears have adapters.
        taken: rank of the fit without which bases are quantized again, in turn; 0: they are those of the bank.

    Attributes:
        bases: the bank of the bases that the factors go with.
    """

    def __init__(
        self, bank: QuantizedWeightCache, rank: int, calibration: str, layers: Collection[int], *, taken: int = 0
    ):
        self.bank, self.rank, self.calibration, self.layers, self.taken = bank, rank, calibration, layers, taken
        self.bases = bank
        if taken:
            identity = f"{bank.fingerprint}-without-{taken}-{TURNS}-{STARTS_VERSION}-{calibration}"
            self.bases = bank.like(identity, [name for name in bank.linears if bank.layer_of[name] in layers])
        self._files: dict[Path, Any] = {}
        self._paths: dict[tuple[int, LevelName], Path] = {}

    def factors(self, name: str, level: LevelName) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank), float32, with B A the fit to what `level` loses of a linear's weight.

        Raises:
            RuntimeError: they were never fitted.
        """
        path = self.path(self.bank.layer_of[name], level)
        if not self._opened(path):
            raise RuntimeError(f"the start of {name} at {level} was not fitted: {path} is missing")
        file = self._files[path]
        return file.get_tensor(f"{name}::A"), file.get_tensor(f"{name}::B")

    def path(self, layer: int, level: LevelName) -> Path:
        """The file of a layer's linears at a level."""
        if (layer, level) not in self._paths:
            whole = self.bases.path(layer, level)
            identity = [STARTS_VERSION, whole.name, self.calibration, self.rank]
            digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
            self._paths[layer, level] = whole.with_name(f"{digest}-start-{layer}.safetensors")
        return self._paths[layer, level]

    def missing(self, some: Collection[int] | None = None) -> dict[int, list[LevelName]]:
        """Levels that each layer (or each of some) lacks; those that lack none are left out."""
        layers = [at for at in self.layers if some is None or at in some]
        wanted = {at: [b for b in self.bank.levels(at) if self.bank.stored(at, b)] for at in layers}
        bare = self.bases.missing(layers) if self.taken else {}
        lacking = {
            at: [b for b in some if b in bare.get(at, ()) or not self._opened(self.path(at, b))]
            for at, some in wanted.items()
        }
        return {layer: levels for layer, levels in lacking.items() if levels}

    @torch.no_grad()
    def fit(self, layer: int, levels: Sequence[LevelName], moments: LayerMoments, device: torch.device) -> None:
        """Make the files of a layer at some levels, which the bank has, from the moments of its linears' inputs.

        Args:
            device: where the bank gives its weights.
        """
        backend, linears = self.bank.backend, self.bank.linears
        factors: dict[LevelName, dict[str, Tensor]] = {level: {} for level in levels}
        bases: dict[LevelName, dict[str, dict[str, Tensor]]] = {level: {} for level in levels}

        def fit_to(names: Sequence[str]) -> None:
            hessian = moments.hessian(names[0]).to(device)
            root = metric(hessian)
            for name in names:
                weight = linears[name].weight.detach().to(device).float()
                for level in levels:
                    if name not in self.bank.stored(layer, level):
                        continue
                    base = self.bank.module(name, level)
                    for _ in range(TURNS if self.taken else 0):
                        A, B = calibrated_factors(weight - backend.dequantize(base).float(), root, self.taken)
                        base = backend.quantize(linear_of(weight - B @ A), level, hessian=hessian)
                    A, B = calibrated_factors(weight - backend.dequantize(base).float(), root, self.rank)
                    factors[level] |= {f"{name}::A": A.cpu(), f"{name}::B": B.cpu()}
                    bases[level][name] = {k: t.cpu() for k, t in backend.to_tensors(base).items()} if self.taken else {}
            moments.release(names[0])

        together = sharing(self.bank.names(layer), moments, linears)
        side_by_side(fit_to, together, workers(backend, len(together), device), lambda names: None)
        for level in levels:
            if self.taken:
                self.bases.write(layer, level, {name: bases[level][name] for name in self.bank.stored(layer, level)})
            write_tensors(factors[level], self.path(layer, level))

    def _opened(self, path: Path) -> bool:
        if path not in self._files:
            if not path.is_file():
                return False
            try:
                self._files[path] = open_tensors(path)
            except (DamagedFile, OSError):  # made again
                return False
        return True


@dataclass(frozen=True)
class Initialiser:
    """Gives every linear its base and its adapter's first factors, by one kind of initialisation.

    Attributes:
        alpha: B A is multiplied by alpha over the rank.
        max_rank: the largest rank; factors of lower ranks are its leading rows and columns.
        fitted: complete; None: adapters start as `default`.
    """

    bank: QuantizedWeightCache
    alpha: float
    max_rank: int
    fitted: AdapterInit | None = None

    def bank_of(self, bits: LevelName, rank: int) -> QuantizedWeightCache:
        """Where a linear's base comes from."""
        whole = self.fitted is None or rank == 0 or bits == UNQUANTIZED_BITS
        return self.bank if whole else self.fitted.bases  # type: ignore[union-attr]

    def factors(self, name: str, bits: LevelName, rank: int, seed: int) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank), float32."""
        if self.fitted is None or bits == UNQUANTIZED_BITS:
            A, B = first_factors(seed, self.bank.linears[name], name, self.max_rank)
            return A[:rank], B[:, :rank]
        A, B = self.fitted.factors(name, bits)
        root = (rank / self.alpha) ** 0.5  # 1 / scaling, shared between the two
        return A[:rank] * root, B[:, :rank] * root


def fit_bytes(out_features: int, in_features: int) -> int:
    """Bytes that fitting a linear takes at its peak: weight, what is lost, and its product, float32; and two roots."""
    return 4 * (3 * out_features * in_features + 2 * in_features**2)


def metric(hessian: Tensor) -> Tensor:
    """C (in, in), lower triangular, with C Cᵀ the damped Hessian of a layer's inputs."""
    damped = hessian.float().clone()
    damped.diagonal().add_(DAMPING * damped.diagonal().mean())
    return torch.linalg.cholesky(damped)


def calibrated_factors(lost: Tensor, root: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) with tr((lost - B A) C Cᵀ (lost - B A)ᵀ) the least of that rank, nearly.

    Rows of A are as long as the columns of B that they go with. Where `lost` has a lower rank than asked for, the rest
    is zero.

    Args:
        lost: float32 (out, in).
        root: C (in, in), lower triangular.
    """
    left, right = leading_directions(lost @ root, rank)
    A = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    lengths = A.norm(dim=1), left.norm(dim=0)
    balance = torch.where(lengths[0] > 0, (lengths[1] / lengths[0]).sqrt(), 0.0)
    A = A * balance[:, None]
    B = torch.where(balance > 0, left / balance, 0.0)
    lacking = max(0, rank - len(A))
    return torch.cat([A, A.new_zeros(lacking, A.shape[1])]), torch.cat([B, B.new_zeros(len(B), lacking)], 1)


def leading_directions(target: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U S (out, r) and Vᵀ (r, in) of a truncated singular value decomposition, r = min(rank, out, in).

    By randomised subspace iteration (Halko et al. 2011) where that is cheaper; the same at every call.
    """
    rank, sketched = min(rank, *target.shape), 2 * rank + OVERSAMPLED
    if 2 * sketched >= min(target.shape):
        U, S, V = torch.linalg.svd(target, full_matrices=False)
        return U[:, :rank] * S[:rank], V[:rank]
    start = torch.randn(target.shape[1], sketched, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(target @ start.to(target)).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(target @ (target.T @ basis)).Q
    U, S, V = torch.linalg.svd(basis.T @ target, full_matrices=False)
    return (basis @ U[:, :rank]) * S[:rank], V[:rank]
