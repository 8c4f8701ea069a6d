"""Clean rows of the charts data: LoRA on the language model, and the connector, above bfloat16 weights; then merged."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from onesteptrain.data.pool import ImageRef, Sample, Turn
from onesteptrain.proxy import Encoded, LoadOptions, Proxy, in_batches, load_proxy
from onesteptrain.storage.atomic import whole
from onesteptrain.synthetic.charts import ChartProblem
from onesteptrain.synthetic.making import Part, problems

ROWS, CHECKED, BATCH, RATE, RANK = 2000, 64, 8, 1e-3, 16
CONNECTOR_RATE = RATE / 5
LINEAR = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def train(source: Path, out: Path, *, steps: int) -> None:
    """Train for some steps on charts of the part that neither pool nor anchors nor benchmark show."""
    torch.manual_seed(0)
    chance, order = np.random.default_rng(21), np.random.default_rng(2)
    rows = problems(ChartProblem, ROWS, "pretrain", chance)
    proxy = load_proxy(source, options=LoadOptions(device="cpu"))
    check = [_encoded(proxy, row, "heldout") for row in problems(ChartProblem, CHECKED, "heldout", chance)]
    adapters = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR)
    wrapped = get_peft_model(proxy.model.to(torch.bfloat16), adapters)
    connector = list(proxy.model.model.multi_modal_projector.float().requires_grad_(True).parameters())
    trained = [weight for weight in wrapped.parameters() if weight.requires_grad]
    added = [weight for weight in trained if all(weight is not other for other in connector)]
    groups = [{"params": added, "top": RATE}, {"params": connector, "top": CONNECTOR_RATE}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, weight_decay=0.0, betas=(0.9, 0.98))
    print("train 0:", measure(proxy, check), flush=True)
    for step in range(1, steps + 1):
        wrapped.train()
        proxy.model.model.vision_tower.eval()
        fall = max(0.03, min(1.0, 1.7 * (1 - step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * min(1.0, step / 15) * fall
        batch = proxy.batch([_encoded(proxy, rows[place], "pretrain") for place in order.integers(ROWS, size=BATCH)])
        with torch.autocast("cpu", torch.bfloat16):
            loss = proxy.token_losses(batch).means().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"train {step}: loss {float(loss.detach()):.4f}", flush=True)
        if step % 60 == 0 or step == steps:
            print(f"train {step}:", measure(proxy, check), flush=True)
    learned = {
        name: value.detach().float().clone()
        for name, value in wrapped.state_dict().items()
        if "lora_" in name or "multi_modal_projector" in name
    }
    processor = proxy.encoder.processor
    del wrapped, proxy, optimizer, trained, added, connector, groups
    gc.collect()
    _merge(source, adapters, learned, processor, out)


@torch.no_grad()
def measure(proxy: Proxy, rows: Sequence[Encoded]) -> str:
    """Loss, and the share of answers whose every token is the most likely one given the true tokens before it."""
    proxy.model.eval()
    losses, right = [], 0
    for some in in_batches(rows, 16):
        with torch.autocast("cpu", torch.bfloat16):
            found = proxy.answer_logits(proxy.batch([rows[place] for place in some]))
        each = nn.functional.cross_entropy(found.logits.float(), found.target, reduction="none")
        hit = found.logits.argmax(-1) == found.target
        losses += [float(part.mean()) for part in torch.split(each, list(found.lengths))]
        right += sum(bool(part.all()) for part in torch.split(hit, list(found.lengths)))
    return f"held-out loss {np.mean(losses):.4f}, every token right {right / len(rows):.3f} of {len(rows)}"


def _merge(source: Path, adapters: LoraConfig, learned: dict[str, Tensor], processor: Any, out: Path) -> None:
    """Put what was learned into float32 weights."""
    plain = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    whole_model = get_peft_model(plain, adapters)
    if unknown := whole_model.load_state_dict(learned, strict=False).unexpected_keys:
        raise SystemExit(f"adapters do not fit: {unknown[:3]}")
    with whole(out) as part:
        whole_model.merge_and_unload().eval().save_pretrained(part)
        processor.save_pretrained(part)


def _encoded(proxy: Proxy, row: ChartProblem, part: Part) -> Encoded:
    turns = (Turn("user", (ImageRef(row.picture(part), "drawing"), row.question)), Turn("assistant", (row.answer,)))
    return proxy.encoder.encode(Sample("", 0, turns))
