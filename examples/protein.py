"""A FASTA file -> a protein language model -> masked residues and embeddings, with nothing but transformers at the end.

    python examples/protein.py [FASTA] [--budget 3m] [--out runs/protein]

Without a file, it makes one: descendants of three proteins, a fifth of their residues changed at random. A model that
has understood them restores the ancestors, which it never saw.
"""

import argparse
import random
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

ANCESTORS = {
    "ubiquitin": "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG",
    "lysozyme": "KVFGRCELAAAMKRHGLDNYRGYSLGNWVCAAKFESNFNTQATNRNTDGSTDYGILQINSRWWCNDGRTPGSRNLCNIPCSALLSSDITASVNCAKKIV"
    "SDGNGMNAWVAWRNRCKGTDVQAWIRGCRL",
    "cytochrome c": "GDVEKGKKIFVQKCAQCHTVEKGGKHKTGPNLHGLFGRKTGQAPGFTYTDANKNKGITWKEETLMEYLENPKKYIPGTKMIFAGIKKKTEREDLIA"
    "YLKKATNE",
}


def write_descendants(path: Path, per_family: int = 1000) -> None:
    draw = random.Random(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="ascii") as file:
        for number in range(per_family):
            for name, ancestor in ANCESTORS.items():
                changed = (draw.choice("ACDEFGHIKLMNPQRSTVWY") if draw.random() < 0.2 else aa for aa in ancestor)
                file.write(f">{name}, descendant {number}\n{''.join(changed)}\n")


def read_fasta(path: Path) -> dict[str, str]:
    records = path.read_text(encoding="utf-8").split(">")[1:]
    return {record.split("\n", 1)[0]: "".join(record.split("\n")[1:]) for record in records}


@torch.no_grad()
def main(fasta: Path | None, budget: str, out: Path) -> None:
    if fasta is None:
        fasta, proteins = out.with_suffix(".fasta"), ANCESTORS
        write_descendants(fasta)
    else:
        proteins = dict(list(read_fasta(fasta).items())[:3])
    train = f"train {fasta} --out {out} --budget {budget} --model tiny --seq-len 256"  # in a shell: mlm train …
    subprocess.run([sys.executable, "-m", "mlm_pytorch", *train.split()], check=True)

    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    model = AutoModelForMaskedLM.from_pretrained(out / "model").eval()
    vectors = []
    for name, sequence in proteins.items():
        shown = "".join("[MASK]" if place % 10 == 4 else residue for place, residue in enumerate(sequence))
        inputs = tokenizer(shown, truncation=True, return_tensors="pt")
        guesses = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id].argmax(-1)
        print(f"{name}\n  masked {sequence[4::10]}\n  guess  {tokenizer.decode(guesses)}")

        hidden = model.base_model(**tokenizer(sequence, truncation=True, return_tensors="pt")).last_hidden_state
        vectors.append(hidden[0, 1:-1].mean(0))  # over residues, without [CLS] and [SEP]

    vectors = torch.nn.functional.normalize(torch.stack(vectors), dim=-1)
    print("cosine similarities", *(" ".join(f"{x:6.2f}" for x in row) for row in vectors @ vectors.T), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", nargs="?", type=Path)
    parser.add_argument("--budget", default="3m")
    parser.add_argument("--out", default=Path("runs/protein"), type=Path)
    main(**vars(parser.parse_args()))
