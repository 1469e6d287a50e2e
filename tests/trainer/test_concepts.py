"""What a worker gets of a job's concepts: all of them, with images, masks and one digest over their datasets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atelier.errors import DataLossError
from atelier.local.seaweedfs import SeaweedFS
from atelier.storage.blobs import BlobStore, content_key
from atelier.storage.database import Database
from services.trainer.job_files import JobFiles
from services.trainer.main import MIGRATIONS
from services.trainer.queue import Assignment, Queue
from services.trainer.tables import DatasetRow, JobRow
from tests.harness.trainer import image_bytes


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'trainer.db'}", MIGRATIONS)
    database.migrate()
    with database.transaction() as session:
        for tenant, name in (("t", "fox"), ("t", "cat"), ("somebody-else", "cat")):
            records = [{"path": f"{tenant}-{name}.png"}]
            session.add(DatasetRow(tenant=tenant, dataset_id=name, digest=f"sha256:{tenant}-{name}", images=records))
    yield database
    database.close()


def claim(database: Database, **columns: Any) -> Assignment:
    """A job of the tenant on the dataset `fox`, with a worker of its own."""
    names = {"job_id": "j", "uid": "u", "method": "lora", "adapter": "a", "base_name": "b", "base_digest": "sha256:0"}
    prompts = {"instance_prompt": "a fox", "class_prompt": "", "validation_prompts": []}
    with database.transaction() as session:
        fox = session.query(DatasetRow).filter_by(tenant="t", dataset_id="fox").one()
        session.add(JobRow(tenant="t", dataset=fox, **names, **{**prompts, "config": {"repeats": 2}, **columns}))
    claimed = Queue(database).claim()
    assert claimed is not None
    return claimed


def test_a_job_of_one_concept_has_its_dataset_s_digest(database: Database) -> None:
    (concept,) = (claimed := claim(database)).concepts
    assert claimed.dataset_digest == "sha256:t-fox"
    assert (concept.instance_prompt, concept.repeats, concept.placeholder_token) == ("a fox", 2, "")


def test_a_job_from_before_there_were_repeats_has_one(database: Database) -> None:
    assert claim(database, config={}).concepts[0].repeats == 1


def test_further_concepts_come_after_the_job_s_own_with_their_tenant_s_images(database: Database) -> None:
    further = {"instance_prompt": "CAT", "class_prompt": "a cat", "placeholder_token": "CAT", "repeats": 5}
    claimed = claim(database, placeholder_token="FOX", concepts=[{"dataset_id": "cat", **further}] * 2)
    assert [concept.placeholder_token for concept in claimed.concepts] == ["FOX", "CAT", "CAT"]
    assert [concept.images[0]["path"] for concept in claimed.concepts] == ["t-fox.png", "t-cat.png", "t-cat.png"]
    assert {name: getattr(claimed.concepts[1], name) for name in further} == further
    digests = json.dumps(["sha256:t-fox", "sha256:t-cat", "sha256:t-cat"])
    assert claimed.dataset_digest == f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}"
    assert claimed.instance_prompt == "a fox"


def test_images_come_with_their_masks_and_both_are_verified(seaweedfs: SeaweedFS) -> None:
    blobs = BlobStore(seaweedfs.s3_config("concepts"))
    image, mask = ({"path": f"{seed}.png", **_stored(blobs, image_bytes(seed))} for seed in (1, 2))
    records: list[dict[str, Any]] = [{**image, "caption": "a fox", "mask": mask}, {**image, "caption": ""}]
    masked, plain = JobFiles(blobs).images(records)
    assert (masked.contents, masked.mask, masked.caption) == (image_bytes(1), image_bytes(2), "a fox")
    assert plain.mask is None
    blobs.put(content_key(mask["sha256"]), b"other bytes")
    with pytest.raises(DataLossError, match=r"2\.png"):
        JobFiles(blobs).images(records)


def _stored(blobs: BlobStore, content: bytes) -> dict[str, str]:
    sha256 = hashlib.sha256(content).hexdigest()
    blobs.put(content_key(sha256), content)
    return {"sha256": sha256}
