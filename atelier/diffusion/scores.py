"""Scores of generated images, out of unit vectors of images and prompts, for any scorer's features.

The measures are those of DreamBooth's evaluation (Ruiz et al. 2023, section 4), and the nearest training image. All
are means of cosines, so 1 is the same and 0 unrelated; only `div` is a mean of distances. Values depend on the
features: compare scores of one scorer with each other and with nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch


def mean_similarity(images: torch.Tensor, references: torch.Tensor) -> float:
    """Subject fidelity: the mean cosine over all pairs of an image [N, width] and a reference [M, width].

    It is CLIP-I with CLIP's features and DINO with DINO's.
    """
    return (images @ references.T).mean().item()


def prompt_similarity(images: torch.Tensor, prompts: torch.Tensor) -> float:
    """Prompt fidelity, CLIP-T: the mean cosine of images [N, width] to their own prompts [N, width]."""
    assert images.shape == prompts.shape, "one prompt for each image"
    return (images * prompts).sum(dim=1).mean().item()


def nearest(images: torch.Tensor, references: torch.Tensor) -> float:
    """Memorization: the mean over images [N, width] of the cosine to the most similar reference [M, width].

    Near 1 the images are copies. It is at least `mean_similarity` of the same images.
    """
    return (images @ references.T).amax(dim=1).mean().item()


def pres(class_images: torch.Tensor, references: torch.Tensor) -> float:
    """Prior preservation, PRES: the mean cosine of images of the class prompt to the subject's references.

    Lower is better: where it rises, every member of the class has begun to look like the subject. The paper takes
    DINO's features and many random classes' members; here they are the scorer's and of the job's own class prompt.
    """
    return mean_similarity(class_images, references)


def div(class_images: torch.Tensor, prompts: Sequence[Hashable]) -> float:
    """Diversity, DIV: the mean of 1 - cosine over all pairs of images [N, width] of the same prompt.

    Higher is better: where it falls, the images of a prompt become one image. The paper takes LPIPS for the distance
    and prompts of the subject; here the distance is one of the scorer's features and the prompts are the class's, so
    values are not comparable to the paper's.

    Args:
        prompts: each image's own prompt; at least two images share one.
    """
    assert len(class_images) == len(prompts), "one prompt for each image"
    pairs = [(i, j) for i in range(len(prompts)) for j in range(i) if prompts[i] == prompts[j]]
    assert pairs, "at least two images of one prompt"
    first, second = (list(side) for side in zip(*pairs, strict=True))
    return (1 - (class_images[first] * class_images[second]).sum(dim=1)).mean().item()
