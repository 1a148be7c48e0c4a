"""Gradients through recurrent layers in evaluation mode."""

from __future__ import annotations

import torch
from torch import nn


def give_gradients(module: nn.Module) -> None:
    """Has gradients pass a frozen model's recurrent layers: in evaluation mode cuDNN's LSTM, GRU and RNN have none.

    Where a gradient is wanted such a layer runs as PyTorch's own kernels do it; otherwise, and in training mode, as
    ever. In training mode cuDNN would drop what the layer's `dropout` says.
    """
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase) and _avoid_cudnn not in layer._forward_pre_hooks.values():
            layer.register_forward_pre_hook(_avoid_cudnn)
            layer.register_forward_hook(_allow_cudnn, always_call=True)


def _avoid_cudnn(layer: nn.Module, _inputs: object) -> None:
    layer._had_cudnn = torch.backends.cudnn.enabled  # type: ignore[assignment]
    if torch.is_grad_enabled() and not layer.training:
        torch.backends.cudnn.enabled = False


def _allow_cudnn(layer: nn.Module, _inputs: object, _output: object) -> None:
    torch.backends.cudnn.enabled = layer._had_cudnn  # type: ignore[assignment]
