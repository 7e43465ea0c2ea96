"""Loss of each pair: preference losses times the pair's weight, and losses of the chosen side, without it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mmedpo.training.config import ADDED_LOSSES, MMedPOConfig


def pair_losses(
    config: MMedPOConfig,
    ratios: torch.Tensor,
    logps: torch.Tensor,
    lengths: torch.Tensor,
    weight: torch.Tensor,
    kl: torch.Tensor | None = None,
    shift: float = 0.0,
) -> torch.Tensor:
    """Return the loss of each pair (float, B), summed over `loss_type` with `loss_weights`.

    Args:
        ratios: log pi / ref of each side (float, 2B, chosen first), maybe `desensitised`.
        logps: log-probability of each side (float, 2B).
        lengths: answer tokens of each side (int, 2B).
        weight: clinical weight of each pair (float, B).
        kl: KL(reference || model) in nats, mean over the tokens and sides of each pair (float, B), for "tdpo_kl".
        shift: reward that "bco_pair" takes off both sides' rewards.
    """
    total = torch.zeros_like(weight)
    weight = weight if config.weighted else torch.ones_like(weight)
    for name, share in zip(config.loss_type, config.loss_weights or [1.0] * len(config.loss_type), strict=True):
        if name in ADDED_LOSSES:
            total = total + share * _added(name, ratios, logps, lengths, kl, config.beta)
        else:
            loss = _preference(name, ratios, lengths, config.beta, config.label_smoothing, shift)
            total = total + share * weight * loss
    return total


def desensitised(tokens: torch.Tensor, lengths: torch.Tensor, alpha: float | None) -> torch.Tensor:
    """Return the log-probability of each side (float, 2B), of its tokens (2B x T) and their number (2B).

    Tokens beyond the shorter side of the pair count `alpha` (LD-DPO); None: as the others.
    """
    if alpha is None:
        return tokens.sum(dim=1)
    tail = torch.arange(tokens.shape[1], device=tokens.device) >= shared_lengths(lengths)[:, None]
    return torch.where(tail, alpha * tokens, tokens).sum(dim=1)


def shared_lengths(lengths: torch.Tensor) -> torch.Tensor:
    """Return, for each side (int, 2B), the tokens of the shorter side of its pair."""
    return torch.minimum(*lengths.chunk(2)).repeat(2)


def _preference(
    name: str, ratios: torch.Tensor, lengths: torch.Tensor, beta: float, smoothing: float, shift: float
) -> torch.Tensor:
    """Return a preference loss of TRL, with its name; only "sigmoid" takes `label_smoothing` too."""
    chosen, rejected = ratios.chunk(2)
    margin = beta * (chosen - rejected)
    if name == "hinge":
        return torch.relu(1 - margin)
    if name == "bco_pair":
        return -F.logsigmoid(beta * chosen - shift) - F.logsigmoid(shift - beta * rejected)
    if name in ("ipo", "sigmoid_norm"):  # per token; in IPO on advice of its authors
        mean = torch.sub(*(ratios / lengths.clamp(min=1)).chunk(2))
        return (mean - 1 / (2 * beta)) ** 2 if name == "ipo" else -F.logsigmoid(beta * mean)
    right = -F.logsigmoid(margin)
    if not smoothing:
        return right
    flipped = -F.logsigmoid(-margin)
    if name == "robust":
        return ((1 - smoothing) * right - smoothing * flipped) / (1 - 2 * smoothing)
    return (1 - smoothing) * right + smoothing * flipped


def _added(
    name: str, ratios: torch.Tensor, logps: torch.Tensor, lengths: torch.Tensor, kl: torch.Tensor | None, beta: float
) -> torch.Tensor:
    if name == "tdpo_kl" and kl is not None:  # the forward KL of TDPO (Zeng et al., 2024, sec. 4), a penalty
        return kl
    if name == "mdpo_anchor":  # mDPO (Wang et al., 2024), equation of L_AncPO with its delta of 0
        return -F.logsigmoid(beta * ratios.chunk(2)[0])
    return -(logps / lengths.clamp(min=1)).chunk(2)[0]
