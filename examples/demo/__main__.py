"""Atelier's story on one machine: five images of a fox go in, that fox on backgrounds it was never seen on comes out.

Everything goes through the services, as it would from another machine. It writes `demo/contact_sheet.png` and
`demo/report.json`, and ends with status 1 when the adapter does not clearly beat the base model or is loaded twice.
"""

from __future__ import annotations

import io
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from PIL import Image

from atelier.cli.dataset import upload_dataset
from atelier.cli.jobs import finish
from atelier.cli.output import describe, last_part, progress_bar
from atelier.cli.session import Session
from atelier.cli.watch import watch_job
from atelier.client import Connection, InferenceClient, TrainerClient
from atelier.client.inference import GenerationResult
from atelier.client.trainer import dataset_name
from atelier.errors import AtelierError
from atelier.local.stack import Stack, StackConfig
from atelier.pb.inference.v1.inference_pb2 import AdapterUse, GenerateRequest
from atelier.pb.trainer.v1.trainer_pb2 import Job
from examples.demo.report import Drawn, find_problems, measure, print_report, write_report
from examples.demo.stage_meter import StageMeter

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "examples" / "fox"
OUT = ROOT / "demo"

SUBJECT, CLASS = "sks fox", "fox face"
CONTEXTS = (
    "on a red background",
    "on a purple background",
    "on a green background",
    "on a yellow background",
    "on a black background",
    "on a blue striped background",
    "on a yellow dotted background",
    "on a teal gradient background",
)
"""None is in the captions of the training images."""

IMAGES_PER_PROMPT = 4
STEPS, GUIDANCE, SEED = 20, 4.0, 1000


def main() -> int:
    """Runs the demo and returns its exit status."""
    signal.signal(signal.SIGTERM, _end)
    shutil.rmtree(OUT / "data", ignore_errors=True)
    meter = StageMeter(on_start=lambda name: click.secho(f"▸ {name}", bold=True))
    try:
        drawn = run_story(meter)
    except AtelierError as error:
        click.echo(describe(error), err=True)
        return 1
    except KeyboardInterrupt:
        return 130
    with meter.stage("score the images"):
        measured = measure(ROOT / "models", IMAGES, drawn)
    problems = find_problems(measured, drawn)
    write_report(OUT, meter.stages, measured, drawn, problems)
    print_report(OUT, meter.stages, measured, drawn, problems)
    return 1 if problems else 0


def run_story(meter: StageMeter) -> Drawn:
    """Everything that needs the services; they are stopped however it ends."""
    with Stack(StackConfig(data_dir=OUT / "data")) as stack:
        with meter.stage("start the services"):
            stack.start(click.echo)
        with (
            Connection(stack.addresses["trainer"], stack.token) as trainer,
            Connection(stack.addresses["inference"], stack.token) as inference,
        ):
            train(TrainerClient(trainer), meter)
            return draw(InferenceClient(inference), meter)


def train(trainer: TrainerClient, meter: StageMeter) -> None:
    """Uploads the fox and teaches the adapter `fox`."""
    with meter.stage("upload the dataset"):
        dataset = upload_dataset(trainer, IMAGES, "fox")
    click.echo(f"dataset {dataset.name}: {len(dataset.images)} images")
    wanted = Job(
        method="dreambooth-lora",
        dataset=dataset_name("fox"),
        adapter="fox",
        instance_prompt=f"a photo of a {SUBJECT}",
        class_prompt=f"a photo of a {CLASS}",
        validation_prompts=[f"a photo of a {SUBJECT} {context}" for context in CONTEXTS[:2]],
    )
    with meter.stage("train the adapter"):
        job = trainer.create_job(wanted)
        click.echo(f"job {job.name}")
        finish(Session(as_json=False), watch_job(trainer, last_part(job.name)))


def draw(inference: InferenceClient, meter: StageMeter) -> Drawn:
    """Every context with the base model and with the adapter, which the running service loads on its first use."""
    with meter.stage("first Generate"):
        first = generate(inference, CONTEXTS[0], with_adapter=True)
    with meter.stage("second Generate"):
        second = generate(inference, CONTEXTS[1], with_adapter=True)
    adapter = [pictures(first), pictures(second)]
    base = []
    with meter.stage("the other images"), progress_bar() as progress:
        task = progress.add_task("generating", total=2 * len(CONTEXTS) - 2, detail=f"{IMAGES_PER_PROMPT} images each")
        for context in CONTEXTS[2:]:
            adapter.append(pictures(generate(inference, context, with_adapter=True)))
            progress.advance(task)
        for context in CONTEXTS:
            base.append(pictures(generate(inference, context, with_adapter=False)))
            progress.advance(task)
    return Drawn(
        subject=SUBJECT,
        class_words=CLASS,
        contexts=CONTEXTS,
        base=base,
        adapter=adapter,
        first_load_seconds=first.summary.adapter_load_seconds,
        second_load_seconds=second.summary.adapter_load_seconds,
    )


def generate(inference: InferenceClient, context: str, *, with_adapter: bool) -> GenerationResult:
    """Images of one context; the base model, which does not know the subject's name, gets its class instead."""
    request = GenerateRequest(
        prompt=f"a photo of a {SUBJECT if with_adapter else CLASS} {context}",
        adapters=[AdapterUse(adapter="fox")] if with_adapter else [],
        seed=SEED,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        num_images=IMAGES_PER_PROMPT,
    )
    return inference.generate(request)


def pictures(result: GenerationResult) -> list[Image.Image]:
    """The images of an answer, decoded."""
    return [Image.open(io.BytesIO(image.png)) for image in result.images]


def _end(_: int, __: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
