"""A model over several devices: each decoder layer computes on its own one, all else on the first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from qra_eval.models.embeddings import find_tables
from qra_eval.models.linears import decoder_layers

Device = TypeVar("Device")


def assign_devices(model: Any, devices: Sequence[Device]) -> list[Device]:
    """The device of each decoder layer, or what stands for one.

    Layers that follow each other share one, and all have about as much to hold. The first layer is on the first,
    where the tables are, also where these are more than a share: all but the layers is on the first layer's device.
    """
    layers: Any = model.get_submodule(decoder_layers(model))
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    held = sum(table.weight.numel() for table in find_tables(model).values())
    share = (held + sum(sizes)) / len(devices)
    found: list[Device] = []
    for size in sizes:
        found.append(devices[min(int((held + size / 2) / share), len(devices) - 1) if found else 0])
        held += size
    return found


def connect_devices(layers: Sequence[nn.Module], devices: Sequence[torch.device]) -> list[RemovableHandle]:
    """From here on a layer is called with what it takes on its device, and the last gives what it makes on the first's.

    Nothing is done if all are on one device.
    """
    if len(set(devices)) == 1:
        return []
    handles = [
        layer.register_forward_pre_hook(partial(_receive, device), with_kwargs=True)
        for layer, device in zip(layers, devices, strict=True)
    ]
    return [*handles, layers[-1].register_forward_hook(partial(_return, devices[0]))]


def _receive(device: torch.device, module: nn.Module, args: Any, kwargs: Any) -> Any:
    from accelerate.utils import send_to_device

    return send_to_device(args, device), send_to_device(kwargs, device, skip_keys="past_key_values")


def _return(device: torch.device, module: nn.Module, args: Any, output: Any) -> Any:
    from accelerate.utils import send_to_device

    return send_to_device(output, device)
