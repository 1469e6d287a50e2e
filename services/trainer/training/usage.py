"""How a version is used with plain diffusers: the code of its model card.

Pipelines of Stable Cascade have neither `load_lora_weights` nor `load_textual_inversion`; there, PEFT and transformers
do the same in a few lines more.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from atelier.diffusion import words
from atelier.diffusion.adapter_file import FILE_NAME
from atelier.diffusion.base import Base, TextTower
from services.trainer.methods.base import TrainingJob
from services.trainer.training.artifact import EXTRACTION_FOLDER
from services.trainer.training.evaluation import validation_prompts
from services.trainer.training.student import Student

_HERE = "PATH/TO/THIS/FOLDER"
# diffusers 0.42 has lost the name by which the pipeline's folder asks for this class.
_RESTORE_VQ_MODEL = (
    "import diffusers",
    "from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel",
    "",
    "diffusers.PaellaVQModel = PaellaVQModel",
)


def usage(job: TrainingJob, student: Student) -> str:
    """Python that loads the version's files and draws the job's first validation prompt."""
    base, prompt = student.bare, validation_prompts(job)[0]
    where = _HERE if student.models() else f"PATH/TO/{base.name}"
    is_cascade = base.family == "stable-cascade"
    lines = [*(_RESTORE_VQ_MODEL if is_cascade else []), f'pipeline = DiffusionPipeline.from_pretrained("{where}")']
    if factors := student.factors():
        lines += _inject_low_rank(job, base, list(factors)) if is_cascade else _load_low_rank()
    if student.words:
        lines += _load_words(base, student.words.names, _add_words if is_cascade else _load_word)
        prompt = student.words.expand(prompt)
    if student.models():
        lines.insert(0, f"# On the base model, {EXTRACTION_FOLDER}/{FILE_NAME} alone comes close to it.")
    size, guidance = job.config.resolution, "prior_guidance_scale" if is_cascade else "guidance_scale"
    lines.append(f"image = pipeline({json.dumps(prompt)}, width={size}, height={size}, {guidance}=4.0).images[0]")
    return "\n".join([*_imports(student, is_cascade), "", *lines])


def _imports(student: Student, is_cascade: bool) -> list[str]:
    lines = ["from diffusers import DiffusionPipeline"]
    if student.factors() and is_cascade:
        lines.append("from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict")
    if student.words or (student.factors() and is_cascade):
        lines.append("from safetensors.torch import load_file")
    return lines


def _load_low_rank() -> list[str]:
    return [f'pipeline.load_lora_weights("{_HERE}", weight_name="{FILE_NAME}")']


def _inject_low_rank(job: TrainingJob, base: Base, components: list[str]) -> list[str]:
    config = job.config
    lines = ["", f'weights = load_file("{_HERE}/{FILE_NAME}")']
    for component in components:
        prefix, model = f"{component}.", f"pipeline.{base.part_of(component)}"
        lines += [
            f'own = {{k.removeprefix("{prefix}"): v for k, v in weights.items() if k.startswith("{prefix}")}}',
            'layers = sorted({k.split(".lora_")[0] for k in own})',
            f"config = LoraConfig(r={config.rank}, lora_alpha={config.rank}, target_modules=layers, "
            f"use_dora={config.use_dora})",
            f"inject_adapter_in_model(config, {model})",
            f"set_peft_model_state_dict({model}, own)",
        ]
    return [*lines, ""]


def _load_words(base: Base, names: list[str], load: Callable[[Base, TextTower], list[str]]) -> list[str]:
    lines = ["", f'vectors = load_file("{_HERE}/{words.FILE_NAME}")', f"tokens = {json.dumps(names)}"]
    return [*lines, *(line for tower in base.towers for line in load(base, tower))]


def _load_word(base: Base, tower: TextTower) -> list[str]:
    model, tokenizer = _parts(base, tower)
    vectors = f'list(vectors["{tower.embeds_key}"])'
    return [f"pipeline.load_textual_inversion({vectors}, token=tokens, text_encoder={model}, tokenizer={tokenizer})"]


def _add_words(base: Base, tower: TextTower) -> list[str]:
    model, tokenizer = _parts(base, tower)
    return [
        f"{tokenizer}.add_tokens(tokens)",
        f"{model}.resize_token_embeddings(len({tokenizer}), mean_resizing=False)",
        f"ids = {tokenizer}.convert_tokens_to_ids(tokens)",
        f'{model}.get_input_embeddings().weight.data[ids] = vectors["{tower.embeds_key}"]',
    ]


def _parts(base: Base, tower: TextTower) -> tuple[str, str]:
    """The text encoder and its tokenizer, as expressions."""
    part = base.part_of(tower.component)
    return f"pipeline.{part}", f"pipeline.{part.replace('text_encoder', 'tokenizer')}"
