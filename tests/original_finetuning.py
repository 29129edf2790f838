"""Fine-tuning as the official code does it, on torch: for comparison with ours.

The classifier is transformers'; optimizer, schedule, mixing and averages are written down here from
their published descriptions (optim_factory.py, utils.py, mixup.py, timm's ModelEma).
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch

MEAN = torch.tensor((0.485, 0.456, 0.406))[:, None, None]
STD = torch.tensor((0.229, 0.224, 0.225))[:, None, None]


@dataclasses.dataclass
class Recipe:
    """What the arithmetic depends on, and how it may be wrong on purpose."""

    num_labels: int
    peak_lr: float
    final_lr: float
    warmup_steps: int
    num_steps: int
    weight_decay: float
    layer_decay: float
    smoothing: float
    group: int
    accumulation: int = 1
    clip_norm: float | None = None
    ema_decay: float = 0.9
    # mistakes
    layers_off: int = 0
    biases_decay: bool = False
    partner_shift: int = 0
    schedule_shift: int = 0


def learning_rates(recipe: Recipe) -> np.ndarray:
    """The table of the whole run."""
    warmup = np.linspace(0, recipe.peak_lr, recipe.warmup_steps)
    i = np.arange(recipe.num_steps - recipe.warmup_steps)
    cosine = recipe.final_lr + 0.5 * (recipe.peak_lr - recipe.final_lr) * (
        1 + np.cos(np.pi * i / len(i))
    )
    return np.concatenate([warmup, cosine])


def parameter_groups(model: torch.nn.Module, depth: int, recipe: Recipe) -> list[dict]:
    """One group for each parameter, with its factor of the learning rate."""
    groups = []
    for name, parameter in model.named_parameters():
        if "embeddings" in name:
            layer = 0
        elif ".layer." in name:
            layer = int(name.split(".layer.")[1].split(".")[0]) + 1
        else:
            layer = depth + 1
        scale = recipe.layer_decay ** (depth + 1 - layer + recipe.layers_off * (layer <= depth))
        decays = recipe.biases_decay or parameter.ndim > 1
        groups.append(
            {
                "params": [parameter],
                "scale": scale,
                "weight_decay": recipe.weight_decay if decays else 0.0,
            }
        )
    return groups


def mixed(video, labels, weights, boxes, recipe: Recipe):
    """Clips and soft targets of a batch, in groups that are mixed with themselves reversed.

    Args:
      video: uint8 numpy [B, T, H, W, C].
      labels: int numpy [B].
      weights, boxes: of each clip, [B] and [B, 4] (top, bottom, left, right; all 0: no cutmix).
    """
    x = torch.from_numpy(video).permute(0, 1, 4, 2, 3).float() / 255
    x = (x - MEAN) / STD
    off = recipe.smoothing / recipe.num_labels
    y = torch.full((len(labels), recipe.num_labels), off)
    y[torch.arange(len(labels)), torch.from_numpy(labels).long()] += 1 - recipe.smoothing
    clips, targets = [], []
    for start in range(0, len(labels), recipe.group):
        rows = torch.arange(start, start + recipe.group)
        partners = torch.roll(rows.flip(0), recipe.partner_shift)
        weight = float(weights[start])
        top, bottom, left, right = (int(edge) for edge in boxes[start])
        if bottom > top:
            part = x[rows].clone()
            part[..., top:bottom, left:right] = x[partners][..., top:bottom, left:right]
        else:
            part = x[rows] * weight + x[partners] * (1 - weight)
        clips.append(part)
        targets.append(y[rows] * weight + y[partners] * (1 - weight))
    return torch.cat(clips), torch.cat(targets)


class Trainer:
    """A model, its optimizer and averages."""

    def __init__(self, model: torch.nn.Module, depth: int, recipe: Recipe):
        self.model, self.recipe = model, recipe
        self.average = copy.deepcopy(model)
        groups = parameter_groups(model, depth, recipe)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)
        self.rates = learning_rates(recipe)
        self.step_number = 0

    def step(self, clips: torch.Tensor, targets: torch.Tensor) -> float:
        """The loss before the update."""
        recipe = self.recipe
        rate = self.rates[min(self.step_number + recipe.schedule_shift, len(self.rates) - 1)]
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.zero_grad()
        total = 0.0
        size = len(clips) // recipe.accumulation
        for start in range(0, len(clips), size):
            part = slice(start, start + size)
            logits = self.model(pixel_values=clips[part]).logits
            loss = -(targets[part] * torch.log_softmax(logits, dim=-1)).sum(dim=-1).mean()
            (loss / recipe.accumulation).backward()
            total += float(loss.detach()) / recipe.accumulation
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.mul_(recipe.ema_decay).add_(value, alpha=1 - recipe.ema_decay)
        self.step_number += 1
        return total
