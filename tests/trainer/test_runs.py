"""Jobs that really train: what their watcher sees, what they publish, and what they survive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from atelier.client import RegistryClient, TrainerClient
from atelier.errors import FailedPreconditionError, UnavailableError
from atelier.local.process import wait_until
from atelier.local.ray_cluster import RayCluster
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.storage.blobs import BlobStore
from tests.harness.registry import RegistryServer
from tests.harness.trainer import TrainerServer, image_bytes, quick_job

JOB_SECONDS = 240


class Site:
    """A trainer with S3 and registry of its own, which a test may take away."""

    def __init__(self, folder: Path, key_file: Path, ray: RayCluster) -> None:
        self.s3 = SeaweedFS(folder / "s3")
        self.s3.start()
        (folder / "registry").mkdir()
        self.registry = RegistryServer(folder / "registry", self.s3.s3_config("registry"), key_file)
        self.registry.start()
        self._new_trainer = lambda: TrainerServer(
            folder / "trainer",
            s3=self.s3.s3_config("trainer"),
            key_file=key_file,
            registry=self.registry.address,
            ray=ray,
        )
        self.trainer = self._new_trainer()
        self.trainer.start()
        self.connection = self.trainer.connect("site")

    @property
    def client(self) -> TrainerClient:
        return TrainerClient(self.connection)

    def restart_trainer(self) -> None:
        """Kills the trainer without warning and starts another one over the same database."""
        self.connection.__exit__()
        self.trainer.kill()
        self.trainer = self._new_trainer()
        self.trainer.start()
        self.connection = self.trainer.connect("site")

    def wait_for(self, job: str, *states: int, stage: str = "", step: int = 0) -> pb.Job:
        """Returns when the job is in one of the states, at the stage and step or later ones."""

        def is_there() -> bool:
            now = self.client.job(job)
            return now.state in states and stage in ("", now.progress.stage) and now.progress.step >= step

        wait_until(is_there, timeout_seconds=JOB_SECONDS, what=f"{job} is {states} {stage} {step}")
        return self.client.job(job)

    def stop(self) -> None:
        self.connection.__exit__()
        for part in (self.trainer, self.registry, self.s3):
            part.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, signing_key_file: Path, ray_cluster: RayCluster) -> Iterator[Site]:
    """One site for the module's tests, which leave it whole."""
    site = Site(tmp_path_factory.mktemp("site"), signing_key_file, ray_cluster)
    site.client.create_dataset("small", [(f"{index}.png", image_bytes(index), "") for index in range(2)])
    yield site
    site.stop()


SMALL = "tenants/-/datasets/small"


