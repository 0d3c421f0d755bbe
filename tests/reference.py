"""The update rules in numpy, written from the papers and torch's documentation.

They compute in `numpy.longdouble`, where it has more bits than float64: so that float64 results can
be judged too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
State = dict[str, Any]
REAL = np.longdouble


def real(value: float | Tensor) -> Any:
    """An option's value as it was given, float or one-element tensor, as a long double."""
    return REAL(float(value))


def sign(values: Array) -> Array:
    """torch's: 0 of NaN."""
    return np.where(values > 0, REAL(1), np.where(values < 0, REAL(-1), REAL(0)))


def to_array(tensor: Tensor) -> Array:
    """A copy of a tensor's values; every dtype's values are exact in float64."""
    return tensor.detach().to(torch.float64, copy=True).numpy().astype(REAL)


def from_array(values: Array, dtype: torch.dtype) -> Tensor:
    """The values rounded to `dtype` (by way of float64 for the 16-bit ones)."""
    return torch.from_numpy(np.asarray(values, dtype=np.float64).copy()).to(dtype)


def sgd(p: Array, g: Array, s: State, o: Mapping[str, Any]) -> Array:
    """Sutskever et al. 2013, in the form of torch's documentation."""
    mu, tau = real(o["momentum"]), real(o["dampening"])
    g = g + real(o["weight_decay"]) * p
    if mu != 0:
        buffer = s.get("momentum_buffer")
        s["momentum_buffer"] = g if buffer is None else mu * buffer + (1 - tau) * g
        g = g + mu * s["momentum_buffer"] if o["nesterov"] else s["momentum_buffer"]
    return p - real(o["lr"]) * g


def adagrad(p: Array, g: Array, s: State, o: Mapping[str, Any]) -> Array:
    """Duchi et al. 2011."""
    s["step"] = s.get("step", 0) + 1
    g = g + real(o["weight_decay"]) * p
    lr = real(o["lr"]) / (1 + (s["step"] - 1) * real(o["lr_decay"]))
    s["sum"] = s.get("sum", real(o["initial_accumulator_value"])) + g * g
    return p - lr * g / (np.sqrt(s["sum"]) + real(o["eps"]))


def rmsprop(p: Array, g: Array, s: State, o: Mapping[str, Any]) -> Array:
    """Hinton's lecture 6; centered: Graves 2013."""
    alpha, mu = real(o["alpha"]), real(o["momentum"])
    s["step"] = s.get("step", 0) + 1
    g = g + real(o["weight_decay"]) * p
    s["square_avg"] = alpha * s.get("square_avg", 0) + (1 - alpha) * g * g
    variance = s["square_avg"]
    if o["centered"]:
        s["grad_avg"] = alpha * s.get("grad_avg", 0) + (1 - alpha) * g
        variance = variance - s["grad_avg"] ** 2
    update = g / (np.sqrt(variance) + real(o["eps"]))
    if mu > 0:
        update = s["momentum_buffer"] = mu * s.get("momentum_buffer", 0) + update
    return p - real(o["lr"]) * update


def adadelta(p: Array, g: Array, s: State, o: Mapping[str, Any]) -> Array:
    """Zeiler 2012."""
    rho, eps = real(o["rho"]), real(o["eps"])
    s["step"] = s.get("step", 0) + 1
    g = g + real(o["weight_decay"]) * p
    s["square_avg"] = rho * s.get("square_avg", 0) + (1 - rho) * g * g
    acc_delta = s.get("acc_delta", 0)
    delta = np.sqrt(acc_delta + eps) / np.sqrt(s["square_avg"] + eps) * g
    s["acc_delta"] = rho * acc_delta + (1 - rho) * delta * delta
    return p - real(o["lr"]) * delta


def adam(p: Array, g: Array, s: State, o: Mapping[str, Any]) -> Array:
    """Kingma and Ba 2015; decoupled decay: Loshchilov, Hutter 2019; amsgrad: Reddi et al. 2018."""
    beta1, beta2 = (real(b) for b in o["betas"])
    lr, decay = real(o["lr"]), real(o["weight_decay"])
    t = s["step"] = s.get("step", 0) + 1
    if o["decoupled_weight_decay"]:
        p = p - lr * decay * p
    else:
        g = g + decay * p
    s["exp_avg"] = beta1 * s.get("exp_avg", 0) + (1 - beta1) * g
    s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", 0) + (1 - beta2) * g * g
    second = s["exp_avg_sq"]
    if o["amsgrad"]:
        second = s["max_exp_avg_sq"] = np.maximum(s.get("max_exp_avg_sq", 0), second)
    m_hat = s["exp_avg"] / (1 - beta1**t)
    v_hat = second / (1 - beta2**t)
    return p - lr * m_hat / (np.sqrt(v_hat) + real(o["eps"]))


def adamax(p: Array, g: Array, s: State, o: Mapping[str, Any]) -> Array:
    """Kingma and Ba 2015, section 7.1."""
    beta1, beta2 = (real(b) for b in o["betas"])
    t = s["step"] = s.get("step", 0) + 1
    g = g + real(o["weight_decay"]) * p
    s["exp_avg"] = beta1 * s.get("exp_avg", 0) + (1 - beta1) * g
    s["exp_inf"] = np.maximum(beta2 * s.get("exp_inf", 0), np.abs(g) + real(o["eps"]))
    return p - real(o["lr"]) / (1 - beta1**t) * s["exp_avg"] / s["exp_inf"]


