"""Where LoRA starts: the factors' first values, and for PiSSA the weight that is quantized under them.

All start from the quantized base. With s the adapter's scaling, alpha over its rank:

- `default`: A Kaiming-uniform, B zero (Hu et al. 2021).
- `loftq`: s B A is the best rank-r fit to what quantization lost, W - Q(W) (Li et al. 2023, one iteration, which is
  what peft does by default).
- `calibrated`: the same fit, but by the squared error of the layer's output on calibration rows; see `starts`.
- `caldera`: likewise, with the base quantized in turn without what the fit holds (Saha et al. 2024); it takes the bytes
  that Q(W) takes.
- `pissa`: s B A is the best rank-r fit to W, and the base is Q(W - s B A) (Meng et al. 2024); it takes the bytes that
  Q(W) takes.
- `eva`: the rows of A are the leading principal components of the layer's inputs, B zero (Paischer et al. 2024; ranks
  are the plan's, so its redistribution of rank is not used).

Only `default` depends on the seed. At 16 bits nothing is lost, so `loftq`, `calibrated` and `caldera` start as
`default` does there.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from qra_backends.base import Backend
from safetensors.torch import save_file
from torch import Tensor, nn

from qra_eval.quantized.adapter_init import AdapterInit
from qra_eval.quantized.adapters import first_factors
from qra_eval.quantized.calibration import LayerMoments
from qra_eval.quantized.tensorfile import open_tensors
from qra_eval.quantized.weight_cache import QuantizedWeightCache, linear_of
from qra_search.space.levels import LevelName
from qra_search.space.memory import UNQUANTIZED_BITS

RESIDUAL_CACHE_BYTES = 1 << 30
"""Re-quantized bases of PiSSA that are kept, at most; the least recently used ones go first and are made again."""

Factors = tuple[Tensor, Tensor]


class Initialiser:
    """Gives every linear its base and its factors, of one kind of initialisation.

    Decompositions and re-quantized bases are made when a plan first asks for them, and kept.

    Args:
        kind: `default`, `loftq`, `calibrated`, `caldera`, `pissa` or `eva`.
        alpha: B A is multiplied by alpha over the rank.
        max_rank: the largest rank; factors of lower ranks are its leading rows and columns.
        inputs: gives names and moments of the linears, layer by layer; needed by `eva`, which takes its principal
            components from them, and by `pissa` on a calibrated backend, for which Hessians are kept in mapped files.
        starts: complete; needed by `calibrated` and `caldera`.
    """

    def __init__(
        self,
        kind: str,
        bank: QuantizedWeightCache,
        backend: Backend,
        *,
        alpha: float,
        max_rank: int,
        inputs: Callable[[], Iterable[tuple[Sequence[str], LayerMoments]]] | None = None,
        starts: AdapterInit | None = None,
    ):
        self.kind, self.bank, self.backend, self.alpha, self.max_rank = kind, bank, backend, alpha, max_rank
        self.starts = starts
        self.components: dict[str, Tensor] = {}
        self.hessians: dict[str, Tensor] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if inputs is not None and kind == "eva":
            for names, moments in inputs():
                self.components |= input_components(names, moments, max_rank)
        elif inputs is not None:
            self._keep_hessians(inputs())
        self._factors: dict[tuple[str, LevelName], Factors] = {}
        self._residuals: OrderedDict[tuple[str, LevelName, int], nn.Module] = OrderedDict()
        self._room = RESIDUAL_CACHE_BYTES

    def base(self, name: str, bits: LevelName, rank: int) -> tuple[int | str, ...]:
        """What the base depends on beside the level: what is taken out of it."""
        if self.kind == "pissa" and rank > 0:
            return (rank,)
        return () if self._bank(bits, rank) is self.bank else (self.kind,)

    def _bank(self, bits: LevelName, rank: int) -> QuantizedWeightCache:
        """Where the base comes from."""
        return self.bank if self.starts is None or rank == 0 or bits == UNQUANTIZED_BITS else self.starts.bases

    def factors(self, name: str, bits: LevelName, rank: int, seed: int) -> Factors:
        """A (rank, in) and B (out, rank), float32."""
        root = (rank / self.alpha) ** 0.5  # of 1 / s, shared between the two
        if self.starts is not None and bits != UNQUANTIZED_BITS:
            A, B = self.starts.factors(name, bits)
            return A[:rank] * root, B[:, :rank] * root
        if self.kind == "pissa" or (self.kind == "loftq" and bits != UNQUANTIZED_BITS):
            A, B = self._decomposed(name, bits if self.kind == "loftq" else UNQUANTIZED_BITS)
            # Rounded as a stored adapter is, so that PiSSA's base is the residual of what is really added to it.
            dtype = self.bank.linears[name].weight.dtype
            return (A[:rank] * root).to(dtype).float(), (B[:, :rank] * root).to(dtype).float()
        A, B = first_factors(seed, self.bank.linears[name], name, self.max_rank)
        return (self.components[name] if self.kind == "eva" else A)[:rank], B[:, :rank]

    def weight(self, name: str, bits: LevelName, rank: int) -> Tensor:
        """The dequantized base (out, in) under an adapter of this rank."""
        if self.kind != "pissa" or rank == 0:
            return self._bank(bits, rank).weight(name, bits)
        if bits == UNQUANTIZED_BITS:
            weight = self._residual(name, rank).weight
        else:
            weight = self.backend.dequantize(self.module(name, bits, rank))
        return weight.detach().to(self.bank.compute or self.bank.linears[name].weight.dtype)

    def module(self, name: str, bits: LevelName, rank: int) -> nn.Module:
        """The base as a module that holds quantized tensors; a plain linear at 16 bits."""
        if self.kind != "pissa" or rank == 0:
            return self._bank(bits, rank).module(name, bits)
        if bits == UNQUANTIZED_BITS:
            return self._residual(name, rank)
        key = (name, bits, rank)
        if key not in self._residuals:
            module = self.backend.quantize(self._residual(name, rank), bits, hessian=self.hessians.get(name))
            self._residuals[key] = module
            self._room -= self._bytes(module)
            while self._room < 0 and len(self._residuals) > 1:
                self._room += self._bytes(self._residuals.popitem(last=False)[1])
        self._residuals.move_to_end(key)
        return self._residuals[key]

    def _keep_hessians(self, layers: Iterable[tuple[Sequence[str], LayerMoments]]) -> None:
        """On disk for as long as this lives: of a large model they take more than the model."""
        self._folder = tempfile.TemporaryDirectory(prefix="qra-hessians-")
        for number, (names, moments) in enumerate(layers):
            path = Path(self._folder.name) / f"{number}.safetensors"
            owners = {name: moments.owner(name) for name in names}
            save_file({owner: moments.hessian(owner).cpu().contiguous() for owner in set(owners.values())}, path)
            file = open_tensors(path)
            kept = {owner: file.get_tensor(owner) for owner in set(owners.values())}
            self.hessians |= {name: kept[owner] for name, owner in owners.items()}

    def _bytes(self, module: nn.Module) -> int:
        return sum(t.nbytes for t in self.backend.to_tensors(module).values())

    def _residual(self, name: str, rank: int) -> nn.Linear:
        """W - s B A as a linear of its own."""
        linear = self.bank.linears[name]
        A, B = self.factors(name, UNQUANTIZED_BITS, rank, 0)
        weight = (self._whole(name) - self.alpha / rank * B @ A).to(linear.weight.dtype)
        return linear_of(weight, linear.bias)

    def _whole(self, name: str) -> Tensor:
        """The unquantized weight in float32, where plans are put in place."""
        weight = self.bank.linears[name].weight.detach()
        return weight.to(self.bank.device or weight.device).float()

    def _decomposed(self, name: str, bits: LevelName) -> Factors:
        """Factors of the largest rank with B A the best fit to W (16 bits), or to what `bits` lose of it."""
        key = (name, bits)
        if key not in self._factors:
            target = self._whole(name)
            if bits != UNQUANTIZED_BITS:
                target = target - self.bank.weight(name, bits).float()
            self._factors[key] = low_rank_factors(target, self.max_rank)
        return self._factors[key]


def low_rank_factors(target: Tensor, rank: int) -> Factors:
    """A (rank, in) and B (out, rank) with B A the best fit of that rank to `target` (out, in).

    The singular values are split evenly. Where `target` has a lower rank than asked for, what is left is zero.
    """
    wide = target.shape[0] <= target.shape[1]
    gram = target @ target.T if wide else target.T @ target
    values, vectors = torch.linalg.eigh(gram.double())
    values, vectors = values.flip(0)[:rank].clamp_min(0), vectors.flip(1)[:, :rank].float()
    root = values.sqrt().sqrt().float()
    inverse = torch.where(root > root.max() * 1e-4, 1 / root, torch.zeros_like(root))
    if wide:
        A, B = (vectors.T @ target) * inverse[:, None], vectors * root
    else:
        A, B = vectors.T * root[:, None], (target @ vectors) * inverse
    return _padded(A, rank, 0), _padded(B, rank, 1)


def principal_components(covariance: Tensor, rank: int) -> Tensor:
    """Unit eigenvectors (rank, in) of a covariance (in, in), the largest first, their largest entries positive."""
    vectors = torch.linalg.eigh(covariance.double())[1].flip(1)[:, :rank].T.float()
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return _padded(vectors * largest.sign(), rank, 0)


def _padded(factor: Tensor, rank: int, dim: int) -> Tensor:
    """Zero rows or columns up to `rank`: a linear narrower than the largest rank has no more directions."""
    lacking = rank - factor.shape[dim]
    if lacking <= 0:
        return factor.contiguous()
    shape = list(factor.shape)
    shape[dim] = lacking
    return torch.cat([factor, factor.new_zeros(shape)], dim)


def input_components(names: Sequence[str], moments: LayerMoments, rank: int) -> dict[str, Tensor]:
    """Principal components (rank, in) of the inputs of a layer's linears, about their mean as in peft.

    Linears that read the same tensor share the components.
    """
    made: dict[str, Tensor] = {}
    for name in names:
        owner = moments.owner(name)
        if owner not in made:
            mean = moments.mean(name)
            made[owner] = principal_components(moments.hessian(name) - torch.outer(mean, mean), rank).cpu()
            moments.release(name)
    return {name: made[moments.owner(name)] for name in names}