def test_a_job_is_watched_and_its_adapter_published(site: Site) -> None:
    job = quick_job(SMALL, adapter="watched", validation_steps=2)
    site.client.create_job(job, job_id="watched")
    seen = list(site.client.watch("watched"))
    last = seen[-1].job
    assert last.state == pb.JOB_STATE_SUCCEEDED
    assert {response.job.progress.step for response in seen} >= {0, 4}
    assert any(response.job.progress.loss > 0 and response.job.progress.images_per_second > 0 for response in seen)
    samples = [sample for response in seen for sample in response.samples]
    assert samples
    assert all(sample.png.startswith(b"\x89PNG") for sample in samples)
    assert [bool(sample.prompt) for sample in samples] == [True, False] * (len(samples) // 2)  # image, then sheet
    assert -1 < last.evaluation.adapter.clip_i < 1
    assert last.evaluation.adapter != last.evaluation.base
    with site.registry.connect("site") as connection:
        registry = RegistryClient(connection)
        version = registry.resolve("watched")
        assert version.name == last.adapter_version
        assert version.source_job == last.name
        assert version.base_model == last.base_model
        assert version.metrics["clip_i"] == pytest.approx(last.evaluation.adapter.clip_i)
        paths = {file.path for file in version.files}
        assert {"pytorch_lora_weights.safetensors", "README.md", "recipe.json", "metrics.json"} <= paths


def test_a_running_job_stops_when_it_is_cancelled(site: Site) -> None:
    site.client.create_job(quick_job(SMALL, max_train_steps=5000), job_id="long")
    site.wait_for("long", pb.JOB_STATE_RUNNING, stage="training", step=1)
    assert site.client.cancel("long").state == pb.JOB_STATE_CANCELLING
    ended = site.wait_for("long", pb.JOB_STATE_CANCELLED)
    assert ended.progress.step < 5000
    assert not ended.adapter_version


def test_a_killed_trainer_goes_on_from_the_checkpoint(site: Site) -> None:
    site.client.create_job(quick_job(SMALL, adapter="killed", max_train_steps=60), job_id="killed")
    site.wait_for("killed", pb.JOB_STATE_RUNNING, stage="training", step=4)
    site.restart_trainer()
    assert site.client.job("killed").progress.step >= 2
    ended = site.wait_for("killed", pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED)
    assert ended.state == pb.JOB_STATE_SUCCEEDED
    assert ended.attempt == 2
    log = site.trainer.process.log_path.read_text()
    assert '"attempt": 1, "from_step": 0' in log
    assert any(f'"attempt": 2, "from_step": {step}' in log for step in range(2, 60, 2))


def test_a_killed_worker_is_replaced(site: Site, ray_cluster: RayCluster) -> None:
    site.client.create_job(quick_job(SMALL, adapter="orphan", max_train_steps=30), job_id="orphan")
    site.wait_for("orphan", pb.JOB_STATE_RUNNING, stage="training", step=2)
    assert _kill_workers(ray_cluster)
    assert site.wait_for("orphan", pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED).state == pb.JOB_STATE_SUCCEEDED


def test_a_cancel_that_comes_too_late_changes_nothing(site: Site) -> None:
    """Whatever wins, the state and the registry agree."""
    site.client.create_job(quick_job(SMALL, adapter="late"), job_id="late")
    for response in site.client.watch("late"):
        if response.job.progress.stage == "publishing" and response.job.state == pb.JOB_STATE_RUNNING:
            with contextlib.suppress(FailedPreconditionError):
                site.client.cancel("late")
    ended = site.client.job("late")
    with site.registry.connect("site") as connection:
        published = [adapter.name for adapter in RegistryClient(connection).adapters()]
    assert ended.state in (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_CANCELLED)
    assert bool(ended.adapter_version) == (ended.state == pb.JOB_STATE_SUCCEEDED)
    assert ("tenants/site/adapters/late" in published) == (ended.state == pb.JOB_STATE_SUCCEEDED)


def test_services_start_without_s3(site: Site) -> None:
    site.s3.stop()
    site.registry.stop()
    site.registry.start()
    site.restart_trainer()
    assert [dataset.name for dataset in site.client.datasets()] == ["tenants/site/datasets/small"]
    site.s3.start()


def test_a_job_waits_for_the_registry(site: Site) -> None:
    site.registry.stop()
    site.client.create_job(quick_job(SMALL, adapter="patient"), job_id="patient")
    waiting = site.wait_for("patient", pb.JOB_STATE_QUEUED, stage="waiting", step=4)
    assert waiting.attempt >= 1
    site.registry.start()
    assert site.wait_for("patient", pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED).state == pb.JOB_STATE_SUCCEEDED


def test_without_s3_calls_say_unavailable_and_jobs_wait(site: Site) -> None:
    site.s3.stop()
    with pytest.raises(UnavailableError) as caught:
        site.client.create_dataset("lost", [("a.png", image_bytes(9), "")])
    assert caught.value.reason == "OBJECT_STORE_UNAVAILABLE"
    assert caught.value.retry_after_seconds
    site.client.create_job(quick_job(SMALL, adapter="later"), job_id="later")
    wait_until(
        lambda: site.client.job("later").state == pb.JOB_STATE_QUEUED and site.client.job("later").attempt >= 1,
        timeout_seconds=JOB_SECONDS,
        what="the job waits after a first attempt",
    )
    site.s3.start()
    assert site.client.create_dataset("lost", [("a.png", image_bytes(9), "")]).images
    assert site.wait_for("later", pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED).state == pb.JOB_STATE_SUCCEEDED


def test_ended_jobs_leave_no_checkpoints(site: Site) -> None:
    assert all(job.HasField("end_time") for job in site.client.jobs())
    store = BlobStore(site.s3.s3_config("trainer"))
    wait_until(
        lambda: not any("checkpoints" in key for key in store.keys("jobs/")),
        timeout_seconds=30,
        what="no checkpoint is left",
    )


def _kill_workers(ray: RayCluster) -> int:
    """Kills the cluster's workers that train; returns how many."""
    processes = psutil.Process(ray.pid).children(recursive=True)
    workers = [process for process in processes if "TrainingWorker" in " ".join(process.cmdline())]
    for worker in workers:
        worker.kill()
    return len(workers)
