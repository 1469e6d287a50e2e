"""`atelier train` and `atelier submit`: new training jobs, one or many."""

from __future__ import annotations

from pathlib import Path

import click

from atelier.cli.batch_file import read_batch_file
from atelier.cli.jobs import previews_option, print_job, print_jobs, watch_to_end
from atelier.cli.output import as_document, describe, last_part, print_document
from atelier.cli.session import Session, json_option
from atelier.cli.values import ConceptType, SettingType, set_hyperparameter
from atelier.cli.watch import goes_on, state_name, watch_batch
from atelier.client.trainer import dataset_name
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.rpc.status import from_status

_validate_option = click.option("--validate-only", is_flag=True, help="Check everything, create nothing.")
_watch_option = click.option("--watch", is_flag=True, help="Follow to the end; exit status 1 unless all succeed.")


@click.command()
@click.argument("method")
@click.option("--dataset", required=True, help="Name of the dataset to learn from.")
@click.option("--adapter", required=True, help="Name of the adapter that gets the result as a new version.")
@click.option("--base", default="", help="Name of the base model.  [default: the service's first]")
@click.option("--instance-prompt", default="", help="Prompt of images without a caption: 'a photo of a sks fox'.")
@click.option("--class-prompt", default="", help="The class alone, for prior preservation: 'a photo of a fox face'.")
@click.option("--validation-prompt", "validation_prompts", multiple=True, help="Prompt to score on; repeatable.")
@click.option(
    "--recipe", default="", help="Name of published settings; --set overrides them.  [default: the service's own]"
)
@click.option("--placeholder-token", default="", help="Word of the prompts that stands for learned embeddings: 'TOK'.")
@click.option(
    "--concept",
    "concepts",
    multiple=True,
    type=ConceptType(),
    help="A further subject in the same adapter; repeatable. Keys: dataset, instance_prompt, class_prompt, "
    "placeholder_token, repeats. A value holds no semicolon.",
)
@click.option("--set", "settings", multiple=True, type=SettingType(), help="A hyperparameter; repeatable.")
@_watch_option
@_validate_option
@previews_option
@json_option
@click.pass_obj
def train(
    session: Session,
    method: str,
    dataset: str,
    adapter: str,
    base: str,
    instance_prompt: str,
    class_prompt: str,
    validation_prompts: tuple[str, ...],
    recipe: str,
    placeholder_token: str,
    concepts: tuple[pb.Concept, ...],
    settings: tuple[tuple[str, str], ...],
    watch: bool,
    validate_only: bool,
    previews: Path | None,
) -> None:
    """Teach an adapter with METHOD, for example dreambooth-lora."""
    config = pb.TrainingConfig()
    for name, text in settings:
        set_hyperparameter(config, name, text)
    wanted = pb.Job(
        method=method,
        dataset=dataset_name(dataset),
        adapter=adapter,
        base_model=BaseModel(model=base),
        instance_prompt=instance_prompt,
        class_prompt=class_prompt,
        validation_prompts=validation_prompts,
        config=config,
        recipe=recipe,
        placeholder_token=placeholder_token,
        concepts=concepts,
    )
    trainer = session.trainer
    job = trainer.create_job(wanted, validate_only=validate_only)
    if watch and not validate_only:
        watch_to_end(session, trainer, last_part(job.name), previews)
    else:
        _announce_job(session, job, validate_only=validate_only)


@click.command()
@click.argument("batch_file", metavar="BATCH.yaml", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_watch_option
@_validate_option
@json_option
@click.pass_context
def submit(context: click.Context, batch_file: Path, watch: bool, validate_only: bool) -> None:
    """Create all jobs of BATCH.yaml, or none. It holds `jobs`, a list, and `defaults` for all of them."""
    session: Session = context.obj
    trainer = session.trainer
    wanted = read_batch_file(batch_file)
    batch = trainer.create_batch(wanted, validate_only=validate_only)
    if not watch or validate_only:
        _announce_batch(session, batch, len(wanted), validate_only=validate_only)
        return
    batch_id = last_part(batch.name)
    with goes_on(f"the jobs of batch {batch_id} go on", "jobs list"):
        jobs = watch_batch(trainer, batch_id)
    if session.as_json:
        print_document({"batch": as_document(batch), "jobs": [as_document(job) for job in jobs]})
    else:
        print_jobs(f"Batch {batch_id}", jobs)
    _report_unsuccessful(context, jobs)


def _announce_job(session: Session, job: pb.Job, *, validate_only: bool) -> None:
    job_id = last_part(job.name)
    if session.as_json:
        print_document(job)
    elif validate_only:
        print_job(job)
        click.echo("valid; nothing was created")
    else:
        click.echo(f"job {job_id} is {state_name(job.state)}; follow it with `atelier jobs watch {job_id}`")


def _announce_batch(session: Session, batch: pb.Batch, count: int, *, validate_only: bool) -> None:
    if session.as_json:
        print_document(batch)
    elif validate_only:
        click.echo(f"{count} jobs are valid; nothing was created")
    else:
        click.echo(f"batch {last_part(batch.name)} has {count} jobs; see them with `atelier jobs list`")


def _report_unsuccessful(context: click.Context, jobs: list[pb.Job]) -> None:
    for job in jobs:
        if job.state == pb.JOB_STATE_FAILED:
            click.echo(f"job {last_part(job.name)}: {describe(from_status(job.error))}", err=True)
    if any(job.state != pb.JOB_STATE_SUCCEEDED for job in jobs):
        context.exit(1)
