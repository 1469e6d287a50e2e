"""The load-back gate: an artifact's files must draw in plain diffusers what the trainer draws.

Guards against adapters whose keys are ignored on loading, or that have no effect, before anything is published.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import nn

from atelier.diffusion import words
from atelier.diffusion.adapter_file import FILE_NAME, read_adapter_file
from atelier.diffusion.base import Base
from atelier.diffusion.conditioning import Conditioning
from atelier.diffusion.kohya import check_kohya_file, write_kohya_file
from atelier.diffusion.lowrank import Factors, weight_shapes
from atelier.diffusion.plain import draw_plain, load_plain_words
from atelier.diffusion.sampler import SamplingConfig
from atelier.errors import AtelierError, InternalError
from services.trainer.training.artifact import EXTRACTION_FOLDER
from services.trainer.training.noise import noise_process, seeded_generator
from services.trainer.training.student import Student
from services.trainer.training.trainables import WordVectors

# Few steps: the question is whether both draw the same, not how well.
_STEPS = 4
_SEED = 0
# Mean difference over all channels, of 255. Measured in float32 on a CPU: below 0.01.
_TOLERANCE = 0.5
# In half precision the order of sums shows.
_HALF_TOLERANCE = 8.0


def check_load_back(student: Student, folder: Path, prompt: str, size: int) -> dict[str, float]:
    """Loads an artifact into a fresh pipeline and compares an image, and into ComfyUI's form and compares numbers.

    Args:
        folder: with the artifact's files.
        prompt: as the job has it.
        size: side of the image in pixels.

    Returns:
        The image's mean difference, of 255, and the adapter's effect on one prediction, relative to it.

    Raises:
        InternalError: a tensor was not loaded, the images differ, or what was learnt does nothing.
    """
    if student.words:
        prompt = f"{''.join(student.words.names)} {prompt}"  # a validation prompt need not have them
    effect = _effect(student, prompt)
    has_learnt = all(each.has_learnt() for each in student.trainables if isinstance(each, WordVectors))
    if not effect > 0 or not has_learnt:
        _fail("what was learnt changes nothing")
    pipeline = student.bare.load_pipeline(folder if student.models() else None)
    if factors := student.factors():
        _check_file(student.bare, factors, folder)
        _load_low_rank(student.bare, pipeline, folder)
        _check_kohya(student.bare, factors)
    if student.models():
        _check_models(student, pipeline)
        _check_extraction(student, folder / EXTRACTION_FOLDER)
    if tables := student.tables():
        _load_words(student.bare, pipeline, folder, tables)
    expanded = student.words.expand(prompt) if student.words else prompt
    theirs = draw_plain(student.bare, pipeline, expanded, _SEED, SamplingConfig(size=size, steps=_STEPS))
    ours = student.draw([prompt], [_SEED], SamplingConfig(size=size, steps=_STEPS), lambda: None)[0]
    difference = (ours.float() - theirs.float()).abs().mean().item()
    allowed = _TOLERANCE if student.bare.dtype == torch.float32 else _HALF_TOLERANCE
    if not difference <= allowed:
        _fail(f"the files draw an image that differs from the trained one by {difference:.2f} of 255")
    return {"load_back_difference": difference, "effect": effect}


@torch.no_grad()
def _effect(student: Student, prompt: str) -> float:
    """The largest change of one prediction, relative to its largest value.

    Of updates on top of learned words it is theirs: the words alone have an effect whatever became of the updates.
    """
    base, process = student.bare, noise_process(student.bare)
    words_before = student.words if student.factors() else None
    generator = seeded_generator(_SEED, "load-back", 0)
    latents = torch.randn(1, *base.latent_shape(base.default_size, base.default_size), generator=generator)
    timesteps = process.draw_timesteps(1, generator)

    def predict(model: Base, conditioning: Conditioning) -> torch.Tensor:
        return model.predict(latents.to(base.device, model.dtype), timesteps, conditioning).float()

    plain = predict(base, base.encode_prompts([prompt], words_before))
    with student.acting(training=False):
        changed = predict(student.base, student.base.encode_prompts([prompt], student.words))
    return ((changed - plain).abs().max() / plain.abs().max()).item()


def _check_models(student: Student, pipeline: Any) -> None:
    with student.acting(training=False):
        for component, model in student.models().items():
            loaded = getattr(pipeline, student.bare.part_of(component)).state_dict()
            for name, tensor in model.state_dict().items():
                if not torch.equal(loaded[name], tensor.to(loaded[name].dtype)):
                    _fail(f"{component}.{name} arrived changed from the model's folder")


def _check_extraction(student: Student, folder: Path) -> None:
    """The low-rank update beside a whole model loads on the bare base."""
    base = student.bare
    shapes = {name: weight_shapes(base.components()[name]) for name in student.models()}
    factors = read_adapter_file(folder / FILE_NAME, shapes)
    _load_low_rank(base, base.load_pipeline(), folder)
    _check_kohya(base, factors)


def _check_file(base: Base, factors: Mapping[str, Factors], folder: Path) -> None:
    shapes = {name: weight_shapes(base.components()[name]) for name in factors}
    _compare(read_adapter_file(folder / FILE_NAME, shapes), factors, FILE_NAME)


def _check_kohya(base: Base, factors: Mapping[str, Factors]) -> None:
    """The same in the key form of kohya's scripts, AUTOMATIC1111 and ComfyUI."""
    components = base.components()
    try:
        _compare(check_kohya_file(write_kohya_file(factors, components), components), factors, "the kohya form")
    except AtelierError as error:
        _fail(f"the kohya form cannot be read back: {error}")


