"""The collator where it is used: in workers of a loader, on several ranks, in copies, in Trainer."""

import copy
import math
import pickle

import pytest
import torch
import transformers
from collating import examples_of
from torch.utils.data import DataLoader

from mlm_pytorch.huggingface import MLMCollator
from mlm_pytorch.tokens import IGNORE_INDEX


def test_seed(tokenizer):
    examples = examples_of(500, 300)
    first = MLMCollator(tokenizer, seed=42)
    second = MLMCollator(tokenizer, seed=42)
    other = MLMCollator(tokenizer, seed=43)
    torch.manual_seed(1)
    one, next_one = first(examples), first(examples)
    torch.manual_seed(2)
    assert torch.equal(one["input_ids"], second(examples)["input_ids"])
    assert torch.equal(next_one["input_ids"], second(examples)["input_ids"])
    assert not torch.equal(one["labels"], next_one["labels"])
    assert not torch.equal(one["labels"], other(examples)["labels"])


def test_without_a_seed_torchs_generator_governs(tokenizer):
    collator, examples = MLMCollator(tokenizer), examples_of(300)
    torch.manual_seed(5)
    one = collator(examples)
    torch.manual_seed(5)
    assert torch.equal(one["labels"], collator(examples)["labels"])
    assert not torch.equal(one["labels"], collator(examples)["labels"])


def test_a_seed_leaves_torchs_generator_alone(tokenizer):
    before = torch.get_rng_state()
    MLMCollator(tokenizer, seed=3)(examples_of(50))
    assert torch.equal(before, torch.get_rng_state())


def epoch_of(loader):
    return torch.cat([batch["labels"] for batch in loader])


def test_loader_workers(tokenizer):
    examples = examples_of(*[200] * 8)

    def loader(seed=42, **kwargs):
        collator = MLMCollator(tokenizer, seed=seed)
        return DataLoader(examples, batch_size=2, num_workers=2, collate_fn=collator, **kwargs)

    torch.manual_seed(1)
    one = loader()
    first, second = epoch_of(one), epoch_of(one)
    torch.manual_seed(2)
    again = loader(generator=torch.Generator().manual_seed(9))
    # The collator's seed alone decides, epoch for epoch ...
    assert torch.equal(first, epoch_of(again))
    assert torch.equal(second, epoch_of(again))
    assert not torch.equal(first, epoch_of(loader(seed=43)))
    # ... and neither epochs nor workers repeat each other (batches alternate between the two workers).
    selected = first != IGNORE_INDEX
    assert not torch.equal(selected, second != IGNORE_INDEX)
    assert not torch.equal(selected[:2], selected[2:4])


def test_workers_do_not_inherit_the_main_process_stream(tokenizer):
    examples = examples_of(*[200] * 4)
    collator = MLMCollator(tokenizer, seed=42)
    collator(examples)  # the main process has a stream now, and forks it
    labels = epoch_of(DataLoader(examples, batch_size=2, num_workers=2, collate_fn=collator)) != IGNORE_INDEX
    assert not torch.equal(labels[:2], labels[2:])


def test_workers_that_are_spawned_after_the_main_process_drew(tokenizer):
    examples = examples_of(*[200] * 4)
    used, unused = MLMCollator(tokenizer, seed=42), MLMCollator(tokenizer, seed=42)
    used(examples)
    spawned = {"num_workers": 1, "multiprocessing_context": "spawn"}
    labels = epoch_of(DataLoader(examples, batch_size=2, collate_fn=used, **spawned))
    assert torch.equal(labels, epoch_of(DataLoader(examples, batch_size=2, collate_fn=unused, num_workers=1)))


def test_ranks_draw_other_masks(tokenizer, monkeypatch):
    examples = examples_of(200)

    def labels_of(rank):
        monkeypatch.setenv("RANK", rank)
        return MLMCollator(tokenizer, seed=42)(examples)["labels"]

    alone = MLMCollator(tokenizer, seed=42)(examples)["labels"]
    assert torch.equal(labels_of("0"), alone) and torch.equal(labels_of("1"), labels_of("1"))
    assert not torch.equal(labels_of("1"), alone) and not torch.equal(labels_of("1"), labels_of("2"))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_ranks_of_a_process_group_draw_other_masks(tokenizer, monkeypatch, context):
    """Lightning's launcher, for one, makes a process group and sets no RANK; a spawned worker knows neither."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    monkeypatch.delenv("RANK", raising=False)
    examples = examples_of(20)
    drawn = {}
    for rank in (None, 0, 1):
        if rank is not None:
            torch.distributed.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
        try:
            collator = MLMCollator(tokenizer, seed=42)
            worker = {"num_workers": 1, "multiprocessing_context": context}
            drawn[rank] = (
                collator(examples)["labels"],
                epoch_of(DataLoader(examples, 10, collate_fn=collator, **worker)),
            )
        finally:
            if rank is not None:
                torch.distributed.destroy_process_group()
    for place in (0, 1):
        assert torch.equal(drawn[None][place], drawn[0][place])
        assert not torch.equal(drawn[0][place], drawn[1][place])


def test_copies_and_pickles(tokenizer):
    examples = examples_of(60)
    collator = MLMCollator(tokenizer, seed=42)
    collator(examples)
    copies = [copy.deepcopy(collator), pickle.loads(pickle.dumps(collator))]
    expected = collator(examples)
    for other in copies:
        assert torch.equal(other(examples)["labels"], expected["labels"])


def tiny_bert():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return transformers.BertForMaskedLM(config)


@pytest.mark.parametrize("workers", [0, 2])
def test_in_trainer(tokenizer, tmp_path, workers):
    pytest.importorskip("accelerate")
    dataset = [row | {"name": "not for the model"} for row in examples_of(*[12, 9, 17, 5, 20, 8] * 2)]
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        dataloader_num_workers=workers,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        tiny_bert(), args, train_dataset=dataset, eval_dataset=dataset, data_collator=MLMCollator(tokenizer, seed=0)
    )
    result = trainer.train()
    assert result.global_step == 3
    assert 2.0 < result.training_loss < 6.0  # about ln 50
    assert math.isfinite(trainer.evaluate()["eval_loss"])
