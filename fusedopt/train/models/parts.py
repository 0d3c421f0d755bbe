"""A classifier's head, and the depth of its parameters: what transfer learning asks for."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class ModelError(ValueError):
    """A model that can't be made or used as asked; its text is the whole message."""


def head_name(model: nn.Module) -> str:
    """Returns the name of the module that `head_of` returns."""
    for kind in (nn.Linear, nn.Conv2d):
        names = [name for name, module in model.named_modules() if isinstance(module, kind)]
        if names:
            return names[-1]
    raise ModelError(f"{type(model).__name__} has no layer that could be its head")


def head_of(model: nn.Module) -> nn.Linear | nn.Conv2d:
    """Returns the layer that gives the logits: the last linear layer of a classifier.

    Of SqueezeNet, which has no linear layer, it is the last convolution, 1x1.

    Args:
        model: of this package, or a classifier of torchvision's.

    Raises:
        ModelError: there is none.
    """
    return model.get_submodule(head_name(model))


def replace_head(model: nn.Module, num_classes: int) -> nn.Module:
    """Gives a model a new head, with torch's default initialisation.

    Args:
        model: changed in place.
        num_classes: number of outputs of the new head.

    Returns:
        The model.

    Raises:
        ModelError: there is no head, or `num_classes` is below 1.
    """
    if num_classes < 1:
        raise ModelError(f"num_classes must be at least 1, not {num_classes}")
    old = head_of(model)
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, old.bias is not None)
    else:
        new = nn.Conv2d(old.in_channels, num_classes, old.kernel_size, bias=old.bias is not None)
    model.set_submodule(head_name(model), new.to(old.weight.device, old.weight.dtype))
    return model


def _is_container(module: nn.Module, model_size: int) -> bool:
    """Whether the module is a row of layers, rather than one layer or block."""

    def is_leaf(part: nn.Module) -> bool:
        return next(part.parameters(), None) is not None and next(part.children(), None) is None

    if type(module) in (nn.Sequential, nn.ModuleList):
        return True
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        # torchvision's convolution with its norm is a Sequential too, but one layer.
        return not any(is_leaf(child) for child in module.children())
    # A part with most of the parameters is no layer: the encoder of a vision transformer.
    return not is_leaf(module) and 2 * sum(p.numel() for p in module.parameters()) > model_size


def _layers(module: nn.Module, prefix: str, model_size: int) -> Iterator[tuple[str, nn.Module]]:
    """Gives name and module of each layer or block with parameters, in order of registration."""
    for name, child in module.named_children():
        if next(child.parameters(), None) is None:
            continue
        if _is_container(child, model_size):
            yield from _layers(child, f"{prefix}{name}.", model_size)
        else:
            yield f"{prefix}{name}", child


def depth_of_parameters(model: nn.Module) -> dict[str, int]:
    """Returns how far from the input each parameter is, counted in layers or blocks.

    A norm has the depth of the layer before it, a residual or transformer block one depth
    throughout, and a parameter outside all layers (a position embedding) depth 0.

    Args:
        model: of this package, or a classifier of torchvision's.

    Returns:
        For each name of `model.named_parameters()` its depth: 0 nearest the input, the greatest
        for the head alone.

    Raises:
        ModelError: the model has no head.
    """
    size = sum(p.numel() for p in model.parameters())
    head, depth, depths = head_name(model), -1, {}
    for name, layer in _layers(model, "", size):
        if name == head:
            continue
        if depth < 0 or not isinstance(layer, NORMS):
            depth += 1
        depths |= {f"{name}.{parameter}": depth for parameter, _ in layer.named_parameters()}
    depths |= {f"{head}.{name}": depth + 1 for name, _ in head_of(model).named_parameters()}
    return {name: depths.get(name, 0) for name, _ in model.named_parameters()}
