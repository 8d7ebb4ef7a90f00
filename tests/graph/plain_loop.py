"""The training loop that anybody would write with PyG: what ours is compared with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.training_config import TrainingConfig


def train_plainly(
    model: nn.Module,
    data: Data,
    config: TrainingConfig,
    call: Callable[[nn.Module, Data], Tensor] = forward,
    context: Callable[[], Any] = nullcontext,
) -> tuple[list[float], nn.Module]:
    """Return the losses of full-batch epochs and the model after them; ``model`` stays.

    It stops at a loss that is not finite, as ``fit`` does.
    """
    model = copy.deepcopy(model)
    losses = []
    with torch.random.fork_rng(devices=[]), context():
        torch.manual_seed(0)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        model.eval()
        with torch.no_grad():
            call(model, data)  # whatever a model keeps of its first call
        model.train()
        for _ in range(config.epochs):
            optimizer.zero_grad()
            scores = call(model, data)
            loss = F.cross_entropy(scores[data.train_mask], data.y[data.train_mask])
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                break
    return losses, model
