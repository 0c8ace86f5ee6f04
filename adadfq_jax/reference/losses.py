"""The losses of both players. Logits are (B, C), labels (B,) integers."""

import math

import torch
import torch.nn.functional as F


def entropy(logits):
    """H(softmax(logits)) per sample, (B, C) -> (B,)."""
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def relative_entropy(z_p, z_q):
    """H' per sample: the entropy of p_ds, moved and scaled to [0, 1] over the batch, (B,)."""
    h = entropy(z_p - z_q)
    smallest = h.min(dim=0).values  # of tied samples one gets the gradient
    return (h - smallest) / (math.log(z_p.shape[1]) - smallest).clamp(min=1e-6)


def disagreement_loss(z_p, z_q, y):
    """L_ds: cross entropy of p_ds = softmax(z_P - z_Q) with y."""
    return F.cross_entropy(z_p - z_q, y)


def agreement_loss(z_p, z_q, y):
    """L_as: cross entropy of p_as = softmax(z_P + z_Q) with y."""
    return F.cross_entropy(z_p + z_q, y)


def margin_loss(h, lambda_l, lambda_u):
    """L_margin: how far H' (B,) leaves [lambda_l, lambda_u], mean over the batch."""
    return F.relu(lambda_l - h).mean() + F.relu(h - lambda_u).mean()


def statistics_loss(batch, running):
    """L_BNS: mean over layers of the squared distances of (mean, variance) pairs of (C_l,)."""
    distances = [
        F.mse_loss(mean, stored_mean) + F.mse_loss(var, stored_var)
        for (mean, var), (stored_mean, stored_var) in zip(batch, running, strict=True)
    ]
    return torch.stack(distances).mean()


def generator_loss(l_margin, l_bal, l_bns, beta, gamma):
    """L_G = L_margin + beta L_bal + gamma L_BNS."""
    return l_margin + beta * l_bal + gamma * l_bns


def student_loss(z_p, z_q, temperature):
    """L_Q = -T^2 mean H(softmax((z_P - z_Q) / T)); z_P is held constant."""
    return -(temperature**2) * entropy((z_p.detach() - z_q) / temperature).mean()


def gdfq_generator_loss(z_p, y, l_bns):
    """GDFQ's L_G = CE(z_P, y) + 0.1 L_BNS."""
    return F.cross_entropy(z_p, y) + 0.1 * l_bns


def gdfq_student_loss(z_p, z_q, y, temperature=20.0, reduction="elements"):
    """GDFQ's L_Q = CE(z_Q, y) + T^2 KL(softmax(z_P / T) || softmax(z_Q / T)); z_P is constant.

    ``reduction`` averages the KL over B C ("elements", as released) or B ("batch", as printed).
    """
    log_p = F.log_softmax(z_p.detach() / temperature, dim=1)
    log_q = F.log_softmax(z_q / temperature, dim=1)
    kl = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    kl = kl / {"elements": z_q.numel(), "batch": len(z_q)}[reduction]
    return F.cross_entropy(z_q, y) + temperature**2 * kl
