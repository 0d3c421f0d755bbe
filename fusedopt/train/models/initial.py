"""Initial weights by He's and by Glorot's (Xavier's) rule."""

from __future__ import annotations

from torch import nn

from fusedopt.train.models.parts import ModelError

RULES = ("he", "xavier")


def initialise(model: nn.Module, rule: str) -> nn.Module:
    """Draws the weights of all convolutions and linear layers anew, and sets their biases to 0.

    Args:
        model: changed in place; norms and everything else stay.
        rule: "he", normal with variance 2 / fan_in, which keeps the activations' variance through
            ReLUs; or "xavier", uniform with variance 2 / (fan_in + fan_out).

    Returns:
        The model.

    Raises:
        ModelError: another rule.

    Reference:
        He, Zhang, Ren, Sun: Delving Deep into Rectifiers, 2015, equation 10.
        Glorot, Bengio: Understanding the difficulty of training deep feedforward neural networks,
        2010, equation 16.
    """
    if rule not in RULES:
        raise ModelError(f"init must be one of {', '.join(RULES)}, not {rule!r}")
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if rule == "he":
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
