"""The bench of the methods measures, pairs and compares as it says; nothing is trained here."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from atelier.errors import FailedPreconditionError
from bench.methods.bootstrap import paired_interval
from bench.methods.ceiling import paste
from bench.methods.drawing import load_grid, save_grid
from bench.methods.layout import (
    CEILING_SCORES,
    CONTEXTS_GRID,
    MEASURED,
    NEIGHBOURS_GRID,
    SCORES,
    base_folder,
    run_folder,
)
from bench.methods.peers import Peer, prepare_base, prepare_images
from bench.methods.plan import BATCH, METHODS, OURS, PEER, PEER_PRIOR, Contender, Method, Run, search_runs
from bench.methods.process import run_measured
from bench.methods.report import write_report
from bench.methods.results import Result, best_learning_rate, is_scored, load_results
from bench.methods.scores import Judge
from bench.methods.subjects import BASE, FOX, STYLE
from bench.methods.tables import before_and_after, paired
from services.trainer.methods import resolve_config

_STANDINS = Path(__file__).parents[2] / "bench" / "methods" / "standins"


def a_run(method: str = "dreambooth-lora", contender: Contender = PEER, seed: int = 0, rate: float = 1e-3) -> Run:
    return Run(method=METHODS[method], contender=contender, learning_rate=rate, seed=seed, steps=10)


def write_run(out: Path, run: Run, *, clip_i: float, leak: float = 0.1) -> None:
    """The files of a finished run, with the same score for every draw of every prompt."""
    subject = run.method.subject
    folder = run_folder(out, run)
    folder.mkdir(parents=True)
    neighbours = {
        name: {"clip_t": [[0.5] * 4] * len(prompts), "leak": [[leak] * 4] * len(prompts), "preserved": [[1.0] * 4]}
        for name, prompts in subject.neighbours.items()
    }
    rows = len(subject.contexts)
    scores = {
        "protocol": subject.protocol,
        "likeness": [[clip_i] * 4] * rows,
        "clip_t": [[0.7] * 4] * rows,
        "neighbours": neighbours,
    }
    (folder / SCORES).write_text(json.dumps(scores))
    measured = {"wall_seconds": 20.0, "cpu_seconds": 30.0, "peak_rss_bytes": 2**30, "seconds_per_step": 0.5}
    (folder / MEASURED).write_text(json.dumps(measured))


def load_all(out: Path, *contenders: Contender) -> dict[str, list[Result]]:
    method = METHODS["dreambooth-lora"]
    return {contender.name: load_results(out, method, contender, 10) for contender in contenders}


def test_a_constant_difference_has_no_width() -> None:
    theirs = np.random.default_rng(1).normal(size=(3, 12))
    interval = paired_interval(theirs + 0.25, theirs)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.25, 0.25, 0.25))


def test_the_interval_covers_what_prompts_and_seeds_vary() -> None:
    generator = np.random.default_rng(2)
    by_prompt, by_seed = generator.normal(size=12), generator.normal(size=3)
    zero = np.zeros((3, 12))
    width = {
        name: (interval := paired_interval(difference, zero)).high - interval.low
        for name, difference in {
            "prompts": zero + by_prompt,
            "seeds": zero + by_seed[:, None],
            "both": by_prompt + by_seed[:, None],
        }.items()
    }
    assert 0 < width["prompts"] < width["both"]
    assert 0 < width["seeds"] < width["both"]
    with pytest.raises(ValueError, match="same"):
        paired_interval(zero, zero[:2])


def test_a_process_is_measured_from_outside(tmp_path: Path) -> None:
    script = (
        "import time\n"
        "from tqdm import tqdm\n"
        "with tqdm(total=6, desc='Steps') as bar:\n"
        "    for step in range(6):\n"
        "        time.sleep(1.0 if step < 1 else 0.12)\n"
        "        bar.update(1); bar.set_postfix(loss=1.0)\n"
        "data = bytearray(200 * 2**20)\n"
    )
    measured = run_measured([sys.executable, "-c", script], env={}, cwd=tmp_path, log=tmp_path / "log")
    assert measured.seconds_per_step is not None
    assert 0.1 < measured.seconds_per_step < measured.wall_seconds / 2  # the slow first step is not in it
    assert measured.peak_rss_bytes > 200 * 2**20
    assert b"6/6" in (tmp_path / "log").read_bytes()


def test_a_process_that_fails_says_what_it_said_last(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such image')"]
    with pytest.raises(FailedPreconditionError, match="no such image"):
        run_measured(command, env={}, cwd=tmp_path, log=tmp_path / "log")


@pytest.mark.parametrize("name", METHODS)
def test_all_batches_of_the_peer_are_full(name: str, tmp_path: Path) -> None:
    run = a_run(name)
    folder = prepare_images(run, tmp_path / "images")
    images = sorted(folder.glob("*.png"))
    assert len(images) % BATCH == 0
    assert len(images) % len(run.method.subject.image_paths) == 0
    assert {path.read_bytes() for path in images} == {path.read_bytes() for path in run.method.subject.image_paths}
    assert (folder / "metadata.jsonl").exists() == (name == "lora")


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    for script in ("dreambooth/train_dreambooth_lora.py", "textual_inversion/textual_inversion.py"):
        path = tmp_path / "examples" / script
        path.parent.mkdir(parents=True)
        path.write_text("import sys\nfrom torchvision import transforms\nprint(sys.argv)\n")
    return Peer(scripts=tmp_path / "examples", python=sys.executable, base=tmp_path / "base")


def test_a_peer_is_asked_for_the_same_work(peer: Peer, tmp_path: Path) -> None:
    command = peer.command(a_run(seed=2), tmp_path)
    for option in ("--max_train_steps=10", "--train_batch_size=4", "--seed=2", "--learning_rate=0.001", "--rank=16"):
        assert option in command
    assert "--with_prior_preservation" not in command
    command = peer.command(a_run(contender=PEER_PRIOR), tmp_path)
    assert "--with_prior_preservation" in command
    assert "--class_prompt=a photo of a fox face" in command
    assert f"--num_vectors={METHODS['textual-inversion'].num_vectors}" in peer.command(
        a_run("textual-inversion"), tmp_path
    )
    with pytest.raises(FailedPreconditionError, match=r"train_dreambooth\.py"):
        peer.command(a_run("dreambooth"), tmp_path)


def test_only_the_script_finds_the_stand_in(peer: Peer, tmp_path: Path) -> None:
    measured = run_measured(peer.command(a_run(), tmp_path), env={}, cwd=tmp_path, log=tmp_path / "log")
    assert "--seed=0" in (tmp_path / "log").read_text()
    assert measured.seconds_per_step is None


def test_the_stand_in_transforms_as_torchvision_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(_STANDINS / "modules")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    from torchvision import transforms

    image = Image.new("RGB", (200, 100), "red")
    image.paste("blue", (0, 0, 20, 100))
    for crop in (transforms.CenterCrop(64), transforms.RandomCrop(64)):
        tensor = transforms.Compose(
            [transforms.Resize(64), crop, transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
        )(image)
        assert tensor.shape == (3, 64, 64)
        assert tensor[:, 32, 63].tolist() == [1, -1, -1]
    assert transforms.RandomHorizontalFlip(p=1.0)(image).getpixel((199, 0)) == (0, 0, 255)
    names = {name.lower() for name in dir(transforms.InterpolationMode) if not name.startswith("__")}
    assert {"bilinear", "lanczos"} <= names


def test_the_peers_base_has_the_same_weights_in_float32(tmp_path: Path) -> None:
    copy = prepare_base(BASE, tmp_path / "base")
    ours, theirs = (load_file(path / "text_encoder" / "model.safetensors") for path in (BASE, copy))
    assert {value.dtype.name for value in theirs.values()} == {"float32"}
    assert all((theirs[name] == value).all() for name, value in ours.items())
    assert json.loads((copy / "text_encoder" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("context", FOX.contexts, ids=lambda context: context.prompt)
def test_the_ceiling_shows_the_subject_on_the_background_of_the_prompt(context) -> None:  # type: ignore[no-untyped-def]
    for path in FOX.image_paths:
        pixels = np.asarray(paste(Image.open(path), context)).astype(int)
        orange = np.abs(pixels - (255, 109, 32)).sum(axis=2) < 60
        pale = np.abs(pixels - (255, 219, 206)).sum(axis=2) < 20
        area = 128 * 128 * context.scale**2
        assert 0.08 * area < orange.sum()
        assert 0.02 * area < pale.sum()  # the face is not keyed out with a pale background


def test_no_context_is_in_a_training_caption_and_words_take_the_subjects_place() -> None:
    for subject in (FOX, STYLE):
        captions = set(subject.captions.values())
        assert len(set(subject.prompts("sks fox"))) == len(subject.contexts) == 12
        assert not captions & set(subject.prompts("sks fox"))
    assert FOX.prompts("TOK")[0] == "a photo of a TOK on a red background"


def test_likeness_is_of_the_subject_or_of_the_way_to_the_style() -> None:
    assert Judge(FOX, None).training_likeness() == pytest.approx(0.687, abs=0.001)
    gray = [[Image.open(path).convert("L").convert("RGB")] for path in STYLE.image_paths]
    judge = Judge(STYLE, gray)
    assert 0.1 < judge.training_likeness() < 1
    colored = [[Image.open(path).convert("RGB")] * 4 for path in FOX.image_paths] * 2
    colored, grayed = colored[:6], [[image.convert("L").convert("RGB") for image in row] for row in colored[:6]]
    unmoved, moved = (judge.neighbours(images, grayed) for images in (grayed, colored))
    assert all(np.allclose(scores["leak"], 0) for scores in unmoved.values())
    assert np.mean([scores["leak"] for scores in moved.values()]) > 0.1


def test_grids_keep_every_pixel(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    rows = [
        [Image.fromarray(generator.integers(0, 255, (16, 16, 3)).astype(np.uint8)) for _ in range(5)] for _ in range(3)
    ]
    save_grid(rows, tmp_path / "grid.png")
    loaded = load_grid(tmp_path / "grid.png", num_rows=3)
    assert [[image.tobytes() for image in row] for row in loaded] == [
        [image.tobytes() for image in row] for row in rows
    ]


def test_both_sides_search_the_same_rates_side_by_side() -> None:
    method = METHODS["dreambooth-lora"]
    runs = search_runs(method, [OURS, PEER], method.learning_rates, 0, 10)
    assert [run.learning_rate for run in runs[::2]] == [run.learning_rate for run in runs[1::2]]
    assert {run.contender.name for run in runs[::2]} == {"ours"}


def test_the_rate_of_the_first_seed_is_chosen_by_subject_and_neighbours(tmp_path: Path) -> None:
    write_run(tmp_path, a_run(rate=1e-3), clip_i=0.60, leak=0.30)
    write_run(tmp_path, a_run(rate=4e-4), clip_i=0.55, leak=0.10)
    write_run(tmp_path, a_run(rate=2e-3, seed=1), clip_i=0.90)
    results = load_all(tmp_path, PEER)["peer"]
    assert best_learning_rate(results, 0, FOX.class_words) == 4e-4
    assert best_learning_rate(results, 5, FOX.class_words) is None


def test_scores_of_another_protocol_do_not_count(tmp_path: Path) -> None:
    write_run(tmp_path, a_run(), clip_i=0.6)
    folder = run_folder(tmp_path, a_run())
    assert is_scored(folder, FOX)
    scores = json.loads((folder / SCORES).read_text())
    (folder / SCORES).write_text(json.dumps({**scores, "protocol": replace(FOX, contexts=FOX.contexts[1:]).protocol}))
    assert not is_scored(folder, FOX)
    assert load_all(tmp_path, PEER) == {"peer": []}


def test_pairs_are_of_seeds_that_both_have(tmp_path: Path) -> None:
    for contender, clip_i in ((OURS, 0.6), (PEER, 0.5)):
        write_run(tmp_path, a_run(contender=contender, seed=0), clip_i=clip_i)
    write_run(tmp_path, a_run(contender=OURS, seed=1), clip_i=0.9)
    chosen = load_all(tmp_path, OURS, PEER)
    row = paired(OURS, PEER, chosen, FOX.class_words)
    assert row is not None
    assert row[:3] == ["ours − peer", "1", "+0.100 [+0.100, +0.100]"]
    assert row[-2:] == ["1.00", "1.00"]
    assert paired(OURS, PEER_PRIOR, chosen, FOX.class_words) is None


def test_a_contender_that_did_not_run_has_a_row_that_says_why(tmp_path: Path) -> None:
    write_run(tmp_path, a_run(), clip_i=0.5)
    chosen = load_all(tmp_path, PEER)
    base = chosen["peer"][0].scores
    lines = before_and_after(base, {}, chosen, {"ours": "needs the package datasets"}, FOX).splitlines()
    assert "not run: needs the package datasets" in lines[-1]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_what_competes_and_what_ours_begins_with(method: Method) -> None:
    assert [each.name for each in method.competing([], with_peer=False)] == ["ours"]
    assert {each.is_peer for each in method.competing([], with_peer=True)} == {True, False}
    assert [each.name for each in method.competing(["peer"], with_peer=True)] == ["peer"]
    config = resolve_config(method.name, {}, base_path=BASE)
    field = "embedding_learning_rate" if method.name == "textual-inversion" else "learning_rate"
    assert (getattr(config, field), config.max_train_steps) == (method.learning_rates[0], method.steps)


def test_the_report_has_tables_and_sheets_of_what_is_there(tmp_path: Path) -> None:
    method = METHODS["dreambooth-lora"]
    write_run(tmp_path, a_run(), clip_i=0.5)
    base_folder(tmp_path, FOX).parent.mkdir(parents=True)
    run_folder(tmp_path, a_run()).rename(base_folder(tmp_path, FOX))
    (base_folder(tmp_path, FOX) / CEILING_SCORES).write_text(json.dumps({"training_likeness": 0.687}))
    runs = [a_run(contender=OURS), a_run()]
    for run in runs:
        write_run(tmp_path, run, clip_i=0.6)
    for folder in (base_folder(tmp_path, FOX), *(run_folder(tmp_path, run) for run in runs)):
        image = Image.open(FOX.image_paths[0])
        save_grid([[image] * 4] * len(FOX.contexts), folder / CONTEXTS_GRID)
        save_grid([[image] * 4] * 8, folder / NEIGHBOURS_GRID)
    report = write_report(tmp_path, [method], 10, [0])
    text = report.read_text()
    assert "| ours − peer | 1 |" in text
    assert "| cat face | ours |" in text
    sheets = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert sheets == ["dreambooth-lora-10-steps-contexts.webp", "dreambooth-lora-10-steps-neighbours.webp"]
    assert all(f"(sheets/{name})" in text for name in sheets)
    assert Image.open(tmp_path / "sheets" / sheets[0]).width > 3 * 2 * 128
