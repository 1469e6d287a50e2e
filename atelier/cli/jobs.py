"""`atelier jobs`: training jobs, running and past."""

from __future__ import annotations

from pathlib import Path

import click

from atelier.cli.output import as_document, describe, last_part, local_time, print_document, print_table
from atelier.cli.session import Session, json_option
from atelier.cli.watch import goes_on, state_name, watch_job
from atelier.client import TrainerClient
from atelier.errors import CancelledError
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.rpc.status import from_status

previews_option = click.option(
    "--previews",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the sample images that the job draws into DIR.",
)


_SCORES = {
    "clip_i": "CLIP-I",
    "clip_t": "CLIP-T",
    "dino": "DINO",
    "pres": "PRES",
    "div": "DIV",
    "nearest": "nearest",
}


@click.group()
def jobs() -> None:
    """Training jobs, running and past."""


@jobs.command("list")
@json_option
@click.pass_obj
def list_(session: Session) -> None:
    """List the jobs, newest first."""
    found = list(session.trainer.jobs())
    if session.as_json:
        print_document({"jobs": [as_document(job) for job in found]})
    else:
        print_jobs("Jobs", found)


@jobs.command()
@click.argument("job_id", metavar="JOB")
@json_option
@click.pass_obj
def show(session: Session, job_id: str) -> None:
    """Show one job with its hyperparameters."""
    job = session.trainer.job(job_id)
    if session.as_json:
        print_document(job)
    else:
        print_job(job)


@jobs.command()
@click.argument("job_id", metavar="JOB")
@previews_option
@json_option
@click.pass_obj
def watch(session: Session, job_id: str, previews: Path | None) -> None:
    """Follow a job to its end. Exit status 1 when it fails or is cancelled."""
    watch_to_end(session, session.trainer, job_id, previews)


@jobs.command()
@click.argument("job_id", metavar="JOB")
@json_option
@click.pass_obj
def cancel(session: Session, job_id: str) -> None:
    """Ask a job to stop."""
    job = session.trainer.cancel(job_id)
    if session.as_json:
        print_document(job)
    else:
        click.echo(f"job {job_id} is {state_name(job.state)}")


def watch_to_end(session: Session, trainer: TrainerClient, job_id: str, previews: Path | None) -> None:
    """Follows a job with a progress bar and prints how it ended."""
    with goes_on(f"job {job_id} goes on", f"jobs watch {job_id}", f"jobs cancel {job_id}"):
        job = watch_job(trainer, job_id, previews=previews)
    finish(session, job)


def finish(session: Session, job: pb.Job) -> None:
    """Prints a job that has ended; raises its error unless it succeeded."""
    if session.as_json:
        print_document(job)
    elif job.state == pb.JOB_STATE_SUCCEEDED:
        print_result(job)
    if job.state == pb.JOB_STATE_FAILED:
        raise from_status(job.error)
    if job.state == pb.JOB_STATE_CANCELLED:
        raise CancelledError(f"job {last_part(job.name)} was cancelled")


def print_result(job: pb.Job) -> None:
    """Prints the scores of a job, what was odd about it, and the name of the version that it made."""
    scores = [("base", job.evaluation.base), ("adapter", job.evaluation.adapter)]
    rows = [(who, *(_score(each, field) for field in _SCORES)) for who, each in scores]
    print_table(f"Job {last_part(job.name)} SUCCEEDED", ("", *_SCORES.values()), rows)
    for warning in job.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"version {job.adapter_version}")


def _score(scores: pb.Scores, field: str) -> str:
    """Empty for a score that was not taken."""
    is_optional = scores.DESCRIPTOR.fields_by_name[field].has_presence
    return "" if is_optional and not scores.HasField(field) else f"{getattr(scores, field):.3f}"


def print_job(job: pb.Job) -> None:
    """Prints everything about one job but its images."""
    rows = [
        ("state", state_name(job.state)),
        ("stage", job.progress.stage),
        ("step", f"{job.progress.step} of {job.progress.total_steps}"),
        ("method", job.method),
        ("recipe", job.recipe),
        ("dataset", last_part(job.dataset)),
        ("adapter", job.adapter),
        ("base model", f"{job.base_model.model} {job.base_model.digest}"),
        ("instance prompt", job.instance_prompt),
        ("class prompt", job.class_prompt),
        ("placeholder token", job.placeholder_token),
        *(("concept", _concept(concept)) for concept in job.concepts),
        *(("warning", warning) for warning in job.warnings),
        *(("validation prompt", prompt) for prompt in job.validation_prompts),
        *((field.name, value) for field, value in job.config.ListFields()),
        ("attempt", job.attempt),
        ("created", local_time(job.create_time)),
    ]
    if job.HasField("error"):
        rows.append(("error", describe(from_status(job.error))))
    if job.adapter_version:
        rows.append(("version", job.adapter_version))
    print_table(f"Job {last_part(job.name)}", ("field", "value"), rows)


def _concept(concept: pb.Concept) -> str:
    token = f", token {concept.placeholder_token}" if concept.placeholder_token else ""
    return f"{last_part(concept.dataset)}: {concept.instance_prompt!r}{token}, {concept.repeats} times"


def print_jobs(title: str, found: list[pb.Job]) -> None:
    """Prints one line a job."""
    columns = ("job", "state", "stage", "step", "method", "dataset", "adapter", "created")
    print_table(title, columns, map(_row, found))


def _row(job: pb.Job) -> tuple[str, ...]:
    step = f"{job.progress.step}/{job.progress.total_steps}" if job.progress.total_steps else ""
    words = (last_part(job.name), state_name(job.state), job.progress.stage, step, job.method)
    return (*words, last_part(job.dataset), job.adapter, local_time(job.create_time))
