"""The noise process agrees with diffusers, and its weights with the paper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm_wuerstchen import DDPMWuerstchenScheduler

from atelier.diffusion.base import Base
from atelier.errors import FailedPreconditionError
from services.trainer.training.noise import CosineNoise, NoiseProcess, noise_process, seeded_generator

_CPU = torch.device("cpu")
_TIMESTEPS = torch.tensor([0, 10, 500, 900, 999])


def make_config(prediction_type: str, *, zero_snr: bool = True) -> dict[str, object]:
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_snr,
    )
    return dict(scheduler.config)


@pytest.mark.parametrize("zero_snr", [True, False])
def test_noise_and_velocity_equal_diffusers(zero_snr: bool) -> None:
    config = make_config("v_prediction", zero_snr=zero_snr)
    scheduler, process = DDIMScheduler.from_config(config), NoiseProcess(config, _CPU)
    latents, noise = torch.randn(2, 5, 4, 8, 8)
    torch.testing.assert_close(
        process.add_noise(latents, noise, _TIMESTEPS), scheduler.add_noise(latents, noise, _TIMESTEPS)
    )
    torch.testing.assert_close(
        process.target(latents, noise, _TIMESTEPS), scheduler.get_velocity(latents, noise, _TIMESTEPS)
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_error_of_x0_alike_for_every_prediction_type(prediction_type: str) -> None:
    """The same error of x_0, seen through each prediction type, must count min(SNR, gamma)."""
    process = NoiseProcess(make_config(prediction_type), _CPU)
    timesteps = _TIMESTEPS[:-1]
    latents, noise, error = torch.randn(3, 4, 4, 8, 8, dtype=torch.float64)
    noisy = process.add_noise(latents, noise, timesteps)
    alpha = process.add_noise(torch.ones_like(latents), torch.zeros_like(latents), timesteps).square()
    wrong = latents + error
    wrong_noise = (noisy - alpha.sqrt() * wrong) / (1 - alpha).sqrt()
    predicted, target = process.target(wrong, wrong_noise, timesteps), process.target(latents, noise, timesteps)
    weights = process.loss_weights(timesteps, 5.0)
    counted = weights * (predicted - target).square().mean(dim=(1, 2, 3))
    snr = (alpha / (1 - alpha))[:, 0, 0, 0]
    expected = snr.clamp(max=5.0) * error.square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(counted, expected, rtol=1e-4, atol=0, check_dtype=False)


def test_weights_are_finite_at_zero_terminal_snr_and_one_without_gamma() -> None:
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        process = NoiseProcess(make_config(prediction_type), _CPU)
        assert torch.isfinite(process.loss_weights(_TIMESTEPS, 5.0)).all()
        assert torch.equal(process.loss_weights(_TIMESTEPS, 0.0), torch.ones(5))


def test_timesteps_cover_the_whole_range_evenly() -> None:
    process = NoiseProcess(make_config("epsilon"), _CPU)
    drawn = torch.stack([process.draw_timesteps(4, seeded_generator(0, "t", i)) for i in range(500)])
    assert drawn.sort(dim=1).values.div(250, rounding_mode="floor").eq(torch.arange(4)).all()
    assert drawn[:, 0].float().mean().item() == pytest.approx(499.5, abs=30)
    assert (int(drawn.min()), int(drawn.max())) == (pytest.approx(0, abs=5), pytest.approx(999, abs=5))


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(FailedPreconditionError, match="none of epsilon, v_prediction, sample"):
        NoiseProcess(make_config("epsilon") | {"prediction_type": "flow"}, _CPU)


@pytest.mark.parametrize("scaler", [0.5, 1.0, 2.0])
def test_cosine_noise_equals_diffusers(scaler: float) -> None:
    scheduler: Any = DDPMWuerstchenScheduler(scaler=scaler)
    process = CosineNoise(dict(scheduler.config), _CPU)
    latents, noise = torch.randn(2, 7, 16, 3, 3)
    timesteps = torch.tensor([0.0, 1e-3, 0.2, 0.5, 0.8, 0.999, 1.0])
    ours = process.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(ours, scheduler.add_noise(latents, noise, timesteps), rtol=1e-5, atol=1e-5)
    assert torch.equal(process.target(latents, noise, timesteps), noise)


def test_cosine_noise_weighs_by_min_snr_and_draws_evenly() -> None:
    process = CosineNoise({}, _CPU)
    timesteps = torch.tensor([0.0, 0.1, 0.5, 1.0])
    alpha = process.add_noise(torch.ones(4, 1, 1, 1), torch.zeros(4, 1, 1, 1), timesteps).flatten().square()
    snr = alpha / (1 - alpha)
    torch.testing.assert_close(process.loss_weights(timesteps, 5.0), snr.clamp(max=5.0) / snr, rtol=1e-4, atol=0)
    assert torch.equal(process.loss_weights(timesteps, 0.0), torch.ones(4))
    drawn = torch.stack([process.draw_timesteps(4, seeded_generator(0, "t", i)) for i in range(500)])
    assert drawn.dtype == torch.float32
    assert drawn.sort(dim=1).values.mul(4).floor().clamp(max=3).eq(torch.arange(4)).all()
    assert drawn[:, 0].mean().item() == pytest.approx(0.5, abs=0.03)


def test_the_process_is_the_base_s_own(base: Base) -> None:
    process = noise_process(base)
    assert type(process) is NoiseProcess
    assert (process.prediction_type, process.num_timesteps) == ("v_prediction", 1000)
    cascade = replace(base, scheduler_config={"_class_name": "DDPMWuerstchenScheduler", "s": 0.008, "scaler": 1.0})
    assert type(noise_process(cascade)) is CosineNoise
