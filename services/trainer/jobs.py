"""Jobs as callers see them: created after every check, listed, asked to stop. `queue` and `scheduler` run them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from google.protobuf.json_format import ParseDict
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload

from atelier import errors
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.rpc.call import current_tenant
from atelier.rpc.names import BATCH, DATASET, JOB, MAX_PROMPT_CHARACTERS, TENANT, check_id, check_text, shown
from atelier.rpc.pages import Page
from atelier.storage.database import Database, to_timestamp, utc_now
from atelier.storage.requests import perform
from services.trainer import concepts, datasets
from services.trainer.concepts import CheckedConcept, check_concept_count, check_concepts
from services.trainer.image_checks import ConceptImages, check_images
from services.trainer.methods import resolve_config
from services.trainer.tables import TERMINAL, JobRow, State, TrainerRequest
from services.trainer.training.config import TrainingConfig

MAX_VALIDATION_PROMPTS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseChoice:
    """A base model that jobs may name."""

    path: Path
    digest: str


class Jobs:
    """Creates, finds and cancels the jobs of the caller's tenant.

    Args:
        bases: the base models by name; the first is the default.
    """

    def __init__(self, database: Database, bases: Mapping[str, BaseChoice]) -> None:
        self._database = database
        self._bases = bases

    def create(self, request: pb.CreateJobRequest) -> pb.Job:
        """Creates one job, or only checks it."""
        TENANT.parse(request.parent, "parent")
        if request.job_id:
            check_id(request.job_id, "job_id")

        def work(session: Session) -> pb.Job:
            row = self.checked_row(session, request.job, "job")
            if request.job_id:
                row.job_id = request.job_id
            add_rows(session, [row])
            return to_proto(row)

        return perform(self._database, TrainerRequest, request, pb.Job, work)

    def checked_row(self, session: Session, job: pb.Job, field: str) -> JobRow:
        """A row for a job that passed every check; not yet in the session. `field` is where the request holds it."""
        with errors.within(field):
            check_concept_count(job)
        found = [datasets.find(session, job.dataset, f"{field}.dataset")]
        for index, concept in enumerate(job.concepts):
            found.append(datasets.find(session, concept.dataset, f"{field}.concepts[{index}].dataset"))
        with errors.within(field):
            base_name = self._checked_base(job.base_model.model)
            base = self._bases[base_name]
            overrides = {descriptor.name: value for descriptor, value in job.config.ListFields()}
            config = resolve_config(job.method, overrides, base_path=base.path, recipe=job.recipe)
            own, *further = checked = check_concepts(job, found, repeats=config.repeats)
            uid = uuid.uuid4().hex
            return JobRow(
                tenant=current_tenant(),
                job_id=f"job-{uid[:12]}",
                uid=uid,
                method=job.method,
                dataset=own.dataset,
                adapter=check_id(job.adapter, "adapter"),
                base_name=base_name,
                base_digest=base.digest,
                config=asdict(config),
                recipe=job.recipe,
                instance_prompt=own.instance_prompt,
                class_prompt=own.class_prompt,
                placeholder_token=own.placeholder_token,
                concepts=[concept.record() for concept in further],
                validation_prompts=_checked_validation_prompts(job),
                warnings=_warnings(checked, config),
            )

    def _checked_base(self, name: str) -> str:
        chosen = name or next(iter(self._bases))
        if chosen not in self._bases:
            known = ", ".join(self._bases)
            raise errors.InvalidArgumentError(
                "base_model.model", f"{shown(chosen)} is not known; there are {known}", reason="BASE_MODEL_UNKNOWN"
            )
        return chosen

    def get(self, name: str) -> pb.Job:
        """One job by its full name."""
        with self._database.transaction(read_only=True) as session:
            return to_proto(find(session, name))

    def list(self, page: Page) -> pb.ListJobsResponse:
        """A page of the tenant's jobs, newest first."""
        query = select(JobRow).where(JobRow.tenant == current_tenant(), JobRow.id < page.after)
        query = query.options(joinedload(JobRow.dataset), joinedload(JobRow.batch))
        with self._database.transaction(read_only=True) as session:
            rows = session.scalars(query.order_by(JobRow.id.desc()).limit(page.size + 1)).all()
            rows, token = page.cut(rows, key=lambda row: row.id)
            return pb.ListJobsResponse(jobs=map(to_proto, rows), next_page_token=token)

    def cancel(self, request: pb.CancelJobRequest) -> pb.Job:
        """Asks a job to stop: at once while it waits, at its worker's next step while it runs."""

        def work(session: Session) -> pb.Job:
            row = find(session, request.name, lock=True)
            if row.state in (*TERMINAL, State.CANCELLING):
                raise errors.FailedPreconditionError(
                    f"name: the job is {row.state}; only a QUEUED or RUNNING one can be cancelled",
                    reason="JOB_NOT_CANCELLABLE",
                    metadata={"job": row.job_id, "state": row.state},
                )
            if row.state == State.QUEUED:
                row.state, row.end_time = State.CANCELLED, utc_now()
            else:
                row.state = State.CANCELLING
            return to_proto(row)

        return perform(self._database, TrainerRequest, request, pb.Job, work)


