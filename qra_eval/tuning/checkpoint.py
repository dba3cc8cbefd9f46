"""Checkpoints: all that a training's next step depends on, in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from qra_eval.quantized.tensorfile import DamagedFile, open_tensors, write_tensors
from qra_eval.tuning.training import Training
from qra_search.errors import RunFailed

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""
STATE = "training"
BEST = "best"


def write_checkpoint(
    path: Path, training: Training, best: Mapping[str, Tensor], more: Mapping[str, Any]
) -> None:
    """Write parameters, moments, the generators' states, losses, and where the training stands.

    Args:
        best: parameters of the best step so far, by name.
        more: plain data of the caller.
    """
    tensors = {
        "losses": torch.tensor(training.losses, dtype=torch.float64),
        "generator::cpu": torch.get_rng_state(),
    }
    tensors |= {f"generator::{card}": torch.cuda.get_rng_state(card) for card in list_cards(training)}
    for name, parameter in named_parameters(training):
        tensors[f"value::{name}"] = parameter.detach()
        kept = training.optimizer.state[parameter]
        tensors.update({f"{moment}::{name}": kept[moment] for moment in MOMENTS if moment in kept})
    tensors.update({f"{BEST}::{name}": tensor for name, tensor in best.items()})
    state = {
        "tokens": training.tokens,
        "stopped": training.stopped,
        "seconds": training.seconds,
        "model_seconds": training.model_seconds,
        **more,
    }
    write_tensors(tensors, path, metadata={STATE: json.dumps(state)}, digest=False)


def read_checkpoint(
    path: Path, training: Training, identity: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Restore a training from a checkpoint, and return the best parameters and the caller's data; None without one.

    Args:
        identity: the caller's data under that name; a checkpoint with another is of another training.

    Raises:
        RunFailed: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        file = open_tensors(path)
        state = json.loads(file.metadata()[STATE])
        if state["identity"] != json.loads(json.dumps(identity)):
            return None
        keys = set(file.keys())
        for name, parameter in named_parameters(training):
            parameter.data.copy_(file.get_tensor(f"value::{name}"))
            moments = {
                part: file.get_tensor(f"{part}::{name}") for part in MOMENTS if f"{part}::{name}" in keys
            }
            if moments:
                training.optimizer.state[parameter] = {
                    k: t.clone().to(parameter.device) for k, t in moments.items()
                }
        training.losses = file.get_tensor("losses").tolist()
        training.earlier_seconds = state.pop("seconds")
        for field in ("tokens", "stopped", "model_seconds"):
            setattr(training, field, state.pop(field))
        torch.set_rng_state(file.get_tensor("generator::cpu"))
        for card in list_cards(training):
            if f"generator::{card}" in keys:
                torch.cuda.set_rng_state(file.get_tensor(f"generator::{card}"), card)
        best = {
            k.removeprefix(f"{BEST}::"): file.get_tensor(k).clone() for k in keys if k.startswith(f"{BEST}::")
        }
        return best, state
    except DamagedFile as error:
        raise RunFailed(f"{error}: delete it to train from the beginning") from error
    except (TypeError, LookupError, ValueError, RuntimeError, SafetensorError) as error:
        raise RunFailed(f"{path} is damaged ({error}): delete it to train from the beginning") from error


def list_cards(training: Training) -> list[torch.device]:
    found = {
        parameter.device for _, parameter in named_parameters(training) if parameter.device.type == "cuda"
    }
    return sorted(found, key=str)


def named_parameters(training: Training) -> Iterator[tuple[str, nn.Parameter]]:
    """All that is trained, by name."""
    return ((name, parameter) for group in training.groups for name, parameter in group.parameters.items())
