import torch

from mirrorla_mm.necks import ProjectionNeck
from tests.norms import with_statistics


def test_features_are_the_mean_of_the_activated_projection():
    neck = with_statistics(ProjectionNeck(5, 7)).double()
    maps = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 3, dtype=torch.float64)
    x = torch.einsum('oc,bchw->bhwo', neck.proj.weight[..., 0, 0], maps[1]) + neck.proj.bias
    norm = neck.norm
    x = (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
    (features,) = neck(maps)
    torch.testing.assert_close(features, (x * torch.sigmoid(x)).mean((1, 2)))
