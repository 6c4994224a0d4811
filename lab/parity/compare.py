"""Differences between this project and the released code: `python -m lab.parity.compare VECTORS`.

VECTORS is a folder that the released code wrote: a tiny checkpoint with its inputs and outputs. Its README.md says what
each file holds. The command prints the largest difference per stage (`--all`: every comparison), and ends with 1 if a
difference is over its tolerance.
"""

import argparse
import contextlib
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from lab.parity.rows import ParityRow, apart
from lab.parity.training import merging, training
from lab.parity.vectors import Vectors
from lasagna.assistant.drawing import masks_to_image
from lasagna.network.decoding import decode_class_lists
from lasagna.network.generate import generate
from lasagna.network.vision import PreparedImage
from lasagna.prompt.sequences import Turn

HIDDEN, LOGITS, PROMPTS, LOW_RES, MASKS = 4e-5, 7e-5, 1.4e-4, 1.9e-3, 3e-3
"""Ten times the noise of float32."""


Stage = Callable[[Vectors], Iterator[ParityRow]]


def _digest(values: Tensor | NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def tokenisation(vectors: Vectors) -> Iterator[ParityRow]:
    """Compares the token ids of every text."""
    prompt, text = vectors.prompt, vectors.text
    encode = prompt.tokenizer.encode_template

    def whole(written: str) -> list[int]:
        before, after = written.split("<image>")
        return [prompt.tokenizer.bos, *encode(before), text["IMAGE_TOKEN_INDEX"], *encode(after)]

    wrong = 0
    for case in text["cases"].values():
        wrong += whole(case["prompt_generate"]) != case["ids_generate"]
        wrong += whole(case["prompt_train"]) != case["ids_train"]
        made = prompt.conversation([Turn((case["question"].removeprefix("<image>\n"),), (case["answer"],))])
        wrong += list(made.ids) != case["ids_train"]
        wrong += list(made.labels) != case["labels_train"]
    yield ParityRow("tokenisation", "prompts, answers and labels", wrong, 0)
    wrong = sum(whole(wording["prompt"]) != wording["ids"] for wording in text["templates_sem"])
    yield ParityRow("tokenisation", "wordings", wrong, 0)
    wrong = sum(encode(edge["text"]) != edge["ids_no_special"] for edge in text["edge"])
    yield ParityRow("tokenisation", "edges", wrong, 0)


def preprocessing(vectors: Vectors) -> Iterator[ParityRow]:
    """Pixels of CLIP and SAM, sizes, and masks brought back to the image."""
    prepare = vectors.model.encoder.prepare
    for name in vectors.images:
        prepared, known = prepare(vectors.image(name)), vectors.text["input_sha256"][name]
        wrong = _digest(prepared.pixels["clip"]) != known["clip_f32_sha256"]
        yield ParityRow("preprocessing", f"{name}: CLIP pixels", int(wrong), 0)
        wrong = _digest(prepared.pixels["image"]) != known["sam_input_f32_sha256"]
        yield ParityRow("preprocessing", f"{name}: SAM pixels", int(wrong), 0)
    known, arrays = vectors.json("preprocess.json"), np.load(vectors.folder / "preprocess.npz")
    for size, wanted in known.pop("shapes").items():
        height, width = map(int, size.split("x"))
        found = prepare(np.zeros((height, width, 3), np.uint8)).content_size
        yield ParityRow("preprocessing", f"{size}: size", int(list(found) != wanted), 0)
    for size, wanted in known.items():
        prepared = prepare(arrays[f"{size}.image_u8"])
        wrong = _digest(prepared.pixels["clip"]) != wanted["clip_f32_sha256"]
        wrong |= _digest(prepared.pixels["image"]) != wanted["input_f32_sha256"]
        yield ParityRow("preprocessing", f"{size}: pixels", int(wrong), 0)
    low = torch.from_numpy(arrays["post.low_res"])[0]
    side = vectors.model.config.vision.image_size
    for key in arrays:
        if not key.startswith("post.") or "_to_" not in key:
            continue
        (height, width), original = (
            [int(number) for number in part.split("x")] for part in key.removeprefix("post.").split("_to_")
        )
        prepared = PreparedImage({}, (side, side), (height, width), (original[0], original[1]), through_input=True)
        found = masks_to_image(low, prepared)
        yield ParityRow("mask post-processing", key, apart(found, torch.from_numpy(arrays[key])[0]), 1e-4)


@torch.inference_mode()
def encoders(vectors: Vectors) -> Iterator[ParityRow]:
    """Compares CLIP, the projector and SAM."""
    wanted = vectors.tensors("encoders.safetensors")
    encoder = vectors.model.encoder
    for name in vectors.images:
        pixels = {key: value[None] for key, value in encoder.prepare(vectors.image(name)).pixels.items()}
        tokens = encoder.tokens(pixels["clip"])
        yield ParityRow("CLIP features", name, apart(tokens[0], wanted[f"{name}.clip_select_features"]), HIDDEN)
        projected = vectors.model.projector(tokens)
        yield ParityRow("projector", name, apart(projected[0], wanted[f"{name}.mm_projector_out"]), HIDDEN)
        outputs: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack:
            for key, module in {"patch_embed": encoder.sam.patch_embed, **_blocks(encoder.sam)}.items():
                hook = module.register_forward_hook(lambda _m, _i, out, key=key, to=outputs: to.update({key: out}))
                stack.callback(hook.remove)
            embedding = encoder.sam(pixels["image"])
        for key, out in outputs.items():
            known = wanted.get(f"{name}.sam_{key}_stride8")
            if known is not None:
                yield ParityRow("SAM blocks", f"{name}: {key}", apart(out[0, ::8, ::8], known), HIDDEN)
        known = wanted[f"{name}.sam_image_embedding_stride4"]
        yield ParityRow("SAM embedding", name, apart(embedding[0, :, ::4, ::4], known), HIDDEN)
    grid = vectors.model.config.vision.image_size // 16
    position = vectors.model.segmenter.prompt_encoder.pe_layer((grid, grid))
    yield ParityRow(
        "SAM embedding",
        "positional encoding",
        apart(position[:, ::8, ::8], wanted["dense_pe_stride8"]),
        HIDDEN,
    )


def _blocks(sam: Any) -> dict[str, Any]:
    return {f"block{i}": block for i, block in enumerate(sam.blocks)}


@torch.inference_mode()
def forward(vectors: Vectors) -> Iterator[ParityRow]:
    """Teacher-forced: every layer, logits, prompt embeddings, masks."""
    model, prompt = vectors.model, vectors.prompt
    for path in sorted(vectors.folder.glob("tf_*.safetensors")):
        case, wanted = path.stem.removeprefix("tf_"), vectors.tensors(path.name)
        ids = wanted["input_ids"].tolist()
        features = vectors.assistant.encode_image(vectors.image(_image_of(vectors, case)))
        layers: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack:
            for i, layer in enumerate(model.language_model.layers):
                hook = layer.register_forward_hook(
                    lambda _m, inputs, out, i=i, to=layers: to.update(
                        {f"llm_layer{i}_in": inputs[0], f"llm_layer{i}_out": out[0] if isinstance(out, tuple) else out}
                    )
                )
                stack.callback(hook.remove)
            embeddings = model.sequence(ids, features.encoded.tokens[0])[None]
            positions = torch.arange(embeddings.shape[1])[None]
            hidden = model.run(embeddings, None, positions, None)[0]
        for key, out in layers.items():
            if key in wanted:
                yield ParityRow("LLM layers", f"{case}: {key}", apart(out.view(hidden.shape), wanted[key]), HIDDEN)
        yield ParityRow("LLM layers", f"{case}: last, normalised", apart(hidden, wanted["hidden_last"]), HIDDEN)
        logits = model.lm_head(hidden)
        after = prompt.image_tokens + len(prompt.before_image)
        for key, found in {"logits_full": logits, "logits_after_image": logits[after:]}.items():
            if key in wanted:
                yield ParityRow("logits", f"{case}: {key}", apart(found[-len(wanted[key]) :], wanted[key]), LOGITS)
        rows = [i - 2 + prompt.image_tokens for i, token in enumerate(ids) if token == prompt.seg]
        wrong = rows != wanted["ins_hidden_index"].tolist()
        yield ParityRow("mask rows", case, int(wrong), 0)
        prompts = model.prompt_projection(hidden[rows])
        yield ParityRow("prompt embeddings", case, apart(prompts, wanted["pred_embeddings"]), PROMPTS)
        if not rows:
            continue
        low = model.segmenter(features.encoded, prompts, torch.zeros(len(rows), dtype=torch.long))[0]
        stride = 1 if "low_res_masks" in wanted else 4
        known = wanted["low_res_masks" if stride == 1 else f"low_res_masks_stride{stride}"]
        yield ParityRow("low-resolution masks", case, apart(low[:, None, ::stride, ::stride], known), LOW_RES)
        yield ParityRow("masks", case, apart(masks_to_image(low, features.prepared), wanted["masks"]), MASKS)


def _image_of(vectors: Vectors, case: str) -> str:
    return str(vectors.text["cases"][case]["image"])


@torch.inference_mode()
def class_lists(vectors: Vectors) -> Iterator[ParityRow]:
    """Exact class-list decoding: the released code's greedy decisions, its margins and its masks."""
    model, prompt = vectors.model, vectors.prompt
    for case, values in vectors.text["cases"].items():
        path = vectors.folder / f"tf_{case}.safetensors"
        if not values["classes"] or not path.exists():
            continue
        wanted = load_file(path)
        features = vectors.assistant.encode_image(vectors.image(str(values["image"])))
        query = prompt.query([prompt.encode_name(name) for name in values["classes"]])
        zero = torch.zeros(len(query.slots))
        found = decode_class_lists(model, prompt, features.encoded.tokens, [query], [0], [zero]).lists[0]
        present = [name in values["positives"] for name in values["classes"]]
        yield ParityRow(
            "class-list decisions", case, sum(a != b for a, b in zip(found.present, present, strict=True)), 0
        )
        # The position before each decision, counted from the end of the sequence: the stop token follows the answer.
        logits = wanted["logits_after_image"]
        rows = [slot - 1 - len(query.answer) - 1 for slot in query.slots]
        margins = logits[rows, prompt.seg] - logits[rows, prompt.neg]
        yield ParityRow("class-list margins", case, apart(found.margins, margins), LOGITS)
        answer = vectors.assistant.segment(vectors.image(str(values["image"])), values["classes"])
        masks = torch.tensor(np.stack([a.mask for a in answer.classes if a.mask is not None]))
        # A pixel may change sides only where its logit is within rounding of zero.
        clear = wanted["masks"].abs() > MASKS
        yield ParityRow("class-list masks", case, int(((masks != (wanted["masks"] > 0)) & clear).sum()), 0)


@torch.inference_mode()
def generation(vectors: Vectors) -> Iterator[ParityRow]:
    """Greedy generation: ids, logits of every step, masks, forwards."""
    prompt, model = vectors.prompt, vectors.model
    wanted = vectors.tensors("generate.safetensors")
    for case, known in vectors.json("generate.json").items():
        question = vectors.text["cases"][case]["question"].removeprefix("<image>\n")
        pixels = vectors.image(_image_of(vectors, case))
        features = vectors.assistant.encode_image(pixels)
        ids = prompt.question(Turn((question,), ()))
        made = generate(model, prompt, features.encoded.tokens, ids, 64)
        whole = [*prompt.with_image(ids), *made.ids]
        yield ParityRow("greedy ids", case, int(whole != known["output_ids"]), 0)
        yield ParityRow("forwards per new token, less one", case, made.forwards - len(made.ids), 0)
        answer = vectors.assistant.ask(pixels, question, control_tokens=True)
        yield ParityRow("greedy ids", f"{case}: ask", int(answer.ids != made.ids), 0)
        yield ParityRow("greedy ids", f"{case}: masks", abs(len(answer.masks) - known["n_masks"]), 0)
        if f"{case}.step_logits_top" in wanted:
            found = model.lm_head(made.hidden)
            yield ParityRow("greedy logits", case, apart(found, wanted[f"{case}.step_logits_top"]), LOGITS)
        if f"{case}.masks" in wanted:
            hidden = torch.stack([made.hidden[i] for i, token in enumerate(made.ids) if token == prompt.seg])
            owners = torch.zeros(len(hidden), dtype=torch.long)
            low = model.segmenter(features.encoded, model.prompt_projection(hidden), owners)[0]
            masks = masks_to_image(low, features.prepared)
            yield ParityRow("greedy masks", case, apart(masks, wanted[f"{case}.masks"]), MASKS)


STAGES: dict[str, Stage] = {
    "tokenisation": tokenisation,
    "preprocessing": preprocessing,
    "encoders": encoders,
    "forward": forward,
    "class lists": class_lists,
    "generation": generation,
    "training": training,
    "merging": merging,
}


def table(rows: list[ParityRow]) -> str:
    """The largest difference per stage, as a Markdown table."""
    lines = ["| stage | comparisons | largest difference | tolerance | worst case |", "|---|---|---|---|---|"]
    for stage in dict.fromkeys(row.stage for row in rows):
        group = [row for row in rows if row.stage == stage]
        worst = max(group, key=lambda row: row.difference)
        difference = "equal" if worst.difference == 0 else f"{worst.difference:.1e}"
        tolerance = "equal" if worst.tolerance == 0 else f"{worst.tolerance:.1e}"
        case = "" if worst.difference == 0 else worst.case
        lines.append(f"| {stage} | {len(group)} | {difference} | {tolerance} | {case} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--all", action="store_true", help="every comparison, not one line per stage")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        vectors = Vectors(chosen.vectors, Path(temporary) / "checkpoint")
        rows = [row for stage in STAGES.values() for row in stage(vectors)]
    if chosen.all:
        for row in rows:
            print(f"{row.stage:30} {row.difference:10.2e} {row.tolerance:8.1e} {row.case}")
    print(table(rows))
    failed = [row for row in rows if not row.passed]
    for row in failed:
        print(f"over tolerance: {row}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
