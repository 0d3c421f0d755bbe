"""What a run begins with: the network and all that trains it, fresh or from a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from fusedopt.train import checkpoint, recipe, strategy, world
from fusedopt.train.balance import balanced_weights
from fusedopt.train.data import Splits
from fusedopt.train.data.scan import shorten
from fusedopt.train.loop import epoch_order, make_optimizer, own_batch_size
from fusedopt.train.mixing import BorrowedError, RandAugment, make_mixing
from fusedopt.train.models import ModelError, depth_of_parameters, make_model, replace_head
from fusedopt.train.options import Options, UserError
from fusedopt.train.phase import make_ema
from fusedopt.train.schedule import Scheduler
from fusedopt.train.state import StepTimer, TrainingState


def start(options: Options, splits: Splits, content: dict[str, Any] | None) -> TrainingState:
    """Returns the state before the next step.

    Args:
        options: from the command line.
        splits: the data.
        content: of the checkpoint to continue, or None.

    Raises:
        UserError: the options don't fit each other, the data or a checkpoint.
    """
    if options.batch_size % world.size():
        raise UserError(
            f"--batch-size: {options.batch_size} images can't be shared by {world.size()} processes"
        )
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # or else no run could be repeated
    try:
        model = _make_model(options, splits, initialised=content is None)
        model = model.to(device, options.weights_dtype())
        if options.freeze:
            recipe.freeze_backbone(model)
        depths = depth_of_parameters(model)
        ema = make_ema(model, options, options.impl)
        for network in [model] if ema is None else [model, ema.module]:
            strategy.shard(network, options.strategy, options.device)
        groups = recipe.parameter_groups(model, options, depths)
    except ModelError as error:
        raise UserError(f"--model {options.model}: {error}") from error
    optimizer = make_optimizer(options, options.impl, groups, shared=True)
    batches = math.ceil(len(epoch_order(splits.train, options, 0)) / own_batch_size(options))
    steps_per_epoch = math.ceil(batches / options.accumulate)
    state = TrainingState(
        model=model,
        synchronized=strategy.synchronized(model, options.strategy),
        optimizer=optimizer,
        scheduler=Scheduler(optimizer, options, steps_per_epoch),
        scaler=recipe.make_scaler(options),
        ema=ema,
        stopping=recipe.EarlyStopping(options.patience, options.monitor),
        generator=torch.Generator().manual_seed(options.seed + world.rank()),
        timer=StepTimer(device),
        totals=torch.zeros(3, dtype=torch.float64, device=device),
        nonfinite=torch.zeros((), dtype=torch.int64, device=device),
    )
    if options.strategy == "zero":  # what the processes exchange is no time of the optimizer's
        optimizer.communicating = state.timer.paused
    names = options.augment.split(",")
    try:
        if "randaugment" in names:
            RandAugment()  # so that a folder isn't made for what can't be done
        state.mixing = make_mixing(names, len(splits.classes))
    except BorrowedError as error:
        raise UserError(f"--augment: {error}") from error
    if options.class_weights:
        weights = balanced_weights(splits.train.labels, len(splits.classes))
        state.class_weights = weights.to(device)
    if world.rank() > 0:  # the weights were the same in all processes, what follows is not
        torch.manual_seed(options.seed + world.rank())
    if content is not None:
        checkpoint.restore(content, state, splits, options)
    return state


def _make_model(options: Options, splits: Splits, initialised: bool) -> nn.Module:
    """Returns the network with the weights that training begins with.

    Args:
        options: from the command line.
        splits: the data.
        initialised: False where a checkpoint is going to replace all weights.
    """
    shape = splits.in_channels, splits.image_size
    if options.init is None or not initialised:
        return make_model(
            options.model,
            len(splits.classes),
            *shape,
            init=options.weight_init,
            pretrained=options.pretrained if initialised else None,
        )
    content = checkpoint.read(options.init, "--init")
    trained, classes = content["options"]["model"], content["classes"]
    if trained != options.model:
        raise UserError(f"--init: {options.init} has weights for --model {trained}")
    if len(classes) != len(splits.classes) and not options.new_head:
        raise UserError(
            f"--init: {options.init} knows {len(classes)} classes, the data have"
            f" {len(splits.classes)}; --new-head replaces the last layer"
        )
    if classes != list(splits.classes) and not options.new_head:
        world.say(
            f"--init: {options.init} was trained for the classes {shorten(classes)}, and its last"
            f" layer is kept for {shorten(splits.classes)}; --new-head gives the network a fresh"
            " one"
        )
    model = make_model(options.model, len(classes), *shape)
    try:
        model.load_state_dict(checkpoint.weights_of(content))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"--init: {options.init} doesn't fit the data's images: {reason}"
        ) from error
    return replace_head(model, len(splits.classes)) if options.new_head else model
