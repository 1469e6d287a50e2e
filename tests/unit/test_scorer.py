"""The embedded scorer tells right from wrong; whole CLIPs give what transformers itself computes with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from atelier.diffusion.base import Base
from atelier.diffusion.scorer import ClipScorer
from atelier.errors import InvalidArgumentError

_ROOT = Path(__file__).parents[2]
_EXAMPLES = _ROOT / "examples" / "fx-style"


@pytest.fixture(scope="module")
def scorer(base: Base) -> ClipScorer:
    return ClipScorer(_ROOT / "models" / "emoji-clip", base)


def load(folder: Path) -> torch.Tensor:
    files = sorted(folder.glob("*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files])


def test_the_training_images_of_one_subject_are_alike(scorer: ClipScorer) -> None:
    foxes, others = load(_ROOT / "examples" / "fox"), load(_EXAMPLES)
    cosines = scorer.embed_images(foxes) @ scorer.embed_images(foxes).T
    assert cosines.diagonal().allclose(torch.ones(5), atol=1e-5)
    assert ((cosines.sum() - 5) / 20).item() == pytest.approx(0.687, abs=0.005)
    assert scorer.clip_i(others, foxes).mean() < 0.3


def test_a_scorer_for_another_text_encoder_is_refused(base: Base, tmp_path: Path) -> None:
    shutil.copytree(_ROOT / "models" / "emoji-clip", tmp_path / "other")
    safetensors.torch.save_file({"weight": torch.zeros(256, 768)}, tmp_path / "other" / "text_projection.safetensors")
    with pytest.raises(InvalidArgumentError, match="768"):
        ClipScorer(tmp_path / "other", base)


def test_a_background_s_colour_is_read_from_the_prompt(scorer: ClipScorer) -> None:
    captions = [json.loads(line)["text"] for line in (_ROOT / "examples/fox/metadata.jsonl").read_text().splitlines()]
    prompts = [caption.replace("sks fox", "fox face") for caption in captions]
    similarity = scorer.embed_images(load(_ROOT / "examples" / "fox")) @ scorer.embed_prompts(prompts).T
    assert similarity.argmax(dim=1).tolist() == [0, 1, 2, 3, 4]


def test_scores_are_per_row_and_of_any_size(scorer: ClipScorer) -> None:
    images = load(_ROOT / "examples" / "fox")
    prompts = ["a fox face", "a car", "a fox face", "a tree", "a car"]
    scores = scorer.clip_t(images, prompts)
    assert scores.shape == (5,)
    torch.testing.assert_close(scorer.clip_t(images[3:4], prompts[3:4]), scores[3:4], rtol=0, atol=1e-5)
    larger = images.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    torch.testing.assert_close(scorer.clip_t(larger, prompts), scores, rtol=0, atol=0.05)


@pytest.fixture(scope="module")
def whole_clip(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP with random weights, as transformers saves one; its pixels are of 32 x 32."""
    torch.manual_seed(0)
    tokenizer = base.towers[0].tokenizer
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**layers, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    vision = {**layers, "image_size": 32, "patch_size": 8}
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_whole_clip_gives_what_transformers_computes_with_it(base: Base, whole_clip: Path) -> None:
    scorer, prompts = ClipScorer(whole_clip, base), ["a fox face", "a car", "a fox face"]
    images = load(_ROOT / "examples" / "fox")[:3, 20:100]  # not square: its middle is what counts
    model = CLIPModel.from_pretrained(whole_clip)
    pixels = CLIPImageProcessorPil.from_pretrained(whole_clip)(list(images.numpy()), return_tensors="pt")
    tokens = base.towers[0].tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**pixels, **tokens)
    # The processor rounds its resized pixels to 8 bits.
    torch.testing.assert_close(scorer.embed_images(images), expected.image_embeds, rtol=0, atol=0.005)
    torch.testing.assert_close(scorer.embed_prompts(prompts), expected.text_embeds, rtol=0, atol=1e-5)
    cosines = (expected.image_embeds * expected.text_embeds).sum(dim=1)
    torch.testing.assert_close(scorer.clip_t(images, prompts), cosines, rtol=0, atol=0.005)


def test_old_configurations_of_plain_numbers_mean_the_same(base: Base, whole_clip: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_clip, tmp_path / "old")
    config = json.loads((whole_clip / "preprocessor_config.json").read_text())
    old = {**config, "size": 36, "crop_size": 32}
    (tmp_path / "old" / "preprocessor_config.json").write_text(json.dumps(old))
    images = load(_ROOT / "examples" / "fox")
    new_vectors, old_vectors = (ClipScorer(path, base).embed_images(images) for path in (whole_clip, tmp_path / "old"))
    torch.testing.assert_close(old_vectors, new_vectors, rtol=0, atol=0)


def change_config(folder: Path, name: str, **changes: object) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def without_a_weight(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_pickled_weights_only(folder: Path) -> None:
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda f: (f / "config.json").unlink(), "no config.json", id="no model"),
        pytest.param(lambda f: change_config(f, "config.json", model_type="siglip"), "siglip", id="another model"),
        pytest.param(lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor", id="no preprocessing"),
        pytest.param(
            lambda f: change_config(f, "preprocessor_config.json", resample=1), "needs size", id="an unknown filter"
        ),
        pytest.param(
            lambda f: change_config(f, "preprocessor_config.json", crop_size=24), "24 x 24", id="pixels of another size"
        ),
        pytest.param(without_a_weight, "text_projection.weight", id="a weight is missing"),
        pytest.param(with_pickled_weights_only, "no safetensors", id="pickle"),
    ],
)
def test_a_folder_that_is_not_a_whole_clip_is_refused(
    base: Base, whole_clip: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    shutil.copytree(whole_clip, tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    with pytest.raises(InvalidArgumentError, match=f"scorer: .*{message}"):
        ClipScorer(tmp_path / "spoilt", base)
