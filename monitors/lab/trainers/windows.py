"""Means over windows of tokens, and the loss of Constitutional Classifiers++ on them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def window_loss(logits: Tensor, lengths: Tensor, labels: Tensor, window: int, temperature: float) -> Tensor:
    """L = sum_t w_t BCE(y, sigma(zbar_t)),  w_t = exp(zbar_t / tau) / sum_t' exp(zbar_t' / tau): [B].

    zbar_t is the mean of the last `window` logits, for t >= window (of all of them where there are fewer). The weights are
    not differentiated. So a long text is judged by its most telling window, and yet every window learns.
    logits: [B, T], zero where there is no token; lengths: [B] int64, 1 or more; labels: [B] in [0, 1].
    """
    means, is_window = window_means(logits, lengths, window)
    weights = torch.softmax((means.detach() / temperature).masked_fill(~is_window, -torch.inf), dim=1)
    each = F.binary_cross_entropy_with_logits(means, labels[:, None].expand_as(means), reduction="none")
    return (weights * each).sum(dim=1)


def window_means(logits: Tensor, lengths: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The mean of each run of `window` logits, and which of them lie within their text: both [B, number of windows].

    A text that is shorter than the window has one: the mean of all.
    """
    short = max(0, window - logits.shape[1])
    sums = F.pad(logits, (0, short)).unfold(1, window, 1).sum(dim=2)
    starts = torch.arange(sums.shape[1], device=logits.device)
    return sums / lengths.clamp(max=window)[:, None], starts <= (lengths - window).clamp(min=0)[:, None]