def find(session: Session, name: str, *, lock: bool = False) -> JobRow:
    """The row of a job of the caller's tenant."""
    ids = JOB.parse(name, "name")
    query = select(JobRow).where(JobRow.tenant == ids["tenant"], JobRow.job_id == ids["job"])
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise errors.NotFoundError(
            f"name: there is no job {shown(ids['job'])}", reason="JOB_NOT_FOUND", metadata={"job": ids["job"]}
        )
    return row


def add_rows(session: Session, rows: Sequence[JobRow]) -> None:
    """Adds new rows; AlreadyExistsError when an id is taken."""
    session.add_all(rows)
    try:
        session.flush()
    except IntegrityError as error:
        taken = ", ".join(row.job_id for row in rows[:3])
        raise errors.AlreadyExistsError(
            f"job_id: {taken!r} is taken", reason="JOB_EXISTS", metadata={"job": taken}
        ) from error


def to_proto(row: JobRow) -> pb.Job:
    """The contract's form of a row."""
    job = pb.Job(
        name=JOB.format(tenant=row.tenant, job=row.job_id),
        method=row.method,
        dataset=DATASET.format(tenant=row.tenant, dataset=row.dataset.dataset_id),
        adapter=row.adapter,
        base_model=BaseModel(model=row.base_name, digest=row.base_digest),
        instance_prompt=row.instance_prompt,
        class_prompt=row.class_prompt,
        validation_prompts=row.validation_prompts,
        config=pb.TrainingConfig(**row.config),
        recipe=row.recipe,
        placeholder_token=row.placeholder_token,
        concepts=[concepts.to_proto(row.tenant, record) for record in row.concepts],
        warnings=row.warnings,
        state=f"JOB_STATE_{row.state}",
        progress=pb.JobProgress(
            stage=row.stage,
            step=row.step,
            total_steps=row.config["max_train_steps"],
            loss=row.loss,
            images_per_second=row.images_per_second,
            eta_seconds=row.eta_seconds,
        ),
        adapter_version=row.adapter_version,
        batch=BATCH.format(tenant=row.tenant, batch=row.batch.batch_id) if row.batch else "",
        attempt=row.attempt,
        create_time=to_timestamp(row.create_time),
        start_time=to_timestamp(row.start_time),
        end_time=to_timestamp(row.end_time),
    )
    if row.error:
        ParseDict(row.error, job.error)
    if row.evaluation:
        ParseDict(row.evaluation, job.evaluation)
    return job


def _checked_validation_prompts(job: pb.Job) -> list[str]:
    if len(job.validation_prompts) > MAX_VALIDATION_PROMPTS:
        raise errors.InvalidArgumentError(
            "validation_prompts",
            f"holds {len(job.validation_prompts)} prompts; at most {MAX_VALIDATION_PROMPTS} are allowed",
        )
    return [
        check_text(prompt, f"validation_prompts[{index}]", max_characters=MAX_PROMPT_CHARACTERS, required=True)
        for index, prompt in enumerate(job.validation_prompts)
    ]


def _warnings(checked: Sequence[CheckedConcept], config: TrainingConfig) -> list[str]:
    images = [
        ConceptImages(
            dataset_id=concept.dataset.dataset_id,
            records=concept.dataset.images,
            placeholder_token=concept.placeholder_token,
        )
        for concept in checked
    ]
    return check_images(images, resolution=config.resolution, aspect_ratio_buckets=config.aspect_ratio_buckets)
