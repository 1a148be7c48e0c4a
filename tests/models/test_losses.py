"""Losses against what their papers write down, a term at a time."""

import math

import pytest
import torch

from zar_ray.models.losses import matching_losses, motion_loss, same_class


def test_pairs_of_one_class_are_told():
    assert same_class(torch.tensor([3, 1, 3])).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_matching_is_the_divergence_of_each_row_and_each_column():
    similarities = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0], [1.0, 1.5, -2.0]])
    labels = torch.tensor([0, 1, 0])
    target = [[10.0 if labels[i] == labels[j] else 0.0 for j in range(3)] for i in range(3)]

    def divergence(rows):
        total = 0.0
        for row, wanted in zip(rows, target, strict=True):
            p = [math.exp(one) / sum(map(math.exp, wanted)) for one in wanted]
            q = [math.exp(one) / sum(map(math.exp, row)) for one in row]
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        return total / 3

    of_videos, of_texts = matching_losses(similarities, labels)
    assert of_videos.item() == pytest.approx(divergence(similarities.tolist()), rel=1e-5)
    assert of_texts.item() == pytest.approx(divergence(similarities.T.tolist()), rel=1e-5)


def test_a_perfect_match_costs_nothing():
    labels = torch.tensor([0, 1, 2])
    losses = matching_losses(10 * same_class(labels), labels)
    assert [loss.item() for loss in losses] == pytest.approx([0, 0], abs=1e-6)


def test_a_still_view_has_the_highest_motion_loss():
    frames = torch.randn(2, 1, 5).expand(-1, 4, -1)
    assert motion_loss(frames).item() == pytest.approx(1)
    assert motion_loss(torch.randn(2, 4, 5)).item() < 1


def test_motion_is_change_and_variance():
    frames = torch.tensor([[[0.0], [1.0], [4.0]]])
    change = (1 / 2 + 4 / 2 + 3 / 2) / 3
    variance = ((5 / 3) ** 2 + (2 / 3) ** 2 + (7 / 3) ** 2) / 2
    assert motion_loss(frames).item() == pytest.approx(1 / (1 + change + variance))
