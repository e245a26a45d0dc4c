#!/usr/bin/env bash
# A BERT or ModernBERT in a local folder, adapted to the texts of a domain: new words in, old knowledge watched.
#
#   bash examples/adapt_domain.sh MODEL DOMAIN HELD_OUT GENERAL     a folder, and three files (txt, jsonl, parquet, …)
#   bash examples/adapt_domain.sh                                   all four made here, in five minutes
#
# What is made here: a small model of the reference manual of Python, English prose that comes with every Python. Its
# domain will be the source code of the standard library.
set -euo pipefail
OUT=${OUT:-runs/adapted}         # a folder; the same command on the same folder continues the run
BUDGET=${BUDGET:-2m}             # of the adaptation; give yours hours
NEW_TOKENS=${NEW_TOKENS:-1000}   # to add to the vocabulary

if [ $# -eq 0 ]; then
  mkdir -p "$OUT.data"
  python - "$OUT.data" <<'PYTHON'
import json, sys, sysconfig
from pathlib import Path
from pydoc_data.topics import topics

def write(name, texts):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (Path(sys.argv[1]) / name).write_text(lines, encoding="utf-8")

prose, library = list(topics.values()), Path(sysconfig.get_paths()["stdlib"])
code = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(library.glob("*.py"))[::3]]
write("general.jsonl", [text for place, text in enumerate(prose) if place % 8 != 1])
write("general_unseen.jsonl", prose[1::8])
write("domain.jsonl", [text for place, text in enumerate(code) if place % 10])
write("domain_unseen.jsonl", code[::10])
PYTHON
  mlm train "$OUT.data/general.jsonl" --tokenizer wordpiece --vocab-size 2048 --model tiny \
    --out "$OUT.start" --budget "$BUDGET"
  set -- "$OUT.start/model" "$OUT.data/domain.jsonl" "$OUT.data/domain_unseen.jsonl" "$OUT.data/general_unseen.jsonl"
fi
model=$1 domain=$2 held_out=$3 general=$4

# The tokenizer stays, and tokens are added that shorten the words of the domain; the learning rate is a gentle one. The
# first lines say how badly the old vocabulary fits. The loss on the text to keep should not rise much.
mlm train "$domain" --valid "$held_out" --keep "$general" --model "$model" --extend-vocabulary "$NEW_TOKENS" \
  --out "$OUT" --budget "$BUDGET"

# Before and after. Their vocabularies differ, so the bits of a byte can be compared, not the losses of a token.
mlm evaluate "$model" "$OUT" --data "$held_out"
mlm fill "$OUT" "def __init__([MASK], name):" "if value is [MASK]:" --top-k 3
