"""Every family of base models in miniature: random weights, forwards of milliseconds, folders that diffusers loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableCascadeCombinedPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from diffusers.schedulers.scheduling_ddpm_wuerstchen import DDPMWuerstchenScheduler
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from atelier.diffusion.efficientnet import EfficientNetConfig, EfficientNetEncoder, Stage

_TOKENIZER = Path(__file__).parents[2] / "models" / "emoji-sd" / "tokenizer"
_WIDTH = 32
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def tiny_stable_diffusion(folder: Path, *, prediction_type: str = "epsilon", zero_snr: bool = False) -> Path:
    """Stable Diffusion, of 64 pixels: 1.x with its PNDM schedule, or zero terminal SNR with DDIM."""
    scheduler: Any = (
        DDIMScheduler(
            **_BETAS,
            prediction_type=prediction_type,
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        )
        if zero_snr
        else PNDMScheduler(**_BETAS, prediction_type=prediction_type, skip_prk_steps=True)
    )
    with _seeded():
        pipeline = StableDiffusionPipeline(
            vae=_vae(0.18215),
            text_encoder=CLIPTextModel(_text_config(2 * _WIDTH)),
            tokenizer=_tokenizer(),
            unet=_unet(),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return _save(pipeline, folder)


def tiny_stable_diffusion_xl(folder: Path) -> Path:
    """SDXL, of 64 pixels."""
    added = 6 * 8 + _WIDTH
    with _seeded():
        pipeline = StableDiffusionXLPipeline(
            vae=_vae(0.13025),
            text_encoder=CLIPTextModel(_text_config(_WIDTH)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(_WIDTH, hidden_act="gelu")),
            tokenizer=_tokenizer(),
            tokenizer_2=_tokenizer(),
            unet=_unet(
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=added,
                use_linear_projection=True,
                transformer_layers_per_block=(2, 1),
            ),
            scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading"),
        )
    return _save(pipeline, folder)


def tiny_stable_cascade(folder: Path) -> Path:
    """Stable Cascade, of 128 pixels, with the encoder of its stage C."""
    with _seeded():
        text_encoder = CLIPTextModelWithProjection(_text_config(_WIDTH, hidden_act="gelu"))
        pipeline = StableCascadeCombinedPipeline(
            prior_prior=_prior(),
            prior_text_encoder=text_encoder,
            prior_tokenizer=_tokenizer(),
            prior_scheduler=DDPMWuerstchenScheduler(),
            decoder=_decoder(),
            vqgan=_vqgan(),
            text_encoder=text_encoder,
            tokenizer=_tokenizer(),
            scheduler=DDPMWuerstchenScheduler(),
        )
        config, encoder = _encoder()
    _save(pipeline, folder)
    (folder / "effnet_encoder").mkdir()
    (folder / "effnet_encoder" / "config.json").write_text(config.to_json())
    save_file(encoder.state_dict(), folder / "effnet_encoder" / "model.safetensors")
    return folder


def _save(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@contextmanager
def _seeded() -> Iterator[None]:
    """The same weights at every call, without a change to the global random generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(_TOKENIZER)


def _text_config(width: int, **changes: Any) -> CLIPTextConfig:
    tokenizer = _tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        **changes,
    )


def _unet(**changes: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=2 * _WIDTH,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **changes,
    )


def _vae(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        scaling_factor=scaling_factor,
    )


def _prior() -> StableCascadeUNet:
    return StableCascadeUNet(
        conditioning_dim=_WIDTH,
        block_out_channels=(_WIDTH, _WIDTH),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        switch_level=(False,),
        clip_text_in_channels=_WIDTH,
        clip_text_pooled_in_channels=_WIDTH,
        clip_image_in_channels=24,
        timestep_ratio_embedding_dim=16,
    )


def _decoder() -> StableCascadeUNet:
    convolutional = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
    return StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        patch_size=2,
        conditioning_dim=_WIDTH,
        block_out_channels=(16, _WIDTH),
        num_attention_heads=(-1, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        block_types_per_layer=(convolutional, (*convolutional, "SDCascadeAttnBlock")),
        clip_text_pooled_in_channels=_WIDTH,
        effnet_in_channels=16,
        pixel_mapper_in_channels=3,
        timestep_ratio_embedding_dim=16,
        timestep_conditioning_type=("sca",),
    )


def _vqgan() -> PaellaVQModel:
    """A decoder that an untrained stage B, whose latents are a hundred times too large, does not drive out of range."""
    vqgan = PaellaVQModel(embed_dim=16, bottleneck_blocks=1, num_vq_embeddings=2, scale_factor=0.01)
    nn.init.constant_(vqgan.out_block[0].bias, 0.5)
    return vqgan


def _encoder() -> tuple[EfficientNetConfig, EfficientNetEncoder]:
    """An encoder whose latents have mean 0 and deviation 1, as those of the published one."""
    config = EfficientNetConfig(
        stem_channels=8,
        stages=(
            Stage(fused=True, expand=1, stride=1, channels=8, layers=1),
            Stage(fused=True, expand=2, stride=2, channels=8, layers=1),
            Stage(fused=True, expand=2, stride=2, channels=8, layers=1),
            Stage(fused=False, expand=2, stride=2, channels=16, layers=2),
            Stage(fused=False, expand=2, stride=2, channels=16, layers=1),
        ),
        head_channels=32,
    )
    encoder = EfficientNetEncoder(config)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    encoder.train()(torch.rand(16, 3, 96, 96))
    return config, encoder
