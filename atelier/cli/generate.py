"""`atelier generate`: images from a prompt and any mix of adapters."""

from __future__ import annotations

from pathlib import Path

import click

from atelier.cli.output import as_document, print_document, print_table, progress_bar
from atelier.cli.session import Session, json_option
from atelier.cli.values import AdapterUseType
from atelier.client import InferenceClient
from atelier.pb.inference.v1 import inference_pb2 as pb

_TIMES = ("resolve_seconds", "adapter_load_seconds", "wait_seconds", "denoise_seconds", "decode_seconds")
_COUNT = click.IntRange(min=1, max=2**31 - 1)
_SEED = click.IntRange(min=0, max=2**53 - 1)


@click.command()
@click.option("--prompt", required=True, help="What the images show.")
@click.option("--adapter", "adapters", multiple=True, type=AdapterUseType(), help="Adapter to use; repeatable.")
@click.option("--base", default="", help="Name of the base model.  [default: the service's first]")
@click.option("--negative-prompt", default="", help="What to keep away from.")
@click.option("--seed", type=_SEED, help="Image i is drawn from seed + i.  [default: a random one]")
@click.option("--steps", type=_COUNT, help="Denoising steps.  [default: 25]")
@click.option("--guidance", type=float, help="Classifier-free guidance.  [default: 4]")
@click.option("--scheduler", default="", help="Noise scheduler.  [default: the model's]")
@click.option("--count", type=_COUNT, help="Number of images.  [default: 1]")
@click.option("--width", type=_COUNT, help="Pixels.  [default: the model's]")
@click.option("--height", type=_COUNT, help="Pixels.  [default: the model's]")
@click.option(
    "--out", required=True, metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Where to write."
)
@json_option
@click.pass_obj
def generate(
    session: Session,
    prompt: str,
    adapters: tuple[pb.AdapterUse, ...],
    base: str,
    negative_prompt: str,
    seed: int | None,
    steps: int | None,
    guidance: float | None,
    scheduler: str,
    count: int | None,
    width: int | None,
    height: int | None,
    out: Path,
) -> None:
    """Generate images; each becomes OUT/NNN-SEED.png."""
    request = pb.GenerateRequest(
        prompt=prompt,
        adapters=adapters,
        base_model=base,
        negative_prompt=negative_prompt,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
        num_images=count,
        width=width,
        height=height,
    )
    files, summary = draw(session.inference, request, out)
    if session.as_json:
        documents = [{"path": str(path), "seed": seed} for path, seed in files]
        print_document({"images": documents, "summary": as_document(summary)})
        return
    print_table("Images", ("file", "seed"), files)
    print_table("Seconds", _TIMES, [[f"{getattr(summary, name):.3f}" for name in _TIMES]])


def draw(
    inference: InferenceClient, request: pb.GenerateRequest, folder: Path
) -> tuple[list[tuple[Path, int]], pb.Summary]:
    """Writes each image into `folder` when it comes, with a progress bar; (path, seed) of each, and the summary."""
    files: list[tuple[Path, int]] = []
    summary = pb.Summary()
    with progress_bar() as progress:
        task = progress.add_task("generating", total=None, detail="")
        for response in inference.stream(request):
            content = response.WhichOneof("content")
            if content == "progress":
                step, total = response.progress.step, response.progress.total_steps
                progress.update(task, completed=step, total=total, detail=f"step {step}/{total}")
            elif content == "image":
                files.append((_write(response.image, folder), response.image.seed))
            else:
                summary = response.summary
    return files, summary


def _write(image: pb.Image, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{image.index:03d}-{image.seed}.png"
    path.write_bytes(image.png)
    return path
