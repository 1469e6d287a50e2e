from __future__ import annotations

from pathlib import Path

import pytest

from atelier.cli.batch_file import read_batch_file
from atelier.errors import InvalidArgumentError

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "batch.yaml"


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    return tmp_path / "batch.yaml"


def test_jobs_take_their_own_fields_before_the_defaults(batch: Path) -> None:
    batch.write_text(
        """
        defaults:
          method: dreambooth-lora
          dataset: fox
          base: emoji-sd
          config: {rank: 8, learning_rate: 1e-3}
        jobs:
          - adapter: one
          - adapter: two
            dataset: cat
            validation_prompts: [a, b]
            config: {rank: 4}
        """
    )
    one, two = read_batch_file(batch)
    assert (one.method, one.dataset, one.adapter) == ("dreambooth-lora", "tenants/-/datasets/fox", "one")
    assert one.base_model.model == "emoji-sd"
    assert (one.config.rank, one.config.learning_rate) == (8, 1e-3)
    assert (two.dataset, two.adapter, list(two.validation_prompts)) == ("tenants/-/datasets/cat", "two", ["a", "b"])
    assert (two.config.rank, two.config.learning_rate) == (4, 1e-3)


def test_a_job_may_have_a_recipe_and_further_concepts(batch: Path) -> None:
    batch.write_text(
        """
        defaults:
          method: pivotal
          recipe: cog-sdxl
          config: {gradient_checkpointing: true}
          concepts: [{dataset: cat, placeholder_token: CAT, repeats: 2}]
        jobs:
          - {dataset: fox, adapter: both, placeholder_token: FOX}
          - {dataset: fox, adapter: alone, recipe: "", concepts: []}
        """
    )
    both, alone = read_batch_file(batch)
    assert (both.recipe, both.placeholder_token, both.config.gradient_checkpointing) == ("cog-sdxl", "FOX", True)
    (concept,) = both.concepts
    assert (concept.dataset, concept.placeholder_token, concept.repeats) == ("tenants/-/datasets/cat", "CAT", 2)
    assert (alone.recipe, list(alone.concepts)) == ("", [])


def test_the_example_is_a_batch_file() -> None:
    assert len(read_batch_file(EXAMPLE)) > 1


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [
        ("jobs: [", "batch.yaml", "is not YAML"),
        ("", "batch.yaml", "must be a mapping"),
        ("jobs: []", "jobs", "at least one job"),
        ("job: []", "batch.yaml.job", "is unknown; did you mean 'jobs'? there are defaults, jobs"),
        ("defaults: {metod: x}\njobs: [{}]", "defaults.metod", "is unknown; did you mean 'method'? there are method"),
        ("jobs: [{method: m, dataset: d, adapter: a, rank: 3}]", "jobs[0].rank", "is unknown"),
        ("jobs: [{method: m, adapter: a}]", "jobs[0].dataset", "is missing"),
        ("jobs: [{method: m, dataset: 7, adapter: a}]", "jobs[0].dataset", "it takes text"),
        ("jobs: [{class_prompt: no}]", "jobs[0].class_prompt", "it takes text"),
        ("jobs: [{validation_prompts: a fox}]", "jobs[0].validation_prompts", "a list of texts"),
        ("jobs: [{config: {ranks: 3}}]", "jobs[0].config.ranks", "is no hyperparameter"),
        ("jobs: [{config: {rank: high}}]", "jobs[0].config.rank", "a whole number"),
        ("jobs: [{config: [rank]}]", "jobs[0].config", "must be a mapping"),
        ("jobs: [{concept: []}]", "jobs[0].concept", "did you mean 'concepts'?"),
        ("jobs: [{concepts: {dataset: d}}]", "jobs[0].concepts", "a list of mappings"),
        ("jobs: [{concepts: [{repeats: 2}]}]", "jobs[0].concepts[0]", "a mapping with a dataset"),
        ("jobs: [{concepts: [{dataset: d, prompt: p}]}]", "jobs[0].concepts[0].prompt", "is no field of a concept"),
        ("jobs: [{concepts: [{dataset: d, class_prompt: no}]}]", "jobs[0].concepts[0].class_prompt", "it takes text"),
        ("jobs: [{config: {use_dora: 1}}]", "jobs[0].config.use_dora", "true or false"),
        ("jobs: [fox]", "jobs[0]", "must be a mapping"),
    ],
)
def test_a_wrong_batch_file_names_the_place(batch: Path, document: str, field: str, words: str) -> None:
    batch.write_text(document)
    with pytest.raises(InvalidArgumentError) as caught:
        read_batch_file(batch)
    assert caught.value.violations[0].field.endswith(field)
    assert words in caught.value.message


def test_a_batch_file_builds_no_objects(batch: Path) -> None:
    batch.write_text("jobs: [!!python/object/apply:os.getcwd []]")
    with pytest.raises(InvalidArgumentError, match="is not YAML"):
        read_batch_file(batch)