def _compare(read: Mapping[str, Factors], factors: Mapping[str, Factors], form: str) -> None:
    wanted = sum(map(len, factors.values()))
    arrived = sum(map(len, read.values()))
    if arrived != wanted:
        _fail(f"{arrived} of {wanted} layers arrived from {form}")
    for component, updates in factors.items():
        for name, update in updates.items():
            other = read[component][name]
            if not (torch.equal(other.a, update.a.cpu()) and torch.equal(other.b, update.b.cpu())):
                _fail(f"{component}.{name} arrived changed from {form}")


def _load_low_rank(base: Base, pipeline: Any, folder: Path) -> None:
    contents = safetensors.torch.load_file(folder / FILE_NAME)
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(folder, weight_name=FILE_NAME)
    else:
        _inject(base, pipeline, contents)
    models = [model for model in pipeline.components.values() if isinstance(model, nn.Module)]
    loaded = sum("lora_" in name for model in models for name, _ in model.named_parameters())
    if loaded != len(contents):
        _fail(f"diffusers loaded {loaded} of {len(contents)} tensors")


def _inject(base: Base, pipeline: Any, contents: Mapping[str, torch.Tensor]) -> None:
    """What `load_lora_weights` does, with PEFT alone: for pipelines that have no such method."""
    for component in {key.partition(".")[0] for key in contents}:
        own = {key.removeprefix(f"{component}."): t for key, t in contents.items() if key.startswith(f"{component}.")}
        layers = sorted({key.rpartition(".lora_")[0] for key in own})
        ranks = {key.removesuffix(".lora_A.weight"): len(t) for key, t in own.items() if key.endswith(".lora_A.weight")}
        config = LoraConfig(
            r=max(ranks.values()),
            lora_alpha=max(ranks.values()),
            rank_pattern=ranks,
            alpha_pattern=ranks,
            target_modules=layers,
            use_dora=any("magnitude" in key for key in own),
        )
        model = inject_adapter_in_model(config, getattr(pipeline, base.part_of(component)))
        result: Any = set_peft_model_state_dict(model, own)
        if result.unexpected_keys:
            _fail(f"PEFT did not know {len(result.unexpected_keys)} tensors of {component}")


def _load_words(base: Base, pipeline: Any, folder: Path, tables: Mapping[str, torch.Tensor]) -> None:
    read = words.read_words_file((folder / words.FILE_NAME).read_bytes(), base)
    for tower in base.towers:
        table = read[tower.embeds_key]
        if not torch.equal(table, tables[tower.embeds_key].float().cpu()):
            _fail(f"{tower.embeds_key} arrived changed from {words.FILE_NAME}")
        load_plain_words(base, pipeline, tower, table)


def _fail(description: str) -> None:
    raise InternalError(f"load-back check: {description}", reason="LOAD_BACK_FAILED")
