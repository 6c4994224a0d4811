"""The training part of `lab.parity.compare`: losses and gradients, LoRA un-merged and merged."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from lab.parity.rows import ParityRow, apart
from lab.parity.vectors import Vectors
from lasagna import Lasagna
from lasagna.checkpoint.convert.layouts import our_key
from lasagna.network.adapter import adapter_from_tensors, is_lora
from lasagna.network.model import LasagnaModel
from lasagna.prompt.sequences import Conversation, Turn
from training.engine.conversations import ConversationBatch, conversation_losses
from training.recipe.values import ConversationWeights


def training(vectors: Vectors) -> Iterator[ParityRow]:
    """Losses, gradient norms and gradients of the training batches."""
    batches = vectors.json("train.json")
    tensors, gradients = vectors.tensors("train.safetensors"), vectors.tensors("train_grads.safetensors")
    plain = {name: values for name, values in batches.items() if "conversations" in values}
    runs = [(name, name, False) for name in plain]
    for name in batches.keys() - plain.keys():
        same = next((other for other in plain if other.startswith(name.split("_")[0])), None)
        if same and (vectors.folder / "lora.safetensors").exists():
            runs.append((name, same, True))
    for name, of, lora in runs:
        values, wanted = plain[of], batches[name]
        model = _trainable(vectors, lora)
        prompt = vectors.prompt
        owners = [i for i, (a, b) in enumerate(itertools.pairwise(values["offset"])) for _ in range(a, b)]
        conversations = []
        for text in values["conversations"]:
            question, answer = text.split("<im_end>\n")[1].split(" ASSISTANT: ")
            conversations.append(prompt.conversation([Turn((question,), (answer.removesuffix("</s>"),))]))
        if not lora:
            kept = [tensors[f"{of}.input_ids"][i][tensors[f"{of}.attention_masks"][i]] for i in range(len(owners))]
            wrong = sum(list(c.ids) != k.tolist() for c, k in zip(conversations, kept, strict=True))
            yield ParityRow("training ids", name, wrong, 0)
        images = [model.encoder.prepare(vectors.image(image)) for image in values["images"]]
        masks = _targets(tensors, of, owners, conversations)
        batch = ConversationBatch(images, conversations, owners, masks)
        losses = conversation_losses(model, batch)
        given = values["weights"]  # the released code calls the text's cross-entropy "ce"
        weights = ConversationWeights(text=given["ce"], bce=given["bce"], dice=given["dice"])
        total = losses.total(weights)
        # The released code reports terms with their weights.
        found = {
            "loss": total,
            "ce_loss": weights.text * losses.text,
            "mask_bce_loss": weights.bce * losses.bce,
            "mask_dice_loss": weights.dice * losses.dice,
        }
        for key, value in found.items():
            yield ParityRow(
                "training losses", f"{name}: {key}", abs(float(value.detach()) - wanted["losses"][key]), 2e-5
            )
        total.backward()
        own = {_peft_key(key): p.grad for key, p in model.named_parameters() if p.grad is not None}
        theirs = {key: norm for key, norm in wanted["grad_norms"].items() if norm is not None}
        missing = [key for key, norm in theirs.items() if norm > 1e-6 and _peft_key(our_key(key) or "") not in own]
        yield ParityRow("gradient norms", f"{name}: without a gradient", len(missing), 0)
        # Relative to each norm, and to the largest for those that are zero but for rounding.
        floor = 1e-4 * max(theirs.values())
        worst = 0.0
        for key, norm in theirs.items():
            grad = own.get(_peft_key(our_key(key) or ""))
            worst = max(worst, abs((0.0 if grad is None else float(grad.norm())) - norm) / max(norm, floor))
        yield ParityRow("gradient norms", f"{name}: relative", worst, 1e-3)
        for key, known in gradients.items():
            if key.startswith(f"{name}.grad."):
                theirs_key = key.removeprefix(f"{name}.grad.")
                grad = own[_peft_key(our_key(theirs_key) or "")]
                scale = max(float(known.abs().max()), 1e-9)
                yield ParityRow("gradients, relative", f"{name}: {theirs_key}", apart(grad, known) / scale, 1e-3)


def _peft_key(key: str) -> str:
    return key.replace(".base_layer.", ".").replace(".default.", ".")


def _targets(
    tensors: dict[str, Tensor], name: str, owners: list[int], conversations: list[Conversation]
) -> list[Tensor]:
    """The masks of each conversation, cut from those of its image."""
    used: dict[int, int] = {}
    masks = []
    for owner, conversation in zip(owners, conversations, strict=True):
        start, count = used.get(owner, 0), sum(conversation.present)
        masks.append(tensors[f"{name}.gt_masks{owner}"][start : start + count].bool())
        used[owner] = start + count
    return masks


def _trainable(vectors: Vectors, lora: bool) -> LasagnaModel:
    """A fresh model with gradients for what the released code trains; with LoRA, un-merged, through peft."""
    model = Lasagna.from_pretrained(vectors.converted, device="cpu", dtype="float32").model
    model.requires_grad_(False)
    for part in (model.language_model, model.lm_head, model.prompt_projection, model.segmenter.mask_decoder):
        part.requires_grad_(True)
    if lora:
        from peft import LoraConfig, inject_adapter_in_model

        tensors = vectors.tensors("lora.safetensors")
        recipe = vectors.json("checkpoint/keys.json")["lora"]
        low_rank = {key: value for key, value in tensors.items() if is_lora(key)}
        adapter = adapter_from_tensors(low_rank, float(recipe["alpha"]), "lora.safetensors")
        targets = sorted({key.split(".")[-2] for key in adapter.factors})
        config = LoraConfig(r=recipe["r"], lora_alpha=recipe["alpha"], lora_dropout=0.0, target_modules=targets)
        inject_adapter_in_model(config, model.language_model)
        state = dict(model.language_model.named_parameters())
        with torch.no_grad():
            for key, value in tensors.items():
                name = (our_key(key) or "").removeprefix("language_model.")
                if not is_lora(key):
                    stem, _, last = name.rpartition(".")
                    name = f"{stem}.base_layer.{last}"
                state[name].copy_(value)
        for key, parameter in model.language_model.named_parameters():
            parameter.requires_grad_(is_lora(key) or key == "embed_tokens.weight")
    return model


def merging(vectors: Vectors) -> Iterator[ParityRow]:
    """LoRA merged by the conversion: its weights are those of the released code's merged checkpoint."""
    if not (vectors.folder / "lora.safetensors").exists():
        return
    tensors = vectors.tensors("lora.safetensors")
    merged = vectors.tensors("checkpoint/model.safetensors")
    alpha = float(vectors.json("checkpoint/keys.json")["lora"]["alpha"])
    adapter = adapter_from_tensors({k: v for k, v in tensors.items() if is_lora(k)}, alpha, "lora.safetensors")
    for key, value in tensors.items():
        if is_lora(key):
            continue
        ours = (our_key(key) or "").removeprefix("language_model.")
        found = adapter.merge(ours, value).to(torch.bfloat16)
        wrong = int((found != merged[key.removeprefix("base_model.model.")]).sum())
        yield ParityRow("LoRA merged, in bfloat16", ours, wrong, 0)