def rprop(p: Array, g: Array, s: State, o: Mapping[str, Any]) -> Array:
    """Riedmiller and Braun 1993, as torch does it: no step back where the sign changed."""
    s["step"] = s.get("step", 0) + 1
    minus, plus = (real(eta) for eta in o["etas"])
    least, most = (real(size) for size in o["step_sizes"])
    direction = sign(g) * sign(s.get("prev", REAL(0)))
    factor = np.where(direction > 0, plus, np.where(direction < 0, minus, 1))
    s["step_size"] = np.clip(s.get("step_size", real(o["lr"])) * factor, least, most)
    s["prev"] = np.where(direction < 0, 0, g)
    return p - sign(s["prev"]) * s["step_size"]


def nadam(p: Array, g: Array, s: State, o: Mapping[str, Any]) -> Array:
    """Dozat 2016, with the schedule of momentum that torch has."""
    beta1, beta2 = (real(b) for b in o["betas"])
    lr, decay = real(o["lr"]), real(o["weight_decay"])
    t = s["step"] = s.get("step", 0) + 1
    if o["decoupled_weight_decay"]:
        p = p - lr * decay * p
    else:
        g = g + decay * p
    mu, next_mu = (
        beta1 * (1 - real(0.96) ** (at * real(o["momentum_decay"])) / 2) for at in (t, t + 1)
    )
    product = s["mu_product"] = s.get("mu_product", 1) * mu
    s["exp_avg"] = beta1 * s.get("exp_avg", 0) + (1 - beta1) * g
    s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", 0) + (1 - beta2) * g * g
    m_hat = next_mu * s["exp_avg"] / (1 - product * next_mu) + (1 - mu) * g / (1 - product)
    return p - lr * m_hat / (np.sqrt(s["exp_avg_sq"] / (1 - beta2**t)) + real(o["eps"]))


def asgd(p: Array, g: Array, s: State, o: Mapping[str, Any]) -> Array:
    """Polyak and Juditsky 1992, with the decays that torch has."""
    lr, lambd = real(o["lr"]), real(o["lambd"])
    t = s["step"] = s.get("step", 0) + 1
    eta, mu = s.get("eta", lr), s.get("mu", 1)
    g = g + real(o["weight_decay"]) * p
    p = p * (1 - lambd * eta) - eta * g
    s["ax"] = s.get("ax", 0) + mu * (p - s.get("ax", 0))
    s["eta"] = lr / (1 + lambd * lr * t) ** real(o["alpha"])
    s["mu"] = 1 / max(1, t - real(o["t0"]))
    return p


def lion(p: Array, g: Array, s: State, o: Mapping[str, Any]) -> Array:
    """Chen et al. 2023, algorithm 2."""
    beta1, beta2 = (real(b) for b in o["betas"])
    m = s.get("exp_avg", REAL(0))
    s["exp_avg"] = beta2 * m + (1 - beta2) * g
    update = sign(beta1 * m + (1 - beta1) * g)
    return p * (1 - real(o["lr"]) * real(o["weight_decay"])) - real(o["lr"]) * update


def radam(p: Array, g: Array, s: State, o: Mapping[str, Any]) -> Array:
    """Liu et al. 2020."""
    beta1, beta2 = (real(b) for b in o["betas"])
    lr, decay = real(o["lr"]), real(o["weight_decay"])
    t = s["step"] = s.get("step", 0) + 1
    if o["decoupled_weight_decay"]:
        p = p - lr * decay * p
    else:
        g = g + decay * p
    s["exp_avg"] = beta1 * s.get("exp_avg", 0) + (1 - beta1) * g
    s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", 0) + (1 - beta2) * g * g
    m_hat = s["exp_avg"] / (1 - beta1**t)
    most = 2 / (1 - beta2) - 1
    length = most - 2 * t * beta2**t / (1 - beta2**t)
    if length <= 5:
        return p - lr * m_hat
    factor = np.sqrt((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length))
    return p - lr * m_hat * factor * np.sqrt(1 - beta2**t) / (
        np.sqrt(s["exp_avg_sq"]) + real(o["eps"])
    )


RULES: dict[str, Callable[[Array, Array, State, Mapping[str, Any]], Array]] = {
    "SGD": sgd,
    "Adagrad": adagrad,
    "RMSprop": rmsprop,
    "Adadelta": adadelta,
    "Adam": adam,
    "AdamW": adam,
    "Adamax": adamax,
    "RAdam": radam,
    "NAdam": nadam,
    "ASGD": asgd,
    "Lion": lion,
    "Rprop": rprop,
}

DISCONTINUOUS = ("Lion", "Rprop")  # they take signs


def update(
    name: str, p: Array, g: Array, state: State, options: Mapping[str, Any]
) -> tuple[Array, State]:
    """One step of one parameter: the new parameter and the new state, the arguments unchanged."""
    state = dict(state)
    with np.errstate(invalid="ignore", divide="ignore"):
        return RULES[name](p, -g if options["maximize"] else g, state, options), state


class Reference:
    """An optimizer over copies of the parameters; each parameter counts its own steps."""

    def __init__(self, name: str, options: Mapping[str, Any], params: Sequence[Tensor]) -> None:
        """Takes the options as in a parameter group of torch's."""
        self.name = name
        self.options = options
        self.params = [to_array(p) for p in params]
        self.states: list[State] = [{} for _ in params]

    def step(self, grads: Sequence[Tensor | None]) -> None:
        """One step of each parameter that has a gradient."""
        for i, grad in enumerate(grads):
            if grad is not None:
                self.params[i], self.states[i] = update(
                    self.name, self.params[i], to_array(grad), self.states[i], self.options
                )
