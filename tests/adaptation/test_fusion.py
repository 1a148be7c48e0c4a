from types import SimpleNamespace

import numpy as np
import torch

from zar_ray.adaptation.fusion import video_features


def test_frames_are_averaged_before_they_are_normalised():
    embeddings = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    plan = SimpleNamespace(views=np.array([[0, 1], [1, 1]]), evaluation=np.array([0, 2, 2, 0]))
    video = video_features(embeddings, plan)
    assert torch.allclose(video.views, torch.tensor([[3.0, 1.0], [0.0, 10**0.5]]) / 10**0.5)
    assert torch.allclose(video.evaluation, torch.tensor([0.5, 0.5]).sqrt())


def test_a_plan_without_views_gives_none():
    plan = SimpleNamespace(views=np.empty((0, 4), dtype=np.int64), evaluation=np.array([0]))
    assert video_features(torch.ones(1, 2), plan).views.shape == (0, 2)
