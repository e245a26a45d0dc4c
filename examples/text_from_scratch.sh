#!/usr/bin/env bash
# Raw text -> a model that transformers loads -> fill masks -> measure -> export.
#
#   bash examples/text_from_scratch.sh [TEXT ...]       files, globs or folders of text; five minutes
#   BUDGET=1h OUT=runs/mine bash examples/text_from_scratch.sh corpus.jsonl.gz
#
# Without a text of yours it reads the reference manual of Python, which every Python brings along.
set -euo pipefail
OUT=${OUT:-runs/text}        # a folder; the same command on the same folder continues the run
BUDGET=${BUDGET:-5m}         # or 3h, 5000steps, 2epochs, 1Btokens
MODEL=${MODEL:-}             # left out, a size that fits budget, corpus and machine

if [ $# -eq 0 ]; then
  mkdir -p "$OUT.text"
  python -c 'from pydoc_data.topics import topics; print(*topics.values(), sep="\n\n")' > "$OUT.text/manual.txt"
  set -- "$OUT.text/manual.txt" --split-text paragraph
fi

# A tokenizer is learned, a hundredth of the documents is held out, and training reports on itself as it goes.
mlm train "$@" --out "$OUT" --budget "$BUDGET" ${MODEL:+--model "$MODEL"}

# What does it know? $OUT/report.html shows more.
mlm fill "$OUT" \
  "The import [MASK] binds a name in the current namespace." \
  "If no [MASK] is given, a TypeError exception is raised." --top-k 3

# Loss and accuracy on what was held out, by how frequent a token is and where in its word it stands.
mlm evaluate "$OUT" --breakdown

# A folder for others, checked by reading it back; from here on it is any Hugging Face model.
rm -rf "$OUT.model"
mlm export "$OUT" "$OUT.model"
python - "$OUT.model" <<'PYTHON'
import sys
from transformers import pipeline

fill = pipeline("fill-mask", sys.argv[1])
for guess in fill("The import [MASK] binds a name in the current namespace.", top_k=3):
    print(f"{guess['score']:.2f}  {guess['sequence']}")
PYTHON
