"""One objective, trained by Lightning and by Hugging Face's Trainer.

    pip install lightning accelerate
    python examples/lightning_and_trainer.py [STEPS]             300 steps: two minutes

The text is the reference manual of Python, which every Python brings along.
"""

import sys
from pathlib import Path
from pydoc_data.topics import topics

import lightning
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, Trainer, TrainingArguments

from mlm_pytorch import MLM
from mlm_pytorch.data.tokenizer import train_tokenizer
from mlm_pytorch.huggingface import MLMCollator

OUT = Path("runs/lightning_and_trainer")


def build(tokenizer):
    torch.manual_seed(0)
    size = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512)
    return BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **size))


class Pretraining(lightning.LightningModule):
    """The collator masks; `MLM` computes the loss, and lets masked positions alone through the model's head."""

    def __init__(self, model, tokenizer):
        super().__init__()
        self.mlm = MLM(model, mask_token_id=tokenizer.mask_token_id, pad_token_id=tokenizer.pad_token_id)
        self.losses = []

    def training_step(self, batch, _):
        loss = self.mlm(batch["input_ids"], labels=batch["labels"], attention_mask=batch["attention_mask"])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.0)


def main(steps: int) -> None:
    paragraphs = [text for topic in topics.values() for text in topic.split("\n\n") if text.strip()]
    train_tokenizer(paragraphs, 2048, "wordpiece").save(OUT / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(OUT / "tokenizer")
    rows = [{"input_ids": ids} for ids in tokenizer(paragraphs, truncation=True, max_length=64)["input_ids"]]
    collator = MLMCollator(tokenizer, mlm_probability=0.2, selection="words", seed=0)

    module = Pretraining(build(tokenizer), tokenizer)
    lightning.seed_everything(0)
    fit = lightning.Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False)
    fit.fit(module, DataLoader(rows, batch_size=32, shuffle=True, collate_fn=collator))
    module.mlm.transformer.save_pretrained(OUT / "lightning")
    print(f"Lightning: loss {module.losses[0]:.3f}, then {module.losses[-1]:.3f}")

    arguments = TrainingArguments(
        output_dir=str(OUT / "trainer"), max_steps=steps, per_device_train_batch_size=32, learning_rate=1e-3,
        lr_scheduler_type="constant", logging_steps=max(1, steps // 10), logging_first_step=True, use_cpu=True,
        save_strategy="no", report_to="none",
    )  # fmt: skip
    trainer = Trainer(build(tokenizer), arguments, train_dataset=rows, data_collator=collator)
    trainer.train()
    trainer.save_model(str(OUT / "trainer"))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"Trainer: loss {losses[0]:.3f}, then {losses[-1]:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 300)
