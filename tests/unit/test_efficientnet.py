"""Stable Cascade's encoder: by default the published architecture, to the parameter."""

from __future__ import annotations

import pytest
import torch

from atelier.diffusion.efficientnet import EfficientNetConfig, EfficientNetEncoder, Stage


def test_the_default_is_torchvision_s_efficientnet_v2_s_without_its_classifier() -> None:
    with torch.device("meta"):
        encoder = EfficientNetEncoder(EfficientNetConfig())
    assert len(encoder.backbone.state_dict()) == 780
    assert sum(parameter.numel() for parameter in encoder.backbone.parameters()) == 20_177_488
    shapes = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert shapes["backbone.0.0.weight"] == [24, 3, 3, 3]
    assert shapes["backbone.1.1.block.0.1.running_var"] == [24]
    assert shapes["backbone.3.0.block.0.0.weight"] == [192, 48, 3, 3]
    assert shapes["backbone.4.0.block.2.fc1.weight"] == [16, 256, 1, 1]
    assert shapes["backbone.6.14.block.3.0.weight"] == [256, 1536, 1, 1]
    assert shapes["backbone.7.1.num_batches_tracked"] == []
    mapper = {name: shape for name, shape in shapes.items() if name.startswith("mapper.")}
    assert mapper == {
        "mapper.0.weight": [16, 1280, 1, 1],
        "mapper.1.running_mean": [16],
        "mapper.1.running_var": [16],
        "mapper.1.num_batches_tracked": [],
    }


def test_a_latent_covers_32_pixels_and_tells_bright_from_dark() -> None:
    torch.manual_seed(0)
    encoder = EfficientNetEncoder(EfficientNetConfig()).eval()
    with torch.no_grad():
        dark, bright = encoder(torch.stack([torch.zeros(3, 64, 96), torch.ones(3, 64, 96)]))
    assert dark.shape == (16, 2, 3)
    assert not torch.allclose(dark, bright, rtol=1e-3, atol=0)


def test_a_configuration_survives_json_and_one_that_halves_too_rarely_is_refused() -> None:
    config = EfficientNetConfig()
    assert EfficientNetConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="four of them must have the stride 2"):
        EfficientNetConfig(stages=(Stage(fused=True, expand=1, stride=2, channels=8, layers=1),))
