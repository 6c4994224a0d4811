"""The command `lasagna ask`: a question in words about one image."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lasagna.errors import ConfigError
from lasagna.settings import Settings

if TYPE_CHECKING:
    from PIL import Image

    from lasagna.network.generate import TextAnswer


@click.command(
    epilog="""\b
Examples:
  lasagna ask photo.jpg "What is in this image?" --model lasagna-7b
  lasagna ask photo.jpg "the dog on the left" --task referring --model lasagna-7b --out answer
"""
)
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("question")
@click.option(
    "--task",
    type=click.Choice(["vqa", "referring", "reasoning"]),
    default="vqa",
    show_default=True,
    help="vqa: QUESTION as it is; referring: what to segment; reasoning: a question whose answer is to be segmented.",
)
@click.option("--model", help="Checkpoint: a shipped name, a folder or a hub id.")
@click.option("--device", help="auto, cpu, cuda or cuda:N.")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.")
@click.option("--quantise", help="none, int8 or int4: the language model in fewer bits.  [default: none]")
@click.option("--encoder", help="torch or openvino: what computes the image encoder on a CPU.  [default: torch]")
@click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option(
    "--control-tokens", is_flag=True, help="Control tokens in QUESTION count, as in the released code: for tests."
)
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="Write overlay and masks here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
def ask(
    image: Path,
    question: str,
    task: str,
    model: str | None,
    device: str | None,
    dtype: str | None,
    quantise: str | None,
    encoder: str | None,
    max_new_tokens: int,
    control_tokens: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Ask QUESTION about IMAGE; the model answers in words, and in masks where it says so."""
    settings = Settings.load(model=model, device=device, dtype=dtype, quantise=quantise, encoder=encoder)
    from lasagna.assistant.lasagna import Lasagna
    from lasagna.masks.image import load_image

    pixels = load_image(
        image,
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        max_memory=settings.max_image_memory,
    )
    assistant = Lasagna.from_pretrained(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        quantise=settings.quantise,
        encoder=settings.encoder,
    )
    answer = assistant.ask(pixels, question, task=task, max_new_tokens=max_new_tokens, control_tokens=control_tokens)
    files = _write(out, pixels, answer) if out is not None else []
    if as_json:
        click.echo(json.dumps(_record(assistant.version, answer, files), indent=2, ensure_ascii=False))
        return
    click.echo(answer.text)
    if not answer.complete:
        click.secho(f"cut after {len(answer.ids)} tokens; see --max-new-tokens", fg="yellow", err=True)
    for file in files:
        click.echo(f"  {file}")


def _record(version: str, answer: "TextAnswer", files: list[str]) -> dict[str, Any]:
    return {
        "model_version": version,
        "text": answer.text,
        "complete": answer.complete,
        "ids": list(answer.ids),
        "forwards": answer.forwards,
        "masks": [{"area": int(mask.sum()), "size": list(mask.shape)} for mask in answer.masks],
        "files": files,
    }


def _write(out: Path, image: "Image.Image", answer: "TextAnswer") -> list[str]:
    """`overlay.png` and `mask-N.png` (0 and 255), in the order in which the answer names them."""
    import numpy as np
    from PIL import Image

    from lasagna.masks.palette import palette

    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    names = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number, (mask, colour) in enumerate(zip(answer.masks, palette(len(answer.masks)), strict=True), 1):
            pixels[mask] = pixels[mask] * 0.5 + np.array(colour, np.float32) * 0.5
            names.append(f"mask-{number}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(out / names[-1])
        Image.fromarray(pixels.round().astype(np.uint8)).save(out / "overlay.png")
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
    return [str(out / name) for name in ("overlay.png", *names)]
